"""Any bytes, and any damage to a valid file: a picture or an ``ImageError``, nothing else, and nothing caught by the net."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cxr_ray.errors import ImageError
from cxr_ray.imaging.decode import Limits, decode
from cxr_ray.imaging.reasons import REASONS

Watch = Callable[[], AbstractContextManager[None]]

SMALL = Limits(max_pixels=2_000_000)
CHILD = ("rle.dcm", "jpeg-2000.dcm")
COMMON = {"deadline": None, "derandomize": True, "suppress_health_check": [HealthCheck.function_scoped_fixture]}

PREFIXES = st.sampled_from(
    [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", bytes(128) + b"DICM", b"\x08\x00\x05\x00CS\x0a\x00", b"\x08\x00\x00\x00\x04\x00\x00\x00"]
)
EDIT = st.tuples(
    st.sampled_from(["set", "cut", "drop", "double", "ones"]), st.floats(0, 1, exclude_max=True), st.booleans(), st.integers(0, 255)
)


def damaged(data: bytes, edits: list[tuple[str, float, bool, int]]) -> bytes:
    """``data`` after ``edits``, half of which fall on its header."""
    changed = bytearray(data)
    for kind, place, early, value in edits:
        at = int(place * (min(len(changed), 400) if early else len(changed)))
        if kind == "set":
            changed[at : at + 1] = bytes([value])
        elif kind == "cut":
            del changed[at:]
        elif kind == "drop":
            del changed[at : at + 1 + value % 8]
        elif kind == "double":
            changed[at:at] = changed[at : at + value]
        else:
            changed[at : at + 4] = b"\xff\xff\xff\xff"
    return bytes(changed)


def fault(data: bytes) -> str | None:
    """What is wrong with how ``data`` was taken."""
    try:
        image = decode(data, SMALL)
    except ImageError as error:
        return None if error.message == REASONS.get(error.reason) else error.message  # type: ignore[call-overload]
    return None if image.pixels.shape == (image.height, image.width) else "shape"


@settings(max_examples=300, **COMMON)  # type: ignore[arg-type]
@given(prefix=PREFIXES, rest=st.binary(max_size=400))
def test_any_bytes(prefix: bytes, rest: bytes, silent: Watch) -> None:
    with silent():
        assert fault(prefix + rest) is None


@settings(max_examples=500, **COMMON)  # type: ignore[arg-type]
@given(choice=st.integers(0, 10**6), edits=st.lists(EDIT, min_size=1, max_size=6))
def test_damaged_files(
    choice: int, edits: list[tuple[str, float, bool, int]], good: dict[str, bytes], bad: dict[str, bytes], silent: Watch
) -> None:
    names = sorted(name for name in good if name not in CHILD) + sorted(name for name in bad if len(bad[name]) < 50_000)
    name = names[choice % len(names)]
    with silent():
        assert fault(damaged(good.get(name) or bad[name], edits)) is None


@settings(max_examples=12, **COMMON)  # type: ignore[arg-type]
@given(name=st.sampled_from(CHILD), edits=st.lists(EDIT, min_size=1, max_size=3))
def test_damaged_files_of_the_codec_process(
    name: str, edits: list[tuple[str, float, bool, int]], good: dict[str, bytes], silent: Watch
) -> None:
    with silent():
        assert fault(damaged(good[name], edits)) is None
