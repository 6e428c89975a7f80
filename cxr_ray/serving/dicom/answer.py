"""One DICOM image in, the DICOM objects that answer it out."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass

from pydicom.dataset import Dataset

from cxr_ray.serving.dicom.capture import build_capture
from cxr_ray.serving.dicom.identity import Identity, read_identity
from cxr_ray.serving.dicom.reading import Reader, Reading
from cxr_ray.serving.dicom.report import build_report


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back.

    Args:
        identity: Of the image.
        reading: What the model says of it.
        objects: A Structured Report and, where there is a heat map, a Secondary Capture; ready to be written or sent.
    """

    identity: Identity
    reading: Reading
    objects: tuple[Dataset, ...]


def answer(data: bytes, reader: Reader, *, clock: Callable[[], datetime.datetime] = datetime.datetime.now) -> Answer:
    """Read an image's identity, ask the model, build the objects.

    Args:
        data: A DICOM file.
        reader: The model.
        clock: Gives the local time.

    Raises:
        ImageError: The file has no identity that an answer could take over, or the model refuses the image.
        CxrRayError: The model cannot be asked now.
    """
    identity = read_identity(data)  # first: without it no answer has a place to go
    reading = reader(data)
    now = clock()
    objects: list[Dataset] = [build_report(identity, reading, now=now)]
    if reading.heat_map is not None:
        objects.append(build_capture(identity, reading, reading.heat_map, now=now))
    return Answer(identity, reading, tuple(objects))
