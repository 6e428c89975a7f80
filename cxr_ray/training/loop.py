"""``fit``: epochs of training and validation in plain torch. Needs neither Ray nor a process group.

Everything random in an epoch follows from (seed, epoch, rank), and the learning rate from the step: a run resumed between two
epochs goes on exactly as if it had not stopped. Statistics accumulate on the device and are read once an epoch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cxr_ray.config import TrainingConfig
from cxr_ray.data.batches import Batch, Feed
from cxr_ray.errors import RunError
from cxr_ray.labels import LabelSet
from cxr_ray.models.classifier import Classifier
from cxr_ray.training.checkpoint import Best, EpochRecord, TrainState, copy_to_cpu
from cxr_ray.training.distributed import World, synchronise_batch_norm
from cxr_ray.training.ema import MovingAverage
from cxr_ray.training.feature_cache import FeatureCache
from cxr_ray.training.loss import LabelCounts, Objective, mixup
from cxr_ray.training.metrics import gather_validation, validation_metrics
from cxr_ray.training.optim import build_optimizer, clip_gradients, learning_rate_factor, set_learning_rate

logger = logging.getLogger(__name__)

_EPOCH_STREAM = 0xE60C
# torch 2.13 gave the option another name
_BUFFER_OPTION = "forward_sync_buffers" if "forward_sync_buffers" in signature(DistributedDataParallel).parameters else "broadcast_buffers"
STEPS_BETWEEN_CHECKS = 50
"""A GPU, or several ranks, are asked only so often whether the loss is still finite; a lone CPU worker after every step."""

Report = Callable[[EpochRecord, Callable[[], TrainState]], None]
"""Called on every rank after each epoch with its record and a maker of the state (a copy on the CPU, for rank 0 to save)."""


@dataclass(frozen=True, slots=True)
class FitResult:
    """What a finished ``fit`` says; the model holds the weights of the last epoch."""

    history: tuple[EpochRecord, ...]
    best: Best
    stopped_early: bool


def fit(
    model: Classifier,
    train: Feed,
    validation: Feed | None,
    config: TrainingConfig,
    *,
    labels: LabelSet,
    counts: LabelCounts | None = None,
    world: World | None = None,
    resume: TrainState | None = None,
    report: Report | None = None,
) -> FitResult:
    """Train ``model`` in place.

    Args:
        model: On any device; it is moved to that of ``world``.
        train: Its ``batch_size`` and seed are the feed's own affair; ``config.seed`` rules dropout and mixup here.
        validation: None: the monitor must be ``last``.
        config: How.
        labels: Names and task.
        counts: Of the training part; needed for class weights, useful for multilabel.
        world: Rank, ranks and device. None: one process on the CPU.
        resume: Where an earlier ``fit`` with the same arguments stood after some epoch.
        report: See :data:`Report`.

    Raises:
        RunError: The loss is not finite, a monitor needs a validation part, or the state to resume is of another network.
    """
    if validation is None and config.monitor != "last":
        raise RunError(f"training.monitor={config.monitor} needs a validation part", hint="training.monitor=last")
    loop = _Loop(model, config, labels, counts, world or World())
    loop.prepare(train, resume)
    return loop.run(train, validation, report)


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """Seed of torch's generators in an epoch, independent of other numbers that follow from the same seed."""
    return int(np.random.SeedSequence([_EPOCH_STREAM, seed, epoch, rank]).generate_state(1, np.uint64)[0] >> 1)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """bfloat16, or None for fp32. ``auto``: bfloat16 on a GPU that computes in it."""
    if precision == "bf16":
        return torch.bfloat16
    if precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return None


def is_better(config: TrainingConfig, value: float | None, best: Best | None) -> bool:
    """Whether an epoch with this value of the monitor takes the place of ``best``. An undefined value only takes an empty place."""
    if best is None or config.monitor == "last":
        return True
    if value is None:
        return False
    if best.value is None:
        return True
    return value < best.value if config.monitor_mode == "min" else value > best.value


class _Loop:
    """The parts of a run and the state that goes from epoch to epoch."""

    def __init__(self, model: Classifier, config: TrainingConfig, labels: LabelSet, counts: LabelCounts | None, world: World) -> None:
        self.config = config
        self.world = world
        self.device = world.device
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.labels = len(labels)
        self.objective = Objective(labels, config, counts, self.device)
        self.average = MovingAverage(model, config.ema_decay) if config.ema_decay is not None else None
        self.dtype = autocast_dtype(config.precision, self.device)
        self.history: list[EpochRecord] = []
        self.best: Best | None = None
        self.learning: list[bool] | None = None
        self.forward: nn.Module = model
        self.caches: dict[int, FeatureCache] = {}
        if config.compile:
            model.compile()

    def prepare(self, train: Feed, resume: TrainState | None) -> None:
        self.steps_per_epoch = train.steps_per_epoch
        self.optimizer = build_optimizer(self.model, self.config.optimizer)
        set_learning_rate(self.optimizer, 1.0)
        if resume is not None:
            self._restore(resume)
        synchronise_batch_norm(self.model, self.world)  # after the average was copied: a process group cannot be

    def _restore(self, state: TrainState) -> None:
        try:
            self.model.load_state_dict(state.model)
            if self.average is not None and state.average is not None:
                self.average.model.load_state_dict(state.average)
            self.optimizer.load_state_dict(state.optimizer)
        except (RuntimeError, ValueError) as error:
            raise RunError(f"the checkpoint of epoch {state.epoch} is of another network or optimiser", hint="another --out") from error
        self.history = list(state.history)
        self.best = state.best

    @property
    def epoch(self) -> int:
        """The next epoch."""
        return self.history[-1].epoch + 1 if self.history else 0

    @property
    def stopped(self) -> bool:
        """Whether patience has run out."""
        patience = self.config.patience
        return patience is not None and self.best is not None and self.epoch - 1 - self.best.epoch >= patience

    def run(self, train: Feed, validation: Feed | None, report: Report | None) -> FitResult:
        while self.epoch < self.config.epochs and not self.stopped:
            record = self._epoch(train, validation)
            self.history.append(record)
            value = getattr(record, self.config.monitor) if self.config.monitor != "last" else None
            if is_better(self.config, value, self.best):
                self.best = Best(record.epoch, self.config.monitor, value)
            if report is not None:
                report(record, self.state)
        if self.best is None:
            raise RunError("no epoch was trained")
        return FitResult(tuple(self.history), self.best, self.stopped and self.epoch < self.config.epochs)

    def state(self) -> TrainState:
        """A copy on the CPU of all that a resumed run needs."""
        return TrainState(
            model=copy_to_cpu(self.model.state_dict()),
            average=copy_to_cpu(self.average.model.state_dict()) if self.average is not None else None,
            optimizer=copy_to_cpu(self.optimizer.state_dict()),
            history=tuple(self.history),
            best=self.best,
            finished=self.epoch >= self.config.epochs or self.stopped,
        )

    # --- one epoch ------------------------------------------------------------------------------------------------------

    def _epoch(self, train: Feed, validation: Feed | None) -> EpochRecord:
        epoch, started = self.epoch, time.perf_counter()
        self._thaw(epoch)
        with self._seeded(epoch):
            sums = self._train(train, epoch)
            totals = self.world.total(sums).tolist()  # waits for the device
            seconds_training = time.perf_counter() - started
            metrics = self._validate(validation, epoch) if validation is not None else {}
        factor = self._factor(epoch, self.steps_per_epoch - 1)
        return EpochRecord(
            epoch=epoch,
            train_loss=totals[0] / max(totals[1], 1.0),
            lr=self.config.optimizer.lr * factor,
            seconds=time.perf_counter() - started,
            images_per_second=totals[2] / seconds_training,
            workers=self.world.size,
            **metrics,
        )

    def _factor(self, epoch: int, step: int) -> float:
        return learning_rate_factor(
            self.config.schedule, epoch * self.steps_per_epoch + step, steps_per_epoch=self.steps_per_epoch, epochs=self.config.epochs
        )

    def _thaw(self, epoch: int) -> None:
        """Let the model freeze or thaw stages; wrap it again where that changed what learns."""
        self.model.set_epoch(epoch)
        learning = [parameter.requires_grad for parameter in self.model.parameters()]
        if learning == self.learning:
            return
        if not any(learning):
            raise RunError("no parameter of the network learns", hint="fewer model.backbone.freeze_stages")
        self.learning = learning
        self.forward = self.model
        if self.world.size > 1:  # ranks share their statistics in SyncedBatchNorm, so buffers need no broadcast
            devices = [self.device] if self.device.type == "cuda" else None
            buffers: dict[str, Any] = {_BUFFER_OPTION: False}
            self.forward = DistributedDataParallel(self.model, device_ids=devices, gradient_as_bucket_view=True, **buffers)

    @contextmanager
    def _seeded(self, epoch: int) -> Iterator[None]:
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(epoch_seed(self.config.seed, epoch, self.world.rank))
            yield

    def _train(self, feed: Feed, epoch: int) -> torch.Tensor:
        """(sum of the loss, terms in it, images) of this rank, on the device."""
        self.forward.train()
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        bad_step = torch.full((), float("inf"), device=self.device)
        every = 1 if self.world.size == 1 and self.device.type == "cpu" else STEPS_BETWEEN_CHECKS
        with closing(feed.epoch(epoch)) as batches:
            for step, batch in enumerate(batches):
                loss, terms = self._step(batch, epoch, step, self._cache(feed))
                sums += torch.stack([loss, terms.to(loss.dtype), torch.full_like(loss, len(batch.rows))])
                bad_step = torch.where(torch.isfinite(loss), bad_step, bad_step.clamp(max=step))
                if (step + 1) % every == 0:
                    self._check_finite(bad_step, epoch)
        self._check_finite(bad_step, epoch)
        return sums

    def _cache(self, feed: Feed) -> FeatureCache | None:
        """Of this feed; None: not asked for."""
        if not self.config.cache_features:
            return None
        if id(feed) not in self.caches:
            self.caches[id(feed)] = FeatureCache(self.model, feed.rows)
        return self.caches[id(feed)]

    def _images(self, batch: Batch, cache: FeatureCache | None) -> torch.Tensor:
        """What goes into the network: images, or their feature maps where these are kept."""
        return batch.images.to(self.device, non_blocking=True) if cache is None else cache.maps(batch, self.device)

    def _step(self, batch: Batch, epoch: int, step: int, cache: FeatureCache | None) -> tuple[torch.Tensor, torch.Tensor]:
        targets = batch.targets.to(self.device, non_blocking=True)
        mix = None
        if self.config.mixup_alpha:
            images = batch.images.to(self.device, non_blocking=True)
            images, mix = mixup(images, self.config.mixup_alpha, seed=self.config.seed, epoch=epoch, step=step, rank=self.world.rank)
        set_learning_rate(self.optimizer, self._factor(epoch, step))
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            if mix is None:
                images = self._images(batch, cache)
            logits = self.forward(images, is_map=cache is not None)
        loss = self.objective.training_sum(logits, targets, mix)
        # DDP averages over ranks; times their number, the gradient is that of the sum over all rows / images of the step
        (loss * (self.world.size / (batch.global_size * self.objective.terms_per_image))).backward()  # type: ignore[no-untyped-call]
        clip_gradients(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model)
        return loss.detach().double(), self.objective.terms(targets)

    def _check_finite(self, bad_step: torch.Tensor, epoch: int) -> None:
        step = float(self.world.least(bad_step))  # every rank asks at the same steps, so all raise together
        if step != float("inf"):
            raise RunError(
                f"the loss is not finite at epoch {epoch}, step {int(step)}",
                hint=f"a smaller training.optimizer.lr (now {self.config.optimizer.lr:g}), training.clip.by=norm, "
                "training.schedule.warmup_epochs=1, or training.precision=fp32",
            )

    @torch.no_grad()
    def _validate(self, feed: Feed, epoch: int) -> dict[str, float | None]:
        """Metrics of the averaged weights where there are such; computed by rank 0, the same on every rank."""
        model = self.average.model if self.average is not None else self.model
        model.eval()
        labels = self.labels
        logits: list[torch.Tensor] = [torch.zeros((0, labels), device=self.device)]
        targets: list[torch.Tensor] = []
        rows: list[torch.Tensor] = [torch.zeros(0, dtype=torch.int64)]
        cache = self._cache(feed)
        with closing(feed.epoch(epoch)) as batches:
            for batch in batches:
                with torch.autocast(self.device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None):
                    logits.append(model(self._images(batch, cache), is_map=cache is not None).float())
                targets.append(batch.targets)
                rows.append(batch.rows)
        shape = (0, labels) if self.objective.multilabel else (0,)
        targets.append(torch.zeros(shape, dtype=torch.float32 if self.objective.multilabel else torch.int64))
        every = gather_validation(torch.cat(logits), torch.cat(targets), torch.cat(rows), self.world, expected=feed.rows)
        metrics = validation_metrics(*every, self.objective) if self.world.first else None
        return self.world.share(metrics)  # type: ignore[no-any-return]
