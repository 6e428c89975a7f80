from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cxr_ray.config import TrainingConfig
from cxr_ray.errors import RunError
from cxr_ray.labels import LabelSet
from cxr_ray.training.loss import LabelCounts, Mix, Objective, class_weights, mixup, positive_weights

CLASSES = LabelSet(("a", "b", "c"), "multiclass")
FINDINGS = LabelSet(("x", "y"), "multilabel")
NAN = float("nan")


def test_counts() -> None:
    assert LabelCounts.of(np.array([0, 0, 2]), 3) == LabelCounts(3, (2, 0, 1), (3, 3, 3))
    matrix = np.array([[1, NAN], [0, 1], [1, NAN]], dtype=np.float32)
    assert LabelCounts.of(matrix, 2) == LabelCounts(3, (2, 1), (3, 1))


def test_class_weights_are_n_over_classes_times_count_and_average_one() -> None:
    counts = LabelCounts(100, (10, 30, 60), (100,) * 3)
    weights = class_weights(CLASSES.names, counts)
    assert weights == pytest.approx([100 / 30, 100 / 90, 100 / 180])
    assert sum(weight * count for weight, count in zip(weights, counts.positives, strict=True)) / 100 == pytest.approx(1.0)


def test_positive_weights_stop_at_twenty() -> None:
    assert positive_weights(LabelCounts(1000, (100, 1, 0), (1000, 1000, 500))) == [9.0, 20.0, 20.0]


def test_a_class_without_training_images_has_no_weight() -> None:
    with pytest.raises(RunError, match="no training image of b"):
        class_weights(CLASSES.names, LabelCounts(3, (2, 0, 1), (3, 3, 3)))


def test_balanced_needs_counts_and_mixup_needs_one_class_an_image() -> None:
    with pytest.raises(RunError, match="counts"):
        Objective(CLASSES, TrainingConfig(class_weights="balanced"))
    with pytest.raises(RunError, match="mixup"):
        Objective(FINDINGS, TrainingConfig(mixup_alpha=0.2))


def test_multiclass_sum_is_weighted_cross_entropy_with_smoothing() -> None:
    logits, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 1])
    counts = LabelCounts(100, (10, 30, 60), (100,) * 3)
    objective = Objective(CLASSES, TrainingConfig(class_weights="balanced", label_smoothing=0.1), counts)
    probabilities = F.one_hot(targets, 3) * 0.9 + 0.1 / 3
    by_hand = -(probabilities * logits.log_softmax(1)).sum(1) * torch.tensor(class_weights(CLASSES.names, counts))[targets]
    assert torch.allclose(objective.training_sum(logits, targets), by_hand.sum(), atol=1e-5)
    plain = Objective(CLASSES, TrainingConfig())
    assert torch.allclose(plain.validation_sum(logits, targets) / plain.terms(targets), F.cross_entropy(logits, targets))


def test_multilabel_passes_over_unknown_labels() -> None:
    logits = torch.randn(3, 2, requires_grad=True)
    targets = torch.tensor([[1.0, NAN], [0.0, 1.0], [NAN, NAN]])
    counts = LabelCounts(10, (2, 5), (10, 8))
    objective = Objective(FINDINGS, TrainingConfig(class_weights="balanced"), counts)
    loss = objective.training_sum(logits, targets)
    by_hand = -(4.0 * F.logsigmoid(logits[0, 0]) + F.logsigmoid(-logits[1, 0]) + 0.6 * F.logsigmoid(logits[1, 1]))
    assert torch.allclose(loss, by_hand, atol=1e-6)
    assert objective.terms_per_image == pytest.approx(1.8)
    assert int(objective.terms(targets)) == 3
    loss.backward()
    assert torch.equal(logits.grad[[0, 2, 2], [1, 0, 1]], torch.zeros(3))
    assert torch.isfinite(logits.grad).all()


def test_loss_of_parts_adds_up_to_the_loss_of_the_batch() -> None:
    logits, targets = torch.randn(7, 3), torch.randint(0, 3, (7,))
    objective = Objective(CLASSES, TrainingConfig(class_weights="balanced"), LabelCounts(7, (2, 2, 3), (7,) * 3))
    parts = objective.training_sum(logits[:3], targets[:3]) + objective.training_sum(logits[3:], targets[3:])
    assert torch.allclose(parts, objective.training_sum(logits, targets), atol=1e-5)


def test_mixup_is_a_function_of_seed_epoch_and_step() -> None:
    images = torch.randint(0, 256, (6, 4, 4), dtype=torch.uint8)
    mixed, mix = mixup(images, 0.4, seed=1, epoch=2, step=3)
    again, same = mixup(images, 0.4, seed=1, epoch=2, step=3)
    assert torch.equal(mixed, again)
    assert mix.share == same.share
    expected = images.float() * mix.share + images[mix.partner].float() * (1 - mix.share)
    assert mixed.dtype == torch.uint8
    assert (mixed.float() - expected).abs().max() <= 0.5 + 1e-4
    other_rank = mixup(images, 0.4, seed=1, epoch=2, step=3, rank=1)[1]
    assert other_rank.share == mix.share
    assert mixup(images, 0.4, seed=1, epoch=2, step=4)[1].share != mix.share


def test_the_loss_of_a_mixture_is_the_mixture_of_the_losses() -> None:
    logits, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    partner = torch.tensor([1, 0, 3, 2])
    objective = Objective(CLASSES, TrainingConfig(mixup_alpha=1.0))
    expected = 0.3 * F.cross_entropy(logits, targets, reduction="sum") + 0.7 * F.cross_entropy(logits, targets[partner], reduction="sum")
    assert torch.allclose(objective.training_sum(logits, targets, Mix(partner, 0.3)), expected, atol=1e-5)
