"""Which rows of which row groups a rank reads in an epoch, and the reading itself. No Ray: the tasks of Ray Data run this.

It imports no torch either: a reading process starts in a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cxr_ray.data.order import Share
from cxr_ray.data.pages import ShardReader
from cxr_ray.data.shards import open_parquet
from cxr_ray.errors import DatasetError

ROW = "row"
"""Column of the row ids in what is read."""

_GROUP_STREAM = 0x6F0
"""Keeps the order of the row groups apart from other random numbers that follow from the same seed."""


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


def row_groups(locations: Sequence[str]) -> tuple[RowGroup, ...]:
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


def count(spans: Iterable[Span]) -> int:
    """Rows of all spans."""
    return sum(span.stop - span.start for span in spans)


def split_spans(spans: Sequence[Span], row_bytes: int, most: int) -> list[list[Span]]:
    """Consecutive spans in pieces of about ``most`` bytes."""
    pieces: list[list[Span]] = []
    size = most
    for span in spans:
        if size >= most:
            pieces.append([])
            size = 0
        pieces[-1].append(span)
        size += count([span]) * row_bytes
    return pieces


def read_spans(spans: Sequence[Span], columns: Sequence[str]) -> Iterator[pa.Table]:
    """One table a span, with the row ids as column :data:`ROW`. Runs in the tasks of Ray Data."""
    shards: dict[str, ShardReader] = {}
    for span in spans:
        if span.location not in shards:
            shards[span.location] = ShardReader(span.location)
        table = shards[span.location].group(span.number, columns)
        table = table.slice(span.start, span.stop - span.start)
        rows = pa.array(np.arange(span.start, span.stop, dtype=np.int64) + span.first_row)
        yield table.append_column(ROW, rows)
