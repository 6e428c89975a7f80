"""The grey-scale pipeline against pydicom's, and its symmetry under MONOCHROME1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from cxr_ray.imaging.grey import GreyScale, LookUpTable, Window, map_pixels, modality_values, render, stored_values, to_uint8

BITS = st.integers(8, 16)


def dataset(scale: GreyScale) -> Dataset:
    """``scale`` as pydicom wants it."""
    result = Dataset()
    result.PhotometricInterpretation = "MONOCHROME1" if scale.inverted else "MONOCHROME2"
    result.BitsStored, result.PixelRepresentation = scale.bits_stored, int(scale.signed)
    if (scale.slope, scale.intercept) != (1, 0):
        result.RescaleSlope, result.RescaleIntercept = str(scale.slope), str(scale.intercept)
    for keyword, lut in (("ModalityLUTSequence", scale.modality_lut), ("VOILUTSequence", scale.voi_lut)):
        if lut is not None:
            item = Dataset()
            item.LUTDescriptor = [len(lut.data), lut.first, lut.bits]
            item.add_new(0x00283006, "US", [int(value) for value in lut.data])
            setattr(result, keyword, [item])
    if scale.window is not None:
        result.WindowCenter, result.WindowWidth = str(scale.window.center), str(scale.window.width)
        result.VOILUTFunction = scale.window.function
    return result


def by_pydicom(stored: np.ndarray[Any, Any], scale: GreyScale) -> np.ndarray[Any, Any]:
    """Grey levels as pydicom's functions and PS3.3 give them."""
    header = dataset(scale)
    shown = np.asarray(apply_voi_lut(apply_modality_lut(stored, header), header), dtype=np.float64)
    _, low, high = modality_values(np.zeros(1), scale)
    if scale.voi_lut is not None:
        low, high = 0, 2**scale.voi_lut.bits - 1
    return to_uint8(np.clip((shown - low) / (high - low), 0, 1), inverted=scale.inverted)


def lut(bits: int, first: int = 0, entries: int = 256) -> LookUpTable:
    """A curve that rises over its whole range."""
    return LookUpTable(first, np.round(np.linspace(0, 1, entries) ** 0.7 * (2**bits - 1)), bits)


@pytest.mark.parametrize(
    "scale",
    [
        GreyScale(8),
        GreyScale(12, inverted=True),
        GreyScale(16, signed=True),
        GreyScale(12, slope=2.5, intercept=-1024),
        GreyScale(12, slope=-1, intercept=4095),
        GreyScale(12, window=Window(2000, 1500)),
        GreyScale(12, window=Window(2000, 1)),
        GreyScale(12, window=Window(2000, 1500, "LINEAR_EXACT"), inverted=True),
        GreyScale(12, window=Window(2000, 800, "SIGMOID")),
        GreyScale(16, signed=True, slope=0.5, intercept=100, window=Window(40, 4000)),
        GreyScale(10, modality_lut=lut(16, entries=1024)),
        GreyScale(12, voi_lut=lut(12, first=1000, entries=2048)),
        GreyScale(8, voi_lut=lut(8), window=Window(100, 200), inverted=True),
        GreyScale(10, modality_lut=lut(16, entries=1024), voi_lut=lut(10, first=9000, entries=50_000)),
        GreyScale(12, signed=True, voi_lut=lut(14, first=-2000, entries=4000)),
    ],
)
def test_pipeline_agrees_with_pydicom_for_every_stored_value(scale: GreyScale) -> None:
    stored = stored_values(scale.bits_stored, scale).astype(np.int32).reshape(1, -1)
    patterns = np.arange(2**scale.bits_stored, dtype=np.uint16).reshape(1, -1)
    shown, remarks = render(patterns, scale.bits_stored, scale)
    assert remarks == ()
    np.testing.assert_array_equal(shown, by_pydicom(stored, scale))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), bits=BITS, center=st.integers(-100, 70_000), width=st.integers(1, 70_000), signed=st.booleans())
def test_monochrome1_and_2_of_one_image_give_the_same_pixels(data: st.DataObject, bits: int, center: int, width: int, signed: bool) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    top = 2**bits - 1
    patterns = rng.integers(0, top + 1, size=(20, 20)).astype(np.uint16)
    window = data.draw(st.sampled_from([None, "LINEAR", "LINEAR_EXACT", "SIGMOID"]))
    # An image and its negative: v -> low + high - v, and the window with it (LINEAR is about center - 0.5: PS3.3 C.11.2.1.2)
    mirror = (-1 if signed else top) - center + (1 if window == "LINEAR" else 0)
    first = GreyScale(bits, signed=signed, window=window and Window(center, width, window))
    second = GreyScale(bits, signed=signed, inverted=True, window=window and Window(mirror, width, window))
    np.testing.assert_array_equal(render(patterns, bits, first)[0], render(top - patterns, bits, second)[0])


def test_eight_bit_lut_holds_its_ends_over_wider_values() -> None:
    # pydicom 3.0.2 wraps around here: it computes the position within the table in the table's own 8 bits
    values = np.array([0, 900, 1000, 1155, 1156, 4095], dtype=np.float64)
    np.testing.assert_array_equal(LookUpTable(900, np.arange(256.0), 8).apply(values), [0, 0, 100, 255, 255, 255])


def test_precision_is_kept_until_the_last_step() -> None:
    patterns = np.arange(30_000, 30_256, dtype=np.uint16).reshape(16, 16)  # one grey level of 16 bits
    shown, _ = render(patterns, 16, GreyScale(16, slope=0.001, intercept=-30, window=Window(0.1275, 0.255, "LINEAR_EXACT")))
    np.testing.assert_array_equal(shown.ravel(), np.arange(256))


def test_window_that_misses_the_pixels_gives_way_to_their_own_range() -> None:
    rng = np.random.default_rng(0)
    patterns = rng.integers(33_000, 46_000, size=(200, 200)).astype(np.uint16)
    shown, remarks = render(patterns, 16, GreyScale(16, window=Window(2725, 5310)))
    assert remarks == ("own-range",)
    assert np.percentile(shown, (5, 95)).tolist() == pytest.approx([10, 245], abs=6)
    dark, remarks = render(patterns // 16, 16, GreyScale(16))  # 12 bits declared as 16
    assert remarks == ("own-range",)
    assert dark.std() > 60


@pytest.mark.parametrize("patterns", [np.full((50, 50), 9, np.uint16), np.tile(np.arange(10, 50, dtype=np.uint16), (50, 1))])
def test_flat_picture_stays_flat(patterns: np.ndarray[Any, Any]) -> None:
    shown, remarks = render(patterns, 12, GreyScale(12))
    assert remarks == ()
    assert shown.max() <= 3


@pytest.mark.parametrize("window", [Window(100, 0.5), Window(100, 0, "SIGMOID"), Window(float("nan"), 10), Window(5, float("inf"))])
def test_impossible_window_is_as_none(window: Window) -> None:
    patterns = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    np.testing.assert_array_equal(render(patterns, 12, GreyScale(12, window=window))[0], render(patterns, 12, GreyScale(12))[0])


def test_bits_above_and_below_the_stored_ones_are_ignored() -> None:
    values = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    plain, _ = render(values, 10, GreyScale(10))
    overlaid, _ = render(values | 0xF000, 10, GreyScale(10))
    shifted, _ = render((values << 2) | 3, 10, GreyScale(10), shift=2)
    np.testing.assert_array_equal(overlaid, plain)
    np.testing.assert_array_equal(shifted, plain)


def test_large_pictures_are_mapped_in_parts_without_a_seam() -> None:
    table = np.arange(256, dtype=np.uint8)[::-1].copy()
    patterns = np.random.default_rng(0).integers(0, 256, size=(1500, 1400)).astype(np.uint8)
    np.testing.assert_array_equal(map_pixels(table, patterns), 255 - patterns)
