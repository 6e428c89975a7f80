"""A CSV with a row an image."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cxr_ray.data.sources import SourceOptions, read_source
from cxr_ray.errors import SourceError

Tree = Callable[[Mapping[str, str]], str]
IMAGES = {f"images/{name}.png": "" for name in "abcd"}


def test_every_column(tree: Tree) -> None:
    text = "path,label,patient_id,view,sex,age,source,split\n images/a.png , x ,P1,PA,Female,061Y,here,training\nimages/b.png,y,,,,,,\n"
    source = read_source(tree(IMAGES | {"t.csv": text}), "csv")
    first, second = source.rows
    assert first.location.endswith("/images/a.png")
    assert (first.label, first.patient, first.view, first.sex, first.age, first.source, first.split) == (
        "x",
        "P1",
        "PA",
        "F",
        61.0,
        "here",
        "train",
    )
    assert (second.label, second.patient, second.view, second.sex, second.age, second.source, second.split) == (
        "y", None, None, None, None, "source", None,
    )  # fmt: skip
    assert source.labels.task == "multiclass"
    assert "2 image file(s) have no row in t.csv and are left out" in source.notes


@pytest.mark.parametrize("column", ["file", "filename", "image", "path", "Image Path", "File_Name"])
def test_names_of_the_path_column(tree: Tree, column: str) -> None:
    source = read_source(tree(IMAGES | {"t.csv": f"{column},label\na.png,x\nb.png,y\n"}))
    assert [row.label for row in source.rows] == ["x", "y"]


def test_every_reason_to_reject(tree: Tree) -> None:
    text = (
        "file,label\nimages/a.png,x\nimages/b.png,y\nimages/b.png,y\nimages/c.png,x\nimages/c.png,y\n"
        "images/d.png, \nimages/gone.png,x\n../secret.png,x\n/etc/passwd,x\n,x\nimages/d.png,unknown\n"
    )
    source = read_source(tree(IMAGES | {"t.csv": text}), "csv")
    assert [row.label for row in source.rows] == ["x", "y"]
    assert Counter(source.rejected) == Counter(
        [
            ("(t.csv row 11)", "no file name"),
            ("../secret.png", "path leaves the source folder"),
            ("/etc/passwd", "path leaves the source folder"),
            ("images/c.png", "conflicting labels"),
            ("images/d.png", "no label"),
            ("images/d.png", "no label"),
            ("images/gone.png", "missing file"),
        ]
    )


def test_several_findings_in_one_column(tree: Tree) -> None:
    text = "image,labels\na.png,Mass|Edema\nb.png,No Finding\nc.png, Edema \nd.png,\n"
    source = read_source(tree(IMAGES | {"t.csv": text}))
    assert source.labels.names == ("Edema", "Mass")
    assert source.labels.task == "multilabel"
    assert [row.labels for row in source.rows] == [(1.0, 1.0), (0.0, 0.0), (1.0, 0.0)]
    assert all(row.label is None for row in source.rows)
    assert source.rejected == (("images/d.png", "no label"),)


def test_a_column_per_finding(tree: Tree) -> None:
    text = "image,age,Edema,Mass,bed\na.png,1,1,0,3\nb.png,0,,1.0,1\nc.png,1,,,2\nd.png,1,-1,0,2\n"
    location = tree(IMAGES | {"t.csv": text})
    source = read_source(location)
    assert source.labels.names == ("Edema", "Mass")  # `age` holds 0 and 1 only, but its name says what it is
    assert [row.labels for row in source.rows] == [
        (1.0, 0.0),
        pytest.approx((math.nan, 1.0), nan_ok=True),
        pytest.approx((math.nan, 0.0), nan_ok=True),
    ]
    assert source.rejected == (("images/c.png", "no label"),)
    ones = read_source(location, options=SourceOptions(uncertain="ones", blank="zeros", label_columns=("Mass", "Edema")))
    assert ones.labels.names == ("Mass", "Edema")
    assert [row.labels for row in ones.rows] == [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.0, 1.0)]


def test_a_cell_that_is_no_finding_is_rejected(tree: Tree) -> None:
    text = "image,Edema\na.png,1\nb.png,maybe\nc.png,0\n"
    source = read_source(tree(IMAGES | {"t.csv": text}), "csv", SourceOptions(label_columns=("Edema",)))
    assert source.rejected == (("images/b.png", "label is not 1, 0, -1 or blank"),)


def test_columns_by_name(tree: Tree) -> None:
    text = "where,what,who,label\na.png,x,1,p\nb.png,y,2,p\n"
    options = SourceOptions(path_column="Where", label_column="what", patient_column="who")
    source = read_source(tree(IMAGES | {"t.csv": text}), options=options)
    assert [(row.label, row.patient) for row in source.rows] == [("x", "1"), ("y", "2")]


def test_the_class_column_wins_and_says_so(tree: Tree) -> None:
    text = "file,label,finding_labels\na.png,x,A|B\nb.png,y,B\n"
    location = tree(IMAGES | {"t.csv": text})
    source = read_source(location)
    assert source.labels.names == ("x", "y")
    assert any("'finding_labels' (several findings an image) is not used" in note for note in source.notes)
    assert read_source(location, options=SourceOptions(labels_column="finding_labels")).labels.names == ("A", "B")


def test_faults_in_the_columns(tree: Tree) -> None:
    location = tree(IMAGES | {"t.csv": "file,label\na.png,x\nb.png,y\n"})
    with pytest.raises(SourceError, match="no column 'diagnosis'; it has: file, label"):
        read_source(location, "csv", SourceOptions(label_column="diagnosis", label_csv="t.csv"))
    with pytest.raises(SourceError, match="label_column and labels_column were given"):
        read_source(location, "csv", SourceOptions(label_column="label", labels_column="label", label_csv="t.csv"))


def test_tables_of_a_split(tree: Tree) -> None:
    files = {"train.csv": "file,label\na.png,x\nb.png,y\n", "val.csv": "file,label\nc.png,x\n", "test.csv": "file,label\nd.png,y\n"}
    source = read_source(tree(IMAGES | files))
    assert [row.split for row in source.rows] == ["train", "train", "val", "test"]


def test_paths_relative_to_the_table(tree: Tree) -> None:
    source = read_source(tree(IMAGES | {"labels/t.csv": "file,label\n../images/a.png,x\n../images/b.png,y\n../../c.png,y\n"}))
    assert [row.label for row in source.rows] == ["x", "y"]
    assert source.rejected == (("../../c.png", "path leaves the source folder"),)


def test_darkcovid(real_data: Path) -> None:
    source = read_source(str(real_data / "darkcovid"))
    assert source.format == "csv"
    assert Counter(row.label for row in source.rows) == {"No_findings": 500, "Pneumonia": 500, "Covid-19": 118}
    assert len({(row.label, row.patient) for row in source.rows}) == 782
    assert Counter(row.sex for row in source.rows) == {"M": 594, "F": 511, None: 13}
    assert Counter(row.source for row in source.rows) == {"NIH ChestX-ray14": 1000, "ieee8023/covid-chestxray-dataset": 118}
    assert sum(row.age is not None for row in source.rows) == 1097
    assert source.rejected == ()
