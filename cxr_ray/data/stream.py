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
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from cxr_ray.config import FeedConfig
from cxr_ray.data.batches import Augment, Block, Feed, IndexedFeed, RowStore, WindowedFeed
from cxr_ray.data.columns import IMAGE, pixels, target_field, targets_of
from cxr_ray.data.order import Share
from cxr_ray.data.shards import Dataset
from cxr_ray.data.spans import ROW, RowGroup, Span, count, epoch_spans, read_spans, row_groups, split_spans
from cxr_ray.errors import DatasetError
from cxr_ray.labels import LabelSet

logger = logging.getLogger(__name__)

Mode = Literal["materialized", "streamed"]

AHEAD_BYTES = 384 << 20
"""A rank's pipeline holds about this much in the object store before it waits for the rank; a task reads half of it, in blocks
of a quarter. Less where the store is small for the number of ranks."""
PIPELINE_BYTES = 4 << 30
"""A pipeline runs through as many epochs as make up this much: starting one costs 50 ms, as much as reading 3,000 images."""
READERS = 2
"""Tasks that read at once for one rank. They take no logical CPU, so that workers that hold them all cannot starve them (trap 2)."""
STORE_PART = 3
"""``auto`` materializes what fits in this part of the smallest node's object store (1/3), for every node may come to hold it all."""


# --- the Ray Data pipeline ----------------------------------------------------------------------------------------------


class _Spans(Datasource):
    """Ray Data source of spans, a few to a task."""

    def __init__(self, tasks: Sequence[Sequence[Span]], columns: Sequence[str], row_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tasks = tasks
        self._columns = tuple(columns)
        self._row_bytes = row_bytes

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all rows."""
        return sum(count(spans) for spans in self._tasks) * self._row_bytes

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None) -> list[ReadTask]:
        """The tasks as they were planned, however many Ray Data would like."""
        return [self._task(spans) for spans in self._tasks]

    def _task(self, spans: Sequence[Span]) -> ReadTask:
        rows = count(spans)
        metadata = BlockMetadata(num_rows=rows, size_bytes=rows * self._row_bytes, input_files=None, exec_stats=None)
        return ReadTask(partial(read_spans, tuple(spans), self._columns), metadata)


def _pipeline(spans: Sequence[Sequence[Span]], columns: Sequence[str], row_bytes: int, *, ahead: int, wait: bool) -> ray.data.Dataset:
    """Reads spans in their order.

    Args:
        spans: A task never reads of two of these lists.
        columns: Of the shards.
        row_bytes: Of a row in memory.
        ahead: See :data:`AHEAD_BYTES`.
        wait: Whether to stop reading when so much waits. Ray Data alone would let every pipeline fill half the object store.
    """
    tasks = [task for each in spans for task in split_spans(each, row_bytes, ahead // 2)]
    source = _Spans(tasks, columns, row_bytes)
    dataset: ray.data.Dataset = ray.data.read_datasource(
        source, override_num_blocks=len(tasks), num_cpus=0, concurrency=min(READERS, len(tasks))
    )
    context = dataset.context
    context.execution_options.preserve_order = True
    if wait:
        context.execution_options.resource_limits = ray.data.ExecutionResources(object_store_memory=ahead)
    context.target_max_block_size = ahead // 4
    context.enable_progress_bars = False
    return dataset


def _as_blocks(table: pa.Table, image_size: tuple[int, int], labels: LabelSet) -> Iterator[Block]:
    """Views of the table's chunks; targets (n,) int64 or (n, K) float32."""
    for chunk in table.to_batches():
        yield Block(pixels(chunk, *image_size), targets_of(chunk, labels), chunk.column(ROW).to_numpy())


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
        epochs = range(first, first + self._epochs)
        spans = [epoch_spans(self._plan.groups, self._share, epoch) for epoch in epochs]
        return _stream(self._plan, spans, min(AHEAD_BYTES, _smallest_store() // (4 * self._share.world_size)))


def _stream(plan: FeedPlan, spans: Sequence[Sequence[Span]], ahead: int) -> Iterator[Block]:
    """All rows of the spans, in order. Its pipeline ends with the last reference to it: no method, for ``self`` would be one."""
    try:
        for bundle in _pipeline(spans, plan.columns, plan.row_bytes, ahead=ahead, wait=True).iter_internal_ref_bundles():
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
    groups = row_groups([file for partition in partitions for file in dataset.files(partition)])
    rows = sum(group.rows for group in groups)
    if not rows:
        raise DatasetError(f"{dataset.location} has no images in {', '.join(partitions)}", hint="another split at ingest")
    image = dataset.manifest.image
    chosen = _choose(config.mode, rows * image.height * image.width)
    plan = FeedPlan(chosen, rows, (image.height, image.width), dataset.labels, groups, config.shuffle_window)
    if chosen == "streamed":
        return plan
    spans = [Span(group.location, group.number, group.first_row, 0, group.rows) for group in groups]
    pipeline = _pipeline([spans], plan.columns, plan.row_bytes, ahead=AHEAD_BYTES, wait=False)
    try:
        references = pipeline.materialize().to_arrow_refs()
    except ray.exceptions.RayError as error:
        raise _unreadable(error) from error
    return replace(plan, blocks=tuple(references))


def _choose(mode: Mode | Literal["auto"], size: int) -> Mode:
    """Resolve ``auto`` for ``size`` bytes of pixels."""
    store = _smallest_store()
    fits = size * STORE_PART <= store
    if mode == "materialized" and not fits:
        logger.warning("%.1f GB of pixels in an object store of %.1f GB: Ray may spill to disk", size / 1e9, store / 1e9)
    if mode != "auto":
        return mode
    chosen: Mode = "materialized" if fits else "streamed"
    logger.info("feed: %s (%.2f GB of pixels, an object store of %.2f GB)", chosen, size / 1e9, store / 1e9)
    return chosen


def _smallest_store() -> int:
    """Bytes of the smallest object store of the cluster's nodes."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    stores = [node["Resources"].get("object_store_memory", 0) for node in nodes if node["Alive"]]
    return int(min((store for store in stores if store), default=0))
