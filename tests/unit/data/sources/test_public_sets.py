"""CheXpert, COVID-19 Radiography Database, Mendeley jctsfj2sfn, Cohen and Figure 1."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cxr_ray.data.sources import SourceOptions, read_source
from cxr_ray.errors import SourceError

Tree = Callable[[Mapping[str, str]], str]

# --- CheXpert ---------------------------------------------------------------------------------------------------------

HEADER = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema,Mass\n"
ROOT = "CheXpert-v1.0-small"
CHEXPERT = {
    "train/patient00001/study1/view1_frontal.jpg": "",
    "train/patient00001/study1/view2_lateral.jpg": "",
    "valid/patient64541/study1/view1_frontal.jpg": "",
    "train.csv": HEADER
    + f"{ROOT}/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,-1.0\n"
    + f"{ROOT}/train/patient00001/study1/view2_lateral.jpg,Female,68,Lateral,,,0.0,1.0\n"
    + f"{ROOT}/train/patient00002/study1/view1_frontal.jpg,Male,5,Frontal,PA,1.0,,\n",
    "valid.csv": HEADER + f"{ROOT}/valid/patient64541/study1/view1_frontal.jpg,Male,41,Frontal,PA,0.0,1.0,0.0\n",
}
NAN = math.nan


def same(found: object, expected: tuple[float, ...]) -> bool:
    return found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("options", "first", "second"),
    [
        (SourceOptions(), (1, 0, NAN), (0, 0, 1)),
        (SourceOptions(uncertain="zeros"), (1, 0, 0), (0, 0, 1)),
        (SourceOptions(uncertain="ones"), (1, 0, 1), (0, 0, 1)),
        (SourceOptions(uncertain="ones", blank="unknown"), (1, NAN, 1), (NAN, 0, 1)),
    ],
)
def test_chexpert_policies(tree: Tree, options: SourceOptions, first: tuple[float, ...], second: tuple[float, ...]) -> None:
    source = read_source(tree(CHEXPERT), options=options)
    assert source.labels.names == ("No Finding", "Edema", "Mass")
    assert same(source.rows[0].labels, first)
    assert same(source.rows[1].labels, second)


def test_chexpert_patients_views_and_split(tree: Tree) -> None:
    source = read_source(tree(CHEXPERT))
    assert [(row.patient, row.view, row.sex, row.age, row.split) for row in source.rows] == [
        ("patient00001", "AP", "F", 68.0, "train"),
        ("patient00001", "lateral", "F", 68.0, "train"),
        ("patient64541", "PA", "M", 41.0, "val"),
    ]
    assert source.rejected == ((f"{ROOT}/train/patient00002/study1/view1_frontal.jpg", "missing file"),)


def test_chexpert_tables_must_agree(tree: Tree) -> None:
    with pytest.raises(SourceError, match=r"valid\.csv has other findings than train\.csv"):
        read_source(tree(CHEXPERT | {"valid.csv": CHEXPERT["valid.csv"].replace("Mass", "Nodule")}))


# --- COVID-19 Radiography Database --------------------------------------------------------------------------------------


def test_covid_radiography_leaves_masks_out(tree: Tree) -> None:
    files = {}
    for name in ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"):
        files |= {f"{name}/images/{name}-{n}.png": "" for n in (1, 2)} | {f"{name}/masks/{name}-{n}.png": "" for n in (1, 2)}
        files |= {f"{name}.metadata.xlsx": ""}
    source = read_source(tree(files | {"README.md.txt": ""}))
    assert source.format == "covid-radiography"
    assert Counter(row.label for row in source.rows) == dict.fromkeys(("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"), 2)
    assert all("/images/" in row.location for row in source.rows)
    assert any(note.startswith("8 lung mask(s)") for note in source.notes)
    assert any("8 image file(s) are left out" in note for note in source.notes)


# --- Mendeley jctsfj2sfn --------------------------------------------------------------------------------------------------


def test_mendeley_numbers_become_the_names_of_folders(tree: Tree) -> None:
    files = {"covid/a.jpg": "", "normal/b.png": "", "pneumonia/c.png": "", "pneumonia/d.png": ""}
    text = "directory,class\nnormal/b.png,0\ncovid/a.jpg,1\npneumonia/c.png,2\npneumonia/gone.png,2\npneumonia/d.png,\n"
    source = read_source(tree(files | {"metadata.csv": text}))
    assert source.format == "mendeley"
    assert [(row.label, Path(row.location).name) for row in source.rows] == [
        ("covid", "a.jpg"),
        ("normal", "b.png"),
        ("pneumonia", "c.png"),
    ]
    assert source.rejected == (("pneumonia/d.png", "no label"), ("pneumonia/gone.png", "missing file"))
    assert any("0 = normal, 1 = covid, 2 = pneumonia" in note for note in source.notes)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("class,directory\nCOVID19,covid/a.jpg\nNormal,normal/b.png\n", ("COVID19", "Normal")),
        ("class,directory\n0,all/a.jpg\n1,all/b.png\n", ("0", "1")),  # one folder cannot name two classes
    ],
)
def test_mendeley_other_classes(tree: Tree, text: str, names: tuple[str, ...]) -> None:
    files = {"covid/a.jpg": "", "normal/b.png": "", "all/a.jpg": "", "all/b.png": ""}
    assert read_source(tree(files | {"metadata.csv": text})).labels.names == names


# --- Cohen, Figure 1 --------------------------------------------------------------------------------------------------------


def test_cohen(tree: Tree) -> None:
    text = (
        "patientid,sex,age,finding,view,modality,folder,filename\n"
        "2,M,65,Pneumonia/Viral/COVID-19,PA,X-ray,images,a.jpg\n"
        "2,M,65,Pneumonia/Viral/COVID-19,AP Supine,X-ray,images,b.jpg\n"
        "3,,,No Finding,L,X-ray,elsewhere,c.jpg\n"
        "4,,,Pneumonia,Axial,CT,volumes,ct.nii.gz\n"
        "5,,,Pneumonia,Axial,CT,images,d.jpg\n"
        "6,,,todo,PA,X-ray,images,e.jpg\n"
        "7,,,Pneumonia,CT,,images,f.jpg\n"
    )
    source = read_source(tree({f"images/{name}.jpg": "" for name in "abcdef"} | {"metadata.csv": text}))
    assert source.format == "cohen"
    assert [(row.label, row.patient, row.view, row.sex, row.age) for row in source.rows] == [
        ("Pneumonia/Viral/COVID-19", "2", "PA", "M", 65.0),
        ("Pneumonia/Viral/COVID-19", "2", "AP Supine", "M", 65.0),
        ("No Finding", "3", "L", None, None),
    ]
    assert source.rejected == (
        ("images/d.jpg", "not an X-ray (CT)"),
        ("images/e.jpg", "no label"),
        ("images/f.jpg", "not an X-ray (CT)"),
        ("volumes/ct.nii.gz", "missing file"),
    )


def test_an_early_cohen_table_without_modality(tree: Tree) -> None:
    text = "Patientid,offset,sex,age,finding,survival,view,date,location,filename\n1,,,,SARS,,PA,,,a.png\n1,,,,MERS,,PA,,,b.png\n"
    source = read_source(tree({"images/a.png": "", "images/b.png": "", "metadata.csv": text}))
    assert [row.label for row in source.rows] == ["SARS", "MERS"]


def test_figure_1_files_are_named_after_patients(tree: Tree) -> None:
    text = "patientid,finding,view,modality\nC-1a,X,,X-ray\nC-1b,X,,X-ray\nC-2,Y,,X-ray\nC-3,Y,,X-ray\n"
    source = read_source(tree({"images/C-1a.jpg": "", "images/C-1b.png": "", "images/C-2.jpg": "", "metadata.csv": text}))
    assert [(row.patient, row.label) for row in source.rows] == [("C-1", "X"), ("C-1", "X"), ("C-2", "Y")]
    assert source.rejected == (("C-3", "missing file"),)


def test_figure1(real_data: Path) -> None:
    source = read_source(str(real_data / "figure1"))
    assert source.format == "cohen"
    assert Counter(row.label for row in source.rows) == {"COVID-19": 35, "No finding": 3, "Pneumonia": 2}
    assert Counter(reason for _, reason in source.rejected) == {"no label": 15}
    assert len(source.rows) + len(source.rejected) == 55
