"""DICOM files and a label CSV."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from cxr_ray.data.sources import SourceOptions, read_source
from cxr_ray.data.sources.dicom_folder import read_header
from cxr_ray.errors import SourceError

Write = Callable[..., None]


@pytest.fixture
def dicom(tmp_path: Path) -> Write:
    def write(name: str, patient: str | None, uid: str = "1.2.3", syntax: str = ExplicitVRLittleEndian, bulk: int = 0) -> None:
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
        dataset.file_meta.MediaStorageSOPInstanceUID = uid
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
        dataset.SOPInstanceUID = uid
        if patient is not None:
            dataset.PatientID = patient
        if bulk:
            dataset.add_new((0x0009, 0x1001), "OB", bytes(bulk))
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(tmp_path / name, enforce_file_format=True)

    return write


def test_by_path_with_the_patient_of_the_file(tmp_path: Path, dicom: Write) -> None:
    dicom("s/1/a.dcm", "P1")
    dicom("s/2/b.dcm", None)
    dicom("s/c.dcm", "P3")
    dicom("s/unlisted.dcm", "P4")
    (tmp_path / "labels.csv").write_text("path,label,view\ns/1/a.dcm,x,PA\ns/2/b.dcm,y,\ns/c.dcm,,\n")
    source = read_source(str(tmp_path))
    assert source.format == "dicom"
    assert [(row.label, row.patient, row.view) for row in source.rows] == [("x", "P1", "PA"), ("y", None, None)]
    assert source.rejected == (("s/c.dcm", "no label"),)
    assert any("1 image file(s) have no row in labels.csv" in note for note in source.notes)


def test_the_patient_of_the_table_comes_first(tmp_path: Path, dicom: Write) -> None:
    dicom("a.dcm", "P1")
    dicom("b.dcm", "P2")
    (tmp_path / "labels.csv").write_text("path,label,patient_id\na.dcm,x,table\nb.dcm,y,\n")
    assert [row.patient for row in read_source(str(tmp_path)).rows] == ["table", "P2"]


def test_by_instance_uid(tmp_path: Path, dicom: Write) -> None:
    dicom("deep/a.dcm", "P1", "1.2.1")
    dicom("deep/b.dcm", "P2", "1.2.2")
    dicom("deep/c.dcm", "P3", "1.2.3")
    (tmp_path / "labels.csv").write_text("SOPInstanceUID,labels\n1.2.1,Mass|Edema\n1.2.2,No Finding\n1.2.9,Mass\n")
    source = read_source(str(tmp_path))
    assert [(row.labels, row.patient) for row in source.rows] == [((1.0, 1.0), "P1"), ((0.0, 0.0), "P2")]
    assert source.rejected == (("1.2.9", "missing file"),)


def test_by_patient(tmp_path: Path, dicom: Write) -> None:
    for index, patient in enumerate(("P1", "P1", "P2", "P3")):
        dicom(f"{index}.dcm", patient, f"1.2.{index}")
    (tmp_path / "labels.csv").write_text("PatientID,label,sex\nP1,x,F\nP2,y,M\n")
    source = read_source(str(tmp_path))
    assert [(row.label, row.patient, row.sex) for row in source.rows] == [("x", "P1", "F"), ("x", "P1", "F"), ("y", "P2", "M")]


def test_a_deflated_file_is_not_inflated(tmp_path: Path, dicom: Write) -> None:
    dicom("bomb.dcm", "P1", syntax=DeflatedExplicitVRLittleEndian, bulk=20_000_000)
    assert (tmp_path / "bomb.dcm").stat().st_size < 100_000
    assert read_header(str(tmp_path / "bomb.dcm")) == {}


@pytest.mark.parametrize(
    "data", [b"", b"not DICOM", b"\x00" * 128 + b"DICM", b"\x00" * 128 + b"DICM\x02\x00\x00\x00UL\x04\x00\xff\xff\xff\xff"]
)
def test_what_is_no_dicom_has_no_header(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.dcm").write_bytes(data)
    assert read_header(str(tmp_path / "a.dcm")) == {}


def test_a_table_without_a_key(tmp_path: Path, dicom: Write) -> None:
    dicom("a.dcm", "P1")
    (tmp_path / "labels.csv").write_text("nurse,label\nA,x\n")
    with pytest.raises(SourceError, match=r"lacks a label and a path, SOPInstanceUID or PatientID; it has: nurse, label"):
        read_source(str(tmp_path), "dicom", SourceOptions(label_csv="labels.csv"))


def test_real_files(tmp_path: Path, real_data: Path) -> None:
    files = sorted((real_data / "dicom_chest").iterdir())
    for file in files:
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(f"{file.name},{'ab'[n % 2]}\n" for n, file in enumerate(files)))
    source = read_source(str(tmp_path))
    assert source.format == "dicom"
    patients = {Path(row.location).name: row.patient for row in source.rows}
    assert len(patients) == 11
    assert patients["RG1_JLSN.dcm"] == "9RG1"
    assert patients["966.dcm"] == patients["966_fixed.dcm"] == "2010101610-1"
    assert patients["CR-MONO1-10-chest"] is None  # no preamble, no PatientID; and found all the same
