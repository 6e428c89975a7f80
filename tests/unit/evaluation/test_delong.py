"""DeLong's variance: published figures, the definition by brute force, and by patient."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cxr_ray.evaluation.delong import auroc_difference, auroc_of_labels, delong
from cxr_ray.labels import LabelSet

TWO = LabelSet(("a", "b"), "multilabel")


def brute_force(scores: np.ndarray, positive: np.ndarray, patients: np.ndarray) -> tuple[float, float]:
    """Obuchowski (1997), equations as printed, pair by pair."""
    above, below = scores[positive], scores[~positive]
    won = (above[:, None] > below) + 0.5 * (above[:, None] == below)
    area, m, n = won.mean(), len(above), len(below)
    v10, v01 = won.mean(1), won.mean(0)
    names = np.unique(patients)
    x = np.array([(v10[patients[positive] == name] - area).sum() for name in names])
    y = np.array([(v01[patients[~positive] == name] - area).sum() for name in names])
    i10, i01, i = len(np.unique(patients[positive])), len(np.unique(patients[~positive])), len(names)
    s10, s01 = i10 / ((i10 - 1) * m) * (x**2).sum(), i01 / ((i01 - 1) * n) * (y**2).sum()
    s11 = i / (i - 1) * (x * y).sum()
    return area, s10 / m + s01 / n + 2 / (m * n) * s11


def case(seed: int, rows: int = 150) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    patients = generator.integers(0, 40, rows)
    positive = generator.random(rows) < 0.4
    scores = generator.normal(size=(2, rows)) + 0.8 * positive + generator.normal(size=40)[patients]
    return np.round(scores, 1), positive, patients


def test_hanley_and_mcneils_ratings() -> None:
    """109 CT images rated 1 to 5 (Radiology 143:29-36, 1982); area 0.8932, standard error 0.0307, 0.83295 to 0.95339 as Stata's manual
    prints them (roctab, DeLong)."""
    normal, abnormal = [33, 6, 6, 11, 2], [3, 2, 2, 11, 33]
    scores = np.repeat(np.tile(np.arange(1, 6), 2), [*normal, *abnormal]).astype(float)
    positive = np.repeat([False, True], [sum(normal), sum(abnormal)])
    (area,), ((variance,),) = delong(scores[None], positive)
    assert round(area, 4) == 0.8932
    assert round(variance**0.5, 4) == 0.0307
    assert [round(area + sign * 1.959964 * variance**0.5, 5) for sign in (-1, 1)] == [0.83295, 0.95339]


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_definition_by_image_and_by_patient(seed: int) -> None:
    scores, positive, patients = case(seed)
    for names in (np.arange(len(positive)), patients):
        areas, covariance = delong(scores, positive, names)
        for side in range(2):
            area, variance = brute_force(scores[side], positive, names)
            assert areas[side] == pytest.approx(area, abs=1e-12)
            assert areas[side] == pytest.approx(roc_auc_score(positive, scores[side]), abs=1e-12)
            assert covariance[side, side] == pytest.approx(variance, abs=1e-12)
    assert np.array_equal(delong(scores, positive)[1], delong(scores, positive, np.arange(len(positive)))[1])


def test_the_covariance_is_that_of_the_difference() -> None:
    """The variance of A - B is linear in the components: brute force on them, without the covariance."""
    scores, positive, _ = case(7)
    _, covariance = delong(scores, positive)
    above, below = scores[:, positive], scores[:, ~positive]
    won = (above[:, :, None] > below[:, None]) + 0.5 * (above[:, :, None] == below[:, None])
    v10, v01 = won[0].mean(1) - won[1].mean(1), won[0].mean(0) - won[1].mean(0)
    expected = v10.var(ddof=1) / len(v10) + v01.var(ddof=1) / len(v01)
    assert covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1] == pytest.approx(expected, abs=1e-12)


def test_labels_and_differences_leave_unknown_out() -> None:
    scores, positive, patients = case(3)
    targets = np.column_stack([positive, np.ones(len(positive))]).astype(float)
    unknown = np.random.default_rng(0).random(len(positive)) < 0.3
    targets[unknown, 0] = np.nan
    probabilities = np.column_stack([scores[0], scores[0]])
    found = auroc_of_labels(probabilities, targets, patients, TWO)
    assert found["b"] is None
    assert found["a"]["auroc"] == pytest.approx(roc_auc_score(positive[~unknown], scores[0, ~unknown]), abs=1e-12)
    assert found["a"]["patients"]["se"] == pytest.approx(brute_force(scores[0, ~unknown], positive[~unknown], patients[~unknown])[1] ** 0.5)
    same = auroc_difference(probabilities, probabilities, targets, patients, TWO)
    assert (same["a"], same["b"]) == ({"difference": 0.0, "se": 0.0, "ci95": [0.0, 0.0], "p": 1.0}, None)
    better = auroc_difference(np.column_stack([positive + 0.1 * scores[0]] * 2), probabilities, targets, patients, TWO)["a"]
    assert better is not None
    assert better["difference"] > 0
    assert better["p"] < 0.001


def test_one_patient_has_no_interval() -> None:
    found = auroc_of_labels(np.array([[0.1], [0.9]]), np.array([[0.0], [1.0]]), ["p", "p"], LabelSet(("a",), "multilabel"))
    assert found["a"] == {"auroc": 1.0, "images": None, "patients": None}
