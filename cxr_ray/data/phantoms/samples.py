"""The samples of the service's page: phantoms in every format it takes, committed because serving draws none.

``python -m cxr_ray.data.phantoms.samples cxr_ray/serving/web/samples`` writes them anew; a test holds that they are what it draws.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.uid import JPEG2000

from cxr_ray.data.phantoms.encode import encode_dicom, encode_jpeg
from cxr_ray.data.phantoms.plan import Shot, shots
from cxr_ray.data.phantoms.render import render_phantom

_SEED = 5
_JPEG_QUALITY = 88
_DICOM_RATIO = 6
"""Raw to compressed; JPEG 2000 shows no loss there, and raw pixels would outweigh the other samples together."""


@dataclass(frozen=True)
class Sample:
    """One file: image ``index`` of the covid task, ``size`` pixels on its middle side."""

    name: str
    index: int
    size: int


SAMPLES = (
    Sample("phantom-normal.png", 10, 300),
    Sample("phantom-covid.jpg", 15, 440),
    Sample("phantom-pneumonia.jpg", 20, 440),
    Sample("phantom-pneumonia.dcm", 3, 360),
)


def sample_file(sample: Sample) -> bytes:
    """The content of one sample; its ending is its format."""
    *_, shot = shots("covid", sample.index + 1, _SEED, sample.size)
    image = render_phantom(shot).image
    encode = {".png": _png, ".jpg": _jpeg, ".dcm": _dicom}[Path(sample.name).suffix]
    return encode(image, shot)


def _png(image: NDArray[np.uint8], _: Shot) -> bytes:
    return cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()


def _jpeg(image: NDArray[np.uint8], _: Shot) -> bytes:
    return encode_jpeg(image, _JPEG_QUALITY)


def _dicom(image: NDArray[np.uint8], shot: Shot) -> bytes:
    dataset = dcmread(io.BytesIO(encode_dicom(image, shot)))
    dataset.compress(JPEG2000, j2k_cr=[_DICOM_RATIO], generate_instance_uid=False)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def write_samples(folder: Path) -> None:
    """Write every sample into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for sample in SAMPLES:
        (folder / sample.name).write_bytes(sample_file(sample))


if __name__ == "__main__":
    write_samples(Path(sys.argv[1]))
