"""Only the training part grows; all else is the same bytes, and what stands in the manifest is so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cxr_ray import storage
from cxr_ray.data.columns import pixels
from cxr_ray.data.manifest import INDEX
from cxr_ray.data.shards import Dataset, open_dataset
from cxr_ray.errors import DatasetError, StorageError
from cxr_ray.synthesis import enlarge as module
from cxr_ray.synthesis.enlarge import enlarge, standing

REQUEST = "5" * 64


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (7, 32, 36), dtype=np.uint8)


def make(dataset: Dataset, out: Path, images: np.ndarray, *, request: str = REQUEST) -> Dataset:
    return enlarge(dataset, str(out), "rare", images, request=request, record={"label": "rare", "count": len(images)}, seed=0)


@pytest.fixture(scope="module")
def enlarged(dataset: Dataset, images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make(dataset, tmp_path_factory.mktemp("enlarged") / "out", images)


def test_other_parts_are_the_same_bytes(dataset: Dataset, enlarged: Dataset) -> None:
    open_dataset(enlarged.location, verify=True)
    files = storage.list_files(enlarged.location)
    assert files == storage.list_files(dataset.location)
    changed = {"dataset.json", INDEX}
    for file in files:
        same = Path(dataset.location, file).read_bytes() == Path(enlarged.location, file).read_bytes()
        assert same == (file not in changed and not file.startswith("train/")), file


def test_the_training_part_has_all_old_rows_and_the_new_ones(dataset: Dataset, enlarged: Dataset, images: np.ndarray) -> None:
    old, new = dataset.read("train"), enlarged.read("train")
    assert new.schema == old.schema
    flags = np.asarray(new["synthetic"].to_pylist())
    kept = new.filter(flags == False)  # noqa: E712
    assert kept.sort_by("image_id").equals(old.sort_by("image_id"))
    added = new.filter(flags)
    assert set(added["label"].to_pylist()) == {1}
    assert set(added["source"].to_pylist()) == {"synthetic"}
    assert {image.tobytes() for image in pixels(added, 32, 36)} == {image.tobytes() for image in images}
    for column in ("image_id", "patient_id", "group_id"):
        assert len(set(new[column].to_pylist())) == len(set(old[column].to_pylist())) + 7
    assert all(name.startswith("synthetic-") for name in added["patient_id"].to_pylist())


def test_every_training_shard_gets_its_share_at_random_places(enlarged: Dataset) -> None:
    flags = [np.asarray(table["synthetic"].to_pylist()) for table in enlarged.tables("train")]
    assert [int(part.sum()) for part in flags] == [2, 5]  # of 7, as 13 and 27 rows are to 40
    assert not flags[1][-5:].all()


def test_the_index_follows_the_shards(enlarged: Dataset) -> None:
    index = enlarged.index()
    assert index["partition"].to_pylist() == ["train"] * 47 + ["val"] * 9 + ["test"] * 10
    for part in enlarged.partitions:
        rows = index.filter(np.asarray(index["partition"].to_pylist()) == part)
        table = enlarged.read(part)
        for column in ("image_id", "label", "synthetic", "group_id", "view"):
            assert rows[column].to_pylist() == table[column].to_pylist(), (part, column)
    made = index.filter(np.asarray(index["synthetic"].to_pylist()))
    assert set(made["file_format"].to_pylist()) == {"synthetic"}
    assert set(made["partition"].to_pylist()) == {"train"}


def test_the_manifest_counts_and_keeps_the_real_normalisation(dataset: Dataset, enlarged: Dataset) -> None:
    before, after = dataset.manifest, enlarged.manifest
    assert after.partitions["train"].images == 47
    assert after.partitions["train"].patients == 47
    assert after.partitions["train"].per_label == {"normal": 20, "rare": 27}
    assert after.partitions["val"] == before.partitions["val"]
    assert enlarged.normalization == dataset.normalization
    assert enlarged.normalization_of(["train"]) == dataset.normalization_of(["train"])
    assert after.fingerprint != before.fingerprint
    assert {source.name: source.images for source in after.sources} == {"lab": 59, "synthetic": 7}
    assert after.synthesis == ({"label": "rare", "count": 7},)
    assert "synthetic" in after.notes[-1]


def test_a_call_that_was_stopped_goes_on(
    dataset: Dataset, enlarged: Dataset, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(module, "seal", full)
        with pytest.raises(StorageError):
            make(dataset, out, images)
    with pytest.raises(DatasetError, match=r"no dataset\.json"):
        open_dataset(str(out))
    (out / "train" / "part-00009.parquet").write_text("left over")
    whole = make(dataset, out, images)
    assert whole.manifest == enlarged.manifest
    assert storage.list_files(str(out)) == storage.list_files(enlarged.location)


def test_what_stands_there(dataset: Dataset, enlarged: Dataset, tmp_path: Path) -> None:
    assert standing(str(tmp_path / "absent"), REQUEST) is None
    there = standing(enlarged.location, REQUEST)
    assert there is not None
    assert there.manifest == enlarged.manifest
    with pytest.raises(DatasetError, match="is a DATASET already"):
        standing(enlarged.location, "6" * 64)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DatasetError, match=r"holds other files, such as thesis\.txt"):
        standing(str(tmp_path), REQUEST)


def test_a_shard_that_was_changed_is_not_passed_on(write_dataset: Callable[..., Dataset], images: np.ndarray, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    shard = Path(dataset.location, "val", "part-00000.parquet")
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DatasetError, match="another checksum"):
        make(dataset, tmp_path / "out", images)
    assert not (tmp_path / "out" / "dataset.json").exists()
