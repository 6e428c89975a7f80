"""The identity of an image goes back as it came: byte for byte, or not at all."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRBigEndian, ImplicitVRLittleEndian, MRImageStorage

from cxr_ray.errors import ImageError
from cxr_ray.serving.dicom.identity import read_identity

Xray = Callable[..., bytes]
CHARACTER_SET = 0x00080005


@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_every_encoding_gives_the_same(xray: Xray, syntax: UID | None) -> None:
    found = read_identity(xray(**({"syntax": syntax} if syntax else {})))
    assert found.copied == read_identity(xray()).copied
    assert found.copied[0x00100010] == "Müller^Jürgen ".encode("latin-1")
    assert (found.study, found.instance, found.number) == ("1.2.826.0.1.3680043.9.1.1", "1.2.826.0.1.3680043.9.1.3", 5)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"])
def test_what_is_not_valid_is_named_and_its_patient_is_not(xray: Xray, identity: dict[str, Any], keyword: str) -> None:
    uid = str(identity[keyword]).encode()
    with pytest.raises(ImageError, match=f"its study: {keyword} absent or not valid") as caught:
        read_identity(xray().replace(uid, uid.replace(b".", b"-")))
    assert caught.value.reason == "no-identity"
    assert "MARKER" not in str(caught.value)


def test_all_faults_at_once(xray: Xray) -> None:
    with pytest.warns(UserWarning, match="maximum length"):
        data = xray(StudyInstanceUID=None, SeriesInstanceUID=None, StudyDescription="x" * 2000)
    with pytest.raises(ImageError, match="StudyInstanceUID, SeriesInstanceUID, StudyDescription absent or not valid"):
        read_identity(data)


def test_an_unknown_character_set_is_refused(xray: Xray) -> None:
    data = xray().replace(b"ISO_IR 100", b"ISO_IR 999")
    with pytest.raises(ImageError, match="SpecificCharacterSet"):
        read_identity(data)


def test_other_classes_and_other_files_are_refused(xray: Xray, hostile: ModuleType) -> None:
    with pytest.raises(ImageError, match="no CR, DX"):
        read_identity(xray(SOPClassUID=MRImageStorage))
    with pytest.raises(ImageError, match="only where the image is a DICOM"):
        read_identity(hostile.saved(hostile.Image.fromarray(hostile.picture()), "PNG"))


def test_a_patient_may_be_anonymous(xray: Xray) -> None:
    found = read_identity(xray(PatientID="", PatientName=None, InstanceNumber=None))
    assert found.copied[0x00100020] == b""
    assert 0x00100010 not in found.copied
    assert found.number == 1


def test_nothing_of_it_shows_in_repr(xray: Xray) -> None:
    shown = repr(read_identity(xray()))
    assert not any(secret in shown for secret in ("MARKER", "ller", "3680043", "ACC-99"))


def test_a_stamp_is_written_byte_for_byte(xray: Xray) -> None:
    japanese = b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B "
    data = xray(SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou", ReferringPhysicianName=None)
    identity = read_identity(data)
    object.__setattr__(identity, "copied", {**identity.copied, 0x00100010: japanese})
    answer = Dataset()
    answer.SeriesDescription = "ours"
    identity.stamp(answer)
    buffer = io.BytesIO()
    answer.save_as(buffer, implicit_vr=False, little_endian=True)
    assert japanese in buffer.getvalue()
    buffer.seek(0)
    assert str(dcmread(buffer, force=True).PatientName).startswith("Yamada^Tarou=山田^太郎")


def test_uids_follow_from_the_question(xray: Xray) -> None:
    identity = read_identity(xray())
    first = identity.derive("SR", "a", of=identity.instance)
    assert first == identity.derive("SR", "a", of=identity.instance)
    assert first.is_valid
    others = {identity.derive("SR", "b", of=identity.instance), identity.derive("SC", "a", of=identity.instance)}
    others |= {identity.derive("SR", "a", of=identity.study), identity.derive("S", "Ra", of=identity.instance)}
    assert len(others | {first}) == 5


def test_real_files_give_what_pydicom_finds(real_data: Path) -> None:
    files = sorted((real_data / "dicom_chest").iterdir())
    for file in files:
        found, dataset = read_identity(file.read_bytes()), dcmread(file, stop_before_pixels=True, force=True)
        copied = {tag: raw for tag, raw in found.copied.items() if tag != CHARACTER_SET}  # which pydicom decodes on reading
        assert copied == {tag: dataset.get_item(tag).value or b"" for tag in copied}, file.name
        assert (found.study, found.series) == (dataset.StudyInstanceUID, dataset.SeriesInstanceUID)
    assert len(files) == 11
