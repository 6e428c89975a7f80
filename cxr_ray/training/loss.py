"""What is minimised. The gradient is that of the exact mean over the global batch, however the ranks divide it.

Shape letters: B images of a rank's part of a batch, K labels.

**Multiclass.** The loss of image ``i`` is ``w[y_i] * CE_i`` (label smoothing within ``CE_i``); the loss of a step is their sum
over all ranks divided by the images of the step. ``balanced`` weights are ``w[c] = n / (K * n_c)`` with the counts of the training
part, so the mean weight of a training image is 1. (torch's ``CrossEntropyLoss(weight=…)`` divides by the weights of the batch at
hand instead: biased towards what a batch happens to lack, and another sum for the ranks to exchange.)

**Multilabel.** Binary cross-entropy on logits over the known labels (NaN is unknown), with ``pos_weight = negatives / positives``,
at most 20. The step's sum is divided by images times the mean number of known labels of a training image: in expectation the
mean over known labels, again without an exchange.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from cxr_ray.config import TrainingConfig
from cxr_ray.errors import RunError
from cxr_ray.labels import LabelSet

MOST_POSITIVE_WEIGHT = 20.0
_MIXUP_STREAM = 0x313


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """What class weights are made of. Always of the training part.

    Args:
        images: Images.
        positives: Images of each class (multiclass), or where each label is 1 (multilabel).
        known: Images where each label is known; equals ``images`` for multiclass.
    """

    images: int
    positives: tuple[int, ...]
    known: tuple[int, ...]

    @classmethod
    def of(cls, targets: np.ndarray, num_labels: int) -> LabelCounts:
        """Count (N,) class indices or an (N, K) matrix of 1, 0 and NaN."""
        if targets.ndim == 1:
            counts = np.bincount(targets.astype(np.int64), minlength=num_labels)
            return cls(len(targets), tuple(counts.tolist()), (len(targets),) * num_labels)
        known = np.isfinite(targets)
        positives = np.where(known, targets, 0).round().sum(axis=0).astype(np.int64)
        return cls(len(targets), tuple(positives.tolist()), tuple(known.sum(axis=0).tolist()))


@dataclass(frozen=True, slots=True)
class Mix:
    """How the images of a batch were mixed: ``share`` of each image, the rest of it from image ``partner``."""

    partner: torch.Tensor
    """(B,) int64 positions in the batch."""
    share: float


class Objective:
    """The loss of a task.

    Args:
        labels: Names and task.
        config: Class weights and label smoothing.
        counts: Of the training part; needed for ``class_weights: balanced``.
        device: Where the logits are.

    Raises:
        RunError: ``balanced`` without counts, with a class that has no training image, or mixup with a multilabel task.
    """

    def __init__(
        self, labels: LabelSet, config: TrainingConfig, counts: LabelCounts | None = None, device: torch.device | None = None
    ) -> None:
        if config.mixup_alpha and labels.task != "multiclass":
            raise RunError("training.mixup_alpha is for multiclass tasks; this one is multilabel", hint="training.mixup_alpha=0")
        if config.class_weights == "balanced" and counts is None:
            raise RunError("training.class_weights=balanced needs the label counts of the training part")
        self.multilabel = labels.task == "multilabel"
        self.smoothing = config.label_smoothing
        self.weights: torch.Tensor | None = None
        if config.class_weights == "balanced" and counts is not None:
            weights = positive_weights(counts) if self.multilabel else class_weights(labels.names, counts)
            self.weights = torch.tensor(weights, dtype=torch.float32, device=device)
        self.terms_per_image = 1.0
        """What the sum of an image's terms is divided by: mean known labels of a training image; 1 for multiclass."""
        if self.multilabel:
            self.terms_per_image = max(sum(counts.known) / max(counts.images, 1), 1e-6) if counts else float(len(labels))

    def training_sum(self, logits: torch.Tensor, targets: torch.Tensor, mix: Mix | None = None) -> torch.Tensor:
        """Sum over the rows of this rank of what is minimised, a scalar. Divide by (images of the step * terms_per_image).

        Args:
            logits: (B, K) of any float type; the loss is computed in fp32.
            targets: (B,) int64 or (B, K) float32 with NaN.
            mix: How the images were mixed.
        """
        if mix is None:
            return self._sum(logits, targets, self.smoothing)
        own, other = self._terms(logits, targets, self.smoothing), self._terms(logits, targets[mix.partner], self.smoothing)
        return (mix.share * own + (1 - mix.share) * other).sum()

    def validation_sum(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """As :meth:`training_sum` with the same weights, without smoothing or mixing; divide by :meth:`terms`."""
        return self._sum(logits, targets, 0.0)

    def terms(self, targets: torch.Tensor) -> torch.Tensor:
        """Number of terms that the sums have: images, or known labels. A scalar tensor, so that nothing waits for the device."""
        if self.multilabel:
            return torch.isfinite(targets).sum()
        return torch.full((), targets.shape[0], device=targets.device)

    def _sum(self, logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
        return self._terms(logits, targets, smoothing).sum()

    def _terms(self, logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
        logits = logits.float()
        if not self.multilabel:
            terms = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
            return terms if self.weights is None else terms * self.weights[targets]
        known = torch.isfinite(targets)
        wanted = torch.where(known, targets, torch.zeros_like(targets)) * (1 - smoothing) + smoothing / 2
        terms = F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=self.weights, reduction="none")
        return torch.where(known, terms, torch.zeros_like(terms))


def class_weights(names: Sequence[str], counts: LabelCounts) -> list[float]:
    """``n / (K * n_c)`` of each class, in the order of ``names``.

    Raises:
        RunError: A class has no training image.
    """
    empty = [name for name, count in zip(names, counts.positives, strict=True) if not count]
    if empty:
        raise RunError(
            f"training.class_weights=balanced: no training image of {', '.join(empty)}",
            hint="another split, or training.class_weights=none",
        )
    return [counts.images / (len(names) * count) for count in counts.positives]


def positive_weights(counts: LabelCounts) -> list[float]:
    """``negatives / positives`` of each label, at most :data:`MOST_POSITIVE_WEIGHT`."""
    pairs = zip(counts.positives, counts.known, strict=True)
    return [min((known - positive) / max(positive, 1), MOST_POSITIVE_WEIGHT) for positive, known in pairs]


def mixup(images: torch.Tensor, alpha: float, *, seed: int, epoch: int, step: int, rank: int = 0) -> tuple[torch.Tensor, Mix]:
    """Mix each image with another of the batch (Zhang et al., arXiv:1710.09412); deterministic by (seed, epoch, step).

    All ranks draw the same share; partners are drawn within a rank's part of the batch, so with mixup the result depends on
    the number of workers. Mixed pixels are rounded to whole grey values, for the network takes uint8.

    Args:
        images: (B, H, W) uint8.
        alpha: Of the Beta(alpha, alpha) distribution of the share.
        seed: Of the run.
        epoch: From 0.
        step: Within the epoch, from 0.
        rank: Of this worker.
    """
    share = float(np.random.default_rng([_MIXUP_STREAM, seed, epoch, step]).beta(alpha, alpha))
    order = np.random.default_rng([_MIXUP_STREAM, seed, epoch, step, 1 + rank]).permutation(len(images))
    partner = torch.from_numpy(order).to(images.device)
    mixed = images.float().mul_(share).add_(images[partner].float(), alpha=1 - share)
    return mixed.round_().to(torch.uint8), Mix(partner, share)
