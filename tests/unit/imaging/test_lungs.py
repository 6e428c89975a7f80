"""The mask lies on the lungs of phantoms, whatever the image's size and shape, and somewhere sensible on what is no chest."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_ray.data.phantoms import render_phantom, shots
from cxr_ray.imaging.lungs import LEAST_LIKENESS, find_lungs, lung_mask


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


@pytest.mark.parametrize("task", ["covid", "multilabel"])
def test_it_lies_on_the_lungs_of_phantoms(task: str) -> None:
    found = []
    for shot in shots(task, 24, seed=11, size=128):
        phantom = render_phantom(shot)
        assert phantom.lungs is not None
        found.append(dice(lung_mask(phantom.image), phantom.lungs))
    assert np.mean(found) > 0.8
    assert min(found) > 0.6


def test_size_and_shape_do_not_matter() -> None:
    phantom = render_phantom(next(iter(shots("covid", 1, seed=3, size=256))))
    assert phantom.lungs is not None
    for width, height in ((64, 64), (224, 224), (400, 300)):
        image = np.asarray(cv2.resize(phantom.image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        truth = cv2.resize(phantom.lungs.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
        assert lung_mask(image).shape == (height, width)
        assert dice(lung_mask(image), truth) > 0.75


@pytest.mark.parametrize("image", [np.full((64, 64), 90, np.uint8), np.tile(np.arange(96, dtype=np.uint8), (50, 1))], ids=["flat", "ramp"])
def test_of_what_is_no_chest_the_usual_place_is_given(image: np.ndarray) -> None:
    mask, likeness = find_lungs(image)
    assert likeness < LEAST_LIKENESS
    assert 0.1 < mask.mean() < 0.4


def test_a_neck_has_no_lungs() -> None:
    assert render_phantom(next(iter(shots("croup", 1, seed=0, size=64)))).lungs is None


def test_real_chests_are_found(real_data: Path) -> None:
    files = sorted((real_data / "darkcovid").rglob("*.jp*g"))[::40]
    assert len(files) > 20
    found = [find_lungs(np.asarray(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE), np.uint8)) for file in files]
    assert np.mean([likeness >= LEAST_LIKENESS for _, likeness in found]) > 0.9
    assert np.mean([0.08 < mask.mean() < 0.6 for mask, _ in found]) > 0.9
