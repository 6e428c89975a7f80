"""What a gate makes of numbers: values, verdicts, reasons. How well a fitted one does: ``tests/unit/training/test_gate.py``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from cxr_ray.errors import ModelError
from cxr_ray.models.gate import CHECKS, PICTURE, REASONS, Gate, picture_features, shapes
from cxr_ray.models.record import GateRecord

CHANNELS = 3


def record(**changes: Any) -> GateRecord:
    facts: dict[str, Any] = {"channels": CHANNELS, "fitted_on": "train", "n": 30, "held_out": "val", "n_held_out": 20}
    facts |= {"thresholds": dict.fromkeys(CHECKS, 0.5), "false_alarms": {"any": 0.0}, "turned_found": 1.0, "inverted_found": 1.0}
    return GateRecord(**{**facts, **changes})


def gate(**tensors: np.ndarray) -> Gate:
    """One that passes everything but for what ``tensors`` say; a polarity of -9 and a turn of 9, 0, 0, 0 are a clear no."""
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes(CHANNELS).items()}
    biases = {"polarity.bias": np.array([-9], np.float32), "turn.bias": np.array([9, 0, 0, 0], np.float32)}
    return Gate(record(), {**zeros, **biases, **tensors})


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 20, 24), dtype=np.uint8)


POOLED = np.ones((4, CHANNELS), np.float32)
FAR = {"picture.whitening": np.eye(PICTURE, dtype=np.float32), "picture.mean": np.full(PICTURE, 9, np.float32)}


def test_a_gate_that_sees_nothing_lets_all_pass(images: np.ndarray) -> None:
    for verdict in gate().check(POOLED, images):
        assert (verdict.verdict, verdict.reason, verdict.refusal) == ("ok", None, None)
        assert [check.name for check in verdict.checks] == list(CHECKS)
        assert all(check.message and check.value <= check.threshold == 0.5 for check in verdict.checks)


@pytest.mark.parametrize(
    ("tensors", "reason", "told"),
    [
        (
            {"picture.whitening": np.eye(PICTURE, dtype=np.float32), "picture.mean": np.full(PICTURE, 9, np.float32)},
            "not-a-radiograph",
            "look",
        ),
        ({"polarity.bias": np.array([9], np.float32)}, "inverted", "black and white"),
        ({"turn.bias": np.array([0, 9, 0, 0], np.float32)}, "not-upright", "90° to the left"),
        ({"turn.bias": np.array([0, 0, 9, 0], np.float32)}, "not-upright", "upside down"),
        ({"turn.bias": np.array([0, 0, 0, 9], np.float32)}, "not-upright", "90° to the right"),
        ({"features.whitening": np.eye(CHANNELS, dtype=np.float32)}, "not-like-training-data", "training images"),
    ],
)
def test_each_check_refuses_with_its_reason(images: np.ndarray, tensors: dict[str, np.ndarray], reason: str, told: str) -> None:
    for verdict in gate(**tensors).check(POOLED, images):
        assert (verdict.verdict, verdict.reason) == ("refused", reason)
        assert verdict.refusal is not None
        assert told in verdict.refusal.message
        assert verdict.refusal.value > verdict.refusal.threshold
        assert [REASONS[check.name] for check in verdict.checks if check.verdict == "refused"] == [reason]


def test_no_images_no_verdicts() -> None:
    assert gate().check(np.empty((0, CHANNELS), np.float32), np.empty((0, 20, 24), np.uint8)) == []


def test_features_that_are_no_numbers_are_refused(images: np.ndarray) -> None:
    broken = POOLED * np.nan
    verdicts = gate(**{"features.whitening": np.eye(CHANNELS, dtype=np.float32)}).check(broken, images)
    assert {verdict.reason for verdict in verdicts} == {"not-like-training-data"}
    assert all(np.isfinite(check.value) for verdict in verdicts for check in verdict.checks)


def test_an_image_turned_or_inverted_is_still_a_radiograph() -> None:
    """The distance that counts is that of the image as it would be the right way."""
    upright = np.tile(np.linspace(20, 200, 32).astype(np.uint8)[:, None], (1, 32))
    known = {"picture.mean": picture_features(upright[None])[0], "picture.whitening": np.eye(PICTURE, dtype=np.float32)}
    for turns in range(4):
        turn = {"turn.bias": 9 * np.eye(4, dtype=np.float32)[turns]}
        (verdict,) = gate(**known, **turn).check(POOLED[:1], np.rot90(upright, turns)[None])
        assert verdict.reason == ("not-upright" if turns else None)
        inverted = {**turn, "polarity.bias": np.array([9], np.float32)}
        (verdict,) = gate(**known, **inverted).check(POOLED[:1], 255 - np.rot90(upright, turns)[None])
        assert verdict.reason == "inverted"


def test_the_picture_does_not_depend_on_its_company(images: np.ndarray) -> None:
    together = picture_features(images)
    assert together.shape == (4, PICTURE)
    assert together.dtype == np.float32
    for row, image in zip(together, images, strict=True):
        np.testing.assert_array_equal(picture_features(image[None])[0], row)
    assert np.isfinite(picture_features(np.zeros((1, 16, 16), np.uint8))).all()


def test_a_gate_that_is_not_whole_is_refused() -> None:
    whole = dict(gate().tensors)
    with pytest.raises(ModelError, match="tensors"):
        Gate(record(channels=4), whole)
    with pytest.raises(ModelError, match="tensors"):
        Gate(record(), {name: tensor for name, tensor in whole.items() if name != "turn.bias"})
    with pytest.raises(ValidationError, match="one threshold"):
        record(thresholds={"radiograph": 1.0})
