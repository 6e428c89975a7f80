"""A shard's row groups with the pixels as views of the mapped file: they are not copied before somebody needs them.

Parquet stores our pixel column (fixed size, required, uncompressed, plain: ``shards.write_shard``) as bare bytes behind the
header of each page, so the page bodies *are* the column. Reading a group then costs 1 ms instead of the 3 of a copy,
and the one copy that is left is that into the object store. Every condition is checked, on the file and on each page;
where one fails, or the file is not local, Arrow reads the group as any other.

Source: Apache Parquet format, ``parquet.thrift`` (PageHeader, DataPageHeader) and Thrift's compact protocol.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from cxr_ray import storage
from cxr_ray.data.columns import IMAGE
from cxr_ray.data.shards import open_parquet

_DATA_PAGE = 0
_PLAIN = 0


class ShardReader:
    """One shard, opened.

    Args:
        location: Local path or URI.

    Raises:
        OSError: It is missing.
        pa.ArrowInvalid: It is not Parquet.
    """

    def __init__(self, location: str) -> None:
        filesystem, path = storage.open_location(location)
        self.file: pq.ParquetFile = open_parquet(location)
        self._bytes: pa.Buffer | None = None
        if isinstance(filesystem, pafs.LocalFileSystem):
            with open(path, "rb") as file:
                self._bytes = pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def group(self, number: int, columns: Sequence[str]) -> pa.Table:
        """Columns of a row group, in the order asked for."""
        pixels = self._pixels(number) if IMAGE in columns else None
        if pixels is None:
            return self.file.read_row_group(number, columns=list(columns)).select(list(columns))
        others = self.file.read_row_group(number, columns=[name for name in columns if name != IMAGE])
        fields = [self.file.schema_arrow.field(name) for name in columns]
        return pa.table([pixels if name == IMAGE else others.column(name) for name in columns], pa.schema(fields))

    def _pixels(self, number: int) -> pa.ChunkedArray | None:
        """The pixel column as views of the pages; None where they cannot be."""
        position = self.file.schema_arrow.get_field_index(IMAGE)
        kind = self.file.schema_arrow.field(IMAGE).type if position >= 0 else None
        if self._bytes is None or kind is None or not pa.types.is_fixed_size_binary(kind):
            return None
        group = self.file.metadata.row_group(number)
        chunk = next(group.column(index) for index in range(group.num_columns) if group.column(index).path_in_schema == IMAGE)
        if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page:
            return None
        end = chunk.data_page_offset + chunk.total_compressed_size
        pages = page_bodies(memoryview(self._bytes).cast("B"), chunk.data_page_offset, end, kind.byte_width)
        if pages is None or sum(rows for _, rows in pages) != group.num_rows:
            return None
        width = kind.byte_width
        views = [self._bytes.slice(start, rows * width) for start, rows in pages]
        arrays = [pa.FixedSizeBinaryArray.from_buffers(kind, rows, [None, view]) for view, (_, rows) in zip(views, pages, strict=True)]
        return pa.chunked_array(arrays, kind)


def page_bodies(data: memoryview, start: int, end: int, width: int) -> list[tuple[int, int]] | None:
    """(offset, rows) of the bodies of the data pages in ``data[start:end]``.

    None unless all of it is uncompressed, plain data pages of values of ``width`` bytes without levels (so without nulls).
    """
    found = []
    try:
        while start < end:
            body, size, rows = _page(data, start)
            if size != rows * width or body + size > end:
                return None
            found.append((body, rows))
            start = body + size
    except (_OtherPageError, IndexError, struct.error):
        return None
    return found


class _OtherPageError(Exception):
    """A page that is not plain data, or a header that is not understood."""


def _page(data: memoryview, at: int) -> tuple[int, int, int]:
    """Offset of the body, its bytes, and its rows, of the page whose header stands at ``at``."""
    header, body = _struct(data, at)
    inner = header.get(5)  # data_page_header
    sizes = header.get(2), header.get(3)  # uncompressed, compressed
    if header.get(1) != _DATA_PAGE or not isinstance(inner, dict) or sizes[0] != sizes[1] or not isinstance(sizes[0], int):
        raise _OtherPageError
    rows = inner.get(1)
    if inner.get(2) != _PLAIN or not isinstance(rows, int) or rows < 0:
        raise _OtherPageError
    return body, sizes[0], rows


# --- Thrift's compact protocol, as far as page headers use it --------------------------------------------------------------

Fields = dict[int, "int | bytes | Fields | None"]


def _struct(data: memoryview, at: int) -> tuple[Fields, int]:
    fields: Fields = {}
    field = 0
    while (head := data[at]) != 0:
        at += 1
        if head >> 4:
            field += head >> 4
        else:
            field, at = _integer(data, at)
        fields[field], at = _value(data, at, head & 15)
    return fields, at + 1


def _value(data: memoryview, at: int, kind: int) -> tuple[int | bytes | Fields | None, int]:
    match kind:
        case 1 | 2:  # a boolean is in its type
            return int(kind == 1), at
        case 3:
            return data[at], at + 1
        case 4 | 5 | 6:
            return _integer(data, at)
        case 8:
            length, at = _varint(data, at)
            return bytes(data[at : at + length]), at + length
        case 12:
            return _struct(data, at)
        case _:  # doubles, lists and maps stand in no header of a data page
            raise _OtherPageError


def _integer(data: memoryview, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise _OtherPageError
