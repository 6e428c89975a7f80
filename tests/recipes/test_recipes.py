"""Every built-in recipe from image to served answer: one step, two epochs, a BUNDLE, and the same probabilities from the Predictor.

The images are phantoms of the least size that gives each network a map of two pixels a side. Published weights are replaced by random
ones, whose batch norms are first given the statistics of a batch: without any, a deep random network's map vanishes.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from cxr_ray.bundle import Provenance, read_bundle, write_bundle
from cxr_ray.config import Recipe, load_recipe, recipe_names
from cxr_ray.data.augment import build_augmentation
from cxr_ray.data.batches import MemoryFeed
from cxr_ray.data.phantoms import CLASSES, MULTILABEL, render_phantom, shots
from cxr_ray.errors import ModelError
from cxr_ray.imaging.preprocess import PreprocessSpec
from cxr_ray.labels import LabelSet
from cxr_ray.models.backbones import NORMS
from cxr_ray.models.classifier import Classifier, build_classifier
from cxr_ray.models.inference import predict_probabilities
from cxr_ray.serving.predictor import Predictor
from cxr_ray.training.loop import fit
from cxr_ray.training.loss import LabelCounts, Objective
from cxr_ray.training.optim import build_optimizer

TRAIN, HELD_OUT = 12, 6
SIZES = (16, 33, 64, 107)
MEAN, STD = 0.45, 0.25


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def task_of(recipe: Recipe) -> str:
    if recipe.name.endswith("multilabel"):
        return "multilabel"
    return "croup" if recipe.paper == "000" else "covid"


def labels_of(task: str) -> LabelSet:
    return LabelSet(MULTILABEL, "multilabel") if task == "multilabel" else LabelSet(CLASSES[task], "multiclass")


@cache
def phantoms(task: str, size: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """(18, size, size) images and their targets, the same for every recipe of a task."""
    images, targets = [], []
    for shot in shots(task, TRAIN + HELD_OUT, 0, 128):
        images.append(cv2.resize(render_phantom(shot).image, (size, size), interpolation=cv2.INTER_AREA))
        named = [name in shot.findings for name in MULTILABEL] if task == "multilabel" else CLASSES[task].index(shot.label)
        targets.append(named)
    return np.stack(images).astype(np.uint8), np.asarray(targets, dtype=np.float32 if task == "multilabel" else np.int64)


def build(recipe: Recipe, outputs: int, size: int) -> Classifier:
    return build_classifier(recipe.model, outputs, mean=MEAN, std=STD, image_size=(size, size))


def least_size(recipe: Recipe) -> int:
    for size in SIZES:
        try:
            with torch.device("meta"):
                model = build(recipe, 2, size)
        except ModelError:
            continue
        if min(model.map_size) >= 2:
            return size
    raise AssertionError(f"{recipe.name}: none of {SIZES} will do")


def settle(model: Classifier, images: torch.Tensor) -> None:
    """Give the batch norms of the backbone the statistics of these images; everything else stays."""
    norms = [module for module in model.backbone.modules() if isinstance(module, NORMS)]
    kept = [(norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.momentum, norm.training = 1.0, True
    with torch.no_grad():
        model.feature_map(images)
    for norm, (momentum, training) in zip(norms, kept, strict=True):
        norm.momentum, norm.training = momentum, training


def loss_of(model: Classifier, images: torch.Tensor, targets: torch.Tensor, objective: Objective) -> torch.Tensor:
    torch.manual_seed(5)  # the same dropout and stochastic depth
    return objective.training_sum(model(images), targets) / len(images)


def check_step(recipe: Recipe, model: Classifier, images: torch.Tensor, targets: torch.Tensor, objective: Objective) -> None:
    """A small step of the recipe's optimiser lowers the loss of its own batch, and moves what is meant to learn and nothing else."""
    model.train()
    optimizer = build_optimizer(model, recipe.training.optimizer.model_copy(update={"lr": 1e-6, "weight_decay": 0.0}))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    first = loss_of(model, images, targets, objective)
    first.backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    # One step has no step before it: the recurrent weights multiply nought.
    idle = {"recurrent.rnn.weight_hh_l0"} if recipe.model.sequence.order == "flatten" else set()
    assert reached == learning - idle
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved <= learning
    assert len(moved) > 0.5 * len(learning)  # what is large may stand still at so small a step
    with torch.no_grad():
        assert loss_of(model, images, targets, objective) < first
    optimizer.zero_grad()


@pytest.mark.parametrize("name", recipe_names())
def test_from_image_to_answer(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, ["model.backbone.weights=none"])
    labels, size = labels_of(task_of(recipe)), least_size(recipe)
    pixels, answers = phantoms(task_of(recipe), size)
    counts = LabelCounts.of(answers[:TRAIN], len(labels))
    torch.manual_seed(0)
    model = build(recipe, len(labels), size)
    images, targets = torch.from_numpy(pixels[:6]), torch.from_numpy(answers[:6])
    settle(model, images)
    check_step(recipe, model, images, targets, Objective(labels, recipe.training, counts))

    training = recipe.training.model_copy(update={"epochs": 2, "batch_size": 6, "precision": "fp32"})
    train = MemoryFeed(pixels[:TRAIN], answers[:TRAIN], 6, augmentation=build_augmentation(recipe.augment))
    held_out = MemoryFeed(pixels[TRAIN:], answers[TRAIN:], 6, shuffle=False)
    frozen = {key: tensor.clone() for key, tensor in model.state_dict().items()} if model.backbone.is_constant else {}
    result = fit(model, train, held_out, training, labels=labels, counts=counts)
    assert len(result.history) == 2
    assert all(math.isfinite(record.train_loss) and math.isfinite(record.val_loss or 0.0) for record in result.history)
    assert all(
        torch.equal(tensor, frozen[key]) for key, tensor in model.state_dict().items() if key in frozen and key.startswith("backbone.")
    )

    # As the Predictor lays its weights out, whatever training did: a deep random network makes 4e-5 of such a difference in rounding.
    model.to(memory_format=torch.channels_last)
    expected = predict_probabilities(model, pixels[TRAIN:], labels.task)
    where = tmp_path / "bundle"
    try:
        write(recipe, model, labels, size, where)
        found = Predictor(read_bundle(str(where))).predict_arrays(pixels[TRAIN:])
    finally:
        shutil.rmtree(where, ignore_errors=True)  # hundreds of megabytes each
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert expected.std() > 0


def write(recipe: Recipe, model: nn.Module, labels: LabelSet, size: int, where: Path) -> None:
    assert isinstance(model, Classifier)
    write_bundle(
        str(where),
        model=model,
        name=recipe.name,
        model_config=recipe.model,
        labels=labels,
        preprocess=PreprocessSpec(height=size, width=size),
        mean=MEAN,
        std=STD,
        provenance=Provenance(
            cxr_ray="0",
            recipe=recipe.name,
            seed=0,
            epoch=1,
            dataset="none",
            dataset_fingerprint="d" * 64,
            run_fingerprint="r" * 64,
            versions={},
        ),
        card=f"# {recipe.name}\n",
    )
