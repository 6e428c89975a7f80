"""The DATASET format: Parquet shards of uint8 pixels under a manifest. No Ray.

A DATASET is a directory, local or on an object store: ``dataset.json`` (:mod:`cxr_ray.data.manifest`),
``<partition>/part-*.parquet``, ``index.parquet`` (a row an image, no pixels) and ``quarantine.csv``. Pixels are one
fixed-size binary column, uncompressed and without dictionary, so that a batch is one view of a buffer (DESIGN, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from cxr_ray import storage
from cxr_ray.data.columns import IMAGE, pixels, targets_of
from cxr_ray.data.manifest import INDEX, MANIFEST, SCHEMA, DatasetManifest, ShardInfo, pooled
from cxr_ray.errors import ConfigError, DatasetError, StorageError
from cxr_ray.imaging.preprocess import PreprocessSpec
from cxr_ray.labels import LabelSet
from cxr_ray.settings import parse_settings

__all__ = ["Dataset", "open_dataset", "pixels", "read_parquet", "seal", "targets_of", "write_shard"]

_PAGE_BYTES = 8 << 20  # few pages: each costs the reader a copy
_ROW_GROUP_BYTES = 16 << 20


# --- writing ----------------------------------------------------------------------------------------------------------------


def write_shard(location: str, path: str, table: pa.Table, *, row_group_rows: int | None = None) -> ShardInfo:
    """Write one Parquet file of a DATASET, whole or not at all; the same table gives the same bytes.

    Args:
        location: The DATASET.
        path: Relative to it, such as ``train/part-00000.parquet``.
        table: Its rows.
        row_group_rows: Rows of a group, the unit of reading. None: 16 MB of pixels, at most 512 rows.

    Raises:
        StorageError: It cannot be written.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=max(1, row_group_rows or most_group_rows(table.schema)),
        compression="none",
        use_dictionary=False,
        write_statistics=[field.name for field in table.schema if not pa.types.is_fixed_size_binary(field.type)],
        data_page_size=_PAGE_BYTES,
    )
    data = sink.getvalue().to_pybytes()
    storage.write_bytes(storage.join(location, *path.split("/")), data)
    return ShardInfo(path=path, rows=table.num_rows, sha256=storage.sha256(data), bytes=len(data))


def most_group_rows(schema: pa.Schema) -> int:
    """Rows of a row group of 16 MB of pixels, at most 512."""
    size = schema.field(IMAGE).type.byte_width if IMAGE in schema.names else 1
    return max(1, min(512, _ROW_GROUP_BYTES // size))


def seal(location: str, manifest: DatasetManifest) -> Dataset:
    """Write ``dataset.json``: from here on the directory is a DATASET. Everything it lists must have been written before.

    Raises:
        StorageError: It cannot be written.
    """
    storage.write_json(storage.join(location, MANIFEST), manifest.as_json())
    return Dataset(location, manifest)


# --- reading ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dataset:
    """A DATASET that stands. Made by :func:`open_dataset`; holds no open files and can be sent to other processes."""

    location: str
    manifest: DatasetManifest

    @property
    def labels(self) -> LabelSet:
        """The label set."""
        return LabelSet(self.manifest.labels, self.manifest.task)

    @property
    def preprocess(self) -> PreprocessSpec:
        """What the pixels have been through."""
        return self.manifest.preprocess.spec()

    @property
    def normalization(self) -> tuple[float, float]:
        """Mean and standard deviation of the training part, for pixels in 0..1; with folds, of all of them."""
        return self.manifest.normalization.mean, self.manifest.normalization.std

    def normalization_of(self, partitions: Sequence[str]) -> tuple[float, float]:
        """The same for any partitions, such as the folds one is trained on.

        Raises:
            DatasetError: No such partition.
        """
        found = pooled([self.manifest.partitions[self._known(partition)] for partition in partitions])
        return found.mean, found.std

    @property
    def partitions(self) -> tuple[str, ...]:
        """Those that hold images, in order."""
        return tuple(self.manifest.partitions)

    def count(self, partition: str) -> int:
        """Images of a partition.

        Raises:
            DatasetError: No such partition.
        """
        return self.manifest.partitions[self._known(partition)].images

    def files(self, partition: str) -> list[str]:
        """Full locations of a partition's shards, in the order of their rows.

        Raises:
            DatasetError: No such partition.
        """
        prefix = self._known(partition) + "/"
        return [self._where(shard.path) for shard in self.manifest.shards if shard.path.startswith(prefix)]

    def tables(self, partition: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The shards of a partition, one at a time.

        Args:
            partition: Its name.
            columns: None: all.

        Raises:
            DatasetError: No such partition, or a shard cannot be read.
        """
        for location in self.files(partition):
            yield read_parquet(location, columns)

    def read(self, partition: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A whole partition in memory; see :meth:`tables`."""
        return pa.concat_tables(list(self.tables(partition, columns)))

    def index(self) -> pa.Table:
        """A row an image without its pixels: partition by partition, in the order of :meth:`tables`.

        Raises:
            DatasetError: It cannot be read.
        """
        return read_parquet(self._where(INDEX))

    def training_partitions(self, fold: int | None = None) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What is trained on and what is validated on; never the test part.

        Args:
            fold: The fold to validate on, all others are trained on. None: the parts ``train`` and ``val``.

        Returns:
            Names of the partitions; the second is empty where the split has no validation part.

        Raises:
            DatasetError: The data are split the other way, or there is no such fold.
        """
        folds = tuple(name for name in self.partitions if name.startswith("fold-"))
        if fold is None:
            if folds:
                raise DatasetError(
                    f"{self.location} is split into {len(folds)} folds",
                    hint=f"--fold K (0 to {len(folds) - 1}) or --cv, or ingest with --split",
                )
            return ("train",), tuple(name for name in ("val",) if name in self.partitions)
        name = f"fold-{fold}"
        if name not in folds:
            there = f"it has {', '.join(folds)}" if folds else "it is split into " + ", ".join(self.partitions)
            raise DatasetError(f"{self.location} has no {name}; {there}", hint="leave --fold out" if not folds else None)
        return tuple(other for other in folds if other != name), (name,)

    def _known(self, partition: str) -> str:
        if partition not in self.manifest.partitions:
            raise DatasetError(f"{self.location} has no part {partition!r}; it has {', '.join(self.partitions)}")
        return partition

    def _where(self, path: str) -> str:
        return storage.join(self.location, *path.split("/"))


def open_dataset(location: str, *, verify: bool = False) -> Dataset:
    """Open a DATASET.

    Args:
        location: A local path or a URI.
        verify: Read every file and compare its checksum, too. Without it the sizes are compared.

    Raises:
        DatasetError: There is none, it is of another schema, or a file is missing or not as it was written.
        StorageError: The object store cannot be opened.
    """
    location = storage.absolute(location)
    manifest = _read_manifest(location)
    sizes = file_sizes(location)
    for shard in (*manifest.shards, manifest.index):
        if shard.path not in sizes:
            raise DatasetError(
                f"{location} lacks {shard.path}, which its manifest lists", hint="copy it again, or ingest again with --overwrite"
            )
        if sizes[shard.path] != shard.bytes:
            raise _torn(location, shard, f"is of {sizes[shard.path]:,} bytes, not {shard.bytes:,}")
        if verify and storage.sha256_file(storage.join(location, *shard.path.split("/"))) != shard.sha256:
            raise _torn(location, shard, "has another checksum than when it was written")
    return Dataset(location, manifest)


def read_parquet(location: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file.

    Raises:
        DatasetError: It is missing, cannot be read, or lacks a column.
    """
    try:
        with open_parquet(location) as file:
            table = file.read(columns=None if columns is None else list(columns))
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(
            f"cannot read {location}: {type(error).__name__}", hint="copy it again, or ingest again with --overwrite"
        ) from None
    lacking = sorted(set(columns or ()) - set(table.column_names))
    if lacking:
        raise DatasetError(f"{location} has no column {', '.join(lacking)}; it has {', '.join(table.column_names)}")
    return table


def open_parquet(location: str) -> pq.ParquetFile:
    """A Parquet file to read from: mapped into memory where it is local, which saves a copy."""
    filesystem, path = storage.open_location(location)
    if isinstance(filesystem, pafs.LocalFileSystem):
        return pq.ParquetFile(path, memory_map=True)
    return pq.ParquetFile(filesystem.open_input_file(path), pre_buffer=True)


def file_sizes(location: str) -> dict[str, int]:
    """Sizes of the files below, by their path relative to it; one request where the store can."""
    filesystem, path = storage.open_location(location)
    infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    prefix = path.rstrip("/") + "/"
    return {info.path.removeprefix(prefix): info.size for info in infos if info.type == pafs.FileType.File}


def _read_manifest(location: str) -> DatasetManifest:
    where = storage.join(location, MANIFEST)
    if not storage.exists(where):
        raise DatasetError(
            f"there is no {MANIFEST} in {location}: it is not a DATASET, or an ingest that did not finish",
            hint="cxr-ray ingest SOURCE --out DATASET (the same command goes on where it was stopped)",
        )
    try:
        data = storage.read_json(where)
    except StorageError as error:
        raise DatasetError(error.message, hint="ingest again with --overwrite") from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise DatasetError(
            f"{where} is of schema {schema!r}; this version reads {SCHEMA!r}", hint="ingest again, or use the version that wrote it"
        )
    try:
        manifest = parse_settings(DatasetManifest, data, where=where)
        manifest.preprocess.spec()
    except (ConfigError, ValueError) as error:
        raise DatasetError(str(error), hint="ingest again with --overwrite, or use the version that wrote it") from None
    return manifest


def _torn(location: str, shard: ShardInfo, how: str) -> DatasetError:
    return DatasetError(f"{location}: {shard.path} {how}", hint="copy it again, or ingest again with --overwrite")
