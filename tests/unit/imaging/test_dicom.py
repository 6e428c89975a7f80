"""DICOM rules that pydicom's collection does not show: LUTs, odd headers, the budget of the header reader, the codec process."""

from __future__ import annotations

import struct
import time
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from cxr_ray.errors import ImageError
from cxr_ray.imaging import codec_child, frames
from cxr_ray.imaging.decode import decode
from cxr_ray.imaging.dicom import codecs


def reason_of(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data)
    return caught.value.reason


def outcome_of(data: bytes) -> tuple[int, ...] | str:
    """The decoded shape, or the reason why not."""
    try:
        return decode(data).pixels.shape
    except ImageError as error:
        return error.reason


def lut_item(entries: list[int], first: int, bits: int, vr: str = "US") -> Dataset:
    """A LUT as a sequence item; 8 bit entries lie two to a word (VR OW)."""
    item = Dataset()
    item.add_new(0x00283002, "US", [len(entries), first, bits])
    if vr == "OW":
        item.add_new(0x00283006, "OW", bytes(entries) if bits <= 8 else struct.pack(f"<{len(entries)}H", *entries))
    else:
        item.add_new(0x00283006, vr, entries)
    return item


@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian])
@pytest.mark.parametrize(("bits", "vr"), [(8, "OW"), (12, "US"), (16, "OW")])
def test_voi_lut_goes_before_the_window(hostile: ModuleType, syntax: Any, bits: int, vr: str) -> None:
    stored = np.arange(256, dtype=np.uint16).reshape(16, 16)
    top = 2**bits - 1
    falling = [top - round(value * top / 255) for value in range(256)]
    options = {"syntax": syntax} if syntax else {}
    data = hostile.dicom(stored, stored=12, VOILUTSequence=[lut_item(falling, 0, bits, vr)], WindowCenter=9, WindowWidth=9, **options)
    np.testing.assert_array_equal(decode(data).pixels, 255 - stored)


def test_modality_lut_takes_the_place_of_rescale(hostile: ModuleType) -> None:
    stored = np.arange(256, dtype=np.uint16).reshape(16, 16)
    doubled = [2 * value for value in range(256)]
    data = hostile.dicom(
        stored,
        stored=8,
        ModalityLUTSequence=[lut_item(doubled, 0, 9)],
        RescaleSlope=1,
        RescaleIntercept=0,
        WindowCenter=255.5,
        WindowWidth=511,
    )
    assert decode(data).pixels.ravel().tolist() == [round(2 * value / 510 * 255) for value in range(256)]


@pytest.mark.parametrize("broken", [lut_item([1, 2, 3], 0, 40), lut_item([], 0, 16), Dataset()])
def test_broken_lut_is_as_none(hostile: ModuleType, broken: Dataset) -> None:
    grey = hostile.picture()
    np.testing.assert_array_equal(decode(hostile.dicom(grey, VOILUTSequence=[broken])).pixels, grey)


def test_first_of_several_windows_is_used(hostile: ModuleType) -> None:
    twelve = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    both = decode(hostile.dicom(twelve, stored=12, WindowCenter=[1000, 40], WindowWidth=[500, 8]))
    one = decode(hostile.dicom(twelve, stored=12, WindowCenter=1000, WindowWidth=500))
    np.testing.assert_array_equal(both.pixels, one.pixels)


@pytest.mark.parametrize("photometric", ["YBR_FULL", "RGB"])
@pytest.mark.parametrize("planar", [0, 1])
def test_native_colour_becomes_luma(hostile: ModuleType, photometric: str, planar: int) -> None:
    colour = np.random.default_rng(0).integers(0, 256, size=(6, 5, 3)).astype(np.uint8)
    stored = colour if planar == 0 else np.ascontiguousarray(colour.transpose(2, 0, 1)).reshape(6, 5, 3)
    data = hostile.dicom(stored, PhotometricInterpretation=photometric, PlanarConfiguration=planar)
    expected = colour[..., 0] if photometric == "YBR_FULL" else np.asarray(Image.fromarray(colour).convert("L"))
    np.testing.assert_array_equal(decode(data).pixels, expected)


def test_eight_bit_big_endian_words_are_swapped_back(hostile: ModuleType) -> None:
    grey = hostile.picture(5, 3)
    swapped = np.frombuffer(grey.tobytes() + b"\0", ">u2").astype("<u2").tobytes()
    data = hostile.dicom(grey, syntax=ExplicitVRBigEndian, PixelData=swapped)
    at = data.index(b"\x7f\xe0\x00\x10") + 4
    np.testing.assert_array_equal(decode(data[:at] + b"OW" + data[at + 2 :]).pixels, grey)


@pytest.mark.parametrize(
    ("element", "value", "reason"),
    [
        ("Rows", 0, "no-pixels"),
        ("Columns", None, "no-pixels"),
        ("BitsAllocated", None, "unsupported-pixels"),
        ("BitsAllocated", 12, "unsupported-pixels"),
        ("BitsStored", 9, "unsupported-pixels"),
        ("HighBit", 3, "corrupt"),
        ("SamplesPerPixel", 2, "unsupported-pixels"),
        ("PhotometricInterpretation", "HSV", "unsupported-pixels"),
        ("PhotometricInterpretation", None, "unsupported-pixels"),
    ],
)
def test_impossible_headers_are_refused(hostile: ModuleType, element: str, value: Any, reason: str) -> None:
    assert reason_of(hostile.dicom(hostile.picture(), **{element: value})) == reason


@pytest.mark.parametrize("element", ["WindowCenter", "RescaleSlope", "NumberOfFrames", "PlanarConfiguration", "PixelRepresentation"])
def test_what_can_be_missing_may_be_missing(hostile: ModuleType, element: str) -> None:
    grey = hostile.picture()
    defaults = {"WindowCenter": "128", "WindowWidth": "256", "RescaleSlope": "1", "RescaleIntercept": "0", "NumberOfFrames": "1"}
    np.testing.assert_array_equal(decode(hostile.dicom(grey, **(defaults | {element: None}))).pixels, grey)


def test_garbage_in_optional_values_is_as_none(hostile: ModuleType) -> None:
    grey = hostile.picture()
    data = hostile.dicom(grey, WindowCenter="111", WindowWidth="222").replace(b"111 ", b"x\\e ").replace(b"222 ", b"nan ")
    np.testing.assert_array_equal(decode(data).pixels, grey)


def test_vr_encoding_is_seen_not_believed(hostile: ModuleType) -> None:
    grey = hostile.picture()
    explicit, implicit = hostile.dicom(grey), hostile.dicom(grey, syntax=ImplicitVRLittleEndian)
    for data in (hostile.with_syntax(explicit, "1.2.840.10008.1.2"), hostile.with_syntax(implicit, "1.2.840.10008.1.2.1")):
        np.testing.assert_array_equal(decode(data).pixels, grey)


def test_bare_big_endian_data_set_is_recognised(hostile: ModuleType) -> None:
    data = hostile.without_meta(hostile.dicom(hostile.picture(), syntax=ExplicitVRBigEndian))
    np.testing.assert_array_equal(decode(data).pixels, hostile.picture())


def test_a_header_costs_bounded_time(hostile: ModuleType) -> None:
    good = hostile.dicom(hostile.picture())
    start = time.process_time()
    for trap in (hostile.empty_items(2_400_000), hostile.nested_sequences(400_000), b"\x09\x00\x10\x10LO\0\0" * 2_400_000):
        assert reason_of(hostile.with_elements_before(good, trap)) in {"too-complex", "nested-too-deep"}
    assert time.process_time() - start < 5  # pydicom: 120 s for the first alone


def test_a_crash_of_a_codec_costs_one_image(
    hostile: ModuleType, good: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    for ending, reason in (
        ("os.abort()", "corrupt"),
        ("os.kill(os.getpid(), 11)", "corrupt"),
        ("os._exit(3)", "corrupt"),
        ("os._exit(4)", "codec-not-installed"),
        ("os._exit(5)", "too-complex"),
        ("os.write(1, b'short'); os._exit(0)", "corrupt"),
        ("import time; time.sleep(60)", "too-complex"),
    ):
        script = tmp_path / "child.py"
        script.write_text(f"import os, resource\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n{ending}\n")
        monkeypatch.setattr(codec_child, "__file__", str(script))
        monkeypatch.setattr(frames, "_WALL_SECONDS", 0.5 if "sleep" in ending else 30)
        assert reason_of(good["rle.dcm"]) == reason, ending


def test_the_codec_process_has_a_memory_limit(hostile: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    data = hostile.dicom(np.zeros((3000, 3000), np.uint16), syntax=RLELossless)
    assert decode(data).pixels.shape == (3000, 3000)
    monkeypatch.setattr(frames, "_BASE_MEMORY", 0)
    monkeypatch.setattr(frames, "_BYTES_A_SAMPLE", 0)
    assert reason_of(data) in {"too-complex", "corrupt"}


def test_missing_codec_is_said(good: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    assert codecs() == dict.fromkeys(["native", "jpeg-8bit", "jpeg-2000", "rle", "jpeg-ls", "jpeg-lossless", "jpeg-12bit"], True)
    monkeypatch.setattr(frames, "_MODULES", dict.fromkeys(frames._MODULES, "no_such_codec"))
    frames._child_can.cache_clear()
    try:
        assert not codecs()["rle"]
        assert reason_of(good["rle.dcm"]) == "codec-not-installed"
    finally:
        frames._child_can.cache_clear()


def test_damaged_streams_cost_one_image(good: dict[str, bytes]) -> None:
    for name in ("jpeg-2000.dcm", "rle.dcm"):
        data = good[name]
        start = data.index(b"\xe0\x7f\x10\x00")
        for part in (3, 5):
            at = start + (len(data) - start) * part // 8
            assert outcome_of(data[:at] + b"\xff\x7f" + data[at + 2 :]) in {(96, 80), "corrupt", "truncated", "too-complex"}


def test_stream_must_fit_the_header_before_it_is_decoded(hostile: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "_in_child", lambda *_: pytest.fail("decoded"))
    tiles = bytearray(hostile.saved(Image.fromarray(hostile.picture()), "JPEG2000", irreversible=False))
    start = tiles.index(b"\xff\x4f\xff\x51")
    tiles[start + 24 : start + 32] = struct.pack(">II", 1, 1)  # 7,680 tiles of one pixel
    syntax = "1.2.840.10008.1.2.4.90"
    assert reason_of(hostile.encapsulated(bytes(tiles), syntax, rows=96, columns=80)) == "too-complex"
    assert reason_of(hostile.encapsulated(bytes(tiles), syntax, rows=97, columns=80)) == "corrupt"


def test_deep_colour_streams_are_not_read(hostile: ModuleType) -> None:
    deep = hostile.saved(Image.fromarray(hostile.picture()).convert("RGB"), "JPEG2000", irreversible=False)
    start = deep.index(b"\xff\x4f\xff\x51")
    deep = deep[: start + 42] + b"\x0b\x01\x01" * 3 + deep[start + 51 :]
    header = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    assert reason_of(hostile.encapsulated(deep, "1.2.840.10008.1.2.4.90", rows=96, columns=80, **header)) == "unsupported-pixels"


def test_truncated_fragments_are_told_from_damaged_ones(good: dict[str, bytes]) -> None:
    data = good["baseline.dcm"]
    assert reason_of(data[:-200]) == "truncated"
    assert reason_of(data[:-8]) == "truncated"


def test_rle_of_another_size_is_corrupt(hostile: ModuleType) -> None:
    frame = hostile.dicom(hostile.picture(), syntax=RLELossless)
    rows = frame.index(b"\x28\x00\x10\x00US\x02\x00") + 8
    assert reason_of(frame[:rows] + struct.pack("<H", 5000) + frame[rows + 2 :]) == "corrupt"
