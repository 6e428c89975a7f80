"""Columns of a DATASET's shards and index, and their arrays. No Ray, no files.

Shapes: N images, H and W pixels, K labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cxr_ray.errors import DatasetError
from cxr_ray.labels import LabelSet

IMAGE = "image"
_ABOUT = (
    pa.field("image_id", pa.string(), nullable=False),  # SHA-256 of the source file's bytes
    pa.field("patient_id", pa.string(), nullable=False),  # keyed hash; an image of unknown patient has one of its own
    pa.field("group_id", pa.string(), nullable=False),  # patient and copies: what a grouped split keeps together
    pa.field("source", pa.string(), nullable=False),
    pa.field("view", pa.string()),
    pa.field("sex", pa.string()),
    pa.field("age", pa.float32()),  # years
    pa.field("synthetic", pa.bool_(), nullable=False),
)
_FILE = (  # of the source file, for the audit: what a model could read instead of lungs
    pa.field("file_format", pa.string(), nullable=False),
    pa.field("file_mode", pa.string(), nullable=False),  # Pillow's mode, or DICOM's photometric interpretation
    pa.field("file_bits", pa.int16(), nullable=False),
    pa.field("file_height", pa.int32(), nullable=False),
    pa.field("file_width", pa.int32(), nullable=False),
    pa.field("file_bytes", pa.int64(), nullable=False),
    pa.field("file_remarks", pa.string(), nullable=False),  # what decoding had to decide: "own-range", "rotated" … joined by spaces
)


def target_field(labels: LabelSet) -> pa.Field:
    """The column ``label`` (position in the label set) or ``labels`` (K of 1, 0 and NaN)."""
    if labels.task == "multiclass":
        return pa.field("label", pa.int64(), nullable=False)
    return pa.field("labels", pa.list_(pa.field("item", pa.float32(), nullable=False), len(labels)), nullable=False)


def shard_schema(labels: LabelSet, height: int, width: int) -> pa.Schema:
    """Columns of a shard."""
    return pa.schema([pa.field(IMAGE, pa.binary(height * width), nullable=False), target_field(labels), *_ABOUT])


def index_schema(labels: LabelSet) -> pa.Schema:
    """Columns of the index: those of a shard without pixels, the partition, and facts of the source file."""
    return pa.schema([pa.field("partition", pa.string(), nullable=False), target_field(labels), *_ABOUT, *_FILE])


def targets_column(targets: npt.NDArray[Any], labels: LabelSet) -> pa.Array:
    """The column ``label`` or ``labels`` of (N,) int64 or (N, K) float32 targets."""
    if labels.task == "multiclass":
        return pa.array(targets, pa.int64())
    flat = pa.array(np.ascontiguousarray(targets, dtype=np.float32).ravel(), pa.float32())
    return pa.FixedSizeListArray.from_arrays(flat, type=target_field(labels).type)


def targets_of(table: pa.Table | pa.RecordBatch, labels: LabelSet) -> npt.NDArray[Any]:
    """(N,) int64 positions in the label set, or (N, K) float32 of 1, 0 and NaN (unknown)."""
    if labels.task == "multiclass":
        return np.asarray(table.column("label").to_numpy(), dtype=np.int64)
    chunks = [np.asarray(chunk.flatten().to_numpy(zero_copy_only=False)) for chunk in _chunks(table.column("labels"))]
    return np.concatenate([np.empty(0, np.float32), *chunks]).astype(np.float32, copy=False).reshape(-1, len(labels))


def pixels(table: pa.Table | pa.RecordBatch, height: int, width: int, *, column: str = IMAGE) -> npt.NDArray[np.uint8]:
    """(N, height, width) uint8 view of a fixed-size binary column; read-only.

    Of one chunk (a record batch, a slice, a block of Ray Data) nothing is copied; several chunks are copied together once.

    Raises:
        DatasetError: The column is not of this size, or has nulls.
    """
    values = table.column(column)
    if values.type != pa.binary(height * width) or values.null_count:
        raise DatasetError(f"expected {height * width} bytes an image for {height}x{width}, got a column of {values.type}")
    views = [_view(chunk, height, width) for chunk in _chunks(values) if len(chunk)]
    if len(views) == 1:
        return views[0]
    return np.concatenate([np.empty((0, height, width), np.uint8), *views])


def _view(chunk: pa.FixedSizeBinaryArray, height: int, width: int) -> npt.NDArray[np.uint8]:
    size = height * width
    flat = np.frombuffer(chunk.buffers()[1], np.uint8, count=len(chunk) * size, offset=chunk.offset * size)
    return flat.reshape(len(chunk), height, width)


def _chunks(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]
