"""AUROC and Cramér's V equal what scikit-learn and the paper give; shuffles keep patients together."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cxr_ray.audit.chance import Draws, auroc, contingency, cramers_v, interval, macro_auroc


def test_auroc_with_ties_and_weights_equals_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 12, 300) / 12  # many ties
    truth = generator.random(300) < 0.3 + 0.4 * scores
    weights = generator.integers(0, 3, (5, 300)).astype(float)
    found = auroc(scores, weights * truth, weights * ~truth)
    expected = [roc_auc_score(truth, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_macro_auroc_leaves_out_unknown_truths_and_labels_without_scores() -> None:
    scores = np.array([[0.1, np.nan], [0.9, np.nan], [0.8, np.nan], [0.3, np.nan]])
    truth = np.array([[0, 1], [1, 0], [np.nan, 1], [0, 0]], dtype=float)
    assert macro_auroc(scores, truth)[0] == 1.0


def test_cramers_v_is_bergsmas() -> None:
    table = np.array([[10.0, 20.0], [30.0, 5.0]])
    n, square = 65, 65 * (10 * 5 - 20 * 30) ** 2 / (30 * 35 * 40 * 25) / 65
    corrected = square - 1 / (n - 1)
    assert cramers_v(table[None])[0] == pytest.approx(np.sqrt(corrected / (2 - 1 / (n - 1) - 1)), abs=1e-12)


@pytest.mark.parametrize(("table", "value"), [([[50, 0], [0, 50]], 1.0), ([[25, 25], [25, 25]], 0.0), ([[50, 0], [50, 0]], 0.0)])
def test_cramers_v_at_its_ends(table: list[list[float]], value: float) -> None:
    assert cramers_v(np.array([table], dtype=float))[0] == pytest.approx(value, abs=1e-9)


def test_a_contingency_table_counts_by_weight() -> None:
    truth = np.array([[1, 0], [0, 1], [1, 0]], dtype=float)
    found = contingency(truth, np.array([0, 1, 1]), 2, np.array([[1.0, 1.0, 3.0]]))
    assert found.tolist() == [[[1.0, 3.0], [0.0, 1.0]]]


def test_shuffles_move_the_labels_of_a_patient_together() -> None:
    groups = np.array(["a", "b", "a", "c", "c", "d"])
    draws = Draws.of(groups, count=50, seed=0)
    assert sorted(draws.shuffles_RN[0].tolist()) == list(range(6))
    for shuffled in groups[draws.shuffles_RN]:
        assert shuffled[0] == shuffled[2]
        assert shuffled[3] == shuffled[4]
        assert {shuffled[1], shuffled[5]} == {"b", "d"}
    assert (draws.weights_RN[:, 0] == draws.weights_RN[:, 2]).all()
    assert len({tuple(row) for row in draws.shuffles_RN.tolist()}) > 1


def test_an_interval_is_freed_of_a_bias_and_stays_within_its_range() -> None:
    assert interval(np.full(10, 0.3)) == (0.3, 0.3)
    assert interval(np.full(10, 0.3), bias=0.1) == pytest.approx((0.2, 0.2))
    assert interval(np.full(10, 0.3), bias=0.4) == (0.0, 0.0)
