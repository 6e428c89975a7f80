"""A DICOM chest X-ray with every element that an answer takes over, and what a model could say of it."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from pydicom.uid import DigitalXRayImageStorageForPresentation

pytest.importorskip("highdicom", reason="the extra dicom is not installed")
pytest.importorskip("pynetdicom", reason="the extra dicom is not installed")

from cxr_ray.serving.dicom.reading import Finding, HeatMap, Reading

IDENTITY = {
    "SOPClassUID": DigitalXRayImageStorageForPresentation,
    "SOPInstanceUID": "1.2.826.0.1.3680043.9.1.3",
    "StudyInstanceUID": "1.2.826.0.1.3680043.9.1.1",
    "SeriesInstanceUID": "1.2.826.0.1.3680043.9.1.2",
    "SpecificCharacterSet": "ISO_IR 100",
    "PatientName": "Müller^Jürgen",
    "PatientID": "MARKER-4711",
    "PatientBirthDate": "19600102",
    "PatientSex": "M",
    "PatientAge": "060Y",
    "StudyDate": "20200304",
    "StudyTime": "101112",
    "StudyID": "7",
    "AccessionNumber": "ACC-99",
    "StudyDescription": "Thorax p.a.",
    "ReferringPhysicianName": "Weiß^Anna",
    "InstanceNumber": 5,
}


@pytest.fixture
def xray(hostile: ModuleType) -> Callable[..., bytes]:
    """``xray(PatientID=None, …)``: the file, with elements replaced or left out."""

    def make(**changes: Any) -> bytes:
        return bytes(hostile.dicom(hostile.picture(), **{**IDENTITY, **changes}))

    return make


@pytest.fixture
def reading() -> Reading:
    """Two labels with thresholds, one of them called, and a heat map of it."""
    overlay = np.zeros((64, 48, 3), dtype=np.uint8)
    overlay[16:32, 8:24] = (255, 0, 0)
    findings = (Finding("pneumonia", 0.81237, 0.4, True), Finding("große Läsion", 0.02, 0.5, False))
    return Reading(findings, "cnn-lstm", "3f9a1c0b77de", ("The input gate flags this image: faint",), HeatMap("pneumonia", overlay))


@pytest.fixture
def identity() -> dict[str, Any]:
    """The elements of :func:`xray`."""
    return dict(IDENTITY)
