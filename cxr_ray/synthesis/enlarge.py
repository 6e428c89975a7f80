"""DATASET + images -> DATASET: the images stand in the training part, and every other part is the same bytes.

The rows are mixed into the training shards, each in proportion to its size, because whoever streams shards counts on each of them
holding all classes. ``dataset.json`` comes last: stopped before, there is no DATASET, and the same call goes on. No Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cxr_ray import storage
from cxr_ray.data.columns import index_schema, shard_schema, targets_column
from cxr_ray.data.manifest import INDEX, MANIFEST, QUARANTINE, PartitionInfo, ShardInfo, SourceInfo, fingerprint
from cxr_ray.data.shards import Dataset, most_group_rows, open_dataset, seal, write_shard
from cxr_ray.errors import DatasetError
from cxr_ray.synthesis.rare import PART, Images

SYNTHETIC = "synthetic"
"""Source of the rows, their file format, and the beginning of their patients' and groups' names."""
MARKER = ".synthesis"
"""Stands in a folder that is being written."""
_ORDER_STREAM = 0x6A16
_LEAST_GROUP_ROWS, _GROUPS_A_PARTITION = 32, 16  # as an ingest cuts them


def standing(out: str, request: str) -> Dataset | None:
    """The DATASET at ``out`` where it is the one asked for; else make sure that nothing foreign would be lost.

    Raises:
        DatasetError: Something else stands there.
    """
    files = set(storage.list_files(out))
    if MANIFEST in files:
        there = open_dataset(out)
        if there.manifest.request == request:
            return there
        raise DatasetError(f"{out} is a DATASET already, made of something else ({there.manifest.name})", hint="another --out")
    if files and MARKER not in files:
        raise DatasetError(f"{out} holds other files, such as {min(files)}", hint="--out of a folder that is new or empty")
    return None


def enlarge(dataset: Dataset, out: str, label: str, images: Images, *, request: str, record: Mapping[str, Any], seed: int) -> Dataset:
    """Write ``dataset`` with ``images`` of ``label`` in its training part to ``out``.

    Normalisation, also that of the training part alone, stays that of the real images: what a network sees of a real image does not
    depend on how many were made.

    Args:
        dataset: Of one label an image; with a training part.
        out: See :func:`standing`.
        label: Of all images.
        images: (N, H, W) uint8 of the DATASET's size.
        request: Identity of what was asked for.
        record: How they were made, for ``dataset.json``.
        seed: Of the order in the shards.

    Raises:
        DatasetError: A shard of ``dataset`` is not as its manifest says, or ``out`` is taken.
        StorageError: Something cannot be written.
    """
    there = standing(out, request)
    if there is not None:
        return there
    for name in sorted({file.split("/")[0] for file in storage.list_files(out)} - {MARKER}):
        storage.remove(storage.join(out, name))  # of a call that was stopped
    storage.write_json(storage.join(out, MARKER), {"request": request})
    about = synthetic_rows(dataset, label, images, request)
    index = dataset.index()
    shards: list[ShardInfo] = []
    indices: list[pa.Table] = []
    for name in dataset.partitions:
        rows = index.filter(pc.equal(index["partition"], name))
        if name == PART:
            written, rows = _write_training(dataset, out, rows, about, images, seed)
            shards += written
        else:
            shards += [_copy(dataset, out, shard) for shard in dataset.manifest.shards if shard.path.startswith(name + "/")]
        indices.append(rows)
    quarantine = storage.join(dataset.location, QUARANTINE)
    if storage.exists(quarantine):
        storage.write_bytes(storage.join(out, QUARANTINE), storage.read_bytes(quarantine))
    info = write_shard(out, INDEX, pa.concat_tables(indices), row_group_rows=1 << 16)
    manifest = dataset.manifest
    partitions = {**manifest.partitions, PART: _with_more(manifest.partitions[PART], label, len(images))}
    sources = {source.name: source.images for source in manifest.sources}
    sources[SYNTHETIC] = sources.get(SYNTHETIC, 0) + len(images)
    note = (
        f"{len(images):,} images of {label!r} in {PART} are synthetic (cxr-ray synthesize); mean and deviation are those of the real images"
    )
    changed = {
        "partitions": partitions,
        "sources": tuple(SourceInfo(name=name, images=count) for name, count in sorted(sources.items())),
        "shards": tuple(shards),
        "index": info,
        "notes": (*manifest.notes, note),
        "synthesis": (*manifest.synthesis, dict(record)),
        "request": request,
        "fingerprint": fingerprint(manifest.task, manifest.labels, manifest.preprocess.fingerprint, shards),
    }
    sealed = seal(out, manifest.model_copy(update=changed))
    storage.remove(storage.join(out, MARKER))
    return open_dataset(sealed.location)


def synthetic_rows(dataset: Dataset, label: str, images: Images, request: str) -> pa.Table:
    """(N rows) the index's columns of the images; each is a patient, and a group, of its own."""
    count, (height, width) = len(images), images.shape[1:]
    digests = [storage.sha256(f"{request} {number}\n".encode() + image.tobytes()) for number, image in enumerate(images)]
    names = [f"{SYNTHETIC}-{digest[:32]}" for digest in digests]
    filled: dict[str, Any] = {
        "partition": [PART] * count,
        "image_id": digests,
        "patient_id": names,
        "group_id": names,
        "source": [SYNTHETIC] * count,
        "synthetic": [True] * count,
        "file_format": [SYNTHETIC] * count,
        "file_mode": ["L"] * count,
        "file_bits": [8] * count,
        "file_height": [height] * count,
        "file_width": [width] * count,
        "file_bytes": [0] * count,  # there is no file
        "file_remarks": [""] * count,
    }
    schema = index_schema(dataset.labels)
    columns = {field.name: pa.nulls(count, field.type) for field in schema if field.nullable}  # view, sex, age: nobody's
    columns |= {name: pa.array(values, schema.field(name).type) for name, values in filled.items()}
    columns["label"] = targets_column(np.full(count, dataset.labels.index(label)), dataset.labels)
    return pa.table([columns[field.name] for field in schema], schema=schema)


def _write_training(
    dataset: Dataset, out: str, index: pa.Table, about: pa.Table, images: Images, seed: int
) -> tuple[list[ShardInfo], pa.Table]:
    """Shards of the training part with their share of the images, in random order; and their rows of the index in that order."""
    schema = shard_schema(dataset.labels, dataset.preprocess.height, dataset.preprocess.width)
    old = [shard for shard in dataset.manifest.shards if shard.path.startswith(PART + "/")]
    ends = np.cumsum([shard.rows for shard in old])
    cuts = np.concatenate([[0], np.round(ends / ends[-1] * len(images)).astype(np.int64)])
    group = min(most_group_rows(schema), max(_LEAST_GROUP_ROWS, (int(ends[-1]) + len(images)) // _GROUPS_A_PARTITION))
    shards, indices, start = [], [], 0
    for number, (shard, table) in enumerate(zip(old, dataset.tables(PART), strict=True)):
        mine = slice(int(cuts[number]), int(cuts[number + 1]))
        made = images[mine]
        of_made = about.slice(mine.start, len(made))
        pixels = pa.array([image.tobytes() for image in made], schema.field("image").type)
        added = of_made.append_column(schema.field("image"), pixels).select(schema.names).cast(schema)
        order = np.random.default_rng([_ORDER_STREAM, seed, number]).permutation(shard.rows + len(made))
        merged = pa.concat_tables([table.select(schema.names).cast(schema), added]).combine_chunks()
        shards.append(write_shard(out, shard.path, merged.take(order), row_group_rows=group))
        of_shard = pa.concat_tables([index.slice(start, shard.rows), of_made.select(index.column_names).cast(index.schema)])
        indices.append(of_shard.combine_chunks().take(order))
        start += shard.rows
    return shards, pa.concat_tables(indices)


def _copy(dataset: Dataset, out: str, shard: ShardInfo) -> ShardInfo:
    """The same bytes at the same place, their checksum compared."""
    parts = shard.path.split("/")
    data = storage.read_bytes(storage.join(dataset.location, *parts))
    if storage.sha256(data) != shard.sha256:
        raise DatasetError(
            f"{dataset.location}: {shard.path} has another checksum than when it was written",
            hint="copy it again, or ingest again with --overwrite",
        )
    storage.write_bytes(storage.join(out, *parts), data)
    return shard


def _with_more(part: PartitionInfo, label: str, count: int) -> PartitionInfo:
    per_label = {**part.per_label, label: part.per_label.get(label, 0) + count}
    return part.model_copy(update={"images": part.images + count, "patients": part.patients + count, "per_label": per_label})
