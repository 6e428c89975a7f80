"""The weighted formulas equal scikit-learn's; the bootstrap goes by patient."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from cxr_ray.errors import DatasetError
from cxr_ray.evaluation.metrics import compute_metrics
from cxr_ray.labels import LabelSet

THREE = LabelSet(("covid", "normal", "pneumonia"), "multiclass")
FINDINGS = LabelSet(("effusion", "nodule"), "multilabel")


def multiclass_case(seed: int, rows: int = 240) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, 3, rows)
    logits = generator.normal(size=(rows, 3)) + 1.2 * np.eye(3)[targets]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return (
        np.round(probabilities, 2) / np.round(probabilities, 2).sum(1, keepdims=True),
        targets,
        generator.integers(0, 60, rows).astype(str),
    )


@pytest.mark.parametrize("seed", range(5))
def test_multiclass_equals_scikit_learn(seed: int) -> None:
    probabilities, targets, patients = multiclass_case(seed)
    got = compute_metrics(probabilities, targets, patients, THREE, split="test", resamples=20)
    called = probabilities.argmax(1)
    assert got["confusion_matrix"] == sk.confusion_matrix(targets, called).tolist()
    assert got["accuracy"]["value"] == pytest.approx(sk.accuracy_score(targets, called), abs=1e-12)
    assert got["macro_f1"]["value"] == pytest.approx(sk.f1_score(targets, called, average="macro"), abs=1e-12)
    assert got["macro_auroc"]["value"] == pytest.approx(sk.roc_auc_score(targets, probabilities, multi_class="ovr"), abs=1e-12)
    for index, name in enumerate(THREE.names):
        label, truth = got["per_label"][name], targets == index
        assert label["n"] == truth.sum()
        assert label["sensitivity"]["value"] == pytest.approx(sk.recall_score(truth, called == index), abs=1e-12)
        assert label["specificity"]["value"] == pytest.approx(sk.recall_score(~truth, called != index), abs=1e-12)
        assert label["precision"]["value"] == pytest.approx(sk.precision_score(truth, called == index), abs=1e-12)
        assert label["auroc"]["value"] == pytest.approx(sk.roc_auc_score(truth, probabilities[:, index]), abs=1e-12)
        expected = sk.average_precision_score(truth, probabilities[:, index])
        assert label["average_precision"]["value"] == pytest.approx(expected, abs=1e-12)


def test_weights_equal_scikit_learns_sample_weights() -> None:
    from cxr_ray.evaluation.metrics import statistics

    probabilities, targets, _ = multiclass_case(9)
    weights = np.random.default_rng(1).integers(0, 4, len(targets)).astype(float)
    got = statistics(probabilities, targets, THREE)(weights[None])
    expected = sk.roc_auc_score(targets == 1, probabilities[:, 1], sample_weight=weights)
    assert got["label_auroc"][0, 1] == pytest.approx(expected, abs=1e-12)
    expected = sk.average_precision_score(targets == 1, probabilities[:, 1], sample_weight=weights)
    assert got["label_average_precision"][0, 1] == pytest.approx(expected, abs=1e-12)
    expected = sk.f1_score(targets, probabilities.argmax(1), average="macro", sample_weight=weights)
    assert got["macro_f1"][0] == pytest.approx(expected, abs=1e-12)


def test_multilabel_leaves_unknown_out() -> None:
    generator = np.random.default_rng(3)
    targets = generator.integers(0, 2, (200, 2)).astype(float)
    probabilities = np.clip(0.3 * targets + generator.uniform(0, 0.7, (200, 2)), 0, 1)
    targets[generator.uniform(size=targets.shape) < 0.3] = np.nan
    got = compute_metrics(probabilities, targets, np.arange(200).astype(str), FINDINGS, split="val", thresholds=(0.4, 0.6), resamples=20)
    for index, (name, cut) in enumerate(zip(FINDINGS.names, (0.4, 0.6), strict=True)):
        known = ~np.isnan(targets[:, index])
        truth, score = targets[known, index], probabilities[known, index]
        assert got["per_label"][name]["known"] == known.sum()
        assert got["per_label"][name]["auroc"]["value"] == pytest.approx(sk.roc_auc_score(truth, score), abs=1e-12)
        assert got["per_label"][name]["f1"]["value"] == pytest.approx(sk.f1_score(truth, score >= cut), abs=1e-12)
        assert got["confusion_matrix"][index] == sk.confusion_matrix(truth, score >= cut).tolist()


def interval_width(patients: np.ndarray, **arguments: Any) -> float:
    probabilities, targets, _ = multiclass_case(4, rows=60)
    twenty = [np.repeat(part, 20, axis=0) for part in (probabilities, targets)]
    low, high = compute_metrics(*twenty, patients, THREE, split="test", **arguments)["accuracy"]["ci95"]
    return float(high - low)


def test_twenty_images_of_one_patient_are_not_twenty_patients() -> None:
    by_patient = interval_width(np.repeat(np.arange(60), 20).astype(str))
    by_image = interval_width(np.arange(1200).astype(str))
    assert by_patient > 3 * by_image


def test_the_seed_decides_the_interval() -> None:
    patients = np.arange(1200).astype(str)
    assert interval_width(patients, seed=1) == interval_width(patients, seed=1)
    assert interval_width(patients, seed=1) != interval_width(patients, seed=2)


def test_a_label_that_never_occurs_is_undefined_not_zero_and_json_stays_valid() -> None:
    probabilities, targets, patients = multiclass_case(0)
    keep = targets != 2
    got = compute_metrics(probabilities[keep], targets[keep], patients[keep], THREE, split="test", resamples=50)
    assert got["per_label"]["pneumonia"]["auroc"] == {"value": None, "ci95": None}
    assert got["macro_auroc"]["value"] is not None
    json.dumps(got, allow_nan=False)


def test_a_perfectly_calibrated_answer_has_no_error() -> None:
    probabilities = np.repeat([[0.75, 0.25]], 400, axis=0)
    targets = np.tile([0, 0, 0, 1], 100)
    two = LabelSet(("a", "b"), "multiclass")
    assert compute_metrics(probabilities, targets, targets.astype(str), two, split="t", resamples=5)["ece"]["value"] == pytest.approx(
        0.0, abs=1e-12
    )


@pytest.mark.parametrize(
    ("probabilities", "targets", "patients"),
    [(np.zeros((0, 3)), np.zeros(0, int), []), (np.ones((2, 3)), np.array([0, 3]), ["a", "b"]), (np.ones((2, 3)), np.array([0, 1]), ["a"])],
    ids=["empty", "target out of range", "patients missing"],
)
def test_what_does_not_fit_is_refused(probabilities: Any, targets: Any, patients: Any) -> None:
    with pytest.raises(DatasetError):
        compute_metrics(probabilities, targets, patients, THREE, split="test")


def test_the_interval_of_a_calibration_error_holds_its_value() -> None:
    """Gaps between few images and what was said are mostly noise, and a resample has more of it than the sample."""
    generator = np.random.default_rng(4)
    said = generator.uniform(0.05, 0.95, 60)
    probabilities, truth = np.stack([1 - said, said], 1), (generator.uniform(size=60) < said).astype(int)
    metrics = compute_metrics(probabilities, truth, [str(row) for row in range(60)], LabelSet(("a", "b"), "multiclass"), split="test")
    for name in ("ece", "mce"):
        low, high = metrics[name]["ci95"]
        assert 0 <= low <= metrics[name]["value"] <= high
