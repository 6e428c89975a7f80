"""SOURCE -> DATASET through Ray: repeatable to the byte, whole or absent, and no bad file stops it."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from cxr_ray.data.ingest import KEY_VARIABLE, STAGING, IngestProgress, ingest
from cxr_ray.data.shards import Dataset, open_dataset, pixels, targets_of
from cxr_ray.data.sources import Source, read_source
from cxr_ray.data.split import SplitSpec
from cxr_ray.errors import DatasetError, StorageError
from cxr_ray.imaging.preprocess import PreprocessSpec, load_image

pytestmark = pytest.mark.usefixtures("ray_cluster")

SMALL = PreprocessSpec(height=32, width=24)
ONE_PART = SplitSpec(fractions=(1, 0, 0))


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


def radiograph(seed: int, height: int = 120, width: int = 100) -> npt.NDArray[np.uint8]:
    """Noise of two scales: no two are alike."""
    rng = np.random.default_rng(seed)
    field = sum(cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), sigma) * sigma for sigma in (12.0, 4.0))
    return np.clip(128 + 90 * field, 0, 255).astype(np.uint8)


def png(image: npt.NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".png", image)[1].tobytes())


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 files in two class folders, with exact copies, near copies, a file that is no image and one that is empty."""
    root = tmp_path_factory.mktemp("xrays")
    for number in range(160):
        label = "normal" if number % 3 else "covid"
        path = root / label / f"{number:04d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(radiograph(number)))
    for copy, of in ((3, 0), (9, 6), (7, 5)):
        (root / ("normal" if copy % 3 else "covid") / f"{copy:04d}.png").write_bytes(png(radiograph(of)))
    (root / "covid" / "0012.png").write_bytes(png(np.ascontiguousarray(radiograph(15)[3:-2, ::-1])))
    (root / "normal" / "0001.png").write_bytes(b"hello")
    (root / "covid" / "0018.png").write_bytes(b"")
    return root


def bytes_below(location: str | Path) -> dict[str, bytes]:
    return {str(path.relative_to(location)): path.read_bytes() for path in sorted(Path(location).rglob("*")) if path.is_file()}


def quarantine(dataset: Dataset) -> dict[str, str]:
    rows = list(csv.reader(Path(dataset.location, "quarantine.csv").read_text().splitlines()))
    assert rows[0] == ["file", "reason"]
    return dict(rows[1:])


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("out") / "dataset"
    return ingest(read_source(str(folder)), str(out), preprocess=SMALL, name="tiny")


# --- what is in it ----------------------------------------------------------------------------------------------------------


def test_pixels_are_those_of_the_one_path(folder: Path, undisturbed: Dataset) -> None:
    expected = {}
    for path in folder.rglob("*.png"):
        if path.name not in {"0001.png", "0018.png"}:
            expected.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), load_image(path.read_bytes(), SMALL)[0])
    seen = 0
    for partition in undisturbed.partitions:
        table = undisturbed.read(partition)
        for image_id, image in zip(table["image_id"].to_pylist(), pixels(table, 32, 24), strict=True):
            assert np.array_equal(image, expected[image_id])
            seen += 1
    assert seen == 158


def test_every_file_is_a_row_or_in_quarantine(undisturbed: Dataset) -> None:
    manifest = undisturbed.manifest
    assert sum(part.images for part in manifest.partitions.values()) == 158
    assert quarantine(undisturbed).keys() == {"normal/0001.png", "covid/0018.png"}
    assert quarantine(undisturbed)["covid/0018.png"].startswith("empty: ")
    assert manifest.quarantined == 2
    assert [source.images for source in manifest.sources] == [158]


def test_the_index_is_the_shards_without_pixels(undisturbed: Dataset) -> None:
    index = undisturbed.index()
    whole = pa.concat_tables([undisturbed.read(partition) for partition in undisturbed.partitions])
    for name in whole.column_names:
        if name != "image":
            assert index[name].to_pylist() == whole[name].to_pylist()
    assert Counter(index["partition"].to_pylist()) == {name: part.images for name, part in undisturbed.manifest.partitions.items()}
    assert set(index["file_format"].to_pylist()) == {"png"}
    assert not any(".png" in str(value) for value in index.to_pylist())


def test_labels_are_the_folders(folder: Path, undisturbed: Dataset) -> None:
    assert undisturbed.labels.names == ("covid", "normal")
    expected = Counter("covid" if number % 3 == 0 else "normal" for number in range(160) if number not in {1, 18})
    index = undisturbed.index()
    assert Counter(undisturbed.labels.names[label] for label in targets_of(index, undisturbed.labels)) == expected
    per_label = [part.per_label for part in undisturbed.manifest.partitions.values()]
    assert {label: sum(part[label] for part in per_label) for label in expected} == expected


def test_groups_are_disjoint_and_copies_stay_together(undisturbed: Dataset) -> None:
    index = undisturbed.index().to_pandas()
    assert (index.groupby("group_id").partition.nunique() == 1).all()
    assert (index.groupby("patient_id").group_id.nunique() == 1).all()
    copies = undisturbed.manifest.copies
    assert (copies.exact, copies.near, copies.mirrored, copies.across_parts) == (3, 1, 1, 0)
    assert copies.largest_group == 2
    assert (index.groupby("group_id").size() == 2).sum() == 4


def test_normalization_is_of_the_training_part_alone(undisturbed: Dataset) -> None:
    train = pixels(undisturbed.read("train"), 32, 24) / 255
    assert undisturbed.normalization == pytest.approx((train.mean(), train.std()), abs=1e-9)
    test = pixels(undisturbed.read("test"), 32, 24) / 255
    assert undisturbed.normalization_of(["test"]) == pytest.approx((test.mean(), test.std()), abs=1e-9)


def test_what_stands_is_whole(undisturbed: Dataset) -> None:
    assert open_dataset(undisturbed.location, verify=True) == undisturbed
    assert not Path(undisturbed.location, STAGING).exists()
    assert len(undisturbed.files("train")) >= 4


# --- again, elsewhere, killed -------------------------------------------------------------------------------------------------


def test_a_copy_of_the_source_elsewhere_gives_the_same_bytes(folder: Path, undisturbed: Dataset, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "moved" / folder.name)
    seen: list[IngestProgress] = []
    source = read_source(str(tmp_path / "moved" / folder.name))
    ingest(source, str(tmp_path / "again"), preprocess=SMALL, name="tiny", report=seen.append)
    assert bytes_below(tmp_path / "again") == bytes_below(undisturbed.location)
    assert list(dict.fromkeys(step.stage for step in seen)) == ["read", "copies", "write"]
    for stage, total in (("read", 160), ("copies", 158), ("write", 158)):
        steps = [step for step in seen if step.stage == stage]
        assert steps[-1].done == steps[-1].total == total
        assert [step.done for step in steps] == sorted(step.done for step in steps)
        assert steps[-1].eta == 0


KILLED = """
import os, signal, sys
from cxr_ray.cluster import connect
from cxr_ray.data.ingest import ingest
from cxr_ray.data.sources import read_source
from cxr_ray.imaging.preprocess import PreprocessSpec

def report(step):
    if step.stage == sys.argv[3] and step.done >= int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)

connect("local", num_cpus=2, object_store_bytes=200 << 20)
ingest(read_source(sys.argv[1]), sys.argv[2], preprocess=PreprocessSpec(height=32, width=24), name="tiny", report=report)
"""


@pytest.mark.parametrize(("stage", "done"), [("read", 60), ("write", 30)])
def test_killed_and_run_again_gives_the_same_bytes(folder: Path, undisturbed: Dataset, tmp_path: Path, stage: str, done: int) -> None:
    out = tmp_path / "dataset"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", KILLED, str(folder), str(out), stage, str(done)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    with pytest.raises(DatasetError, match="did not finish"):
        open_dataset(str(out))
    left = bytes_below(out / STAGING)
    assert left, "something must have been staged"

    seen: list[IngestProgress] = []
    ingest(read_source(str(folder)), str(out), preprocess=SMALL, name="tiny", report=seen.append)
    assert seen[0].done >= done if stage == "read" else seen[0].done == 160, "what was staged must not be read again"
    assert bytes_below(out) == bytes_below(undisturbed.location)


def test_failing_at_the_last_moment_leaves_nothing_that_reads_as_whole(
    folder: Path, undisturbed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "dataset")

    def broken(*_: object) -> Dataset:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("cxr_ray.data.ingest.seal", broken)
        with pytest.raises(OSError, match="disk full"):
            ingest(read_source(str(folder)), out, preprocess=SMALL, name="tiny")
    with pytest.raises(DatasetError, match="did not finish"):
        open_dataset(out)
    ingest(read_source(str(folder)), out, preprocess=SMALL, name="tiny")
    assert bytes_below(out) == bytes_below(undisturbed.location)


def test_asked_again_it_is_there_and_another_request_is_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    source = read_source(str(folder))
    first = ingest(source, str(out), preprocess=SMALL, split=ONE_PART)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert ingest(source, str(out), preprocess=SMALL, split=ONE_PART) == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(DatasetError, match="is a DATASET already") as refused:
        ingest(source, str(out), preprocess=SMALL, split=SplitSpec(fractions=(0.5, 0, 0.5)))
    assert "--overwrite" in str(refused.value)
    second = ingest(source, str(out), preprocess=SMALL, split=SplitSpec(fractions=(0.5, 0, 0.5)), overwrite=True)
    assert second.partitions == ("train", "test")
    assert open_dataset(str(out), verify=True) == second
    assert {path.name for path in out.iterdir()} == {"train", "test", "dataset.json", "index.parquet", "quarantine.csv"}


def test_a_split_that_cannot_be_made_leaves_the_dataset_that_stands(folder: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "dataset")
    source = read_source(str(folder))
    standing = ingest(source, out, preprocess=SMALL, split=ONE_PART)
    with pytest.raises(DatasetError, match=r"folds|partitions"):
        ingest(source, out, preprocess=SMALL, split=SplitSpec(folds=100), overwrite=True)
    assert open_dataset(out, verify=True) == standing


def test_foreign_files_are_not_touched(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(DatasetError, match=r"other files, such as thesis\.docx"):
            ingest(read_source(str(folder)), str(tmp_path), preprocess=SMALL, overwrite=overwrite)
    with pytest.raises(DatasetError, match="lies in the source"):
        ingest(read_source(str(folder)), str(folder / "out"), preprocess=SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.docx"]


def test_out_that_cannot_be_a_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in ("file", "file/dataset"):
        with pytest.raises(StorageError, match="file"):
            ingest(read_source(str(folder)), str(tmp_path / out), preprocess=SMALL)


def test_an_error_of_a_task_reaches_the_caller_as_it_was(folder: Path, tmp_path: Path) -> None:
    """The staged parts' folder is made unusable behind the ingest's back: the tasks' StorageError comes through, unwrapped."""
    out = tmp_path / "dataset"

    def sabotage(step: IngestProgress) -> None:
        if step.stage == "write" and step.done == 0:
            (out / "train").write_text("in the way")

    with pytest.raises(StorageError, match="cannot write") as caught:
        ingest(read_source(str(folder)), str(out), preprocess=SMALL, report=sabotage)
    assert type(caught.value) is StorageError


# --- bad files ----------------------------------------------------------------------------------------------------------------


def test_ten_good_and_ten_hostile_files(hostile: ModuleType, tmp_path: Path) -> None:
    good = dict(list(hostile.good_files().items())[:40])
    bad, reasons = hostile.hostile_files(), hostile.hostile_reasons()
    assert len(good) >= 10
    assert len(bad) >= 10
    for number, (name, data) in enumerate([*good.items(), *bad.items()]):
        path = tmp_path / "source" / ("a", "b")[number % 2] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    source = read_source(str(tmp_path / "source"), "folder")
    listed = {Path(row.location).name for row in source.rows}
    dataset = ingest(source, str(tmp_path / "out"), preprocess=SMALL, split=ONE_PART)
    refused = {Path(file).name: reason.split(":")[0] for file, reason in quarantine(dataset).items()}
    assert refused == {name: reason for name, reason in reasons.items() if name in listed}
    assert len(refused) >= 10
    assert dataset.count("train") == len(listed & good.keys()) >= 10
    assert dataset.manifest.quarantined == len(refused)


def test_files_that_are_gone_or_locked_are_set_aside(folder: Path, tmp_path: Path) -> None:
    source = read_source(str(folder))
    gone = [replace(row, location=row.location + ".gone") for row in source.rows[:2]]
    dataset = ingest(
        replace(source, rows=tuple(sorted([*source.rows, *gone], key=lambda row: row.location))),
        str(tmp_path),
        preprocess=SMALL,
        split=ONE_PART,
    )
    reasons = Counter(reason.split(":")[0] for reason in quarantine(dataset).values())
    assert reasons == {"missing": 2, "empty": 1, "not-an-image": 1}


def test_a_source_without_one_usable_file_is_refused(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "source" / label).mkdir(parents=True)
        (tmp_path / "source" / label / "x.png").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match=r"none of the 2 files could be used: not-an-image.*\(2\)"):
        ingest(read_source(str(tmp_path / "source")), str(tmp_path / "out"))


# --- patients -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def dicoms(hostile: ModuleType, tmp_path: Path) -> Source:
    """Eight DICOM files of three patients; one of them is called Anonymous, which is nobody."""
    for number in range(8):
        patient = ("SECRET-17", "SECRET-18", "Anonymous")[number % 3]
        tags = {"PatientID": patient, "PatientSex": "F", "PatientAge": "045Y", "ViewPosition": "AP"}
        path = tmp_path / "source" / ("a", "b")[number // 4] / f"{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(hostile.dicom(radiograph(number), **tags))
    return read_source(str(tmp_path / "source"), "folder")


def test_dicom_headers_fill_what_the_source_does_not_say(dicoms: Source, tmp_path: Path) -> None:
    index = ingest(dicoms, str(tmp_path / "out"), preprocess=SMALL, split=ONE_PART).index().to_pandas()
    assert set(index.sex) == {"F"}
    assert set(index.age) == {45.0}
    assert set(index["view"]) == {"AP"}
    assert sorted(index.groupby("patient_id").size()) == [1, 1, 3, 3]  # the two anonymous ones are not one patient
    everything = b"".join(bytes_below(tmp_path / "out").values())
    assert b"SECRET" not in everything


def test_the_key_decides_the_patients_names(dicoms: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def patients(out: str) -> set[str]:
        return set(ingest(dicoms, str(tmp_path / out), preprocess=SMALL, split=ONE_PART).index()["patient_id"].to_pylist())

    derived = patients("derived")
    monkeypatch.setenv(KEY_VARIABLE, "one")
    one = patients("one")
    monkeypatch.setenv(KEY_VARIABLE, "two")
    two = patients("two")
    assert not derived & one
    assert not one & two
    monkeypatch.setenv(KEY_VARIABLE, "one")
    with pytest.raises(DatasetError, match="DATASET already"):
        patients("two")
    assert patients("again") == one


# --- other tasks and splits -----------------------------------------------------------------------------------------------------


@pytest.fixture
def findings(tmp_path: Path) -> Source:
    """60 images of 30 patients with three findings, some unknown, and a split of their own that tears two patients apart."""
    (tmp_path / "source" / "images").mkdir(parents=True)
    rng = np.random.default_rng(3)
    rows = []
    for number in range(60):
        (tmp_path / "source" / "images" / f"{number}.png").write_bytes(png(radiograph(500 + number)))
        values = ["1" if value > 0.5 else "0" for value in rng.random(3)]
        values[number % 3] = "" if number % 4 == 0 else values[number % 3]
        part = "test" if number >= 48 or number in {0, 2} else "train"
        rows.append([f"images/{number}.png", *values, f"p{number // 2}", part])
    with (tmp_path / "source" / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["path", "effusion", "nodule", "mass", "patient_id", "split"], *rows])
    return read_source(str(tmp_path / "source"))


def test_unknown_findings_stay_unknown(findings: Source, tmp_path: Path) -> None:
    dataset = ingest(findings, str(tmp_path / "out"), preprocess=SMALL, split=SplitSpec(folds=3, test=0.2))
    assert dataset.labels.task == "multilabel"
    assert dataset.partitions == ("fold-0", "fold-1", "fold-2", "test")
    targets = targets_of(dataset.index(), dataset.labels)
    assert np.isnan(targets).sum() == 15
    assert set(np.unique(targets[~np.isnan(targets)])) == {0.0, 1.0}
    parts = np.array(dataset.index()["partition"].to_pylist())
    for name, part in dataset.manifest.partitions.items():
        assert list(part.per_label.values()) == (targets[parts == name] == 1).sum(axis=0).tolist()
    folds = [pixels(dataset.read(name), 32, 24) for name in dataset.partitions if name != "test"]
    train = np.concatenate(folds) / 255
    assert dataset.normalization == pytest.approx((train.mean(), train.std()), abs=1e-9)


def test_an_official_split_is_kept_and_its_faults_are_reported(findings: Source, tmp_path: Path) -> None:
    assert {row.split for row in findings.rows} == {"train", "test"}
    kept = ingest(findings, str(tmp_path / "kept"), preprocess=SMALL, split=SplitSpec(policy="official", fractions=(1, 0, 0)))
    assert {name: part.images for name, part in kept.manifest.partitions.items()} == {"train": 46, "test": 14}
    for dataset in (kept, ingest(findings, str(tmp_path / "own"), preprocess=SMALL)):
        assert dataset.manifest.official_split is not None
        assert dataset.manifest.official_split.images == {"test": 14, "train": 46}
        assert dataset.manifest.official_split.patients_crossing == 2
    assert dataset.index().to_pandas().groupby("patient_id").partition.nunique().max() == 1


def test_undersampling_leaves_rows_out_of_everything(folder: Path, tmp_path: Path) -> None:
    dataset = ingest(read_source(str(folder)), str(tmp_path / "out"), preprocess=SMALL, split=SplitSpec(undersample=True))
    train = dataset.manifest.partitions["train"]
    assert train.per_label["covid"] == train.per_label["normal"]
    left_out = sum(dataset.manifest.split["report"]["dropped"].values())
    assert left_out > 0
    assert len(dataset.index()) == 158 - left_out == sum(len(dataset.read(name)) for name in dataset.partitions)


def test_image_level_split_says_that_copies_are_torn_apart(folder: Path, tmp_path: Path) -> None:
    spec = SplitSpec(policy="image", fractions=(0.5, 0, 0.5), seed=1)
    dataset = ingest(read_source(str(folder)), str(tmp_path / "out"), preprocess=SMALL, split=spec)
    assert dataset.manifest.policy == "image"
    assert 1 <= dataset.manifest.copies.across_parts <= 4


def test_without_near_copies_only_exact_ones_are_joined(folder: Path, tmp_path: Path) -> None:
    manifest = ingest(read_source(str(folder)), str(tmp_path / "out"), preprocess=SMALL, near_copies=False).manifest
    assert (manifest.copies.searched, manifest.copies.exact, manifest.copies.near) == (False, 3, 0)


def test_the_search_may_run_on_the_cluster(folder: Path, undisturbed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxr_ray.data.ingest.SEARCH_ON_CLUSTER", 1)
    ingest(read_source(str(folder)), str(tmp_path / "out"), preprocess=SMALL, name="tiny")
    assert bytes_below(tmp_path / "out") == bytes_below(undisturbed.location)


def test_small_shards_hold_the_same_images(folder: Path, undisturbed: Dataset, tmp_path: Path) -> None:
    dataset = ingest(read_source(str(folder)), str(tmp_path / "out"), preprocess=SMALL, shard_bytes=32 * 24 * 5)
    for partition in dataset.partitions:
        assert sorted(dataset.read(partition)["image_id"].to_pylist()) == sorted(undisturbed.read(partition)["image_id"].to_pylist())
    assert max(shard.rows for shard in dataset.manifest.shards) == 5


def test_darkcovid(real_data: Path, tmp_path: Path) -> None:
    """Real data: nothing is set aside, no patient and no copy stands in two parts, folds are stratified."""
    dataset = ingest(read_source(str(real_data / "darkcovid")), str(tmp_path / "out"), split=SplitSpec(folds=5, test=0.2))
    assert dataset.manifest.quarantined == 0
    index = dataset.index().to_pandas()
    assert len(index) == 1118
    assert (index.groupby("patient_id").partition.nunique() == 1).all()
    assert (index.groupby("group_id").partition.nunique() == 1).all()
    assert dataset.manifest.copies.across_parts == 0
    assert dataset.manifest.copies.exact + dataset.manifest.copies.near >= 2
    shares = index.groupby("partition").label.value_counts(normalize=True).unstack()
    assert float((shares - index.label.value_counts(normalize=True)).abs().max().max()) < 0.03


def test_manifest_is_json_without_times_paths_or_names(folder: Path, undisturbed: Dataset) -> None:
    text = Path(undisturbed.location, "dataset.json").read_text()
    assert json.loads(text)["schema"] == "cxr-ray/dataset/1"
    assert str(folder.parent) not in text
    assert "0001.png" not in text
