"""What a training step receives (:class:`Batch`), who gives it (:class:`Feed`), and the feeds that need no Ray.

Shape letters: B images of a batch, N images in all, H height, W width, K labels.

Which row stands in which batch is the affair of ``order.py``. Here rows become tensors: gathered out of memory that is
shared and never copied as a whole, augmented by threads ahead of the training step. ``stream.py`` puts Ray below these feeds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from cxr_ray.data.order import Rows, Share, window_order
from cxr_ray.errors import DatasetError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's part of one step."""

    images: torch.Tensor
    """(B, H, W) uint8, on the CPU; pinned if the feed was asked to. The network normalises."""
    targets: torch.Tensor
    """(B,) int64 label indices, or (B, K) float32 of 1, 0 and NaN (unknown)."""
    rows: torch.Tensor
    """(B,) int64 row ids: positions in the concatenated partitions, the same in every feed over the same DATASET."""
    global_size: int
    """Images of this step over all ranks: what a sum over ranks is divided by."""


class Feed(Protocol):
    """Batches of one rank. A training feed never differs between ranks in its number of steps; a validation feed may."""

    @property
    def rows(self) -> int:
        """Images of the partitions, over all ranks."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches that :meth:`epoch` yields on this rank (in training: the same on every rank)."""

    @property
    def dropped(self) -> int:
        """Images of an epoch that no rank is given (training only; see ``order.step_sizes``)."""

    def epoch(self, epoch: int) -> Generator[Batch, None, None]:
        """The batches of ``epoch`` (0 is the first), in order. Close it, or run it to its end, to release its threads."""

    def close(self) -> None:
        """Release what was read ahead. The feed can be used again."""


class Augment(Protocol):
    """What a feed needs of an augmentation; ``cxr_ray.data.augment.Augmentation`` is one."""

    def apply(self, images: NDArray[np.uint8], seed: int, epoch: int, rows: Rows) -> NDArray[np.uint8]:
        """(B, H, W) uint8 -> (B, H, W) uint8; the random numbers of an image follow from (seed, epoch, row id) alone."""


# --- rows in memory -----------------------------------------------------------------------------------------------------


class RowStore:
    """Images in a few contiguous pieces (of shared memory, say), addressed by one running row number. Nothing is copied.

    Args:
        chunks: (n, H, W) uint8 views, one after the other.
        targets: (N,) int64 or (N, K) float32 for all of them.

    Raises:
        DatasetError: The counts differ, the chunks differ in size, or there are none.
    """

    def __init__(self, chunks: Sequence[NDArray[np.uint8]], targets: NDArray[Any]) -> None:
        self.chunks = [chunk for chunk in chunks if len(chunk)]
        sizes = {chunk.shape[1:] for chunk in self.chunks}
        if len(sizes) != 1 or any(chunk.ndim != 3 or chunk.dtype != np.uint8 for chunk in self.chunks):
            raise DatasetError(f"expected (N, H, W) uint8 images of one size, got sizes {sorted(sizes)}")
        self.starts = np.cumsum([0, *(len(chunk) for chunk in self.chunks)], dtype=np.int64)
        if len(targets) != self.starts[-1]:
            raise DatasetError(f"{self.starts[-1]} images but {len(targets)} targets")
        self.targets = np.ascontiguousarray(targets, dtype=np.int64 if targets.ndim == 1 else np.float32)
        self.image_size: tuple[int, int] = self.chunks[0].shape[1:]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def gather(self, rows: Rows, out: NDArray[np.uint8]) -> None:
        """Copy the images ``rows`` into ``out`` (B, H, W), each byte once."""
        if len(self.chunks) == 1:
            np.take(self.chunks[0], rows, axis=0, out=out, mode="clip")  # "raise" would copy twice
            return
        chunk_of = np.searchsorted(self.starts, rows, side="right") - 1
        offsets = rows - self.starts[chunk_of]
        for position, (chunk, offset) in enumerate(zip(chunk_of.tolist(), offsets.tolist(), strict=True)):
            out[position] = self.chunks[chunk][offset]


def build_batch(
    store: RowStore,
    positions: Rows,
    rows: Rows,
    global_size: int,
    *,
    key: tuple[int, int],
    augmentation: Augment | None = None,
    pin_memory: bool = False,
) -> Batch:
    """Gather and augment one batch.

    Args:
        store: Where the images are.
        positions: (B,) places in ``store``.
        rows: (B,) row ids of the same images in the DATASET; they key the augmentation.
        global_size: Images of the step over all ranks.
        key: (seed, epoch).
        augmentation: None: the images as they are.
        pin_memory: Page-locked host memory, for a copy to the GPU that does not wait.
    """
    images = torch.empty((len(positions), *store.image_size), dtype=torch.uint8, pin_memory=pin_memory)
    view = images.numpy()
    store.gather(positions, view)
    if augmentation is not None:
        view[...] = augmentation.apply(view, *key, rows)
    return Batch(images, torch.from_numpy(store.targets[positions]), torch.from_numpy(rows), global_size)


# --- ahead of the training step -----------------------------------------------------------------------------------------


def run_ahead(jobs: Iterable[Callable[[], T]], threads: int) -> Generator[T, None, None]:
    """Results of ``jobs`` in their order, computed by ``threads`` threads ahead of the consumer.

    At most ``threads + 1`` results wait. A job's exception, or one of ``jobs`` itself, is raised where its result would
    have come. Closing the generator drops what waits and returns when the running jobs have ended.

    Args:
        jobs: Drawn lazily, in the consumer's thread.
        threads: 0: each job runs when its result is asked for.
    """
    if threads <= 0:
        for job in jobs:
            yield job()
        return
    pending: deque[Future[T]] = deque()
    source: Iterator[Callable[[], T]] = iter(jobs)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="cxr-ray-batch")
    try:
        for job in source:
            pending.append(pool.submit(job))
            if len(pending) > threads + 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class IndexedFeed:
    """A :class:`Feed` over rows that can all be addressed: the shuffle is global and independent of the world size.

    Args:
        store: The images; row ids are positions in it.
        share: Which part this rank gets.
        augmentation: Applied by the threads, ahead of the step.
        threads: See :func:`run_ahead`.
        pin_memory: See :func:`build_batch`.
    """

    def __init__(
        self, store: RowStore, share: Share, *, augmentation: Augment | None = None, threads: int = 0, pin_memory: bool = False
    ) -> None:
        self.store = store
        self.share = share
        self.augmentation = augmentation or None  # an empty one changes nothing
        self.threads = threads if self.augmentation else 0  # a gather alone takes less time than handing it to a thread
        self.pin_memory = pin_memory

    @property
    def rows(self) -> int:
        """Images of the partitions, over all ranks."""
        return len(self.store)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of this rank."""
        return len(self.share.own_sizes(self.rows))

    @property
    def dropped(self) -> int:
        """Images of an epoch that no rank is given."""
        return self.rows - sum(self.share.sizes(self.rows))

    def epoch(self, epoch: int) -> Generator[Batch, None, None]:
        """The batches of ``epoch``, in order."""
        build = partial(build_batch, self.store, key=(self.share.seed, epoch), augmentation=self.augmentation, pin_memory=self.pin_memory)
        jobs = (partial(build, rows, rows, size) for rows, size in self.share.batches(self.rows, epoch))
        yield from run_ahead(jobs, self.threads)

    def close(self) -> None:
        """Nothing is read ahead."""


class MemoryFeed(IndexedFeed):
    """A feed over arrays, without Ray: tests, notebooks, and small data.

    Args:
        images: (N, H, W) uint8.
        targets: (N,) label indices, or (N, K) of 1, 0 and NaN.
        batch_size: Images of a step over all ranks.
        rank: This worker, from 0.
        world_size: Workers in all.
        seed: Of the order and the augmentation.
        shuffle: True: training. False: validation.
        augmentation: None: the images as they are.
        threads: Threads that augment ahead; 0: none.
        pin_memory: Page-locked host memory.

    Raises:
        DatasetError: The counts differ, or the images are not (N, H, W) uint8.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        targets: NDArray[Any],
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        augmentation: Augment | None = None,
        threads: int = 0,
        pin_memory: bool = False,
    ) -> None:
        share = Share(rank, world_size, batch_size, seed, shuffle)
        super().__init__(RowStore([images], targets), share, augmentation=augmentation, threads=threads, pin_memory=pin_memory)


# --- rows that stream past ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of a stream."""

    images: NDArray[np.uint8]
    """(n, H, W)"""
    targets: NDArray[Any]
    """(n,) or (n, K)"""
    rows: Rows
    """(n,) row ids"""

    def split(self, at: int) -> tuple[Block, Block]:
        """The first ``at`` rows and the others, as views."""
        return Block(self.images[:at], self.targets[:at], self.rows[:at]), Block(self.images[at:], self.targets[at:], self.rows[at:])


class BlockReader(Protocol):
    """Where a :class:`WindowedFeed` reads."""

    def __call__(self, epoch: int) -> Generator[Block, None, None]:
        """A rank's rows of ``epoch`` (``share.own_range`` of its stream) in blocks of any size."""

    def close(self) -> None:
        """Release what was read ahead."""


class WindowedFeed:
    """A :class:`Feed` over a stream: whole blocks come in, rows are shuffled within windows.

    A window is as many whole steps as ``window`` images fill (at least one); its blocks are held until its last batch is
    built, so memory is bounded by two windows and a block. Which rows stand in which batch depends on the number of ranks,
    for each has a stream of its own; that every row comes once does not.

    Args:
        read: This rank's rows.
        rows: Images over all ranks.
        share: Which part this rank gets.
        window: Images that are shuffled together. Without ``share.shuffle``: delivered as they come.
        augmentation: Applied by the threads, ahead of the step.
        threads: See :func:`run_ahead`.
        pin_memory: See :func:`build_batch`.
    """

    def __init__(
        self,
        read: BlockReader,
        rows: int,
        share: Share,
        *,
        window: int,
        augmentation: Augment | None = None,
        threads: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.read = read
        self.rows = rows
        self.share = share
        self.window = window
        self.augmentation = augmentation or None
        self.threads = threads if self.augmentation else 0
        self.pin_memory = pin_memory

    @property
    def steps_per_epoch(self) -> int:
        """Batches of this rank."""
        return len(self.share.own_sizes(self.rows))

    @property
    def dropped(self) -> int:
        """Images of an epoch that no rank is given."""
        return self.rows - sum(self.share.sizes(self.rows))

    def epoch(self, epoch: int) -> Generator[Batch, None, None]:
        """The batches of ``epoch``, in order. Raises DatasetError where the stream ends early."""
        with closing(self.read(epoch)) as blocks:
            yield from run_ahead(self._jobs(blocks, epoch), self.threads)

    def close(self) -> None:
        """End what reads ahead."""
        self.read.close()

    def _jobs(self, blocks: Iterator[Block], epoch: int) -> Iterator[Callable[[], Batch]]:
        share = self.share
        steps = share.own_sizes(self.rows)
        a_window = max(1, self.window // max(1, -(-share.batch_size // share.world_size))) if share.shuffle else 1
        rest: list[Block] = []
        for number, first in enumerate(range(0, len(steps), a_window)):
            window = steps[first : first + a_window]
            count = sum(size for size, _ in window)
            taken, rest = _take(rest, blocks, count)
            store = RowStore([block.images for block in taken], np.concatenate([block.targets for block in taken]))
            rows = np.concatenate([block.rows for block in taken])
            order = window_order(count, share.seed, epoch, share.rank, number) if share.shuffle else np.arange(count, dtype=np.int64)
            build = partial(build_batch, store, key=(share.seed, epoch), augmentation=self.augmentation, pin_memory=self.pin_memory)
            end = 0
            for size, global_size in window:
                positions, end = order[end : end + size], end + size
                yield partial(build, positions, rows[positions], global_size)


def _take(rest: list[Block], blocks: Iterator[Block], count: int) -> tuple[list[Block], list[Block]]:
    """``count`` rows as (parts of) blocks, and what is left of the last block. Views: nothing is copied."""
    taken: list[Block] = []
    while count:
        block = rest.pop() if rest else next(blocks, None)
        if block is None:
            raise DatasetError(f"the shards ended {count} images early", hint="cxr-ray validate DATASET; it may have been cut short")
        if len(block.rows) > count:
            block, left = block.split(count)
            rest.append(left)
        taken.append(block)
        count -= len(block.rows)
    return taken, rest
