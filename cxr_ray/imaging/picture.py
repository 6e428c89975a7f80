"""What decoding takes and gives: the limits on untrusted bytes, and one decoded radiograph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cxr_ray.imaging.reasons import refuse

Format = Literal["png", "jpeg", "dicom"]
PixelsHW = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of one file is accepted. Both are checked on the header, before any pixel is decoded.

    Decoding allocates at most about 8 bytes a pixel for a grey and 16 for a colour picture, beside the file itself.

    Args:
        max_bytes: Size of the file.
        max_pixels: Width x height.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 64_000_000

    def check_bytes(self, count: int) -> None:
        """Raise ``empty`` or ``too-large`` (:class:`~cxr_ray.errors.ImageError`)."""
        if count == 0:
            raise refuse("empty")
        if count > self.max_bytes:
            raise refuse("too-large")

    def check_pixels(self, width: int, height: int) -> None:
        """Raise ``corrupt`` (no pixels at all) or ``too-many-pixels`` (:class:`~cxr_ray.errors.ImageError`)."""
        if width <= 0 or height <= 0:
            raise refuse("corrupt")
        if width * height > self.max_pixels:
            raise refuse("too-many-pixels")


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """One radiograph.

    Args:
        pixels: (height, width) uint8, C-contiguous; 0 is black. Dense tissue is bright as far as the file's own tags say
            so: DICOM MONOCHROME1 is inverted, nothing is guessed from the content.
        format: By content, never by name.
        width: Of ``pixels``, after the EXIF orientation was applied.
        height: Of ``pixels``.
        mode: Pillow's mode of a PNG or JPEG (``L``, ``RGB``, ``CMYK`` ...), DICOM's Photometric Interpretation.
        bits: Bits a sample in the file: 1-16 for PNG, 8 for JPEG, Bits Stored for DICOM.
        tags: DICOM only, and only PatientID, PatientSex, PatientAge, ViewPosition and Modality, as they stand in the file.
            For ingest, which hashes the patient; never to be logged or sent to a client (so not part of the ``repr``).
        remarks: Stable codes for what had to be decided on the way, safe to log: ``own-range`` (see
            ``imaging.grey``), ``rotated`` (EXIF orientation), ``transparent`` (shown over black).
    """

    pixels: PixelsHW = field(repr=False)
    format: Format
    width: int
    height: int
    mode: str
    bits: int
    tags: Mapping[str, str] = field(default_factory=dict, repr=False)
    remarks: tuple[str, ...] = ()
