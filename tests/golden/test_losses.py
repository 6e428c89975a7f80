"""Losses that a refactor must not change: a small CNN-LSTM on fixed data, with augmentation, dropout, schedule and clipping.

After a change that is meant to change them: ``CXR_RAY_WRITE_GOLDEN=1 python -m pytest tests/golden``, and say why in the commit.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from cxr_ray.config import BackboneConfig, ClipConfig, HeadConfig, ModelConfig, OptimizerConfig, RnnConfig, ScheduleConfig, TrainingConfig
from cxr_ray.data.augment import build_augmentation
from cxr_ray.data.batches import MemoryFeed
from cxr_ray.labels import LabelSet
from cxr_ray.models.classifier import build_classifier
from cxr_ray.training.loop import fit
from cxr_ray.training.loss import LabelCounts

GOLDEN = Path(__file__).parent / "losses.json"
LABELS = LabelSet(("low", "middle", "high"), "multiclass")


def losses(kind: str) -> list[float]:
    """Training and validation loss of three epochs, one after the other."""
    generator = np.random.default_rng(7)
    targets = np.arange(48) % 3
    images = generator.integers(0, 120, (48, 32, 32))
    for index, target in enumerate(targets):
        images[index, 10 * target : 10 * target + 10] += 100
    pixels = images.astype(np.uint8)
    rnn = RnnConfig(kind="none", readout="mean") if kind == "none" else RnnConfig(kind=kind, hidden_size=8, bidirectional=True)  # type: ignore[arg-type]
    model_config = ModelConfig(backbone=BackboneConfig(name="small_cnn"), rnn=rnn, head=HeadConfig(dropout=0.2))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_classifier(model_config, 3, mean=0.4, std=0.2, image_size=(32, 32))
    config = TrainingConfig(
        epochs=3,
        batch_size=16,
        optimizer=OptimizerConfig(lr=2e-3, weight_decay=0.01),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=1),
        clip=ClipConfig(by="norm"),
        class_weights="balanced",
        label_smoothing=0.05,
    )
    train = MemoryFeed(pixels, targets, 16, seed=3, augmentation=build_augmentation("light"))
    result = fit(model, train, MemoryFeed(pixels, targets, 16, shuffle=False), config, labels=LABELS, counts=LabelCounts.of(targets, 3))
    return [value for record in result.history for value in (record.train_loss, record.val_loss or 0.0)]


@pytest.mark.parametrize("kind", ["lstm", "gru", "none"])
def test_the_losses_are_those_of_record(kind: str) -> None:
    found = losses(kind)
    record = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("CXR_RAY_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps({**record, kind: [round(value, 6) for value in found]}, indent=2) + "\n")
        record = json.loads(GOLDEN.read_text())
    assert found == pytest.approx(record[kind], rel=2e-3)
    assert found[-1] < found[1]
