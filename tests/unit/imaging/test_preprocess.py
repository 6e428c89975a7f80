"""Equalise, blur and resize: what each does, that it is deterministic, and that the fingerprint names it."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from cxr_ray.errors import ImageError
from cxr_ray.imaging import PreprocessSpec, load_image
from cxr_ray.imaging.decode import Limits
from cxr_ray.imaging.preprocess import preprocess

ALL = [
    PreprocessSpec(height=height, width=width, equalize=equalize, blur=blur, keep_aspect=keep)
    for height, width in ((64, 48), (300, 40))
    for equalize in ("none", "hist", "clahe")
    for blur in (0, 3, 5)
    for keep in (False, True)
]


@pytest.fixture
def pixels(hostile: ModuleType) -> np.ndarray[Any, Any]:
    return np.asarray(hostile.picture(120, 90))


@pytest.fixture
def threads() -> Iterator[None]:
    before = cv2.getNumThreads()
    yield
    cv2.setNumThreads(before)


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_shape_type_and_repeatability(pixels: np.ndarray[Any, Any], spec: PreprocessSpec, threads: None) -> None:
    original = pixels.copy()
    cv2.setNumThreads(1)
    first = preprocess(pixels, spec)
    cv2.setNumThreads(4)
    assert first.shape == (spec.height, spec.width)
    assert first.dtype == np.uint8
    assert first.flags.c_contiguous
    assert not np.shares_memory(first, pixels)
    np.testing.assert_array_equal(preprocess(pixels, spec), first)
    np.testing.assert_array_equal(pixels, original)


def test_threads_do_not_change_a_large_picture(hostile: ModuleType, threads: None) -> None:
    large = hostile.picture(1600, 1300)
    spec = PreprocessSpec(equalize="clahe", blur=5)
    cv2.setNumThreads(1)
    single = preprocess(large, spec)
    cv2.setNumThreads(4)
    np.testing.assert_array_equal(preprocess(large, spec), single)


def test_same_size_without_steps_is_the_picture_itself(pixels: np.ndarray[Any, Any]) -> None:
    same = preprocess(pixels, PreprocessSpec(height=120, width=90))
    np.testing.assert_array_equal(same, pixels)


def test_steps_come_in_their_order(pixels: np.ndarray[Any, Any]) -> None:
    spec = PreprocessSpec(height=60, width=45, equalize="hist", blur=5)
    expected = cv2.resize(cv2.GaussianBlur(cv2.equalizeHist(pixels), (5, 5), 0), (45, 60), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(preprocess(pixels, spec), expected)


def test_equalising_spreads_the_histogram() -> None:
    dull = (np.random.default_rng(0).integers(100, 120, size=(128, 128))).astype(np.uint8)
    assert np.ptp(preprocess(dull, PreprocessSpec(height=128, width=128, equalize="hist"))) == 255
    assert np.ptp(preprocess(dull, PreprocessSpec(height=128, width=128, equalize="clahe"))) > 40


def test_shrinking_averages_and_does_not_alias() -> None:
    checks = np.indices((200, 200)).sum(0) % 2 * np.uint8(254)
    assert set(np.unique(preprocess(checks.astype(np.uint8), PreprocessSpec(height=50, width=50)))) == {127}
    narrow = preprocess(checks.astype(np.uint8), PreprocessSpec(height=50, width=300))  # one side shrinks, one grows
    assert np.ptp(narrow) <= 1


def test_keeping_the_aspect_pads_with_black_in_the_middle() -> None:
    white = np.full((100, 50), 255, dtype=np.uint8)
    shown = preprocess(white, PreprocessSpec(height=40, width=40, keep_aspect=True))
    np.testing.assert_array_equal(shown[:, 10:30], 255)
    assert shown[:, :10].max() == shown[:, 30:].max() == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (2, 3), (7, 9)])
@pytest.mark.parametrize("equalize", ["none", "hist", "clahe"])
@pytest.mark.parametrize("keep_aspect", [False, True])
def test_odd_shapes_are_taken(shape: tuple[int, int], equalize: str, keep_aspect: bool) -> None:
    spec = PreprocessSpec.model_validate({"height": 16, "width": 16, "equalize": equalize, "blur": 5, "keep_aspect": keep_aspect})
    assert preprocess(np.full(shape, 90, dtype=np.uint8), spec).shape == (16, 16)


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.float32), np.zeros((0, 4), np.uint8)])
def test_other_arrays_are_a_mistake_of_the_caller(wrong: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"\(H, W\) uint8"):
        preprocess(wrong, PreprocessSpec())


def test_fingerprint_names_the_preprocessing() -> None:
    assert len({spec.fingerprint for spec in ALL}) == len(ALL)
    assert PreprocessSpec().fingerprint == PreprocessSpec(height=224).fingerprint
    # Written into every DATASET and BUNDLE: it may only change together with ``version``.
    assert PreprocessSpec().fingerprint == "f91e4feb7a33d716780d817066ce3e501d69bd1457d1525fd666b61ae9c6af57"


def test_specification_is_frozen_and_closed() -> None:
    with pytest.raises(ValidationError):
        PreprocessSpec.model_validate({"blur": 4})
    with pytest.raises(ValidationError):
        PreprocessSpec.model_validate({"contrast": 1})
    with pytest.raises(ValidationError):
        PreprocessSpec().height = 5  # type: ignore[misc]


def test_load_image_is_decode_then_preprocess(good: dict[str, bytes], hostile: ModuleType) -> None:
    spec = PreprocessSpec(height=32, width=32, equalize="clahe")
    pixels, image = load_image(good["twelve-bit.dcm"], spec)
    np.testing.assert_array_equal(pixels, preprocess(hostile.picture(), spec))
    assert (image.format, image.bits) == ("dicom", 12)
    with pytest.raises(ImageError):
        load_image(good["grey.png"], spec, Limits(max_bytes=10))
