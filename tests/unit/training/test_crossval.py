from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from cxr_ray.errors import DatasetError
from cxr_ray.training.crossval import figures, fold_numbers


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
