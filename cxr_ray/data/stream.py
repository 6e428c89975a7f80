"""DATASET -> batches of each worker, through Ray Data: once into the object store, or from the shards in every epoch.

**materialized** Ray Data reads the shards once into shared memory; every worker, epoch and trial of a search then gathers
its batches from there without a copy in between, in a global shuffle that does not depend on the number of workers.

**streamed** for data that do not fit: in each epoch every rank runs a Ray Data pipeline over its part of the row groups,
whose order follows from ``(seed, epoch)``, and shuffles within a window. The composition of its batches depends on the
number of workers; which rows come does not.

Both use one reader of our own instead of ``read_parquet``: whole Arrow blocks with row ids, few long tasks (each costs
Ray Data some 15 ms) and large blocks (5 ms each). It also avoids the reader that loses rows (DESIGN, trap 1).
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from cxr_ray.config import FeedConfig
from cxr_ray.data.columns import IMAGE, pixels, target_field, targets_of
from cxr_ray.data.order import Share
from cxr_ray.data.shards import Dataset, open_parquet
from cxr_ray.errors import DatasetError
from cxr_ray.labels import LabelSet

if TYPE_CHECKING:  # the reading tasks import this module, and need no torch
    from cxr_ray.data.batches import Augment, Block, Feed, RowStore

logger = logging.getLogger(__name__)

Mode = Literal["materialized", "streamed"]

BLOCK_BYTES = 48 << 20
"""Rows are handed on in blocks of about this size."""
TASK_BYTES = 192 << 20
"""A task reads about this much, one block after the other."""
AHEAD_BYTES = 384 << 20
"""A rank's pipeline holds about this much in the object store before it waits for the rank."""
PIPELINE_BYTES = 4 << 30
"""A pipeline runs through as many epochs as make up this much: starting one costs 50 ms, as much as reading 3,000 images."""
READERS = 2
"""Tasks that read at once for one rank. They take no logical CPU, so that workers that hold them all cannot starve them (trap 2)."""
STORE_PART = 3
"""``auto`` materializes what fits in this part of the smallest node's object store (1/3), for every node may come to hold it all."""
_GROUP_STREAM = 0x6F0
_ROW = "row"


class RowGroup(NamedTuple):
    """A row group of a shard and the id of its first row."""

    location: str
    number: int
    first_row: int
    rows: int


class Span(NamedTuple):
    """Rows ``start`` to ``stop`` of a row group; ``first_row`` is the id of row 0 of the group."""

    location: str
    number: int
    first_row: int
    start: int
    stop: int


# --- which rows are read ------------------------------------------------------------------------------------------------


def epoch_spans(groups: Sequence[RowGroup], share: Share, epoch: int) -> list[Span]:
    """What ``share.rank`` reads in ``epoch``: its contiguous part of the row groups, in an order that follows from (seed, epoch).

    The parts of all ranks overlap nowhere. Without ``share.shuffle`` the order is the natural one and they leave nothing out.
    """
    order = np.arange(len(groups))
    if share.shuffle:
        order = np.random.default_rng([_GROUP_STREAM, share.seed, epoch]).permutation(len(groups))
    begin, end = share.own_range(sum(group.rows for group in groups))
    spans = []
    before = 0
    for group in (groups[index] for index in order.tolist()):
        start, stop = max(begin - before, 0), min(end - before, group.rows)
        if start < stop:
            spans.append(Span(group.location, group.number, group.first_row, start, stop))
        before += group.rows
    return spans


def _row_groups(locations: Sequence[str]) -> tuple[RowGroup, ...]:
    """The row groups of the shards, in order, from their footers."""
    with ThreadPoolExecutor(16) as pool:
        counts = list(pool.map(_group_sizes, locations))
    groups = []
    row = 0
    for location, sizes in zip(locations, counts, strict=True):
        for number, rows in enumerate(sizes):
            groups.append(RowGroup(location, number, row, rows))
            row += rows
    return tuple(groups)


def _group_sizes(location: str) -> list[int]:
    try:
        with open_parquet(location) as file:
            return [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    except (OSError, pa.ArrowInvalid) as error:
        raise DatasetError(f"cannot read the shard {location}: {type(error).__name__}", hint="cxr-ray validate DATASET") from None


# --- the Ray Data pipeline ----------------------------------------------------------------------------------------------


def _read_spans(spans: Sequence[Span], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Runs in a reading task. One table a span, with the row ids as column ``_ROW``."""
    file, opened = None, ""
    for span in spans:
        if span.location != opened:
            file, opened = open_parquet(span.location), span.location
        assert file is not None
        table = file.read_row_group(span.number, columns=list(columns))
        table = table.slice(span.start, span.stop - span.start)
        rows = pa.array(np.arange(span.start, span.stop, dtype=np.int64) + span.first_row)
        yield table.append_column(_ROW, rows)


class _Spans(Datasource):
    """Ray Data source of spans, a few to a task."""

    def __init__(self, tasks: Sequence[Sequence[Span]], columns: Sequence[str], row_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tasks = tasks
        self._columns = tuple(columns)
        self._row_bytes = row_bytes

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all rows."""
        return sum(_count(spans) for spans in self._tasks) * self._row_bytes

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None) -> list[ReadTask]:
        """The tasks as they were planned, however many Ray Data would like."""
        return [self._task(spans) for spans in self._tasks]

    def _task(self, spans: Sequence[Span]) -> ReadTask:
        rows = _count(spans)
        metadata = BlockMetadata(num_rows=rows, size_bytes=rows * self._row_bytes, input_files=None, exec_stats=None)
        return ReadTask(partial(_read_spans, tuple(spans), self._columns), metadata)


def _count(spans: Iterable[Span]) -> int:
    return sum(span.stop - span.start for span in spans)


def _tasks(spans: Sequence[Span], row_bytes: int) -> list[list[Span]]:
    """Consecutive spans in tasks of about :data:`TASK_BYTES`."""
    tasks: list[list[Span]] = []
    size = TASK_BYTES
    for span in spans:
        if size >= TASK_BYTES:
            tasks.append([])
            size = 0
        tasks[-1].append(span)
        size += _count([span]) * row_bytes
    return tasks


def _pipeline(tasks: Sequence[Sequence[Span]], columns: Sequence[str], row_bytes: int, *, bounded: bool = True) -> ray.data.Dataset:
    """Reads the tasks' spans in their order, in blocks of about :data:`BLOCK_BYTES`."""
    source = _Spans(tasks, columns, row_bytes)
    dataset: ray.data.Dataset = ray.data.read_datasource(
        source, override_num_blocks=len(tasks), num_cpus=0, concurrency=min(READERS, len(tasks))
    )
    context = dataset.context
    context.execution_options.preserve_order = True
    if bounded:  # each rank runs one: Ray Data would let each fill half the object store
        context.execution_options.resource_limits = ray.data.ExecutionResources(object_store_memory=AHEAD_BYTES)
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False
    return dataset


def _as_blocks(table: pa.Table, image_size: tuple[int, int], labels: LabelSet) -> Iterator[Block]:
    """Views of the table's chunks; targets (n,) int64 or (n, K) float32."""
    from cxr_ray.data.batches import Block

    for chunk in table.to_batches():
        yield Block(pixels(chunk, *image_size), targets_of(chunk, labels), chunk.column(_ROW).to_numpy())


# --- plans and feeds ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeedPlan:
    """How some partitions reach the workers. Made on the driver by :func:`plan_feed`; pickles into workers and trials.

    The blocks of a materialized plan belong to the process that made it: keep the plan there for as long as workers use it.
    """

    mode: Mode
    rows: int
    """Images in the partitions."""
    image_size: tuple[int, int]
    """Height and width."""
    labels: LabelSet
    groups: tuple[RowGroup, ...]
    shuffle_window: int
    """Streamed: images shuffled together."""
    blocks: tuple[ray.ObjectRef[pa.Table], ...] = ()
    """Materialized: Arrow tables in the object store."""

    def open(
        self,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int = 32,
        *,
        seed: int = 0,
        shuffle: bool = True,
        augmentation: Augment | None = None,
        threads: int = 2,
        pin_memory: bool = False,
    ) -> Feed:
        """The feed of one worker.

        Args:
            rank: This worker, from 0.
            world_size: Workers in all.
            batch_size: Images of a step over all workers.
            seed: Of the order and the augmentation.
            shuffle: True: training. False: validation, every row exactly once over the ranks.
            augmentation: None: the images as they are.
            threads: Threads that augment ahead of the step.
            pin_memory: Page-locked host memory, for a copy to the GPU that does not wait.

        Raises:
            DatasetError: The batch cannot be divided over the workers, or rows are missing.
        """
        from cxr_ray.data.batches import IndexedFeed, WindowedFeed

        share = Share(rank, world_size, batch_size, seed, shuffle)
        share.sizes(self.rows)  # refuses what cannot be divided now, not in the middle of the first epoch
        if self.mode == "materialized":
            return IndexedFeed(self._store(), share, augmentation=augmentation, threads=threads, pin_memory=pin_memory)
        return WindowedFeed(
            _EpochReader(self, share),
            self.rows,
            share,
            window=self.shuffle_window,
            augmentation=augmentation,
            threads=threads,
            pin_memory=pin_memory,
        )

    @property
    def columns(self) -> tuple[str, str]:
        """What is read of the shards."""
        return IMAGE, target_field(self.labels).name

    @property
    def row_bytes(self) -> int:
        """About what an image takes in memory, with its target and id."""
        return self.image_size[0] * self.image_size[1] + 16

    def _store(self) -> RowStore:
        from cxr_ray.data.batches import RowStore

        try:
            tables = ray.get(list(self.blocks))
        except ray.exceptions.ObjectLostError:
            raise DatasetError(
                "the materialized images are gone from the object store", hint="keep the process that planned the feed alive"
            ) from None
        blocks = sorted(
            (block for table in tables for block in _as_blocks(table, self.image_size, self.labels)), key=lambda block: int(block.rows[0])
        )
        rows = np.concatenate([block.rows for block in blocks])
        if not np.array_equal(rows, np.arange(self.rows)):
            raise DatasetError(
                f"expected rows 0 to {self.rows - 1} of the partitions, got {len(rows)} others", hint="cxr-ray validate DATASET"
            )
        return RowStore([block.images for block in blocks], np.concatenate([block.targets for block in blocks]))


class _EpochReader:
    """Blocks of one rank, epoch by epoch. One pipeline runs through several epochs, so that it reads ahead between them.

    Args:
        plan: A streamed plan.
        share: Which part this rank gets.
    """

    def __init__(self, plan: FeedPlan, share: Share) -> None:
        self._plan = plan
        self._share = share
        start, stop = share.own_range(plan.rows)
        self._rows = stop - start
        ahead = PIPELINE_BYTES // max(1, self._rows * plan.row_bytes)
        self._epochs = max(1, min(ahead, 64)) if share.shuffle else 1  # validation comes back after a whole epoch of training
        self._stream: Iterator[Block] | None = None
        self._position = (-1, -1)  # the epoch that `_stream` gives next, and the one after its last

    def __call__(self, epoch: int) -> Generator[Block, None, None]:
        """This rank's rows of ``epoch``. An epoch that is not read to its end, or not the next one, starts a new pipeline."""
        (ready, end), stream = self._position, self._stream
        self._stream = None  # until this epoch has been read
        if ready != epoch or epoch >= end:
            stream = None  # ends its pipeline, before another begins
        if stream is None:
            stream, end = self._start(epoch), epoch + self._epochs
        wanted = self._rows
        while wanted > 0 and (block := next(stream, None)) is not None:
            wanted -= len(block.rows)
            if wanted <= 0 and epoch + 1 < end:  # before the last block: nobody asks again after it
                self._stream, self._position = stream, (epoch + 1, end)
            yield block

    def close(self) -> None:
        """End the pipeline, if one reads ahead."""
        self._stream = None

    def _start(self, first: int) -> Iterator[Block]:
        plan, epochs = self._plan, range(first, first + self._epochs)
        tasks = [task for epoch in epochs for task in _tasks(epoch_spans(plan.groups, self._share, epoch), plan.row_bytes)]
        return _stream(plan, tasks)


def _stream(plan: FeedPlan, tasks: Sequence[Sequence[Span]]) -> Iterator[Block]:
    """All rows of the tasks, in order. Its pipeline ends with the last reference to it: no method, for ``self`` would be one."""
    try:
        for bundle in _pipeline(tasks, plan.columns, plan.row_bytes).iter_internal_ref_bundles():
            for reference in bundle.block_refs:
                yield from _as_blocks(ray.get(reference), plan.image_size, plan.labels)
    except ray.exceptions.RayError as error:
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> DatasetError:
    return DatasetError(f"a shard cannot be read: {type(error).__name__}", hint="cxr-ray validate DATASET; the cause is in the log of Ray")


def plan_feed(dataset: Dataset, partitions: Sequence[str], config: FeedConfig | None = None) -> FeedPlan:
    """Plan how ``partitions`` reach the workers; materialized, they are read into the object store now.

    Args:
        dataset: An opened DATASET.
        partitions: Their rows are numbered one after the other.
        config: Mode and window. None: the defaults.

    Raises:
        DatasetError: A partition is unknown or a shard cannot be read, or there are no images.
    """
    config = config or FeedConfig()
    groups = _row_groups([file for partition in partitions for file in dataset.files(partition)])
    rows = sum(group.rows for group in groups)
    if not rows:
        raise DatasetError(f"{dataset.location} has no images in {', '.join(partitions)}", hint="another split at ingest")
    image = dataset.manifest.image
    chosen = _choose(config.mode, rows * image.height * image.width)
    plan = FeedPlan(chosen, rows, (image.height, image.width), dataset.labels, groups, config.shuffle_window)
    if chosen == "streamed":
        return plan
    spans = [Span(group.location, group.number, group.first_row, 0, group.rows) for group in groups]
    pipeline = _pipeline(_tasks(spans, plan.row_bytes), plan.columns, plan.row_bytes, bounded=False)
    try:
        references = pipeline.materialize().to_arrow_refs()
    except ray.exceptions.RayError as error:
        raise _unreadable(error) from error
    return replace(plan, blocks=tuple(references))


def _choose(mode: Mode | Literal["auto"], size: int) -> Mode:
    """Resolve ``auto`` for ``size`` bytes of pixels."""
    stores = [node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    room = min((store for store in stores if store), default=0) / STORE_PART
    if mode == "materialized" and size > room:
        logger.warning("%.1f GB of pixels in an object store of %.1f GB: Ray will spill to disk", size / 1e9, room * STORE_PART / 1e9)
    if mode != "auto":
        return mode
    chosen: Mode = "materialized" if size <= room else "streamed"
    logger.info("feed: %s (%.1f MB of pixels, room for %.1f MB)", chosen, size / 1e6, room / 1e6)
    return chosen
