"""Validation metrics of an epoch, exact over ranks with unequal counts: every row counts once.

Shape letters: N images of all ranks, B of one rank, K labels. For choosing an epoch; the figures of a report, with their
intervals, are those of ``cxr_ray.evaluation``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from cxr_ray.errors import RunError
from cxr_ray.training.distributed import World
from cxr_ray.training.loss import Objective


def gather_validation(
    logits: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor, world: World, *, expected: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets of all ranks, in the order of their row ids, on the CPU.

    Args:
        logits: (B, K) float32 of this rank; B may be 0.
        targets: (B,) int64 or (B, K) float32 of this rank.
        rows: (B,) int64 row ids of this rank.
        world: The ranks.
        expected: Rows of the validation part.

    Raises:
        RunError: A row is missing or counted twice (a fault of the feed).
    """
    every_row = world.gather(rows).cpu()
    every_logits, every_target = world.gather(logits).cpu(), world.gather(targets).cpu()
    order = torch.argsort(every_row)
    if not torch.equal(every_row[order], torch.arange(expected)):
        raise RunError(
            f"validation saw {len(every_row)} rows, {len(torch.unique(every_row))} of them different; expected each of {expected} once"
        )
    return every_logits[order], every_target[order]


def validation_metrics(logits: torch.Tensor, targets: torch.Tensor, objective: Objective) -> dict[str, float | None]:
    """``val_loss`` and, as ``val_…``, the figures of :func:`label_metrics`; None where a figure is not defined.

    Args:
        logits: (N, K).
        targets: (N,) int64 or (N, K) float32 with NaN.
        objective: For the loss.
    """
    device = objective.weights.device if objective.weights is not None else logits.device
    terms = float(objective.terms(targets))
    loss = float(objective.validation_sum(logits.to(device), targets.to(device))) / terms if terms else math.nan
    scores = torch.sigmoid(logits.float()) if objective.multilabel else torch.softmax(logits.float(), dim=1)
    figures = {f"val_{name}": value for name, value in label_metrics(scores, targets).items()}
    return {"val_loss": loss if math.isfinite(loss) else None, **figures}


def label_metrics(scores: torch.Tensor, targets: torch.Tensor) -> dict[str, float | None]:
    """``accuracy``, ``macro_f1``, ``macro_auroc``.

    Multiclass: accuracy of the largest score; F1 and one-against-rest AUROC of each class. Multilabel: at probability 0.5, over the
    known labels. Macro means are over the labels for which a figure is defined: F1 needs a positive, seen or predicted; AUROC
    needs positives and negatives.

    Args:
        scores: (N, K) probabilities.
        targets: (N,) int64, or (N, K) float32 with NaN.
    """
    if targets.dim() == 1:
        truth = F.one_hot(targets, scores.shape[1]).bool()
        called = F.one_hot(scores.argmax(1), scores.shape[1]).bool()
        known = torch.ones_like(truth)
        right = scores.argmax(1) == targets
    else:
        known = torch.isfinite(targets)
        truth, called = (targets >= 0.5) & known, (scores >= 0.5) & known
        right = (truth == called)[known]
    return {
        "accuracy": float(right.double().mean()) if right.numel() else None,
        "macro_f1": _macro_f1(truth, called),
        "macro_auroc": _macro_auroc(scores, truth, known),
    }


def _macro_f1(truth: torch.Tensor, called: torch.Tensor) -> float | None:
    both = (truth & called).sum(0).double()
    either = truth.sum(0).double() + called.sum(0).double()
    defined = either > 0
    return float((2 * both[defined] / either[defined]).mean()) if defined.any() else None


def _macro_auroc(scores: torch.Tensor, truth: torch.Tensor, known: torch.Tensor) -> float | None:
    from torchmetrics.functional.classification import binary_auroc  # here: its import takes a second, and rank 0 alone needs it

    areas = []
    for label in range(scores.shape[1]):
        mask = known[:, label]
        wanted = truth[mask, label].long()
        if 0 < int(wanted.sum()) < len(wanted) and torch.isfinite(scores[mask, label]).all():
            areas.append(float(binary_auroc(scores[mask, label], wanted)))
    return sum(areas) / len(areas) if areas else None
