"""Decision curves, predictive values elsewhere, and reliability equal their definitions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, confusion_matrix

from cxr_ray.errors import ConfigError
from cxr_ray.evaluation.decision_curve import decision_curve
from cxr_ray.evaluation.prevalence import at_prevalence, parse_prevalence, reweighted, shares_assumed
from cxr_ray.evaluation.reliability import reliability, what_calibration_changed, wilson
from cxr_ray.labels import LabelSet

THREE, ONE = LabelSet(("a", "b", "c"), "multiclass"), LabelSet(("x",), "multilabel")


def findings(rows: int = 500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=2, size=(rows, 1)) - 1
    targets = (generator.random((rows, 1)) < 1 / (1 + np.exp(-logits))).astype(float)
    targets[:30] = np.nan
    return 1 / (1 + np.exp(-logits)), targets, np.arange(rows) // 2


def classes(rows: int = 500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    targets = generator.choice(3, rows, p=[0.2, 0.3, 0.5])
    return 0.6 * generator.dirichlet([1, 1, 1], rows) + 0.4 * np.eye(3)[targets], targets, np.arange(rows) // 2


def test_net_benefit_is_vickers_and_elkins() -> None:
    said, targets, patients = findings()
    found = decision_curve(said, targets, patients, ONE, resamples=100)
    curve, known = found["per_label"]["x"], ~np.isnan(targets[:, 0])
    truth, scores = targets[known, 0], said[known, 0]
    for place, cut in enumerate(found["thresholds"]):
        true, false = (truth * (scores >= cut)).mean(), ((1 - truth) * (scores >= cut)).mean()
        assert curve["model"][place] == pytest.approx(true - false * cut / (1 - cut), abs=1e-12)
        assert curve["all"][place] == pytest.approx(truth.mean() - (1 - truth.mean()) * cut / (1 - cut), abs=1e-12)
        assert curve["low"][place] <= curve["high"][place]
    assert curve["model"][24] > max(curve["all"][24], 0), "a calibrated model is of use at 0.5"
    assert decision_curve(said, np.zeros_like(targets), patients, ONE, resamples=10)["per_label"]["x"] is None


def test_predictive_values_follow_bayes_rule() -> None:
    said, targets, patients = findings()
    found = at_prevalence(said, targets, patients, ONE, {"x": 0.02}, resamples=50)["per_label"]["x"]
    known = ~np.isnan(targets[:, 0])
    (tn, fp), (fn, tp) = confusion_matrix(targets[known, 0], said[known, 0] >= 0.5)
    sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
    expected = sensitivity * 0.02 / (sensitivity * 0.02 + (1 - specificity) * 0.98)
    assert found["ppv"]["value"] == pytest.approx(expected, abs=1e-12)
    expected = specificity * 0.98 / (specificity * 0.98 + (1 - sensitivity) * 0.02)
    assert found["npv"]["value"] == pytest.approx(expected, abs=1e-12)
    assert found["ppv"]["ci95"][0] < found["ppv"]["value"] < found["ppv"]["ci95"][1]


def test_classes_are_as_if_drawn_elsewhere() -> None:
    """Images drawn again at the assumed shares have the predictive values that were computed without drawing."""
    said, targets, patients = classes()
    assumed = {"a": 0.1}
    found = at_prevalence(said, targets, patients, THREE, assumed, resamples=20)["per_label"]
    assert [found[name]["assumed"] for name in "abc"] == pytest.approx(
        [0.1, *(0.9 * np.array([(targets == k).sum() for k in (1, 2)]) / (targets != 0).sum())]
    )
    weights = np.array([found[name]["assumed"] / found[name]["here"] for name in "abc"])[targets]
    called = said.argmax(1)
    for k, name in enumerate("abc"):
        assert found[name]["ppv"]["value"] == pytest.approx(weights[(called == k) & (targets == k)].sum() / weights[called == k].sum())
        assert found[name]["npv"]["value"] == pytest.approx(weights[(called != k) & (targets != k)].sum() / weights[called != k].sum())
    json.dumps(found, allow_nan=False)


def test_probabilities_elsewhere() -> None:
    said, targets, _ = findings()
    here = float(np.nanmean(targets))
    there = reweighted(said, targets, ONE, {"x": 0.02})
    odds = said / (1 - said) * (0.02 / 0.98) / (here / (1 - here))
    np.testing.assert_allclose(there, odds / (1 + odds), atol=1e-6)
    said, targets, _ = classes()
    there = reweighted(said, targets, THREE, {"a": 0.1})
    np.testing.assert_allclose(there.sum(1), 1, atol=1e-6)
    assert there[:, 0].mean() < said[:, 0].mean()
    same = {name: float((targets == k).mean()) for k, name in enumerate("abc")}
    np.testing.assert_allclose(reweighted(said, targets, THREE, same), said, atol=1e-6)
    assert shares_assumed({"a": 0.5}, np.array([0.2, 0.8, 0.0]), THREE).tolist() == pytest.approx([0.5, 0.5, 0.0])


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("d=0.1", THREE, "label of a, b, c"),
        ("a=2", THREE, "between 0 and 1"),
        ("a", THREE, "expected LABEL=SHARE"),
        ("a=0.5,b=0.5", THREE, "leave nothing"),
        ("a=0.5,b=0.3,c=0.1", THREE, "not to 1"),
    ],
)
def test_what_is_no_prevalence(text: str, labels: LabelSet, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        parse_prevalence(text, labels)
    assert parse_prevalence("a=0.02,b=0.1", THREE) == {"a": 0.02, "b": 0.1}


def test_the_brier_score_in_parts_is_the_whole() -> None:
    said, targets, patients = findings()
    found = reliability(said, targets, patients, ONE)["x"]
    known = ~np.isnan(targets[:, 0])
    parts = found["brier"]
    assert parts["score"] == pytest.approx(brier_score_loss(targets[known, 0], said[known, 0]), abs=1e-12)
    assert parts["reliability"] - parts["resolution"] + parts["uncertainty"] + parts["within_bins"] == pytest.approx(parts["score"])
    assert sum(each["n"] for each in found["bins"]) == known.sum()
    for each in found["bins"]:
        inside = known & (said[:, 0] >= each["low"]) & (said[:, 0] < each["high"])
        assert each["so"] == pytest.approx(np.nanmean(targets[inside]))
        assert each["ci95"][0] <= each["so"] <= each["ci95"][1]
        assert each["patients"] <= each["n"]
    rounded = np.floor(said * 10) / 10 + 0.05  # one probability a bin: the classic decomposition is exact
    assert reliability(rounded, targets, patients, ONE)["x"]["brier"]["within_bins"] == pytest.approx(0, abs=1e-12)


def test_wilsons_interval_as_published() -> None:
    """81 of 263: 0.2553 to 0.3662 (Newcombe, Statistics in Medicine 17:857-872, 1998, table I)."""
    assert [round(bound, 4) for bound in wilson(81 / 263, 263)] == [0.2553, 0.3662]
    assert [round(bound, 4) for bound in wilson(0 / 20, 20)] == [0.0, 0.1611]


def test_what_a_calibration_changed_is_told_with_its_interval() -> None:
    said, targets, patients = findings()
    sharp = 1 / (1 + np.exp(-4 * (np.log(said) - np.log1p(-said))))
    found = what_calibration_changed(sharp, said, targets, patients, ONE, resamples=100)
    assert found["difference"]["ece"]["value"] == pytest.approx(found["calibrated"]["ece"]["value"] - found["raw"]["ece"]["value"])
    assert found["difference"]["ece"]["ci95"][1] < 0
    assert found["difference"]["log_loss"]["ci95"][1] < 0
