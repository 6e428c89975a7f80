"""Every good file shows the picture; every hostile file is refused for its own reason, cheaply and quietly."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from cxr_ray.errors import ImageError
from cxr_ray.imaging import png
from cxr_ray.imaging.decode import DecodedImage, Limits, decode, sniff
from cxr_ray.imaging.reasons import REASONS

Watch = Callable[[], AbstractContextManager[None]]

LOSSY = {"grey.jpg", "rgb.jpg", "progressive.jpg", "cmyk.jpg", "turned.jpg", "appended.jpg", "baseline.dcm"}


def reason_of(data: bytes, limits: Limits | None = None) -> str:
    """Why ``data`` is refused, or that it is not."""
    try:
        decode(data, limits)
    except ImageError as error:
        return error.reason
    return "decoded"


def test_all_good_files_show_the_same_picture(good: dict[str, bytes], hostile: ModuleType, silent: Watch) -> None:
    expected = hostile.picture().astype(int)
    with silent():
        decoded = {name: decode(data) for name, data in good.items()}
    for name, image in decoded.items():
        assert image.pixels.dtype == np.uint8, name
        assert image.pixels.flags.c_contiguous, name
        assert image.pixels.shape == (image.height, image.width) == expected.shape, name
        assert np.abs(image.pixels - expected).max() <= (3 if name in LOSSY else 0), name
        assert image.format == ("png" if name.endswith(("png", "txt")) else "jpeg" if name.endswith("jpg") else "dicom"), name


def test_mode_and_bits_are_those_of_the_file(good: dict[str, bytes]) -> None:
    seen = {name: (decode(good[name]).mode, decode(good[name]).bits) for name in ("sixteen-bit.png", "cmyk.jpg", "twelve-bit.dcm")}
    assert seen == {"sixteen-bit.png": ("I;16", 16), "cmyk.jpg": ("CMYK", 8), "twelve-bit.dcm": ("MONOCHROME2", 12)}


@pytest.fixture(scope="module")
def refused(bad: dict[str, bytes], silent: Watch) -> dict[str, ImageError]:
    """Name -> the error of each hostile file; nothing is logged on the way."""
    errors = {}
    with silent():
        for name, data in bad.items():
            with pytest.raises(ImageError) as caught:
                decode(data)
            errors[name] = caught.value
    return errors


def test_each_hostile_file_is_refused_for_its_reason(refused: dict[str, ImageError], hostile: ModuleType) -> None:
    assert {name: error.reason for name, error in refused.items()} == hostile.hostile_reasons()


def test_every_reason_has_a_file_that_shows_it(hostile: ModuleType) -> None:
    # codec-not-installed is shown in test_frames: here everything is installed
    assert set(REASONS) - set(hostile.hostile_reasons().values()) == {"codec-not-installed"}


def test_messages_are_ours_alone(refused: dict[str, ImageError]) -> None:
    for name, error in refused.items():
        assert error.message == REASONS[error.reason], name  # type: ignore[index]
        assert error.__cause__ is None, name
        assert error.__suppress_context__ or error.__context__ is None, name


def test_hostile_files_take_no_memory(bad: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
    script = """
import json, pathlib, resource, sys
from cxr_ray.errors import ImageError
from cxr_ray.imaging.decode import decode
refused = 0
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for file in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    data = file.read_bytes()
    try:
        decode(data)
    except ImageError:
        refused += 1
    del data
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"refused": refused, "grown_mb": grown / 1024, "child_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}))
"""
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    told = json.loads(run.stdout)
    assert told["refused"] == len(bad)
    assert told["grown_mb"] < 64  # the largest file itself has 20
    assert told["child_mb"] < 128
    assert run.stderr == ""


def test_limits_come_before_decoding(good: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("decoded before the limits were checked")

    monkeypatch.setattr("cxr_ray.imaging.png.PngImageFile", never)
    monkeypatch.setattr("cxr_ray.imaging.jpeg.JpegImageFile", never)
    monkeypatch.setattr("cxr_ray.imaging.dicom._samples", never)
    small = Limits(max_pixels=96 * 80 - 1)
    assert {reason_of(data, small) for data in good.values()} == {"too-many-pixels"}
    assert reason_of(good["grey.png"], Limits(max_bytes=len(good["grey.png"]) - 1)) == "too-large"


def test_limits_are_inclusive(good: dict[str, bytes]) -> None:
    data = good["grey.png"]
    assert decode(data, Limits(max_bytes=len(data), max_pixels=96 * 80)).width == 80


def test_every_cut_of_a_file_is_refused_or_shows_the_picture(good: dict[str, bytes], hostile: ModuleType) -> None:
    for name in ("grey.png", "grey.jpg", "progressive.jpg", "eight-bit.dcm"):
        data = good[name]
        reasons = {reason_of(data[:end]) for end in range(len(data) - 1, 0, -41)}
        assert reasons <= {"truncated", "not-an-image", "no-pixels"}, name


def test_name_and_content_are_told_apart(bad: dict[str, bytes], good: dict[str, bytes]) -> None:
    assert sniff(good["wrong-name.txt"]) == "png"
    assert sniff(good["bare"]) == "dicom"
    assert sniff(good["tiff-preamble.dcm"]) == "dicom"
    with pytest.raises(ImageError) as caught:
        sniff(bad["really-gif.png"])
    assert caught.value.reason == "unsupported-format"


def test_only_allowed_tags_leave(good: dict[str, bytes]) -> None:
    image = decode(good["eight-bit.dcm"])
    assert image.tags == {"PatientID": "P-0007", "PatientSex": "F", "PatientAge": "044Y", "ViewPosition": "PA", "Modality": "CR"}
    assert "P-0007" not in repr(image)
    assert decode(good["grey.png"]).tags == {}


def test_a_fault_of_ours_costs_one_image(good: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def faulty(*_: object) -> DecodedImage:
        raise ZeroDivisionError("Doe^Jane")

    monkeypatch.setattr(png, "decode_png", faulty)
    assert reason_of(good["grey.png"]) == "corrupt"
    assert [record.getMessage() for record in caplog.records] == ["unexpected ZeroDivisionError while decoding a png"]


def test_threads_decode_the_same_as_one(good: dict[str, bytes]) -> None:
    files = [data for name, data in good.items() if name not in {"rle.dcm", "jpeg-2000.dcm"}]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(decode, files * 4))
    for number, image in enumerate(together):
        np.testing.assert_array_equal(image.pixels, decode(files[number % len(files)]).pixels)


def test_image_and_error_cross_processes(good: dict[str, bytes]) -> None:
    image = pickle.loads(pickle.dumps(decode(good["eight-bit.dcm"])))
    assert image.tags["ViewPosition"] == "PA"
    with pytest.raises(ImageError) as caught:
        decode(b"")
    assert pickle.loads(pickle.dumps(caught.value)).reason == "empty"
