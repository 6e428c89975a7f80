from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score

from cxr_ray.config import TrainingConfig
from cxr_ray.errors import RunError
from cxr_ray.labels import LabelSet
from cxr_ray.training.distributed import World
from cxr_ray.training.loss import Objective
from cxr_ray.training.metrics import gather_validation, validation_metrics

CLASSES = Objective(LabelSet(("a", "b", "c"), "multiclass"), TrainingConfig())
FINDINGS = Objective(LabelSet(("x", "y"), "multilabel"), TrainingConfig())


def test_multiclass_figures_are_those_of_scikit_learn() -> None:
    torch.manual_seed(1)
    targets = torch.arange(60) % 3
    logits = torch.randn(60, 3) + torch.nn.functional.one_hot(targets, 3)
    got = validation_metrics(logits, targets, CLASSES)
    assert got["val_loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, targets)), abs=1e-5)
    assert got["val_accuracy"] == pytest.approx(float((logits.argmax(1) == targets).float().mean()))
    assert got["val_macro_f1"] == pytest.approx(f1_score(targets, logits.argmax(1), average="macro"))
    expected = roc_auc_score(targets, logits.softmax(1), multi_class="ovr", average="macro")
    assert got["val_macro_auroc"] == pytest.approx(expected, abs=1e-5)


def test_multilabel_figures_pass_over_unknown_labels() -> None:
    torch.manual_seed(2)
    logits, targets = torch.randn(40, 2), torch.randint(0, 2, (40, 2)).float()
    targets[:10, 1] = float("nan")
    got = validation_metrics(logits, targets, FINDINGS)
    scores, known = torch.sigmoid(logits), slice(10, None)
    areas = [roc_auc_score(targets[:, 0], scores[:, 0]), roc_auc_score(targets[known, 1], scores[known, 1])]
    assert got["val_macro_auroc"] == pytest.approx(sum(areas) / 2, abs=1e-5)
    called = logits > 0
    right = int((called[:, 0] == targets[:, 0].bool()).sum() + (called[known, 1] == targets[known, 1].bool()).sum())
    assert got["val_accuracy"] == pytest.approx(right / 70)
    f1 = [f1_score(targets[:, 0], called[:, 0]), f1_score(targets[known, 1], called[known, 1])]
    assert got["val_macro_f1"] == pytest.approx(sum(f1) / 2)


def test_what_is_not_defined_is_none() -> None:
    one_class = validation_metrics(torch.eye(3), torch.zeros(3, dtype=torch.int64), CLASSES)
    assert one_class["val_macro_auroc"] is None
    unknown = validation_metrics(torch.zeros(2, 2), torch.full((2, 2), float("nan")), FINDINGS)
    assert set(unknown.values()) == {None}
    broken = validation_metrics(torch.full((2, 3), float("nan")), torch.tensor([0, 1]), CLASSES)
    assert broken["val_loss"] is None
    assert broken["val_macro_auroc"] is None


def test_rows_of_all_ranks_in_order(two_ranks: Any) -> None:
    def work(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.tensor([4, 0, 2] if rank == 0 else [3, 1])
        return gather_validation(rows.float().view(-1, 1), rows % 2, rows, World(rank, 2), expected=5)

    for logits, targets in two_ranks.run(work):
        assert logits.flatten().tolist() == [0, 1, 2, 3, 4]
        assert targets.tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("rows", [[0, 1], [0, 1, 1], [0, 1, 1, 2]])
def test_a_row_missing_or_twice_is_refused(rows: list[int]) -> None:
    with pytest.raises(RunError, match="expected each of 3 once"):
        gather_validation(torch.zeros(len(rows), 3), torch.zeros(len(rows)), torch.tensor(rows), World(), expected=3)
