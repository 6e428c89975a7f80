"""Third pass of an ingest: rows of staged parts -> shards. No Ray.

Every staged part is read once: parts are taken in batches, and a batch gives shards of each partition. The alternative, a
shuffle over all of the data, would move every pixel once more; since parts hold random rows it would gain nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cxr_ray import storage
from cxr_ray.data.assemble import Arranged
from cxr_ray.data.columns import IMAGE
from cxr_ray.data.manifest import ShardInfo
from cxr_ray.data.shards import most_group_rows, open_parquet, write_shard
from cxr_ray.data.staging import part_name

Index = npt.NDArray[np.int64]

_ORDER_STREAM = 0x5A4D  # keeps the order in shards independent of other random numbers of the same seed
_LEAST_GROUP_ROWS, _GROUPS_A_PARTITION = 32, 16
_LEAST_BATCHES = 4


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard: where its pixels lie, and all its other columns.

    Args:
        path: Relative to the DATASET.
        part: (N,) staged part of each row, in the order of the shard.
        offset: (N,) row in that part.
        about: (N rows) the index's columns.
        row_group_rows: Rows of a row group.
    """

    path: str
    part: Index
    offset: Index
    about: pa.Table
    row_group_rows: int


def plan_shards(arranged: Arranged, *, seed: int, shard_bytes: int, batch_bytes: int) -> list[list[ShardPlan]]:
    """Which rows stand in which shard, in which order.

    The rows of a batch are shuffled within each partition and cut into shards of equal size.

    Args:
        arranged: Groups and split.
        seed: Of the order.
        shard_bytes: Pixels in a shard at most.
        batch_bytes: Pixels of a batch at most; they are in memory at once, on the machine that writes its shards.

    Returns:
        Plans by batch, each batch the work of one task; within a partition the shards are numbered through.
    """
    found = arranged.catalogue
    partitions = np.array(found.about["partition"].to_pylist())
    numbers: Counter[str] = Counter()
    plans = []
    for parts in _batches(int(found.part.max()) + 1, len(partitions) * found.image_bytes, batch_bytes):
        inside = (found.part >= parts.start) & (found.part < parts.stop)
        batch = []
        for place, (name, images) in enumerate(arranged.split.report.images.items()):
            rows = np.flatnonzero(inside & (partitions == name))
            rows = np.random.default_rng([_ORDER_STREAM, seed, parts.start, place]).permutation(rows)
            group = min(_most_rows(found.image_bytes), max(_LEAST_GROUP_ROWS, images // _GROUPS_A_PARTITION))
            pieces = -(-len(rows) * found.image_bytes // shard_bytes)
            for piece in np.array_split(rows, pieces) if pieces else []:
                path = f"{name}/part-{numbers[name]:05d}.parquet"
                numbers[name] += 1
                batch.append(ShardPlan(path, found.part[piece], found.offset[piece], found.about.take(piece), group))
        plans.append(batch)
    return plans


def in_order(plans: list[list[ShardPlan]], partitions: list[str]) -> list[ShardPlan]:
    """All plans, partition by partition, in the order of their numbers."""
    return [plan for name in partitions for batch in plans for plan in batch if plan.path.startswith(name + "/")]


def write_batch(staging: str, out: str, plans: list[ShardPlan], columns: list[str]) -> list[ShardInfo]:
    """Write the shards of one batch.

    Args:
        staging: Where the staged parts lie.
        out: The DATASET.
        plans: Its shards.
        columns: Of a shard, in order; all but the pixels stand in the plans.

    Raises:
        StorageError: A shard cannot be written.
        OSError: A staged part cannot be read.
    """
    parts = np.unique(np.concatenate([plan.part for plan in plans]))
    first_row: dict[int, int] = {}
    chunks, rows = [], 0
    for part in parts.tolist():
        with open_parquet(storage.join(staging, part_name(part))) as file:
            column = file.read(columns=[IMAGE])[IMAGE]
        first_row[part] = rows
        rows += len(column)
        chunks.extend(column.chunks)
    staged = pa.chunked_array(chunks, type=chunks[0].type)
    written = []
    for plan in plans:
        start = np.array([first_row[part] for part in plan.part.tolist()])
        table = plan.about.append_column(pa.field(IMAGE, staged.type, nullable=False), staged.take(pa.array(start + plan.offset)))
        written.append(write_shard(out, plan.path, table.select(columns), row_group_rows=plan.row_group_rows))
    return written


def _most_rows(image_bytes: int) -> int:
    return most_group_rows(pa.schema([pa.field(IMAGE, pa.binary(image_bytes))]))


def _batches(parts: int, total_bytes: int, batch_bytes: int) -> list[range]:
    """Parts in runs of about equal length: as many runs as memory asks for, and four where there is enough to share out."""
    wanted = min(parts, max(-(-total_bytes // batch_bytes), _LEAST_BATCHES))
    edges = [round(place * parts / wanted) for place in range(wanted + 1)]
    return [range(low, high) for low, high in pairwise(edges)]
