"""What one training worker does, Ray left out: find the state to go on from, train, write checkpoints and history.

Errors that a user can mend and that every rank meets alike come back as a value, for Ray would try them again; everything else is
raised, and Ray starts the workers anew from the newest whole checkpoint.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from cxr_ray import storage
from cxr_ray.config import Recipe
from cxr_ray.cpu import use_cores
from cxr_ray.data.augment import build_augmentation
from cxr_ray.data.batches import Feed
from cxr_ray.errors import ConfigError, CxrRayError, ModelError, RunError
from cxr_ray.labels import LabelSet
from cxr_ray.models.classifier import Classifier, build_classifier
from cxr_ray.training import lease
from cxr_ray.training.checkpoint import (
    Best,
    EpochRecord,
    TrainState,
    checkpoint_location,
    is_whole,
    load_exported,
    load_state,
    newest_valid,
    save_checkpoint,
)
from cxr_ray.training.distributed import World
from cxr_ray.training.loop import fit
from cxr_ray.training.loss import LabelCounts
from cxr_ray.training.progress import TensorBoard, write_history
from cxr_ray.training.run import CHECKPOINTS, DataRecord, best_of_whole, hardware

if TYPE_CHECKING:
    from cxr_ray.data.stream import FeedPlan

logger = logging.getLogger(__name__)

_INITIAL_STREAM = 0x1217
T = TypeVar("T")


class _AgreedError(Exception):
    """An error that every rank knows of."""

    def __init__(self, error: CxrRayError) -> None:
        super().__init__(str(error))
        self.error = error


Announce = Callable[[EpochRecord, str | None], None]
"""Called on every rank after each epoch; rank 0 is given the location of the checkpoint."""


@dataclass(frozen=True)
class Job:
    """What the driver gives every worker; pickled."""

    out: str
    launch: str
    recipe: Recipe
    data: DataRecord
    counts: LabelCounts
    train: FeedPlan
    validation: FeedPlan | None
    initial: str | None = None
    """Checkpoint whose weights are the start; None: the recipe's own start."""
    sharing: int = 1
    """Runs at a time on each node."""


def work(job: Job, world: World, *, workers_here: int, announce: Announce) -> dict[str, Any]:
    """Train to the end.

    Args:
        job: What.
        world: This worker's rank and device.
        workers_here: Workers on this node, which share its cores.
        announce: See :data:`Announce`.

    Returns:
        ``{"epochs", "best", "stopped_early", "hardware"}``, or ``{"error": CxrRayError}``.
    """
    use_device(world.device, workers_here * job.sharing)
    try:
        _agreed(world, lambda: lease.check(job.out, job.launch))
        return _train(job, world, announce)
    except _AgreedError as agreed:
        return {"error": agreed.error}
    except (RunError, ModelError, ConfigError) as error:  # the kinds that ``fit`` raises on every rank alike
        return {"error": error}


def use_device(device: torch.device, workers_here: int) -> None:
    """Divide the node's cores between its workers; images have one size, so let cuDNN measure which algorithm is fastest."""
    use_cores(len(os.sched_getaffinity(0)) // max(1, workers_here))
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")


def build_model(recipe: Recipe, data: DataRecord, *, load_weights: bool) -> Classifier:
    """The network at its start, which follows from ``training.seed``; torch's global random state is left alone."""
    seed = int(np.random.SeedSequence([_INITIAL_STREAM, recipe.training.seed]).generate_state(1, np.uint64)[0] >> 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_classifier(
            recipe.model, len(data.labels), mean=data.mean, std=data.std, image_size=(data.height, data.width), load_weights=load_weights
        )


def _agreed(world: World, attempt: Callable[[], T]) -> T:
    """The answer of ``attempt``; where it fails on any rank with a user's error, every rank raises that of the first, wrapped."""
    answer, failure = None, None
    try:
        answer = attempt()
    except CxrRayError as error:
        failure = error
    failures = [error for error in world.collect(failure) if error is not None]
    if failures:
        raise _AgreedError(failures[0])
    return answer  # type: ignore[return-value]


def _train(job: Job, world: World, announce: Announce) -> dict[str, Any]:
    folder = storage.join(job.out, CHECKPOINTS)
    location = world.share(newest_valid(folder) if world.first else None)
    state = _agreed(world, lambda: load_state(location)) if location is not None else None
    if state is not None:
        state = replace(state, best=world.share(_best_that_is_whole(state, folder, job) if world.first else None))
        logger.info("going on after epoch %d", state.epoch)
    if world.first:
        write_history(job.out, state.history if state is not None else ())
    if state is not None and state.finished and state.best is not None:
        return _result(state.history, state.best, len(state.history) < job.recipe.training.epochs)
    model = _agreed(world, lambda: _build(job, load_weights=state is None))
    train, validation = _agreed(world, lambda: _open_feeds(job, world))
    board = TensorBoard(job.out, state.epoch + 1 if state is not None else 0) if world.first else None

    def report(record: EpochRecord, snapshot: Callable[[], TrainState]) -> None:
        _agreed(world, lambda: lease.check(job.out, job.launch) if world.first else None)
        saved = None
        if world.first and board is not None:
            now = snapshot()
            saved = save_checkpoint(folder, now, keep=job.recipe.training.keep_checkpoints)
            write_history(job.out, now.history)
            board.write(record)
        announce(record, saved)

    labels = LabelSet(job.data.labels, job.data.task)
    try:
        fitted = fit(
            model, train, validation, job.recipe.training, labels=labels, counts=job.counts, world=world, resume=state, report=report
        )
    finally:
        if board is not None:
            board.close()
    return _result(fitted.history, fitted.best, fitted.stopped_early)


def _build(job: Job, *, load_weights: bool) -> Classifier:
    """The network at its start, or ready for the state of an interrupted run."""
    model = build_model(job.recipe, job.data, load_weights=load_weights and job.initial is None)
    if not load_weights or job.initial is None:
        return model
    own = {"mean": model.mean.clone(), "std": model.std.clone()}  # of this run's training part
    try:
        model.load_state_dict({**load_exported(job.initial), **own})
    except RuntimeError:
        raise RunError(f"{job.initial}: the weights to start from are of another network") from None
    return model


def _best_that_is_whole(state: TrainState, folder: str, job: Job) -> Best | None:
    if state.best is not None and is_whole(checkpoint_location(folder, state.best.epoch)):
        return state.best
    return best_of_whole(folder, list(state.history), job.recipe.training.monitor)


def _open_feeds(job: Job, world: World) -> tuple[Feed, Feed | None]:
    settings, seed = job.recipe.training, job.recipe.training.seed
    common: dict[str, Any] = {"threads": job.recipe.feed.augment_threads, "pin_memory": world.device.type == "cuda", "seed": seed}
    augmentation = build_augmentation(job.recipe.augment)
    train = job.train.open(world.rank, world.size, settings.batch_size, shuffle=True, augmentation=augmentation, **common)
    if job.validation is None:
        return train, None
    return train, job.validation.open(world.rank, world.size, settings.batch_size, shuffle=False, augmentation=None, **common)


def _result(history: tuple[EpochRecord, ...], best: Best, stopped_early: bool) -> dict[str, Any]:
    return {"epochs": len(history), "best": asdict(best), "stopped_early": stopped_early, "hardware": hardware()}
