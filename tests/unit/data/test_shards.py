"""The DATASET format: what is written is read, views are views, and what is torn or foreign is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr_ray.data.columns import shard_schema, targets_column
from cxr_ray.data.manifest import (
    CopyInfo,
    DatasetManifest,
    ImageInfo,
    Normalization,
    PartitionInfo,
    PreprocessInfo,
    ShardInfo,
    SourceInfo,
    fingerprint,
    pooled,
)
from cxr_ray.data.shards import Dataset, open_dataset, pixels, seal, targets_of, write_shard
from cxr_ray.errors import DatasetError
from cxr_ray.imaging.preprocess import PreprocessSpec
from cxr_ray.labels import LabelSet

SPEC = PreprocessSpec(height=6, width=5)
CLASSES = LabelSet(("covid", "normal"), "multiclass")
FINDINGS = LabelSet(("effusion", "nodule", "mass"), "multilabel")
ROWS = {"train": 7, "val": 3}


def images_of(partition: str) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(len(partition)).integers(0, 256, (ROWS[partition], 6, 5), dtype=np.uint8)


def targets_for(labels: LabelSet, rows: int) -> npt.NDArray[Any]:
    if labels.task == "multiclass":
        return np.arange(rows) % 2
    values = np.resize(np.array([1.0, 0.0, np.nan, 0.0], np.float32), (rows, 3))
    values[0] = (1, 0, np.nan)
    return values


def shard(images: npt.NDArray[np.uint8], labels: LabelSet) -> pa.Table:
    rows = len(images)
    names = [f"{row:03d}" for row in range(rows)]
    flat = pa.FixedSizeBinaryArray.from_buffers(pa.binary(30), rows, [None, pa.py_buffer(images.tobytes())])
    columns = {
        "image": flat,
        ("label" if labels.task == "multiclass" else "labels"): targets_column(targets_for(labels, rows), labels),
        **{name: pa.array(names) for name in ("image_id", "patient_id", "group_id", "source")},
        "view": pa.array(["PA", None] * rows)[:rows],
        "sex": pa.nulls(rows, pa.string()),
        "age": pa.nulls(rows, pa.float32()),
        "synthetic": pa.array([False] * rows),
    }
    return pa.table(columns, schema=shard_schema(labels, 6, 5))


def write_dataset(folder: Path, labels: LabelSet = CLASSES, partitions: tuple[str, ...] = ("train", "val")) -> Dataset:
    """A small DATASET; every partition in two shards."""
    shards: list[ShardInfo] = []
    described = {}
    for name in partitions:
        source = "val" if name == "val" else "train"
        table = shard(images_of(source), labels)
        for number, piece in enumerate((table[:2], table[2:])):
            shards.append(write_shard(str(folder), f"{name}/part-{number:05d}.parquet", piece, row_group_rows=2))
        values = images_of(source) / 255
        described[name] = PartitionInfo(
            images=len(table),
            patients=len(table),
            per_label=dict.fromkeys(labels.names, 1),
            pixels=Normalization(mean=values.mean(), std=values.std()),
        )
    index = write_shard(str(folder), "index.parquet", pa.table({"image_id": ["a", "b"]}))
    preprocess = PreprocessInfo.of(SPEC)
    manifest = DatasetManifest(
        name="tiny",
        task=labels.task,
        labels=labels.names,
        image=ImageInfo(height=6, width=5),
        preprocess=preprocess,
        normalization=described[partitions[0]].pixels,
        partitions=described,
        seed=0,
        policy="grouped",
        sources=(SourceInfo(name="here", images=10),),
        shards=tuple(shards),
        index=index,
        quarantined=0,
        copies=CopyInfo(),
        split={},
        request="0" * 64,
        fingerprint=fingerprint(labels.task, labels.names, preprocess.fingerprint, shards),
    )
    return seal(str(folder), manifest)


# --- pixels -----------------------------------------------------------------------------------------------------------------


def test_pixels_are_a_view_of_the_buffer() -> None:
    images = images_of("train")
    batch = shard(images, CLASSES).to_batches()[0]
    view = pixels(batch, 6, 5)
    assert np.array_equal(view, images)
    assert view.__array_interface__["data"][0] == batch.column("image").buffers()[1].address
    assert not view.flags.writeable


def test_pixels_of_a_slice_begin_where_the_slice_does() -> None:
    images = images_of("train")
    table = shard(images, CLASSES)
    sliced = table.slice(2, 3)
    assert np.array_equal(pixels(sliced, 6, 5), images[2:5])
    whole, part = pixels(table, 6, 5), pixels(sliced, 6, 5)
    assert part.__array_interface__["data"][0] == whole.__array_interface__["data"][0] + 2 * 30
    assert np.array_equal(pixels(sliced.slice(1).to_batches()[0], 6, 5), images[3:5])


def test_pixels_of_several_chunks_and_of_none() -> None:
    images = images_of("train")
    table = shard(images, CLASSES)
    chunked = pa.concat_tables([table.slice(5), table.slice(0, 0), table.slice(1, 2)])
    assert np.array_equal(pixels(chunked, 6, 5), np.concatenate([images[5:], images[1:3]]))
    assert pixels(table.slice(0, 0), 6, 5).shape == (0, 6, 5)


def test_pixels_of_another_size_are_refused() -> None:
    with pytest.raises(DatasetError, match="36 bytes an image for 6x6"):
        pixels(shard(images_of("train"), CLASSES), 6, 6)


@pytest.mark.parametrize("labels", [CLASSES, FINDINGS], ids=["multiclass", "multilabel"])
def test_targets_come_back_also_from_slices_and_chunks(labels: LabelSet) -> None:
    table = shard(images_of("train"), labels)
    expected = targets_for(labels, 7)
    found = targets_of(table, labels)
    assert found.dtype == (np.int64 if labels is CLASSES else np.float32)
    np.testing.assert_array_equal(found, expected)  # NaN equals NaN here
    np.testing.assert_array_equal(targets_of(table.slice(2, 3), labels), expected[2:5])
    np.testing.assert_array_equal(targets_of(pa.concat_tables([table.slice(4), table.slice(0, 1)]), labels), expected[[4, 5, 6, 0]])
    assert targets_of(table.slice(0, 0), labels).shape == expected[:0].shape


# --- shards and manifest ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [CLASSES, FINDINGS], ids=["multiclass", "multilabel"])
def test_a_dataset_is_read_as_it_was_written(tmp_path: Path, labels: LabelSet) -> None:
    written = write_dataset(tmp_path / "data", labels)
    dataset = open_dataset(str(tmp_path / "data"), verify=True)
    assert dataset == written
    assert dataset.labels == labels
    assert dataset.preprocess == SPEC
    assert dataset.partitions == ("train", "val")
    assert dataset.count("train") == 7
    for partition in dataset.partitions:
        table = dataset.read(partition)
        assert table.schema.equals(shard_schema(labels, 6, 5))
        assert np.array_equal(pixels(table, 6, 5), images_of(partition))
        np.testing.assert_array_equal(targets_of(table, labels), targets_for(labels, len(table)))
        assert [len(table) for table in dataset.tables(partition, ["image_id"])] == [2, ROWS[partition] - 2]
    assert dataset.read("val", ["view", "image_id"]).column_names == ["view", "image_id"]
    assert pickle.loads(pickle.dumps(dataset)) == dataset


def test_pixels_are_stored_plain(tmp_path: Path) -> None:
    info = write_shard(str(tmp_path), "part.parquet", shard(images_of("train"), CLASSES), row_group_rows=3)
    metadata = pq.ParquetFile(tmp_path / "part.parquet").metadata
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == [3, 3, 1]
    column = metadata.row_group(0).column(0)
    assert column.path_in_schema == "image"
    assert column.compression == "UNCOMPRESSED"
    assert not column.has_dictionary_page
    assert column.statistics is None
    assert info.bytes == (tmp_path / "part.parquet").stat().st_size


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_shard(str(tmp_path), "one.parquet", shard(images_of("train"), CLASSES))
    second = write_shard(str(tmp_path), "two.parquet", shard(images_of("train"), CLASSES))
    assert first.sha256 == second.sha256
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_manifest_has_the_keys_of_the_contract(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    data = json.loads((tmp_path / "dataset.json").read_text())
    assert data["schema"] == "cxr-ray/dataset/1"
    promised = {"schema", "name", "task", "labels", "image", "preprocess", "normalization", "partitions", "seed", "policy", "sources"}
    assert promised | {"shards", "quarantined", "fingerprint"} <= set(data)
    assert data["image"] == {"height": 6, "width": 5, "dtype": "uint8"}
    assert data["preprocess"]["fingerprint"] == SPEC.fingerprint
    assert set(data["normalization"]) == {"mean", "std"}
    assert {"images", "patients", "per_label"} <= set(data["partitions"]["train"])
    assert {"path", "rows", "sha256"} <= set(data["shards"][0])


def test_pooled_statistics_are_those_of_all_pixels(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path)
    everything = np.concatenate([images_of("train"), images_of("val")]) / 255
    assert dataset.normalization_of(["train", "val"]) == pytest.approx((everything.mean(), everything.std()))
    assert pooled([]) == Normalization(mean=0, std=0)


# --- partitions -------------------------------------------------------------------------------------------------------------


def test_training_partitions_of_a_plain_split(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path)
    assert dataset.training_partitions() == (("train",), ("val",))
    with pytest.raises(DatasetError, match=r"no fold-0.*train, val"):
        dataset.training_partitions(0)
    with pytest.raises(DatasetError, match=r"'test'.*train, val"):
        dataset.read("test")


def test_training_partitions_without_validation(tmp_path: Path) -> None:
    assert write_dataset(tmp_path, partitions=("train",)).training_partitions() == (("train",), ())


def test_training_partitions_of_folds_leave_the_test_part_out(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, partitions=("fold-0", "fold-1", "fold-2", "test"))
    assert dataset.training_partitions(1) == (("fold-0", "fold-2"), ("fold-1",))
    with pytest.raises(DatasetError, match="3 folds"):
        dataset.training_partitions()
    with pytest.raises(DatasetError, match="no fold-3"):
        dataset.training_partitions(3)


# --- what is refused --------------------------------------------------------------------------------------------------------


def edit(folder: Path, **changes: Any) -> None:
    data = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(data | changes))


def test_a_folder_without_manifest_is_no_dataset(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(DatasetError, match="not a DATASET, or an ingest that did not finish"):
        open_dataset(str(tmp_path))
    with pytest.raises(DatasetError, match="not a DATASET"):
        open_dataset(str(tmp_path / "absent"))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "cxr-ray/dataset/99"}', '{"name": "x"}'])
def test_other_manifests_are_refused(tmp_path: Path, text: str) -> None:
    write_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        open_dataset(str(tmp_path))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    (tmp_path / "train" / "part-00001.parquet").unlink()
    with pytest.raises(DatasetError, match=r"lacks train/part-00001\.parquet"):
        open_dataset(str(tmp_path))


def test_a_shard_cut_short_is_named(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    path = tmp_path / "val" / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DatasetError, match=r"val/part-00000\.parquet is of"):
        open_dataset(str(tmp_path))


def test_one_flipped_bit_is_found_when_asked_for(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    path = tmp_path / "val" / "part-00000.parquet"
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    open_dataset(str(tmp_path))
    with pytest.raises(DatasetError, match=r"val/part-00000\.parquet has another checksum"):
        open_dataset(str(tmp_path), verify=True)


@pytest.mark.parametrize(
    "change",
    [{"labels": ["normal", "covid"]}, {"fingerprint": "0" * 64}, {"surprise": 1}, {"labels": ["covid"]}],
    ids=["labels", "fingerprint", "unknown-key", "one-label"],
)
def test_an_edited_manifest_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    write_dataset(tmp_path)
    edit(tmp_path, **change)
    with pytest.raises(DatasetError):
        open_dataset(str(tmp_path))


def test_preprocessing_of_another_version_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    data = json.loads((tmp_path / "dataset.json").read_text())
    edit(tmp_path, preprocess=data["preprocess"] | {"equalize": "hist"})
    with pytest.raises(DatasetError, match="fingerprint of the preprocessing"):
        open_dataset(str(tmp_path))


@pytest.mark.parametrize("path", ["../secret.parquet", "/etc/passwd", "train/../../x", "train\\x"])
def test_a_shard_outside_the_dataset_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="below the DATASET"):
        ShardInfo(path=path, rows=1, sha256="0" * 64, bytes=1)


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no column labels; it has"):
        write_dataset(tmp_path).read("train", ["labels"])


def test_a_uri_is_read_like_a_path(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    dataset = open_dataset(tmp_path.as_uri(), verify=True)
    assert np.array_equal(pixels(dataset.read("val"), 6, 5), images_of("val"))
