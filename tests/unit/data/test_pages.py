"""Pixels as views of the mapped file: the same as Arrow reads, and Arrow reads whenever a condition fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_ray.data.pages import ShardReader, page_bodies
from cxr_ray.data.shards import write_shard

WIDTH = 48


def table_of(rows: int, *, nullable: bool = False) -> pa.Table:
    random = np.random.default_rng(rows)
    pixels = pa.array([random.bytes(WIDTH) for _ in range(rows)], pa.binary(WIDTH))
    fields = [pa.field("label", pa.int64()), pa.field("image", pixels.type, nullable=nullable), pa.field("view", pa.string())]
    return pa.table([pa.array(range(rows)), pixels, pa.array(["PA"] * rows)], pa.schema(fields))


def is_view(column: pa.ChunkedArray, reader: ShardReader) -> bool:
    assert reader._bytes is not None
    start, end = reader._bytes.address, reader._bytes.address + reader._bytes.size
    return all(start <= chunk.buffers()[1].address < end for chunk in column.chunks)


@pytest.mark.parametrize("page_bytes", [WIDTH * 5, 8 << 20])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_groups_equal_those_of_arrow(tmp_path: Path, page_bytes: int, version: Any) -> None:
    file = tmp_path / "shard.parquet"
    table = table_of(2050)
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "data_page_size": page_bytes, "data_page_version": version}
    pq.write_table(table, file, row_group_size=1030, **options)
    reader = ShardReader(str(file))
    for number in range(reader.file.num_row_groups):
        group = reader.group(number, ["image", "label"])
        group.validate(full=True)
        assert group.equals(reader.file.read_row_group(number, columns=["image", "label"]).select(["image", "label"]))
        assert group.schema.equals(pa.schema([table.schema.field("image"), table.schema.field("label")]))
        assert is_view(group.column("image"), reader) == (version == "1.0")


def test_shards_as_they_are_written_are_viewed(tmp_path: Path) -> None:
    write_shard(str(tmp_path), "part.parquet", table_of(100), row_group_rows=40)
    reader = ShardReader(str(tmp_path / "part.parquet"))
    groups = [reader.group(number, ["label", "image"]) for number in range(3)]
    assert pa.concat_tables(groups).equals(table_of(100).select(["label", "image"]))
    assert all(is_view(group.column("image"), reader) for group in groups)
    assert reader.group(0, ["label"]).column_names == ["label"]


@pytest.mark.parametrize(
    "options", [{"compression": "zstd"}, {"use_dictionary": True}, {"column_encoding": {"image": "BYTE_STREAM_SPLIT"}}]
)
def test_other_encodings_are_read_by_arrow(tmp_path: Path, options: dict[str, Any]) -> None:
    file = tmp_path / "shard.parquet"
    pq.write_table(table_of(64), file, **{"compression": "none", "use_dictionary": False, **options})
    reader = ShardReader(str(file))
    group = reader.group(0, ["image", "label"])
    assert group.column("image").to_pylist() == table_of(64).column("image").to_pylist()
    assert not is_view(group.column("image"), reader)


def test_columns_that_allow_nulls_are_read_by_arrow(tmp_path: Path) -> None:
    file = tmp_path / "shard.parquet"
    pq.write_table(table_of(64, nullable=True), file, compression="none", use_dictionary=False)
    reader = ShardReader(str(file))
    assert not is_view(reader.group(0, ["image"]).column("image"), reader)


def test_views_outlive_the_reader(tmp_path: Path) -> None:
    write_shard(str(tmp_path), "part.parquet", table_of(50))
    group = ShardReader(str(tmp_path / "part.parquet")).group(0, ["image"])
    assert group.column("image").to_pylist() == table_of(50).column("image").to_pylist()


@given(st.binary(max_size=200))
def test_any_bytes_are_either_pages_or_not(data: bytes) -> None:
    found = page_bodies(memoryview(data), 0, len(data), WIDTH)
    if found is not None:
        assert all(0 <= start <= start + rows * WIDTH <= len(data) for start, rows in found)
