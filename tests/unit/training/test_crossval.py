from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cxr_ray.config import CrossValidationConfig, Recipe
from cxr_ray.errors import DatasetError
from cxr_ray.training import crossval
from cxr_ray.training.crossval import _one_after_the_other, _parallel, _side_by_side, figures, fold_numbers


def test_folds_of_a_dataset() -> None:
    assert fold_numbers(("fold-0", "fold-10", "fold-2", "test")) == [0, 2, 10]
    with pytest.raises(DatasetError, match=r"needs folds; there are train, val(?s:.)*--folds"):
        fold_numbers(("train", "val"))


def test_figures_of_one_label_an_image() -> None:
    probabilities = pa.FixedSizeListArray.from_arrays(pa.array([0.9, 0.1, 0.2, 0.8, 0.6, 0.4, 0.3, 0.7], pa.float32()), 2)
    table = pa.table({"label": [0, 1, 1, 1], "patient_id": ["a", "a", "b", "c"], "probabilities": probabilities})
    found = figures(table)
    assert (found["n"], found["patients"], found["accuracy"]) == (4, 3, 0.75)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found["macro_auroc"] == 1.0


def test_figures_of_many_labels_an_image() -> None:
    def rows(values: list[list[float]]) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(values), pa.float32()), 2)

    labels = rows([[1, 0], [0, 1], [np.nan, 1]])
    table = pa.table({"labels": labels, "patient_id": ["a", "b", "c"], "probabilities": rows([[0.9, 0.2], [0.6, 0.7], [0.1, 0.4]])})
    assert figures(table)["accuracy"] == pytest.approx(3 / 5)


def test_folds_go_on_from_the_fold_before_only_where_the_recipe_says_so() -> None:
    calls: list[tuple[int, str | None]] = []

    def run_fold(fold: int, initial: str | None = None) -> tuple[pa.Table, dict[str, Any]]:
        calls.append((fold, initial))
        return pa.table({"fold": [fold]}), {"fold": fold}

    _one_after_the_other(run_fold, [0, 1, 2], "out")
    assert calls == [(0, None), (1, "out/fold-0"), (2, "out/fold-1")]
    calls.clear()
    done = _side_by_side(run_fold, [0, 1, 2], 2)
    assert [facts["fold"] for _, facts in done] == [0, 1, 2]
    assert sorted(calls) == [(0, None), (1, None), (2, None)]


@pytest.mark.parametrize(
    ("there", "nodes", "use_gpu", "workers", "wanted", "expected"),
    [
        ({"CPU": 16.0}, 1, False, 1, None, 1),  # one CPU worker keeps a whole node busy
        ({"CPU": 64.0}, 4, False, 2, None, 2),
        ({"CPU": 64.0, "GPU": 8.0}, 1, True, 1, None, 5),  # no more than folds
        ({"CPU": 64.0, "GPU": 8.0}, 1, True, 4, None, 2),
        ({"CPU": 64.0, "GPU": 1.0}, 1, True, 4, None, 1),
        ({"CPU": 4.0}, 1, False, 1, 3, 3),
        ({"CPU": 4.0}, 1, False, 1, 9, 5),
    ],
)
def test_how_many_folds_at_a_time(
    there: dict[str, float], nodes: int, use_gpu: bool, workers: int, wanted: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crossval, "resources", lambda: there)
    monkeypatch.setattr(crossval, "nodes", lambda: nodes)
    monkeypatch.setattr(crossval, "require", lambda *_, **__: None)
    assert _parallel(Recipe(name="x"), 5, workers, use_gpu, wanted) == expected
    unsound = Recipe(name="x", cross_validation=CrossValidationConfig(start="previous"))
    assert _parallel(unsound, 5, workers, use_gpu, wanted) == 1
