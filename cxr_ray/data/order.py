"""Which rows stand in which batch of which rank: pure functions of ``(seed, epoch)`` and of nothing else.

``batch_size`` counts the images of a step over all ranks; a rank takes its contiguous part of each global batch, so one
worker and two workers train on the same batches, and a run resumed at epoch ``e`` sees what an undisturbed one sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxr_ray.errors import DatasetError

LEAST_ROWS = 2
"""A last, partial training step of fewer images is dropped: batch normalisation (over all ranks) cannot learn from one."""

_ORDER_STREAM, _WINDOW_STREAM = 0x0DE5, 0x3D0
"""Keep these orders apart from each other and from other random numbers that follow from the same seed."""

Rows = NDArray[np.int64]


def epoch_order(rows: int, seed: int, epoch: int) -> Rows:
    """The global order of a training epoch: a permutation of ``range(rows)`` that follows from ``(seed, epoch)``."""
    return np.random.default_rng([_ORDER_STREAM, seed, epoch]).permutation(rows).astype(np.int64, copy=False)


def window_order(rows: int, seed: int, epoch: int, rank: int, window: int) -> Rows:
    """The order within one window of a streamed epoch: a permutation of ``range(rows)``."""
    return np.random.default_rng([_WINDOW_STREAM, seed, epoch, rank, window]).permutation(rows).astype(np.int64, copy=False)


def step_sizes(rows: int, batch_size: int, *, world_size: int = 1, training: bool = True) -> list[int]:
    """Images of each global step.

    All steps have ``batch_size`` images but the last, which has what is left. In training that last step is dropped if it
    has fewer than :data:`LEAST_ROWS` images or a rank would get none (a step that is the only one needs an image a rank).
    Validation drops nothing.

    Raises:
        DatasetError: ``batch_size`` is smaller than ``world_size``, or there are fewer training rows than ranks.
    """
    full, tail = divmod(rows, batch_size)
    sizes = [batch_size] * full
    if not training:
        return sizes + [tail] * bool(tail)
    if batch_size < world_size:
        raise DatasetError(f"a batch of {batch_size} cannot be divided over {world_size} workers", hint=f"training.batch_size={world_size}")
    if tail and tail >= (max(LEAST_ROWS, world_size) if full else world_size):
        sizes.append(tail)
    if not sizes:
        raise DatasetError(f"{rows} training images cannot be divided over {world_size} workers", hint="fewer --workers")
    return sizes


def global_batches(order: Rows, batch_size: int, *, world_size: int = 1, training: bool = True) -> list[Rows]:
    """``order`` cut into the global batches of :func:`step_sizes`, which see for what is dropped and raised."""
    sizes = step_sizes(len(order), batch_size, world_size=world_size, training=training)
    ends = np.cumsum(sizes, dtype=np.int64)
    return [order[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def rank_bounds(size: int, rank: int, world_size: int) -> tuple[int, int]:
    """Where ``rank``'s contiguous part of a global batch of ``size`` starts and ends; parts differ by at most one."""
    return size * rank // world_size, size * (rank + 1) // world_size


def rank_slice(global_batch: Rows, rank: int, world_size: int) -> Rows:
    """``rank``'s part of a global batch; the parts of all ranks, one after the other, are the batch."""
    start, end = rank_bounds(len(global_batch), rank, world_size)
    return global_batch[start:end]


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of which order a rank gets.

    Args:
        rank: This worker, from 0.
        world_size: Workers in all.
        batch_size: Images of a step over all ranks.
        seed: With the epoch, all that the order and the augmentation depend on.
        shuffle: True: training (global shuffle, the same number of steps on every rank). False: validation (natural
            order, every row exactly once, a rank may have fewer steps).
    """

    rank: int = 0
    world_size: int = 1
    batch_size: int = 32
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not one of {self.world_size}")
        if self.batch_size < 1 or self.seed < 0:
            raise ValueError(f"batch_size {self.batch_size} must be at least 1 and seed {self.seed} at least 0")

    def sizes(self, rows: int) -> list[int]:
        """Images of each global step."""
        return step_sizes(rows, self.batch_size, world_size=self.world_size, training=self.shuffle)

    def own_sizes(self, rows: int) -> list[tuple[int, int]]:
        """(images of this rank, images of all ranks) of each step in which this rank has any."""
        bounds = ((rank_bounds(size, self.rank, self.world_size), size) for size in self.sizes(rows))
        return [(end - start, size) for (start, end), size in bounds if end > start]

    def own_range(self, rows: int) -> tuple[int, int]:
        """Where this rank's rows start and end, if each rank takes one contiguous part of the epoch for all its steps."""
        bounds = [rank_bounds(size, self.rank, self.world_size) for size in self.sizes(rows)]
        before = sum(start for start, _ in bounds)
        return before, before + sum(end - start for start, end in bounds)

    def batches(self, rows: int, epoch: int) -> list[tuple[Rows, int]]:
        """(row ids of this rank, images of all ranks) of each step in which this rank has any."""
        order = epoch_order(rows, self.seed, epoch) if self.shuffle else np.arange(rows, dtype=np.int64)
        batches = global_batches(order, self.batch_size, world_size=self.world_size, training=self.shuffle)
        parts = ((rank_slice(batch, self.rank, self.world_size), len(batch)) for batch in batches)
        return [(part, size) for part, size in parts if len(part)]
