"""A gate fitted on phantoms lets others of them pass, and stops what is turned, inverted or no radiograph."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import cv2
import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from cxr_ray.config import BackboneConfig, ModelConfig, RnnConfig
from cxr_ray.data.phantoms import render_phantom, shots
from cxr_ray.errors import RunError
from cxr_ray.imaging.preprocess import PreprocessSpec, preprocess
from cxr_ray.models.classifier import Classifier, build_classifier
from cxr_ray.models.gate import CHECKS, Gate
from cxr_ray.models.inference import predict_with_pooled
from cxr_ray.training.gate import fit_gate

SPEC = PreprocessSpec(height=48, width=48)
TRAIN, HELD_OUT, OTHERS = 160, 60, 50


@dataclass(frozen=True)
class Fitted:
    gate: Gate
    model: Classifier
    others: np.ndarray

    def reasons(self, images: np.ndarray) -> Counter[str | None]:
        _, pooled = predict_with_pooled(self.model, images, "multiclass")
        return Counter(verdict.reason for verdict in self.gate.check(pooled, images))


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = ModelConfig(backbone=BackboneConfig(name="small_cnn"), rnn=RnnConfig(hidden_size=8))
        model = build_classifier(config, 2, mean=0.5, std=0.25, image_size=(48, 48))
    phantoms = np.stack([preprocess(render_phantom(shot).image, SPEC) for shot in shots("covid", TRAIN + HELD_OUT + OTHERS, 3, 96)])
    train, held_out, others = np.split(phantoms, [TRAIN, TRAIN + HELD_OUT])
    return Fitted(fit_gate(model, train, held_out, fitted_on="train", held_out_told="val"), model, others)


def test_what_it_was_not_fitted_on_passes(fitted: Fitted) -> None:
    assert fitted.reasons(fitted.others)[None] >= 0.9 * OTHERS


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turned_images_are_stopped(fitted: Fitted, turns: int) -> None:
    assert fitted.reasons(np.rot90(fitted.others, turns, axes=(1, 2)))["not-upright"] >= 0.95 * OTHERS


def test_inverted_images_are_stopped(fitted: Fitted) -> None:
    assert fitted.reasons(255 - fitted.others)["inverted"] >= 0.95 * OTHERS
    assert fitted.reasons(255 - np.rot90(fitted.others, 2, axes=(1, 2)))["inverted"] >= 0.95 * OTHERS


def test_photographs_noise_and_blank_pictures_are_stopped(fitted: Fitted) -> None:
    generator = np.random.default_rng(0)
    photographs = []
    for index in range(40):
        picture = cv2.cvtColor(load_sample_images().images[index % 2], cv2.COLOR_RGB2GRAY)
        top, left = generator.integers(0, 200, 2)
        photographs.append(preprocess(picture[top : top + 220, left : left + 220], SPEC))
    noise = generator.integers(0, 256, (30, 48, 48), dtype=np.uint8)
    blank = np.stack([np.full((48, 48), grey, np.uint8) for grey in range(0, 256, 15)])
    for images in (np.stack(photographs), noise, blank):
        found = fitted.reasons(images)
        assert found[None] <= 0.05 * len(images)
        assert found["not-a-radiograph"] >= 0.8 * len(images)


def test_a_network_that_responds_otherwise_is_told(fitted: Fitted) -> None:
    _, pooled = predict_with_pooled(fitted.model, fitted.others, "multiclass")
    strange = fitted.gate.check(pooled[:, ::-1].copy(), fitted.others)
    assert Counter(verdict.reason for verdict in strange)["not-like-training-data"] >= 0.95 * OTHERS


def test_the_record_says_what_was_measured(fitted: Fitted) -> None:
    record = fitted.gate.record
    assert (record.fitted_on, record.n, record.held_out, record.n_held_out) == ("train", TRAIN, "val", HELD_OUT)
    assert set(record.false_alarms) == {"any", *CHECKS}
    # thresholds at a quantile that so few images only have at their largest: none of them is refused
    assert set(record.false_alarms.values()) == {0.0}
    assert record.turned_found >= 0.95
    assert record.inverted_found >= 0.95
    assert record.thresholds["polarity"] >= 0.5
    assert record.thresholds["upright"] >= 0.5


def test_the_same_images_give_the_same_gate(fitted: Fitted) -> None:
    one, other = (fit_gate(fitted.model, fitted.others, fitted.others[:30], fitted_on="a", held_out_told="b") for _ in range(2))
    assert one.record == other.record
    assert all(np.array_equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_too_few_images_give_none(fitted: Fitted) -> None:
    with pytest.raises(RunError, match=r"50 and 19 images are too few"):
        fit_gate(fitted.model, fitted.others, fitted.others[:19], fitted_on="a", held_out_told="b")
