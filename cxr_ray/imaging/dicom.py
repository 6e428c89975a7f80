"""DICOM -> grey: the rules of the standard, from the header to 8 bits.

In order (PS3.3 C.7.6.3, C.11.1, C.11.2): decode -> modality LUT or rescale -> VOI LUT, else window, else full range -> MONOCHROME1
inversion, all on the stored bit depth; see ``imaging.grey``. Refused before pixels are touched: deflated files, DICOMDIR,
encapsulated documents, several frames, a header without what decoding needs, another pixel length than the header asks for.
Decided here:

- **MONOCHROME1 means what it says.** ``Fake_MONOHR1.dcm`` carries a false tag, so it comes out as a negative. There is no check
  that could tell: a decoder that looks at content would turn the right file the wrong way another day.
- Pictures are not turned by Patient Orientation: of the two chest files at hand that ask for it, both carry it wrongly.
- Colour (8 bit RGB or YBR: films photographed and stored as secondary captures) becomes luma (ITU-R 601); palettes are refused.
- Overlays and Pixel Padding Value are ignored. Bits above Bits Stored are masked off (old files keep overlays there).
- Only the five tags of ``TAGS`` ever leave this module.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from PIL import Image

from cxr_ray.imaging.dicom_header import (
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    PIXEL_DATA,
    UNDEFINED,
    DicomFile,
    Elements,
    read_dicom,
)
from cxr_ray.imaging.frames import JPEG_2000, JPEG_FAMILY, RLE, Samples, Shape, codecs, compressed, native
from cxr_ray.imaging.grey import GreyScale, LookUpTable, Window, render
from cxr_ray.imaging.picture import DecodedImage, Limits, PixelsHW
from cxr_ray.imaging.reasons import refuse

__all__ = ["TAGS", "codecs", "decode_dicom"]

TAGS: Final = {
    "PatientID": 0x00100020,
    "PatientSex": 0x00100040,
    "PatientAge": 0x00101010,
    "ViewPosition": 0x00185101,
    "Modality": 0x00080060,
}
"""The allow-list: names and tags that may leave the decoder."""

_SOP_CLASS, _DIRECTORY, _DOCUMENT = 0x00080016, 0x00041220, 0x00420011
_SAMPLES, _PHOTOMETRIC, _PLANAR, _FRAMES, _ROWS, _COLUMNS = 0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011
_ALLOCATED, _STORED, _HIGH_BIT, _SIGNED = 0x00280100, 0x00280101, 0x00280102, 0x00280103
_CENTER, _WIDTH, _INTERCEPT, _SLOPE, _FUNCTION = 0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00281056
_MODALITY_LUT, _VOI_LUT, _LUT_DESCRIPTOR, _LUT_DATA = 0x00283000, 0x00283010, 0x00283002, 0x00283006
_WANTED = frozenset(TAGS.values()) | {
    *(_SOP_CLASS, _DIRECTORY, _DOCUMENT, _SAMPLES, _PHOTOMETRIC, _PLANAR, _FRAMES, _ROWS, _COLUMNS),
    *(_ALLOCATED, _STORED, _HIGH_BIT, _SIGNED),
    *(_CENTER, _WIDTH, _INTERCEPT, _SLOPE, _FUNCTION, _MODALITY_LUT, _VOI_LUT),
}
_LUT = frozenset({_LUT_DESCRIPTOR, _LUT_DATA})

_DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
_DOCUMENT_CLASSES = "1.2.840.10008.5.1.4.1.1.104."
_NATIVE = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG})
_VIDEO = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (*range(100, 109), *(f"{base}.1" for base in range(100, 107))))
_GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
_COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"})


def decode_dicom(data: bytes, limits: Limits) -> DecodedImage:
    """Decode a single-frame DICOM of 8-16 bit grey or 8 bit colour.

    Raises:
        ImageError: With one of ``imaging.reasons``.
    """
    file = read_dicom(data, _WANTED)
    _check_kind(file)
    shape = _shape(file.elements, limits)
    samples = _samples(file, shape)
    remarks: tuple[str, ...] = ()
    if samples.values.ndim == 3:
        pixels = _luma(samples)
    elif shape.samples == 3:
        pixels = np.ascontiguousarray(samples.values, dtype=np.uint8)
    else:
        shift = _shift(file.elements, shape) if file.transfer_syntax in _NATIVE | {RLE} else 0
        pixels, remarks = render(samples.values, samples.depth, _grey_scale(file, shape), shift=shift)
    tags = {name: text for name, tag in TAGS.items() if (text := file.elements.text(tag))}
    return DecodedImage(pixels, "dicom", shape.columns, shape.rows, shape.photometric, shape.stored, tags, remarks)


def _check_kind(file: DicomFile) -> None:
    """Refuse what is DICOM but no single picture, by what it says it is."""
    elements, syntax = file.elements, file.transfer_syntax
    classes = {file.media_class, elements.text(_SOP_CLASS)}
    if _DICOMDIR_CLASS in classes or _DIRECTORY in elements:
        raise refuse("dicomdir")
    if _DOCUMENT in elements or any(name.startswith(_DOCUMENT_CLASSES) for name in classes):
        raise refuse("encapsulated-document")
    if syntax in _VIDEO or (elements.decimal(_FRAMES) or 1) > 1:
        raise refuse("multi-frame")
    if syntax not in _NATIVE | JPEG_FAMILY | JPEG_2000 | {RLE}:
        raise refuse("unsupported-codec")


def _shape(elements: Elements, limits: Limits) -> Shape:
    """Size and sample format, checked against each other and the limits."""
    rows, columns = elements.word(_ROWS), elements.word(_COLUMNS)
    if not rows or not columns or PIXEL_DATA not in elements:
        raise refuse("no-pixels")
    limits.check_pixels(columns, rows)
    samples, photometric = elements.word(_SAMPLES, 1), elements.text(_PHOTOMETRIC)
    allocated = elements.word(_ALLOCATED)
    stored = elements.word(_STORED, allocated)
    if allocated not in {8, 16} or stored is None or not 1 <= stored <= allocated:
        raise refuse("unsupported-pixels")
    grey = photometric in _GREY and samples == 1
    colour = photometric in _COLOUR and samples == 3 and allocated == 8 and stored == 8
    if not (grey or colour):
        raise refuse("unsupported-pixels")
    return Shape(rows, columns, samples or 1, photometric, allocated, stored, elements.word(_PLANAR, 0) or 0)


def _samples(file: DicomFile, shape: Shape) -> Samples:
    if file.transfer_syntax not in _NATIVE:
        return compressed(file.fragments(), file.transfer_syntax, shape)
    pixels = file.elements.found[PIXEL_DATA]
    if pixels.length == UNDEFINED:
        raise refuse("corrupt")
    if pixels.start + pixels.length > len(file.elements.data):
        raise refuse("truncated")
    expected = shape.count * shape.allocated // 8
    if shape.photometric == "YBR_FULL_422":
        if shape.columns % 2:
            raise refuse("unsupported-pixels")
        expected = expected * 2 // 3
    if pixels.length != expected + expected % 2 and pixels.length != expected:
        raise refuse("wrong-pixel-length")
    return native(file.elements.data, pixels.start, shape, little=file.elements.encoding.little, words=pixels.vr == b"OW")


def _shift(elements: Elements, shape: Shape) -> int:
    """Bits below the stored ones; 0 in all but very old files."""
    high = elements.word(_HIGH_BIT, shape.stored - 1)
    if high is None or not shape.stored - 1 <= high < shape.allocated:
        raise refuse("corrupt")
    return high + 1 - shape.stored


def _grey_scale(file: DicomFile, shape: Shape) -> GreyScale:
    elements = file.elements
    slope, intercept = elements.decimal(_SLOPE), elements.decimal(_INTERCEPT)
    if slope == 0:
        raise refuse("corrupt")
    signed = elements.word(_SIGNED, 0) == 1
    modality = _lut(file.first_item(_MODALITY_LUT, _LUT), signed=signed)
    center, width = elements.decimal(_CENTER), elements.decimal(_WIDTH)
    function = elements.text(_FUNCTION).upper()
    window = None
    if center is not None and width is not None:
        window = Window(center, width, "SIGMOID" if function == "SIGMOID" else "LINEAR_EXACT" if function == "LINEAR_EXACT" else "LINEAR")
    return GreyScale(
        bits_stored=shape.stored,
        signed=signed,
        inverted=shape.photometric == "MONOCHROME1",
        # The two make sense only together (PS3.3 C.11.1): one alone is as none.
        slope=slope if slope is not None and intercept is not None else 1.0,
        intercept=intercept if slope is not None and intercept is not None else 0.0,
        modality_lut=modality,
        voi_lut=_lut(file.first_item(_VOI_LUT, _LUT), signed=modality is None and (signed or (intercept or 0) < 0)),
        window=window,
    )


def _lut(item: Elements | None, *, signed: bool) -> LookUpTable | None:
    """The LUT in a sequence item (PS3.3 C.11.1.1.1); None where there is none or its parts do not fit each other.

    Args:
        item: The item.
        signed: Whether the values that go in can be negative: then the first mapped value is a signed word.
    """
    if item is None:
        return None
    descriptor = item.words(_LUT_DESCRIPTOR)
    if len(descriptor) < 3 or not 1 <= descriptor[2] <= 16:
        return None
    entries, bits = descriptor[0] or 2**16, descriptor[2]
    first = item.words(_LUT_DESCRIPTOR, signed=signed)[1]
    raw = item.raw(_LUT_DATA)
    if bits <= 8 and len(raw) in {entries, entries + entries % 2}:  # 8 bit entries, two to a word
        values = np.frombuffer(raw, np.uint8, entries)
    elif len(raw) >= 2 * entries:
        values = np.frombuffer(raw, f"{item.encoding.order}u2", entries)
    else:
        return None
    return LookUpTable(first, values.astype(np.float64), bits)


def _luma(samples: Samples) -> PixelsHW:
    """(H, W, 3) colour to grey: Y of YBR, else ITU-R 601 luma of RGB."""
    if samples.photometric.startswith("YBR"):
        return np.ascontiguousarray(samples.values[..., 0])
    return np.asarray(Image.fromarray(samples.values).convert("L"))
