"""Calibration: the right temperature is found, what must not change does not, and cross-fitting is by patient."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from cxr_ray.errors import DatasetError
from cxr_ray.evaluation.calibration import LEAST, calibrate, calibration_scores
from cxr_ray.labels import LabelSet
from cxr_ray.models.calibration import Calibration

THREE, TWO = LabelSet(("a", "b", "c"), "multiclass"), LabelSet(("x", "y"), "multilabel")


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def classes(sharpness: float, rows: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets drawn from the true probabilities; the model says them with its logits multiplied."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=1.5, size=(rows, 3))
    targets = np.array([generator.choice(3, p=row) for row in softmax(logits)])
    return softmax(sharpness * logits).astype(np.float32), targets, np.arange(rows) // 2


def findings(sharpness: tuple[float, float], rows: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=1.5, size=(rows, 2))
    targets = (generator.random((rows, 2)) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    targets[generator.random((rows, 2)) < 0.2] = np.nan
    return (1 / (1 + np.exp(-logits * sharpness))).astype(np.float32), targets, np.arange(rows) // 2


def test_the_temperature_of_an_overconfident_model_is_found() -> None:
    said, targets, patients = classes(3.0)
    found = calibrate(said, targets, patients, THREE, choice="temperature", part="val of x")
    assert found is not None
    assert found.temperatures[0] == pytest.approx(3.0, rel=0.1)
    assert found.after.ece < 0.03 < found.before.ece
    assert found.after.brier < found.before.brier
    fresh, truth, _ = classes(3.0, seed=1)
    answered = found.apply(fresh, "multiclass")
    assert np.array_equal(answered.argmax(1), fresh.argmax(1)), "the most probable class stays"
    np.testing.assert_allclose(answered.sum(1), 1, atol=1e-6)
    assert calibration_scores(answered, np.eye(3)[truth], "multiclass").ece < 0.03


def test_each_finding_has_a_temperature_and_keeps_its_order() -> None:
    said, targets, patients = findings((3.0, 0.5))
    found = calibrate(said, targets, patients, TWO, choice="temperature", part="val of x")
    assert found is not None
    assert found.temperatures == (pytest.approx(3.0, rel=0.15), pytest.approx(0.5, rel=0.15))
    answered = found.apply(said, "multilabel")
    for label in range(2):
        known = ~np.isnan(targets[:, label])
        before, after = (roc_auc_score(targets[known, label], scores[known, label]) for scores in (said, answered))
        assert after == pytest.approx(before, abs=1e-6)


def test_isotonic_regression_is_scikit_learns_and_rises() -> None:
    said, targets, patients = findings((3.0, 0.5))
    found = calibrate(said, targets, patients, TWO, choice="isotonic", part="val of x")
    assert found is not None
    known = ~np.isnan(targets[:, 0])
    least = 1 / (known.sum() + 2)
    expected = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip").fit(
        said[known, 0].astype(np.float64), targets[known, 0].astype(np.float64)
    )
    fresh = np.linspace(0, 1, 101)[:, None].repeat(2, axis=1)
    answered = found.apply(fresh, "multilabel")
    np.testing.assert_allclose(answered[:, 0], expected.predict(fresh[:, 0]), atol=1e-6)
    assert (np.diff(answered, axis=0) >= 0).all()
    assert found.after.ece < found.before.ece
    assert Calibration.model_validate(json.loads(found.model_dump_json())).apply(said, "multilabel") == pytest.approx(
        found.apply(said, "multilabel")
    ), "what a bundle keeps says the same"


def test_isotonic_classes_sum_to_one_even_where_all_are_unlikely() -> None:
    said, targets, patients = classes(3.0)
    found = calibrate(said, targets, patients, THREE, choice="isotonic", part="val of x")
    assert found is not None
    answered = found.apply(np.array([[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.0, 0.0, 1.0]]), "multiclass")
    np.testing.assert_allclose(answered.sum(1), 1, atol=1e-6)
    assert ((answered > 0) & (answered < 1)).all()


def test_auto_takes_what_lowers_the_log_loss_or_nothing() -> None:
    said, targets, patients = classes(3.0)
    bent = np.where(said > 0.5, 0.5 + 0.2 * said, said)  # no temperature makes this right
    bent = bent / bent.sum(1, keepdims=True)
    found = calibrate(said, targets, patients, THREE, part="val of x")
    assert found is not None
    assert found.method == "temperature"
    found = calibrate(bent, targets, patients, THREE, part="val of x")
    assert found is not None
    assert found.after.log_loss < found.before.log_loss
    noise = np.full((60, 3), 1 / 3)
    assert calibrate(noise, np.tile([0, 1, 2], 20), np.arange(60), THREE, part="val of x") is None
    assert calibrate(said, targets, patients, THREE, choice="none", part="val of x") is None
    few = slice(0, 2 * LEAST)
    found = calibrate(said[few], targets[few], patients[few], THREE, part="val of x")
    assert found is not None
    assert found.method == "temperature", "too few of each class for isotonic regression"


def test_cross_fitting_keeps_a_patients_images_together() -> None:
    """20 copies of each image: isotonic regression learns them by heart unless the copies are held out together."""
    generator = np.random.default_rng(0)
    said = np.repeat(generator.random((30, 1)), 20, axis=0)
    targets = np.repeat(generator.integers(0, 2, (30, 1)).astype(float), 20, axis=0)
    one = LabelSet(("x",), "multilabel")
    together = calibrate(said, targets, np.repeat(np.arange(30), 20), one, choice="isotonic", part="p")
    apart = calibrate(said, targets, np.arange(600), one, choice="isotonic", part="p")
    assert together is not None
    assert apart is not None
    assert apart.after.log_loss < together.after.log_loss - 0.1


def test_a_label_without_both_answers_stays_as_it_is() -> None:
    said, targets, patients = findings((3.0, 0.5))
    targets[:, 1] = 0
    for method in ("temperature", "isotonic"):
        found = calibrate(said, targets, patients, TWO, choice=method, part="p")  # type: ignore[arg-type]
        assert found is not None
        np.testing.assert_allclose(found.apply(said, "multilabel")[:, 1], said[:, 1], atol=1e-6)


def test_one_patient_is_too_few() -> None:
    said, targets, _ = classes(3.0, rows=30)
    assert calibrate(said, targets, ["p"] * 30, THREE, part="p") is None
    with pytest.raises(DatasetError, match="needs two at least"):
        calibrate(said, targets, ["p"] * 30, THREE, choice="temperature", part="p")


def test_scores_equal_scikit_learns() -> None:
    said, targets, _ = classes(2.0)
    said = said.astype(np.float64) / said.sum(1, keepdims=True, dtype=np.float64)
    found = calibration_scores(said, np.eye(3)[targets], "multiclass")
    assert found.log_loss == pytest.approx(log_loss(targets, said), abs=1e-9)
    assert found.brier == pytest.approx(brier_score_loss(targets, said, scale_by_half=False), abs=1e-6)
    said, targets, _ = findings((2.0, 1.0))
    known = [~np.isnan(targets[:, label]) for label in range(2)]
    expected = np.mean([brier_score_loss(targets[rows, label], said[rows, label]) for label, rows in enumerate(known)])
    assert calibration_scores(said, targets.astype(np.float64), "multilabel").brier == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "fault", [{"temperatures": ()}, {"temperatures": (0.0,)}, {"knots": (((0.1, 0.2),),)}, {"method": "isotonic", "temperatures": ()}]
)
def test_what_is_no_calibration_is_refused(fault: dict[str, object]) -> None:
    scores = {"ece": 0.1, "brier": 0.1, "log_loss": 0.1}
    whole = {"method": "temperature", "temperatures": (1.5,), "fitted_on": "val", "n": 9, "patients": 9, "before": scores, "after": scores}
    assert Calibration.model_validate(whole).fits("multiclass", 3)
    assert not Calibration.model_validate(whole).fits("multilabel", 3)
    with pytest.raises(ValidationError):
        Calibration.model_validate(whole | fault)
    with pytest.raises(ValidationError, match="must rise"):
        Calibration.model_validate({**whole, "method": "isotonic", "temperatures": (), "knots": (((0.1, 0.5), (0.2, 0.4)),)})
