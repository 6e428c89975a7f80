"""Pixels to files: PNG, JPEG and 12-bit DICOM. The same pixels and arguments give the same bytes."""

from __future__ import annotations

import io

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from cxr_ray.data.phantoms.plan import Shot

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "dicom": ".dcm"}

_DICOM_LEVELS = (410, 3280)
"""Stored values of black and white: a reader that takes the 12-bit range for the window shows a flat grey picture."""


def encode(image: NDArray[np.uint8], shot: Shot) -> bytes:
    """A file of the shot's format."""
    if shot.format == "png":
        return encode_png(image)
    if shot.format == "jpeg":
        return encode_jpeg(image, int(shot.rng("quality").integers(85, 97)))
    return encode_dicom(image, shot)


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """8-bit grey PNG."""
    return _encoded(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def encode_jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    """8-bit grey baseline JPEG."""
    return _encoded(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])


def _encoded(suffix: str, image: NDArray[np.uint8], options: list[int]) -> bytes:
    done, data = cv2.imencode(suffix, image, options)
    if not done:
        raise RuntimeError(f"cv2 could not encode a {image.shape} {image.dtype} image as {suffix}")
    return data.tobytes()


def encode_dicom(image: NDArray[np.uint8], shot: Shot) -> bytes:
    """12 bits stored in 16, uncompressed, with a linear window; MONOCHROME1 is stored inverted (DICOM PS3.3 C.7.6.3.1.2).

    All visits of a patient form one series. A reader that applies window and photometric interpretation gets ``image`` back.
    """
    low, high = _DICOM_LEVELS
    stored = np.rint(low + image.astype(np.float64) * ((high - low) / 255)).astype(np.uint16)
    if shot.monochrome == 1:
        stored = np.asarray(4095 - stored, np.uint16)
        low, high = 4095 - high, 4095 - low
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = _uid(shot, "instance", shot.visit)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = _uid(shot, "study"), _uid(shot, "series")
    dataset.PatientID, dataset.PatientName = shot.patient_id, "PHANTOM^" + shot.patient_id
    dataset.PatientSex, dataset.PatientAge = shot.sex, age_string(shot.age)
    dataset.Modality, dataset.ViewPosition = "DX", shot.view
    dataset.BodyPartExamined = "NECK" if shot.task == "croup" else "CHEST"
    dataset.InstanceNumber, dataset.StudyDate, dataset.StudyTime = shot.visit + 1, "20200101", "120000"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, f"MONOCHROME{shot.monochrome}"
    dataset.Rows, dataset.Columns = image.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    # DICOM's linear window runs from center - 0.5 - (width - 1) / 2 to center - 0.5 + (width - 1) / 2 (PS3.3 C.11.2.1.2.1).
    dataset.WindowCenter, dataset.WindowWidth = str((low + high) / 2 + 0.5), str(high - low + 1)
    dataset.PresentationLUTShape = "INVERSE" if shot.monochrome == 1 else "IDENTITY"
    dataset.PixelData = stored.astype("<u2").tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def age_string(age: float) -> str:
    """Years as DICOM writes them (VR AS): ``045Y``, under two years in months."""
    return f"{round(age):03d}Y" if age >= 2 else f"{round(age * 12):03d}M"


def _uid(shot: Shot, *what: str | int) -> UID:
    return UID(generate_uid(entropy_srcs=[repr((shot.task, shot.seed, shot.patient, *what))]))
