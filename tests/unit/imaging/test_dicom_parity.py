"""Our header reader, codecs and grey scale against pydicom's, on pydicom's own collection of odd files."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from cxr_ray.errors import ImageError
from cxr_ray.imaging import frames
from cxr_ray.imaging.decode import decode
from cxr_ray.imaging.dicom import TAGS
from cxr_ray.imaging.dicom_header import read_texts

FOLDER = Path(pydicom.__file__).parent / "data" / "test_files"

DECODED = {
    # name -> largest difference in grey levels from pydicom (0 but where chroma or a lossy JPEG is rounded elsewhere)
    "693_J2KI.dcm": 0,
    "ExplVR_BigEnd.dcm": 0,
    "GDCMJ2K_TextGBR.dcm": 0,
    "J2K_pixelrep_mismatch.dcm": 0,
    "JPEGLSNearLossless_08.dcm": 0,
    "JPEGLSNearLossless_16.dcm": 0,
    "MR_small.dcm": 0,
    "MR_small_RLE.dcm": 0,
    "MR_small_bigendian.dcm": 0,
    "MR_small_implicit.dcm": 0,
    "MR_small_jpeg_ls_lossless.dcm": 0,
    "SC_jpeg_no_color_transform.dcm": 0,
    "SC_rgb_dcmtk_+eb+cr.dcm": 0,
    "SC_rgb_dcmtk_+eb+cy+n2.dcm": 2,
    "SC_rgb_gdcm_KY.dcm": 0,
    "SC_rgb_jls_lossy_line.dcm": 0,
    "SC_rgb_jpeg.dcm": 0,
    "SC_rgb_jpeg_app14_dcmd.dcm": 0,
    "SC_rgb_jpeg_dcmd.dcm": 0,
    "SC_rgb_jpeg_gdcm.dcm": 0,  # lossless colour
    "SC_rgb_rle.dcm": 0,
    "SC_rgb_small_odd.dcm": 0,
    "SC_rgb_small_odd_big_endian.dcm": 0,
    "SC_ybr_full_422_uncompressed.dcm": 2,
    "examples_overlay.dcm": 0,
    "examples_rgb_color.dcm": 0,
}
REFUSED = {
    "DICOMDIR": "dicomdir",
    "MR_small_padded.dcm": "wrong-pixel-length",
    "MR_truncated.dcm": "truncated",
    "SC_rgb_rle_2frame.dcm": "multi-frame",
    "SC_rgb_rle_16bit.dcm": "unsupported-pixels",
    "examples_palette.dcm": "unsupported-pixels",
    "examples_ybr_color.dcm": "multi-frame",
    "image_dfl.dcm": "deflated",
    "liver_1frame.dcm": "unsupported-pixels",
    "reportsi.dcm": "no-pixels",
    "rtdose_1frame.dcm": "unsupported-pixels",
    "rtplan_truncated.dcm": "truncated",
    "waveform_ecg.dcm": "no-pixels",
    "zipMR.gz": "unsupported-format",
}


def content(name: str) -> bytes:
    """A file of the collection, which lies in folders; the test is skipped where an edition of pydicom lacks it."""
    found = sorted(FOLDER.rglob(name))
    if not found:
        pytest.skip(f"this edition of pydicom does not bring {name}")
    return found[0].read_bytes()


def by_pydicom(dataset: Dataset) -> np.ndarray[Any, Any]:
    """Grey levels as pydicom's functions and PS3.3 give them."""
    stored = dataset.pixel_array
    if stored.ndim == 3:
        return np.asarray(Image.fromarray(stored).convert("L"), dtype=np.float64)
    ends = np.array([0, 2**dataset.BitsStored - 1]) - (2 ** (dataset.BitsStored - 1) if dataset.PixelRepresentation else 0)
    low, high = ends * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
    shown = (apply_voi_lut(apply_modality_lut(stored, dataset), dataset).astype(np.float64) - low) / (high - low)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    return np.asarray(np.floor(np.clip(shown, 0, 1) * 255 + 0.5))


@pytest.mark.parametrize("name", DECODED)
def test_pixels_are_those_of_pydicom(name: str, silent: Callable[[], AbstractContextManager[None]]) -> None:
    data = content(name)
    with silent():
        ours = decode(data)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = by_pydicom(pydicom.dcmread(sorted(FOLDER.rglob(name))[0]))
    assert "own-range" not in ours.remarks
    assert np.abs(ours.pixels - theirs).max() <= DECODED[name]


@pytest.mark.parametrize("name", ["JPGExtended.dcm", "JPEG-lossy.dcm"])
def test_twelve_bit_jpeg_is_decoded_where_pydicom_gives_up(name: str) -> None:
    twelve_bit = decode(content(name)).pixels
    blurred = decode(content("JPEG2000.dcm")).pixels  # the same bone scan, compressed until it blurs
    assert np.corrcoef(twelve_bit.ravel(), blurred.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("name", REFUSED)
def test_refused_for_the_true_reason(name: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(content(name))
    assert caught.value.reason == REFUSED[name]


def test_every_file_of_the_collection_is_decoded_or_refused(
    silent: Callable[[], AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # headers are the point here; each of these codecs has its file above
    monkeypatch.setattr(frames, "_in_child", lambda codec, stream, shape, bits: np.zeros(shape.count, np.uint8 if bits <= 8 else np.uint16))
    files = [file for file in FOLDER.rglob("*") if file.is_file() and file.suffix in {"", ".dcm"}]
    outcomes = []
    with silent():
        for file in files:
            try:
                outcomes.append(decode(file.read_bytes()).format)
            except ImageError as error:
                outcomes.append(error.reason)
    assert len(files) > 50
    assert outcomes.count("dicom") > 40


def test_texts_of_a_head_are_those_of_pydicom() -> None:
    for name in ("MR_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "693_J2KI.dcm", "nested_priv_SQ.dcm"):
        data = content(name)
        dataset = pydicom.dcmread(sorted(FOLDER.rglob(name))[0], force=True)
        expected = {keyword: str(dataset[keyword].value) for keyword in TAGS if dataset.get(keyword)}
        assert read_texts(data[:4000], TAGS) == expected
    assert read_texts(b"", TAGS) == read_texts(bytes(500), TAGS) == {}
    assert read_texts(content("image_dfl.dcm"), TAGS) == {}
