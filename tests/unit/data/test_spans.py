"""Which rows a rank reads when it streams: none twice, none forgotten, in an order that follows from (seed, epoch)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_ray.data.order import Share
from cxr_ray.data.shards import write_shard
from cxr_ray.data.spans import ROW, RowGroup, Span, count, epoch_spans, read_spans, row_groups, split_spans
from cxr_ray.errors import DatasetError


def groups_of(sizes: list[int]) -> list[RowGroup]:
    starts = np.cumsum([0, *sizes]).tolist()
    return [RowGroup(f"shard-{number // 2}", number % 2, starts[number], size) for number, size in enumerate(sizes)]


def ids(spans: list[Span]) -> list[int]:
    return [span.first_row + row for span in spans for row in range(span.start, span.stop)]


SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=12)


@given(sizes=SIZES, world_size=st.integers(1, 4), batch_size=st.integers(4, 16), epoch=st.integers(0, 3))
def test_ranks_read_each_row_of_their_steps_once(sizes: list[int], world_size: int, batch_size: int, epoch: int) -> None:
    rows = sum(sizes)
    if rows < world_size:
        return
    shares = [Share(rank, world_size, batch_size, 3) for rank in range(world_size)]
    parts = [ids(epoch_spans(groups_of(sizes), share, epoch)) for share in shares]
    assert [len(part) for part in parts] == [sum(size for size, _ in share.own_sizes(rows)) for share in shares]
    together = [row for part in parts for row in part]
    assert len(set(together)) == len(together) == sum(shares[0].sizes(rows))
    assert set(together) <= set(range(rows))


@given(sizes=SIZES, world_size=st.integers(1, 4))
def test_validation_reads_all_rows_in_natural_order(sizes: list[int], world_size: int) -> None:
    shares = [Share(rank, world_size, 8, shuffle=False) for rank in range(world_size)]
    assert [row for share in shares for row in ids(epoch_spans(groups_of(sizes), share, 0))] == list(range(sum(sizes)))


def test_order_of_the_groups_follows_from_seed_and_epoch() -> None:
    groups = groups_of([5] * 40)
    orders = [tuple(epoch_spans(groups, Share(seed=seed), epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len(set(orders)) == 3
    assert orders[0] == tuple(epoch_spans(groups, Share(seed=0), 0))


@given(sizes=SIZES, most=st.integers(1, 400))
def test_pieces_are_the_spans_in_their_order(sizes: list[int], most: int) -> None:
    spans = [Span("shard", number, 0, 0, size) for number, size in enumerate(sizes)]
    pieces = split_spans(spans, 10, most)
    assert [span for piece in pieces for span in piece] == spans
    assert all(count(piece) * 10 >= most for piece in pieces[:-1])
    assert all(count(piece[:-1]) * 10 < most for piece in pieces)


def test_spans_are_read_from_their_groups(tmp_path: Path) -> None:
    for shard in range(2):
        pixels = pa.array([bytes([shard * 10 + row]) * 4 for row in range(10)], pa.binary(4))
        table = pa.table({"image": pixels, "label": pa.array(range(10)), "view": pa.array(["PA"] * 10)})
        write_shard(str(tmp_path), f"part-{shard}.parquet", table, row_group_rows=4)
    files = [str(tmp_path / f"part-{shard}.parquet") for shard in range(2)]
    groups = row_groups(files)
    assert [(group.number, group.first_row, group.rows) for group in groups] == [
        (0, 0, 4),
        (1, 4, 4),
        (2, 8, 2),
        (0, 10, 4),
        (1, 14, 4),
        (2, 18, 2),
    ]
    spans = [Span(files[1], 1, 14, 1, 3), Span(files[0], 2, 8, 0, 2)]
    tables = list(read_spans(spans, ["image", "label"]))
    assert [table.column(ROW).to_pylist() for table in tables] == [[15, 16], [8, 9]]
    assert [pixel[0] for table in tables for pixel in table.column("image").to_pylist()] == [15, 16, 8, 9]
    assert tables[0].column_names == ["image", "label", ROW]


def test_a_missing_or_torn_shard_is_a_data_error(tmp_path: Path) -> None:
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(b"PAR1")
    for location in (str(torn), str(tmp_path / "absent.parquet")):
        with pytest.raises(DatasetError, match=Path(location).name):
            row_groups([location])


def test_a_reading_process_needs_neither_torch_nor_ray() -> None:
    code = "import sys, cxr_ray.data.spans; print(sorted({'torch', 'ray'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
