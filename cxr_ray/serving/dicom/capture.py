"""The heat map as a Secondary Capture: an RGB picture with a banner above it that says what it shows.

Source: DICOM PS3.3 A.8.1, C.8.6.1 (SC Equipment), C.7.6.1 (General Image). Decided here:

- Conversion Type is ``DI``: made from a digital image. The picture is what the model saw, so it has no pixel spacing and no claim to be
  measured on; Patient Orientation and Laterality are empty, as unknown.
- Burned In Annotation asks whether the pixels identify the patient. The banner never does, but the image below it may: so ``NO`` stands
  only where the source image says ``NO``, ``YES`` where it says so, and nothing where it does not say.
- Uncompressed, explicit little endian: what every archive takes.
"""

from __future__ import annotations

import datetime
from typing import Final

import numpy as np
from highdicom.sc import SCImage
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset

from cxr_ray import __version__
from cxr_ray.serving.dicom.identity import Identity
from cxr_ray.serving.dicom.reading import NOTICE, HeatMap, Reading
from cxr_ray.serving.dicom.report import equipment, plain

SERIES_NUMBER: Final = 9802
_LEAST_WIDTH: Final = 512
"""Of the picture, in pixels: below, the banner cannot be read."""
_MARGIN: Final = 8


def build_capture(identity: Identity, reading: Reading, seen: HeatMap, *, now: datetime.datetime) -> SCImage:
    """The picture of one image's heat map, in the image's study.

    Args:
        identity: Of the image.
        reading: What is said of it.
        seen: Its heat map.
        now: When, in local time.
    """
    capture = SCImage(
        pixel_array=with_banner(seen.overlay_HW3, banner(reading, seen.label)),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),  # highdicom insists; emptied below
        study_instance_uid=identity.study,
        series_instance_uid=identity.derive("SC", reading.model, reading.version, of=identity.study),
        series_number=SERIES_NUMBER,
        sop_instance_uid=identity.derive("SC", reading.digest, __version__, of=identity.instance),
        instance_number=identity.number,
        series_description=f"cxr_ray {plain(reading.model, 40)}: heat map",
        content_date=now.date(),
        content_time=now.time(),
        **equipment(reading),
    )
    for keyword in ("PatientOrientation", "Laterality"):
        setattr(capture, keyword, None)
    capture["PixelData"].VR = "OB"
    if identity.burned_in:
        capture.BurnedInAnnotation = identity.burned_in
    capture.ImageComments = NOTICE
    capture.DerivationDescription = plain(f"where the model sees {seen.label}, over the image as it saw it", 1024)
    capture.SourceImageSequence = [_source(identity)]
    identity.stamp(capture)
    return capture


def banner(reading: Reading, label: str) -> tuple[str, ...]:
    """The lines above the picture; nothing of the patient is in them."""
    finding = next(finding for finding in reading.findings if finding.label == label)
    threshold = "" if finding.threshold is None else f" (threshold {finding.threshold:.3f})"
    decision = "called" if finding.called else "not called"
    return (f"{label}: {finding.probability:.3f}{threshold}, {decision}", f"cxr_ray {reading.model} {reading.version}", NOTICE)


def with_banner(overlay_HW3: NDArray[np.uint8], lines: tuple[str, ...]) -> NDArray[np.uint8]:
    """White lines on black above the picture, never over it.

    Args:
        overlay_HW3: (H, W, 3) uint8 RGB; one narrower than 512 pixels is enlarged by a whole number.
        lines: Each is made as small as it must be to fit.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    picture = Image.fromarray(overlay_HW3)
    scale = -(-_LEAST_WIDTH // picture.width)
    picture = picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.BICUBIC)
    fonts = [_font(line, picture.width) for line in lines]
    heights = [round(1.4 * font.size) for font in fonts]
    whole = Image.new("RGB", (picture.width, picture.height + sum(heights) + 2 * _MARGIN))
    whole.paste(picture, (0, whole.height - picture.height))
    draw, top = ImageDraw.Draw(whole), _MARGIN
    for line, font, height in zip(lines, fonts, heights, strict=True):
        draw.text((_MARGIN, top), line, font=font, fill="white")
        top += height
    return np.asarray(whole)


def _font(line: str, width: int) -> ImageFont.FreeTypeFont:
    """Pillow's own, as large as a 28th of the width or as the line allows."""
    size = width / 28
    while True:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)
        if font.getlength(line) <= width - 2 * _MARGIN or size < 6:
            return font
        size *= 0.9


def _source(identity: Identity) -> Dataset:
    source = Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = identity.sop_class, identity.instance
    source.PurposeOfReferenceCodeSequence = [CodedConcept("121322", "DCM", "Source of Image Processing Operation")]
    return source
