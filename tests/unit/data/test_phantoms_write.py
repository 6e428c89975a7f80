"""A folder of phantoms: layout, determinism, planted copies, corrupt files, DICOM."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image

from cxr_ray.data.grouping import near_copies, thumbnail
from cxr_ray.data.phantoms import MULTILABEL, PhantomSummary, render_phantom, shots, write_phantoms
from cxr_ray.data.phantoms.encode import age_string
from cxr_ray.data.sources import read_source
from cxr_ray.errors import ConfigError, ImageError, StorageError
from cxr_ray.imaging.decode import decode

COUNT, SIZE = 70, 128  # more than one batch of the thread pool


class Written(NamedTuple):
    folder: Path
    summary: PhantomSummary
    truth: dict[str, Any]
    rows: dict[str, dict[str, str]]


def write(folder: Path, **options: Any) -> Written:
    summary = write_phantoms(folder, **options)
    text = (folder / "labels.csv").read_text()
    rows = {row["path"]: row for row in csv.DictReader(io.StringIO(text))}
    return Written(folder, summary, json.loads((folder / "truth.json").read_text()), rows)


@pytest.fixture(scope="module")
def covid(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(tmp_path_factory.mktemp("covid") / "new", task="covid", count=COUNT, seed=0, size=SIZE, near_copies=8, exact_copies=3)


@pytest.fixture(scope="module")
def multilabel(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(tmp_path_factory.mktemp("multilabel"), task="multilabel", count=40, seed=0, size=64)


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def grey(path: Path) -> np.ndarray:
    """Pixels as shown: window and polarity of a DICOM applied."""
    if path.suffix != ".dcm":
        return cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    dataset = pydicom.dcmread(path)
    center, width = float(dataset.WindowCenter), float(dataset.WindowWidth)
    shown = np.clip((dataset.pixel_array - (center - 0.5)) / (width - 1) + 0.5, 0, 1) * 255
    return np.rint(255 - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown).astype(np.uint8)


def test_every_file_is_listed_and_counted(covid: Written) -> None:
    files = {str(path.relative_to(covid.folder)) for path in (covid.folder / "images").iterdir()}
    assert files == set(covid.rows)
    assert list(covid.rows) == sorted(covid.rows)
    summary = covid.summary
    assert (summary.images, summary.near_copies, summary.exact_copies, summary.copies, summary.corrupt) == (COUNT, 8, 3, 11, 4)
    assert len(files) == COUNT + 11 + 4
    assert sum(summary.per_label.values()) == COUNT
    assert sum(summary.formats.values()) == COUNT
    assert len(covid.truth["images"]) == COUNT
    assert list(next(iter(covid.rows.values()))) == ["path", "label", "patient_id", "view", "sex", "age", "source"]


def test_truth_and_labels_agree(covid: Written) -> None:
    for image in covid.truth["images"]:
        row = covid.rows[image["path"]]
        assert row["label"] == ("|".join(image["findings"]) or "normal")
        assert row["patient_id"] == image["patient_id"]
        assert {lesion["finding"] for lesion in image["lesions"]} == set(image["findings"])
        assert grey(covid.folder / image["path"]).shape == (image["height"], image["width"])


@pytest.mark.parametrize("task", ["covid", "croup", "multilabel"])
def test_the_same_arguments_give_the_same_bytes(tmp_path: Path, task: str) -> None:
    for name, threads in (("one", 1), ("two", 4)):
        write_phantoms(tmp_path / name, task=task, count=14, seed=2, size=64, threads=threads)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_another_seed_gives_other_pictures(tmp_path: Path) -> None:
    for seed in (2, 3):
        write_phantoms(tmp_path / str(seed), count=12, seed=seed, size=64, corrupt=0)
    assert not set(digests(tmp_path / "2").values()) & set(digests(tmp_path / "3").values())


def test_an_image_does_not_depend_on_the_count(tmp_path: Path) -> None:
    few = write(tmp_path / "few", task="covid", count=8, seed=2, size=64)
    more = write(tmp_path / "more", task="covid", count=16, seed=2, size=64)
    few_files, more_files = digests(few.folder), digests(more.folder)
    assert few.truth["images"] == more.truth["images"][:8]
    assert all(few_files[image["path"]] == more_files[image["path"]] for image in few.truth["images"])


def test_exact_copies_have_the_same_bytes(covid: Written) -> None:
    exact = [copy for copy in covid.truth["copies"] if copy["kind"] == "exact"]
    assert len(exact) == 3
    for copy in exact:
        assert (covid.folder / copy["path"]).read_bytes() == (covid.folder / copy["of"]).read_bytes()


def test_copies_are_found_and_nothing_else_of_another_patient(covid: Written) -> None:
    paths = [entry["path"] for entry in covid.truth["images"] + covid.truth["copies"]]
    pairs = near_copies(np.stack([thumbnail(grey(covid.folder / path)) for path in paths]))
    found = {(paths[a], paths[b]) for a, b in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)}
    planted = {(copy["of"], copy["path"]) for copy in covid.truth["copies"]}
    assert planted <= found
    patient_of = {image["path"]: image["patient_id"] for image in covid.truth["images"]}
    patient_of |= {copy["path"]: patient_of[copy["of"]] for copy in covid.truth["copies"]}
    assert [pair for pair in found if patient_of[pair[0]] != patient_of[pair[1]]] == []


def test_some_copies_stand_under_another_patient_but_keep_the_label(covid: Written) -> None:
    copies = covid.truth["copies"]
    assert {copy["other_patient"] for copy in copies} == {True, False}
    for copy in copies:
        row, original = covid.rows[copy["path"]], covid.rows[copy["of"]]
        assert row["label"] == original["label"]
        assert (row["patient_id"] != original["patient_id"]) == copy["other_patient"]
    assert all("jpeg" in copy["edits"] for copy in copies if copy["kind"] == "near")
    assert {edit for copy in copies for edit in copy["edits"]} == {"jpeg", "crop", "brightness", "resize"}


def test_corrupt_files_cannot_be_read(covid: Written) -> None:
    faults = {one["fault"]: covid.folder / one["path"] for one in covid.truth["corrupt"]}
    assert set(faults) == {"truncated-jpeg", "truncated-png", "empty", "text-as-png"}
    assert faults["empty"].stat().st_size == 0
    for path in faults.values():
        with pytest.raises((OSError, SyntaxError)), Image.open(path) as image:
            image.load()
        with pytest.raises(ImageError):
            decode(path.read_bytes())


def test_dicom_files_say_who_and_how(covid: Written) -> None:
    files = sorted((covid.folder / "images").glob("*.dcm"))
    datasets = [pydicom.dcmread(path) for path in files]
    originals = {image["path"]: image for image in covid.truth["images"] if image["format"] == "dicom"}
    assert {dataset.PhotometricInterpretation for dataset in datasets} == {"MONOCHROME1", "MONOCHROME2"}
    assert len({dataset.SeriesInstanceUID for dataset in datasets}) == len({image["patient_id"] for image in originals.values()})
    for path in originals:
        dataset, row = pydicom.dcmread(covid.folder / path), covid.rows[path]
        assert (dataset.PatientID, dataset.ViewPosition, dataset.PatientSex) == (row["patient_id"], row["view"], row["sex"])
        assert dataset.PatientAge == age_string(float(row["age"]))
        assert (dataset.BitsAllocated, dataset.BitsStored) == (16, 12)
        assert dataset.pixel_array.max() < 4096


def test_dicom_shows_the_picture_that_was_drawn(covid: Written) -> None:
    drawn = {f"images/{shot.name}.dcm": shot for shot in shots("covid", COUNT, 0, SIZE) if shot.format == "dicom"}
    assert len(drawn) == 6
    for path, shot in drawn.items():
        picture = render_phantom(shot).image
        assert np.array_equal(grey(covid.folder / path), picture)
        decoded = decode((covid.folder / path).read_bytes())
        assert np.array_equal(decoded.pixels, picture)
        assert decoded.tags["PatientID"] == shot.patient_id


def test_multilabel_columns_hold_one_zero_and_blank(multilabel: Written) -> None:
    header = list(next(iter(multilabel.rows.values())))
    assert header == ["path", *MULTILABEL, "patient_id", "view", "sex", "age", "source"]
    for image in multilabel.truth["images"]:
        for name in MULTILABEL:
            value = multilabel.rows[image["path"]][name]
            assert value in ("", str(int(name in image["findings"])))
    values = [row[name] for row in multilabel.rows.values() for name in MULTILABEL]
    assert {"", "0", "1"} == set(values)


@pytest.mark.parametrize("task", ["covid", "multilabel"])
def test_the_folder_is_read_as_a_source(covid: Written, multilabel: Written, task: str) -> None:
    written = {"covid": covid, "multilabel": multilabel}[task]
    source = read_source(str(written.folder))
    assert source.format == "csv"
    assert len(source.rows) == len(written.rows)
    assert source.rejected == ()
    if task == "multilabel":
        assert source.labels.task == "multilabel"
        assert source.labels.names == MULTILABEL
    else:
        assert source.labels.names == ("covid", "normal", "pneumonia")


def test_a_folder_that_holds_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(StorageError, match="is not empty"):
        write_phantoms(tmp_path, count=12)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "cough"}, "covid, croup, multilabel"),
        ({"count": 0}, "count"),
        ({"size": 8}, "size"),
        ({"count": 3, "near_copies": 4}, "copies"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        write_phantoms(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_progress_ends_at_the_count(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_phantoms(tmp_path / "new", count=25, size=48, report=lambda done, count: seen.append((done, count)))
    assert seen[-1] == (25, 25)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
