"""Reports and captures: read back, complete, in the study of their image, and found sound by dciodvfy."""

from __future__ import annotations

import datetime
import io
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from highdicom.sr import ComprehensiveSR
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from cxr_ray.errors import ImageError
from cxr_ray.serving.dicom.answer import answer
from cxr_ray.serving.dicom.capture import with_banner
from cxr_ray.serving.dicom.reading import NOTICE, Reading

Xray = Callable[..., bytes]
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5)
SAME = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "SpecificCharacterSet"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "StudyDescription", "ReferringPhysicianName"),
)


def written(data: bytes, reading: Reading) -> list[bytes]:
    files = []
    for made in answer(data, lambda _: reading, clock=lambda: NOW).objects:
        buffer = io.BytesIO()
        made.save_as(buffer, enforce_file_format=True)
        files.append(buffer.getvalue())
    return files


def read(file: bytes) -> Dataset:
    return dcmread(io.BytesIO(file))


def test_both_belong_to_the_study_and_patient_of_the_image(xray: Xray, reading: Reading) -> None:
    source = read(xray())
    report, capture = map(read, written(xray(), reading))
    for made in (report, capture):
        assert all(made[keyword].value == source[keyword].value for keyword in SAME)
        assert made.SeriesInstanceUID != source.SeriesInstanceUID
        assert (made.Manufacturer, made.ManufacturerModelName, made.DeviceSerialNumber) == ("cxr_ray", "cnn-lstm", "3f9a1c0b77de")
        assert made.ContentDate == "20260102"
    assert report.SeriesInstanceUID != capture.SeriesInstanceUID


def test_the_report_says_what_the_model_says(xray: Xray, reading: Reading) -> None:
    report = ComprehensiveSR.from_dataset(read(written(xray(), reading)[0]))
    assert report.VerificationFlag == "UNVERIFIED"
    first, second = report.content.get_image_measurement_groups()
    assert [group.tracking_identifier for group in (first, second)] == ["pneumonia", "gro&#223;e L&#228;sion"]
    numbers = [{item.name.value: (item.value, item.unit.value) for item in group.get_measurements()} for group in (first, second)]
    assert numbers[0] == {codes.DCM.Probability.value: (0.8124, "1"), codes.DCM.ThresholdValue.value: (0.4, "1")}
    assert [group.get_qualitative_evaluations()[0].value.value for group in (first, second)] == ["CALLED", "NOT-CALLED"]
    evidence = report.get_evidence()
    assert [(found[0], found[2]) for found in evidence] == [("1.2.826.0.1.3680043.9.1.1", "1.2.826.0.1.3680043.9.1.3")]
    texts = [item.TextValue for item in report.ContentSequence if item.ValueType == "TEXT" and "TextValue" in item]
    assert NOTICE in texts
    assert "The input gate flags this image: faint" in texts
    assert any("pneumonia 0.812 (called)" in text for text in texts)


def test_without_thresholds_there_is_none_in_the_report(xray: Xray, reading: Reading) -> None:
    findings = [replace(finding, threshold=None) for finding in reading.findings]
    report = ComprehensiveSR.from_dataset(read(written(xray(), replace(reading, findings=findings))[0]))
    assert [len(group.get_measurements()) for group in report.content.get_image_measurement_groups()] == [1, 1]


def test_the_capture_shows_the_overlay_below_its_banner(xray: Xray, reading: Reading) -> None:
    capture = read(written(xray(), reading)[1])
    pixels = capture.pixel_array
    assert pixels.shape[1] == 48 * 11  # the least whole multiple from 512 on
    picture = pixels[-64 * 11 :]
    assert tuple(picture[24 * 11, 16 * 11]) == (255, 0, 0)
    assert tuple(picture[50 * 11, 40 * 11]) == (0, 0, 0)
    assert pixels[: -64 * 11].max() > 200
    assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.826.0.1.3680043.9.1.3"
    assert (capture.ConversionType, capture.ImageComments) == ("DI", NOTICE)


@pytest.mark.parametrize(("source", "said"), [(None, None), ("NO", "NO"), ("YES", "YES"), ("MAYBE", None)])
def test_burned_in_annotation_is_what_the_source_says(xray: Xray, reading: Reading, source: str | None, said: str | None) -> None:
    capture = read(written(xray(BurnedInAnnotation=source), reading)[1])
    assert capture.get("BurnedInAnnotation") == said


def test_a_long_banner_line_is_made_to_fit() -> None:
    short, long = (with_banner(np.zeros((512, 512, 3), np.uint8), ("M" * count,)) for count in (10, 100))
    assert all(not image[:, -8:].any() for image in (short, long))
    assert long[:-512].any()


def test_the_same_question_has_the_same_answer(xray: Xray, reading: Reading) -> None:
    uids = [made.SOPInstanceUID for made in map(read, written(xray(), reading))]
    assert uids == [made.SOPInstanceUID for made in map(read, written(xray(), reading))]
    other = replace(reading, version="000000000000")
    assert not set(uids) & {made.SOPInstanceUID for made in map(read, written(xray(), other))}
    heatless = replace(reading, heat_map=None)
    assert len(written(xray(), heatless)) == 1


def test_no_identity_no_question(xray: Xray) -> None:
    def never(_: bytes) -> Reading:
        raise AssertionError("asked")

    with pytest.raises(ImageError, match="StudyInstanceUID"):
        answer(xray(StudyInstanceUID=None), never)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("changes", [{}, {"PatientID": "", "PatientName": "", "StudyDate": None}, {"SpecificCharacterSet": "ISO_IR 192"}])
def test_dciodvfy_finds_no_error(xray: Xray, reading: Reading, tmp_path: Path, changes: dict[str, Any]) -> None:
    for number, file in enumerate(written(xray(**changes), reading)):
        place = tmp_path / f"{number}.dcm"
        place.write_bytes(file)
        said = subprocess.run(["dciodvfy", str(place)], capture_output=True, text=True, errors="replace", check=False)
        lines = (said.stdout + said.stderr).splitlines()
        assert [line for line in lines if line.startswith("Error")] == []
        assert {"ComprehensiveSR", "SCImage"} & set(lines)
