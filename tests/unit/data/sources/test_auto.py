"""Which adapter is chosen, and what is said where none or several fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cxr_ray.data.sources import FORMATS, SourceOptions, list_images, read_source
from cxr_ray.errors import SourceError

Tree = Callable[[Mapping[str, str]], str]

LAYOUTS: dict[str, dict[str, str]] = {
    "folder": {"A/1.png": "", "B/2.png": ""},
    "csv": {"A/1.png": "", "B/2.png": "", "t.csv": "file,label\nA/1.png,x\nB/2.png,y\n"},
    "kermany": {"NORMAL/IM-0001-0001.jpeg": "", "PNEUMONIA/person1_virus_1.jpeg": "", "PNEUMONIA/person1_bacteria_2.jpeg": ""},
    "nih": {"images/00000001_000.png": "", "labels.csv": "Image Index,Finding Labels,Patient ID\n00000001_000.png,Mass,1\n"},
    "chexpert": {
        "train/patient00001/study1/view1_frontal.jpg": "",
        "train.csv": "Path,Sex,Age,Frontal/Lateral,AP/PA,Edema\nS/train/patient00001/study1/view1_frontal.jpg,Male,5,Frontal,AP,1.0\n",
    },
    "covid-radiography": {"COVID/images/COVID-1.png": "", "COVID/masks/COVID-1.png": "", "Normal/images/Normal-1.png": ""},
    "mendeley": {"covid/a.png": "", "normal/b.png": "", "metadata.csv": "directory,class\ncovid/a.png,1\nnormal/b.png,0\n"},
    "cohen": {"images/a.png": "", "images/b.png": "", "metadata.csv": "patientid,finding,view,filename\n1,X,PA,a.png\n2,Y,PA,b.png\n"},
    "dicom": {"s1/a.dcm": "", "s2/b.dcm": "", "labels.csv": "path,label\ns1/a.dcm,x\ns2/b.dcm,y\n"},
}


def test_every_format_has_a_layout_here() -> None:
    assert set(LAYOUTS) == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_the_right_adapter_is_chosen_and_says_why(tree: Tree, name: str) -> None:
    source = read_source(tree(LAYOUTS[name]))
    assert source.format == name
    assert source.notes[0].startswith(f"read as {name!r}: ")
    assert source.name == "source"
    assert all(Path(row.location).is_file() for row in source.rows)
    assert [row.location for row in source.rows] == sorted(row.location for row in source.rows)
    asked = read_source(source.location, name)
    assert asked.rows == source.rows
    assert asked.notes[0] == f"read as {name!r}: as asked"


@pytest.mark.parametrize("name", FORMATS)
def test_the_wrong_format_is_a_clear_error(tree: Tree, name: str) -> None:
    location = tree({"notes.txt": "", "scan.nii": ""})
    with pytest.raises(SourceError) as caught:
        read_source(location, name)
    assert "1 .nii" in str(caught.value)
    assert caught.value.hint


def test_nothing_fits(tree: Tree) -> None:
    with pytest.raises(SourceError) as caught:
        read_source(tree({"a.png": "", "t.csv": "colour,size\nred,2\n"}))
    message = str(caught.value)
    assert "1 .png" in message
    assert "t.csv has colour, size" in message
    assert all(f"\n  {name}: " in message for name in FORMATS)


def test_unknown_format(tree: Tree) -> None:
    with pytest.raises(SourceError, match="unknown format 'nlh'") as caught:
        read_source(tree(LAYOUTS["nih"]), "nlh")
    assert "nih" in (caught.value.hint or "")


def test_two_public_layouts_at_once_are_ambiguous(tree: Tree) -> None:
    location = tree(LAYOUTS["nih"] | LAYOUTS["kermany"])
    with pytest.raises(SourceError, match=r"fits several formats: kermany .* nih ") as caught:
        read_source(location)
    assert caught.value.hint == "--format kermany or --format nih"
    assert read_source(location, "nih").format == "nih"


def test_two_tables_at_once_are_ambiguous(tree: Tree) -> None:
    location = tree(LAYOUTS["csv"] | {"u.csv": "file,label\nA/1.png,p\nB/2.png,q\n"})
    with pytest.raises(SourceError, match=r"several tables .*: t\.csv, u\.csv"):
        read_source(location)
    assert read_source(location, options=SourceOptions(label_csv="u.csv")).labels.names == ("p", "q")


def test_a_table_that_names_other_files_is_not_taken(tree: Tree) -> None:
    source = read_source(tree(LAYOUTS["folder"] | {"t.csv": "file,label\nx.png,p\ny.png,q\n"}))
    assert source.format == "folder"
    assert source.labels.names == ("A", "B")


def test_a_csv_is_a_source_too(tree: Tree) -> None:
    location = tree(LAYOUTS["csv"] | {"u.csv": "file,label\nA/1.png,p\nB/2.png,q\n"})
    assert read_source(f"{location}/u.csv").labels.names == ("p", "q")
    with pytest.raises(SourceError, match="is a file; a source is a folder"):
        read_source(f"{location}/A/1.png")


def test_uris(tree: Tree) -> None:
    location = tree(
        {"Viral Pneumonia/a 1.png": "", "Normal/b#2.png": "", "t.csv": "file,label\nViral Pneumonia/a 1.png,x\nNormal/b#2.png,y\n"}
    )
    uri = Path(location).as_uri()
    source = read_source(uri)
    assert [row.label for row in source.rows] == ["y", "x"]
    assert source.rows[1].location == f"{uri}/Viral%20Pneumonia/a%201.png"
    from cxr_ray.storage import exists

    assert all(exists(row.location) for row in source.rows)
    assert read_source(f"{uri}/t.csv").rows == source.rows
    assert list_images(uri) == [row.location for row in source.rows]


def test_list_images_needs_no_labels(tree: Tree) -> None:
    location = tree({"b.png": "", "deep/a.dcm": "", "t.txt": ""})
    assert list_images(location) == [f"{location}/b.png", f"{location}/deep/a.dcm"]


def test_reading_sources_imports_neither_torch_nor_ray() -> None:
    import subprocess
    import sys

    heavy = {"torch", "ray", "cv2", "pandas", "pydicom"}
    code = f"import sys, cxr_ray.data.sources, cxr_ray.data.split; print(sorted({heavy} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
