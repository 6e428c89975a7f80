"""A planted copy is found, also with other brightness; other images of the same kind are not copies."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_ray.data.phantoms import render_phantom, shots
from cxr_ray.imaging.preprocess import PreprocessSpec
from cxr_ray.synthesis.extractor import Extractor, build_extractor
from cxr_ray.synthesis.memorisation import Memorisation, find_memorised, measure_nearness
from cxr_ray.synthesis.quality import blur
from cxr_ray.synthesis.rare import resize


@pytest.fixture(scope="module")
def necks() -> tuple[np.ndarray, list[str]]:
    """90 croup phantoms of 64 x 64 and their patients."""
    drawn = list(shots("croup", 90, 2, 96))
    return np.concatenate([resize(render_phantom(shot).image[None], 64, 64) for shot in drawn]), [shot.patient_id for shot in drawn]


@pytest.fixture(scope="module")
def extractor(necks: tuple[np.ndarray, list[str]]) -> Extractor:
    return build_extractor(None, necks[0][:60], PreprocessSpec(height=64, width=64))


def check(made: np.ndarray, necks: tuple[np.ndarray, list[str]], extractor: Extractor) -> Memorisation:
    real, groups = necks[0][:60], necks[1][:60]
    return find_memorised(made, real, groups, extractor.measure(made), extractor.measure(real))


def test_other_images_are_no_copies(necks: tuple[np.ndarray, list[str]], extractor: Extractor) -> None:
    images, patients = necks
    others = images[60:][[patient not in patients[:60] for patient in patients[60:]]]
    assert len(others) > 15
    found = check(others, necks, extractor)
    assert found.verdict == "ok"
    assert found.copies == []
    assert found.as_dict()["verdict"] == "ok"


def test_a_planted_copy_is_found(necks: tuple[np.ndarray, list[str]], extractor: Extractor) -> None:
    made = necks[0][60:80].copy()
    made[7] = (necks[0][12] * 0.7 + 30).astype(np.uint8)  # of other brightness and contrast
    found = check(made, necks, extractor)
    assert 7 in found.copies
    assert found.pixels.nearest_NK[7, 0] == 12
    assert found.verdict == "fail"
    assert "copies" in found.reading


def test_blurred_training_images_are_remarked(necks: tuple[np.ndarray, list[str]], extractor: Extractor) -> None:
    assert check(blur(necks[0][:30]), necks, extractor).verdict in {"warn", "fail"}


def test_the_mean_image_is_nobodys_copy(necks: tuple[np.ndarray, list[str]], extractor: Extractor) -> None:
    """It is near to every image, and would be near to each if what they share were not taken away."""
    random = np.random.default_rng(0)
    mean = necks[0][:60].mean(0)
    made = np.stack([np.clip(mean + random.normal(0, 3, mean.shape), 0, 255) for _ in range(10)]).astype(np.uint8)
    assert check(made, necks, extractor).pixels.share == 0


def test_the_yardstick_is_other_groups() -> None:
    real = np.array([[0.0, 0.0], [0.1, 0.0], [3.0, 0.0], [7.0, 0.0]], np.float32)
    made = np.array([[2.0, 0.0], [6.9, 0.0]], np.float32)
    found = measure_nearness(made, real, ["a", "a", "b", "c"])
    root = 2**0.5  # of two numbers a vector
    assert found.real_M * root == pytest.approx([3.0, 2.9, 2.9, 4.0])
    assert found.made_N * root == pytest.approx([1.0, 0.1], abs=1e-5)
    assert found.nearest_NK.tolist() == [[2, 1, 0], [3, 2, 1]]
    alone = measure_nearness(made, real, ["a"] * 4)
    assert alone.real_M * root == pytest.approx([0.1, 0.1, 2.9, 4.0])
