"""Thresholds are the best there are, by brute force; unknown answers are left out; ties have one outcome."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score

from cxr_ray.errors import ConfigError, DatasetError
from cxr_ray.evaluation.crossval import cross_fitted
from cxr_ray.evaluation.metrics import compute_metrics
from cxr_ray.evaluation.thresholds import fit_thresholds, operating_points, without_contrast
from cxr_ray.labels import LabelSet
from cxr_ray.models.decision import called, parse_policy


def case(seed: int, rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Three labels of 30, 10 and 3 % whose probabilities are far from 0.5, rounded so that there are ties; a fifth is unknown."""
    generator = np.random.default_rng(seed)
    targets = (generator.random((rows, 3)) < [0.3, 0.1, 0.03]).astype(np.float32)
    targets[:2] = [[1, 1, 1], [0, 0, 0]]
    scores = np.round(1 / (1 + np.exp(2.5 - 1.5 * targets - generator.normal(size=(rows, 3)))), 2).astype(np.float32)
    targets[2:][generator.random((rows - 2, 3)) < 0.2] = np.nan
    return scores, targets


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("policy", ["f1", "youden"])
def test_no_other_cut_is_better(policy: str, seed: int) -> None:
    scores, targets = case(seed)
    quality = f1_score if policy == "f1" else balanced_accuracy_score  # 2 * balanced accuracy - 1 is Youden's index
    for label, cut in enumerate(fit_thresholds(scores, targets, policy=policy)):
        known = ~np.isnan(targets[:, label])
        truth, said = targets[known, label], scores[known, label].astype(np.float64)
        best = max(quality(truth, said >= other) for other in np.unique(said))
        assert quality(truth, said >= cut) == pytest.approx(best, abs=1e-12)
        assert quality(truth, said >= 0.5) < best, "a case where 0.5 is as good would prove nothing"
        assert 0.0 <= cut <= 1.0


def test_unknown_answers_change_nothing() -> None:
    scores, targets = case(0)
    extra = np.random.default_rng(1).random((50, 3)).astype(np.float32)
    unknown = np.full((50, 3), np.nan, np.float32)
    for policy in ("f1", "youden"):
        with_them = fit_thresholds(np.concatenate([scores, extra]), np.concatenate([targets, unknown]), policy=policy)
        assert with_them == fit_thresholds(scores, targets, policy=policy)


def test_a_cut_lies_between_the_neighbours() -> None:
    scores, targets = np.array([[0.1], [0.2], [0.3], [0.4]]), np.array([[0.0], [0.0], [1.0], [1.0]])
    assert fit_thresholds(scores, targets, policy="f1") == pytest.approx((0.25,))
    assert fit_thresholds(scores, targets, policy="youden") == pytest.approx((0.25,))
    assert fit_thresholds(scores, 1 - targets, policy="f1") == pytest.approx((0.05,)), "all are called: the cut is below the lowest"


def test_of_cuts_alike_the_one_nearest_to_a_half_is_taken() -> None:
    # Youden: 0.9 alone (1 of 2, 0 of 2), or from 0.2 on (2 of 2, 1 of 2): both 0.5.
    scores, targets = np.array([[0.1], [0.2], [0.4], [0.9]]), np.array([[0.0], [1.0], [0.0], [1.0]])
    assert fit_thresholds(scores, targets, policy="youden") == pytest.approx((0.65,))
    # As near: 0.4 and 0.6, the higher.
    scores = np.array([[0.1], [0.375], [0.425], [0.775]])
    cuts = (0.2375, 0.6)
    assert fit_thresholds(scores, targets, policy="youden")[0] == pytest.approx(max(cuts, key=lambda cut: -abs(cut - 0.5)))
    scores = np.array([[0.25], [0.55], [0.5625], [0.6375]])  # cuts at 0.4 and 0.6
    assert fit_thresholds(scores, targets, policy="youden") == pytest.approx((0.6,))
    rows = np.random.default_rng(0).permutation(4)
    assert fit_thresholds(scores[rows], targets[rows], policy="youden") == fit_thresholds(scores, targets, policy="youden")


@pytest.mark.parametrize("policy", ["f1", "youden", "sensitivity=0.9", "cost=5:1", "fixed"])
def test_a_label_without_positives_or_negatives_keeps_a_half(policy: str) -> None:
    scores = np.full((4, 4), 0.1)
    targets = np.array([[0, 1, np.nan, 0], [0, 1, np.nan, 1], [np.nan, 1, np.nan, 0], [0, np.nan, np.nan, 0]])
    assert without_contrast(targets) == (True, True, True, False)
    cuts, origin = operating_points(scores, targets, LabelSet(("a", "b", "c", "d"), "multilabel"), policy=policy, part="val of x")
    assert cuts[:3] == (0.5, 0.5, 0.5)
    assert (cuts[3] == 0.5) == (policy == "fixed")
    if policy == "fixed":
        assert (origin.part, origin.n, origin.not_fitted) == (None, 0, ())
    else:
        assert (origin.part, origin.n, origin.not_fitted) == ("val of x", 4, ("a", "b", "c"))
    assert origin.policy == policy
    assert all(type(cut) is float for cut in cuts)


def test_what_cannot_be_fitted() -> None:
    with pytest.raises(DatasetError, match="one shape"):
        fit_thresholds(np.zeros((3, 2)), np.zeros((3, 1)), policy="f1")
    with pytest.raises(DatasetError, match="one shape"):
        fit_thresholds(np.zeros(3), np.zeros(3), policy="f1")
    with pytest.raises(ConfigError, match="'best' is no policy"):
        fit_thresholds(np.zeros((3, 1)), np.zeros((3, 1)), policy="best")  # type: ignore[arg-type]


def test_no_image_chooses_its_own_threshold() -> None:
    """Fold 1's scores lie elsewhere than fold 0's: each gets the threshold that suits the other."""
    probabilities = np.array([[0.1], [0.2], [0.3], [0.4], [0.6], [0.7], [0.8], [0.9]])
    targets = np.array([[0.0], [0.0], [1.0], [1.0], [0.0], [0.0], [1.0], [1.0]])
    folds = np.repeat([0, 1], 4)
    cuts = cross_fitted(probabilities, targets, folds)
    assert cuts == {0: pytest.approx((0.75,)), 1: pytest.approx((0.25,))}
    changed = cross_fitted(np.where(folds[:, None] == 0, 1 - probabilities, probabilities), targets, folds)
    assert changed[0] == cuts[0]


def test_each_image_may_have_thresholds_of_its_own() -> None:
    labels = LabelSet(("a", "b"), "multilabel")
    probabilities, targets = np.full((4, 2), 0.5), np.array([[1.0, 0.0]] * 4)
    rows = np.array([[0.4, 0.4], [0.4, 0.6], [0.6, 0.6], [0.6, 0.4]])
    found = compute_metrics(probabilities, targets, ["p", "q", "r", "s"], labels, split="x", thresholds=rows, resamples=10)
    assert found["per_label"]["a"]["sensitivity"]["value"] == 0.5
    assert found["per_label"]["b"]["specificity"]["value"] == 0.5
    assert found["per_label"]["a"]["threshold"] == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(3))
def test_a_fixed_sensitivity_is_reached_and_no_higher_cut_reaches_it(seed: int) -> None:
    scores, targets = case(seed)
    for label, cut in enumerate(fit_thresholds(scores, targets, policy="sensitivity=0.9")):
        known = ~np.isnan(targets[:, label])
        truth, said = targets[known, label], scores[known, label].astype(np.float64)
        assert recall_score(truth, said >= cut) >= 0.9
        assert recall_score(truth, said >= said[said > cut].min() + 1e-9) < 0.9


@pytest.mark.parametrize(
    ("policy", "missed", "prevalence"), [("cost=8:1", 8.0, None), ("cost=1:4,0.02", 0.25, 0.02), ("cost=1:1,0.9", 1.0, 0.9)]
)
def test_no_other_cut_costs_less(policy: str, missed: float, prevalence: float | None) -> None:
    scores, targets = case(1)
    for label, cut in enumerate(fit_thresholds(scores, targets, policy=policy)):
        known = ~np.isnan(targets[:, label])
        truth, said = targets[known, label] == 1, scores[known, label].astype(np.float64)
        share = truth.mean() if prevalence is None else prevalence

        def cost(at: float, truth: np.ndarray = truth, said: np.ndarray = said, share: float = share) -> float:
            called = said >= at
            return float(missed * share * (~called[truth]).mean() + (1 - share) * called[~truth].mean())

        assert cost(cut) == pytest.approx(min(cost(other) for other in [*np.unique(said), 1.0]), abs=1e-12)


def test_a_dear_alarm_calls_nobody() -> None:
    scores, targets = np.array([[0.1], [0.2], [0.3], [0.4]]), np.array([[0.0], [1.0], [1.0], [0.0]])
    assert fit_thresholds(scores, targets, policy="cost=1:100")[0] == pytest.approx(0.7)


@pytest.mark.parametrize(
    "text", ["best", "f1=2", "sensitivity", "sensitivity=0", "sensitivity=1.2", "cost=5", "cost=0:1", "cost=5:1,2", "cost=a:b"]
)
def test_what_is_no_policy(text: str) -> None:
    with pytest.raises(ConfigError, match="no policy; valid: f1, youden"):
        parse_policy(text)


def test_one_label_of_many_classes_is_called_at_its_cut() -> None:
    labels = LabelSet(("covid", "normal", "other"), "multiclass")
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 3, 300)
    scores = generator.dirichlet([1, 1, 1], 300) * 0.7 + 0.3 * np.eye(3)[targets]
    cuts, origin = operating_points(scores, targets, labels, policy="sensitivity=0.95", part="val of x", positive="covid")
    assert cuts[1:] == (None, None)
    assert cuts[0] == pytest.approx(fit_thresholds(scores[:, :1], (targets == 0)[:, None].astype(float), policy="sensitivity=0.95")[0])
    assert origin.told() == "highest cut that finds 95.0% of covid on val of x (300 images)"
    metrics = compute_metrics(scores, targets, [str(row) for row in range(300)], labels, split="val", thresholds=cuts, resamples=20)
    assert metrics["per_label"]["covid"]["sensitivity"]["value"] >= 0.95
    assert metrics["per_label"]["covid"]["threshold"] == cuts[0]
    assert "threshold" not in metrics["per_label"]["normal"]
    rest = called(scores, "multiclass", cuts)[scores[:, 0] < cuts[0]]
    assert np.array_equal(rest.argmax(1), scores[scores[:, 0] < cuts[0]][:, 1:].argmax(1) + 1)
    assert (called(scores, "multiclass").argmax(1) == scores.argmax(1)).all()
