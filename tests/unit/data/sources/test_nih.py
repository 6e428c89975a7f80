"""NIH ChestX-ray14."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from cxr_ray.data.sources import Folder, SourceOptions, nih, read_folder, read_source, tables
from cxr_ray.errors import SourceError

Tree = Callable[[Mapping[str, str]], str]
HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n"
FILES = {
    "images_001/images/00000001_000.png": "",
    "images_002/images/00000002_000.png": "",
    "images_002/images/00000002_001.png": "",
    "images_002/images/00000003_000.png": "",
    "Data_Entry_2017.csv": HEADER
    + "00000001_000.png,Cardiomegaly|Emphysema,0,1,058Y,M,PA\n00000002_000.png,No Finding,0,2,414,F,AP\n"
    + "00000002_001.png,Hernia|Fracture,1,2,30,F,AP\n00000009_000.png,Mass,0,9,30,F,AP\n",
    "BBox_List_2017.csv": "Image Index,Finding Label,Bbox [x\n00000001_000.png,Mass,1\n",
}


def test_findings_patients_and_rejections(tree: Tree) -> None:
    source = read_source(tree(FILES))
    assert source.labels.names == (*nih.FINDINGS, "Fracture")
    assert source.labels.task == "multilabel"
    present = [{name for name, value in zip(source.labels.names, row.labels or (), strict=True) if value} for row in source.rows]
    assert present == [{"Cardiomegaly", "Emphysema"}, set(), {"Hernia", "Fracture"}]
    assert [(row.patient, row.age, row.sex, row.view) for row in source.rows] == [
        ("1", 58.0, "M", "PA"),
        ("2", None, "F", "AP"),
        ("2", 30.0, "F", "AP"),
    ]
    assert source.rejected == (("00000009_000.png", "missing file"),)
    assert any("1 image file(s) have no row in Data_Entry_2017.csv" in note for note in source.notes)
    assert all(row.split is None for row in source.rows)


def test_the_official_lists(tree: Tree) -> None:
    lists = {"train_val_list.txt": "00000001_000.png\r\n00000002_000.png\n", "test_list.txt": "00000002_000.png\n00000002_001.png"}
    source = read_source(tree(FILES | lists))
    assert [row.split for row in source.rows] == ["train_val", "test", "test"]
    assert any("1 image(s) stand in both" in note for note in source.notes)


def test_only_some_findings(tree: Tree) -> None:
    """What is left out of the labels leaves the image in: it has none of the others."""
    source = read_source(tree(FILES), options=SourceOptions(findings=("Hernia", "Cardiomegaly")))
    assert source.labels.names == ("Hernia", "Cardiomegaly")
    assert [row.labels for row in source.rows] == [(0.0, 1.0), (0.0, 0.0), (1.0, 0.0)]
    with pytest.raises(SourceError, match=r"no finding called Covid; there are: Atelectasis(?s:.)*-o findings="):
        read_source(tree(FILES), options=SourceOptions(findings=("Hernia", "Covid")))


def test_the_newest_table_is_taken(tree: Tree) -> None:
    files = FILES | {"Data_Entry_2017_v2020.csv": HEADER + "00000001_000.png,Mass,0,1,58,M,PA\n"}
    location = tree(files)
    assert len(read_source(location).rows) == 1
    assert len(read_source(location, options=SourceOptions(label_csv="Data_Entry_2017.csv")).rows) == 3


def test_nih64(real_data: Path) -> None:
    source = read_source(str(real_data / "nih64"))
    assert source.format == "nih"
    assert source.labels.names == nih.FINDINGS
    labels = np.array([row.labels for row in source.rows])
    assert labels.shape == (1000, 14)
    assert (labels.sum(axis=1) > 1).sum() == 213
    assert (labels.sum(axis=1) == 0).sum() == 499
    assert len({row.patient for row in source.rows}) == 264
    assert labels[:, source.labels.index("Hernia")].sum() == 9


def test_labels_at_full_scale(real_data: Path) -> None:
    name = "Data_Entry_2017_v2020.csv.gz"
    listing = Folder(str(real_data / "nih_labels"), (name,))
    table = tables.read_table(listing, name)
    images = tuple(f"images_{index % 12 + 1:03d}/images/{row[0]}" for index, row in enumerate(table.rows))
    start = time.monotonic()
    source = read_folder(Folder(listing.location, (name, *images), cache=listing.cache), "auto")
    assert time.monotonic() - start < 60
    assert len(source.rows) == 112_120
    assert source.rejected == ()
    assert len({row.patient for row in source.rows}) == 30_805
    totals = np.array([row.labels for row in source.rows]).sum(axis=0)
    assert dict(zip(source.labels.names, totals.astype(int).tolist(), strict=True)) == {
        "Atelectasis": 11559, "Cardiomegaly": 2776, "Effusion": 13317, "Infiltration": 19894, "Mass": 5782, "Nodule": 6331,
        "Pneumonia": 1431, "Pneumothorax": 5302, "Consolidation": 4667, "Edema": 2303, "Emphysema": 2516, "Fibrosis": 1686,
        "Pleural_Thickening": 3385, "Hernia": 227,
    }  # fmt: skip
    ages = [row.age for row in source.rows if row.age is not None]
    assert len(ages) == 112_120
    assert math.isclose(sum(ages) / len(ages), 46.6264, abs_tol=1e-3)


def test_labels_without_images(tree: Tree) -> None:
    with pytest.raises(SourceError, match=r"no usable image when read as 'nih'; rejected: missing file \(4\)"):
        read_source(tree({"Data_Entry_2017.csv": FILES["Data_Entry_2017.csv"]}), "nih")
