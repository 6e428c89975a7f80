"""JPEG -> grey. The segments are walked here, and only those that hold the picture are given to Pillow.

So comments, profiles, thumbnails and EXIF (warnings, parsers of formats within the format) never reach a decoder, the size is
known before anything is decoded, and what follows the end of the picture is ignored (a second picture of a camera's MPO, an
appended archive). Decided here:

- Colour becomes luma (ITU-R 601): libjpeg's Y channel, so chroma is not even decoded.
- CMYK is inverted where the Adobe marker says so (Photoshop's habit), else taken as written; then ink -> light -> luma.
- EXIF orientation is applied: a phone's picture of a film stands as it was seen.
- A missing end marker, or a picture whose data end before it, is ``truncated``. (Missing scans of a progressive JPEG only blur.)
- More than 100 scans are refused: a few kilobytes of progressive scans can cost minutes.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops
from PIL.JpegImagePlugin import JpegImageFile

from cxr_ray.imaging.exif import orientation, upright
from cxr_ray.imaging.picture import DecodedImage, Limits, PixelsHW
from cxr_ray.imaging.reasons import refuse

SIGNATURE = b"\xff\xd8\xff"
MAX_SCANS = 100
HUFFMAN_8BIT = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
"""Frame markers that libjpeg decodes at 8 bit: baseline, extended, progressive, and both with arithmetic coding."""

_START_OF_FRAME = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7})
_SEQUENTIAL = frozenset({0xC0, 0xC1, 0xC9})
_MORE_DATA = bytes(37 * number % 251 for number in range(1, 251))
_TABLES = frozenset({0xC4, 0xCC, 0xDB, 0xDD, 0xF8})
_START_OF_SCAN, _END = 0xDA, b"\xff\xd9"
_ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64" + bytes(5)
"""An Adobe marker with transform 0: the components are what they are."""


@dataclass(frozen=True, slots=True)
class JpegLayout:
    """The header of a JPEG or JPEG-LS stream.

    Args:
        frame: Code of the start-of-frame marker (0xC0 baseline ... 0xC3 lossless, 0xF7 JPEG-LS).
        bits: Bits a sample.
        components: 1 grey, 3 RGB or YCbCr, 4 CMYK or YCCK.
        adobe: Whether an Adobe marker stands in it, which says what the components are.
        jfif: Whether a JFIF marker stands in it, which says that three components are YCbCr.
        turned: EXIF orientation, 1-8.
        body: The stream without anything that is not picture, ended by its end marker.
    """

    frame: int
    bits: int
    height: int
    width: int
    components: int
    adobe: bool
    jfif: bool
    turned: int
    body: bytes


def decode_jpeg(data: bytes, limits: Limits) -> DecodedImage:
    """Decode a JPEG: grey, YCbCr, RGB, CMYK or YCCK; baseline, extended or progressive; 8 bit.

    Raises:
        ImageError: ``truncated``, ``corrupt``, ``too-many-pixels``, ``too-complex`` or ``unsupported-codec`` (lossless, 12 bit).
    """
    layout = read_layout(data)
    limits.check_pixels(layout.width, layout.height)
    pixels, mode = grey_pixels(layout)
    pixels = upright(pixels, layout.turned)
    height, width = pixels.shape
    remarks = ("rotated",) if layout.turned != 1 else ()
    return DecodedImage(pixels, "jpeg", width, height, mode, layout.bits, remarks=remarks)


def read_layout(data: bytes) -> JpegLayout:
    """Walk the segments of a JPEG or JPEG-LS stream, from its start-of-image marker on.

    Raises:
        ImageError: ``truncated``, ``corrupt`` or ``too-complex``.
    """
    frame: tuple[int, int, int, int, int] | None = None
    adobe, jfif, turned = False, False, 1
    kept = [b"\xff\xd8"]
    position = 2
    while True:
        marker, start, end = _segment(data, position)
        payload = data[start + 2 : end]
        if marker in _START_OF_FRAME:
            if frame is not None or len(payload) < 6:
                raise refuse("corrupt")
            frame = (marker, *struct.unpack_from(">BHHB", payload))
        is_adobe = marker == 0xEE and payload.startswith(b"Adobe") and len(payload) >= 12  # libjpeg ignores shorter ones
        is_jfif = marker == 0xE0 and payload.startswith(b"JFIF\0")
        adobe, jfif = adobe or is_adobe, jfif or is_jfif
        if marker == 0xE1 and payload.startswith(b"Exif\0\0"):
            turned = orientation(payload[6:])
        if marker in _TABLES or marker in _START_OF_FRAME or is_adobe or is_jfif:
            kept.append(data[start - 2 : end])
        if marker == _START_OF_SCAN:
            break
        position = end
    if frame is None:
        raise refuse("corrupt")
    kept.append(_scans(data, start - 2))
    return JpegLayout(*frame, adobe, jfif, turned, b"".join(kept))


def grey_pixels(layout: JpegLayout, *, rgb: bool = False) -> tuple[PixelsHW, str]:
    """Pixels and Pillow's mode of an 8 bit stream.

    Args:
        layout: The stream.
        rgb: Three components are RGB (DICOM says so), unless the stream itself says otherwise; libjpeg assumes YCbCr.

    Raises:
        ImageError: ``corrupt``, ``truncated``, ``unsupported-codec`` or ``unsupported-pixels``.
    """
    if layout.frame not in HUFFMAN_8BIT or layout.bits != 8:
        raise refuse("unsupported-codec")
    if layout.components not in {1, 3, 4}:
        raise refuse("unsupported-pixels")
    body = layout.body
    if rgb and layout.components == 3 and not (layout.adobe or layout.jfif):
        body = body[:2] + _ADOBE_RGB + body[2:]
    try:
        pixels, mode = _decode(body, adobe=layout.adobe)
        complete = layout.frame not in _SEQUENTIAL or not _ends_early(body, pixels, adobe=layout.adobe)
    except MemoryError:
        raise
    except Exception:
        # Pillow raises several kinds on damaged data, with file content in their text: none of it goes further.
        raise refuse("corrupt") from None
    if not complete:
        raise refuse("truncated")
    return pixels, mode


def _decode(body: bytes, *, adobe: bool) -> tuple[PixelsHW, str]:
    # The class itself, not Image.open: that would look for an MPO in it, and warn about a damaged one.
    with JpegImageFile(io.BytesIO(body)) as image:
        mode = image.mode
        image.draft("L", None)
        image.load()
        return np.asarray(_to_grey(image, adobe=adobe), dtype=np.uint8), mode


def _ends_early(body: bytes, pixels: PixelsHW, *, adobe: bool) -> bool:
    """Whether the compressed data stop before the picture does although an end marker follows.

    libjpeg then repeats the last grey to the bottom, with a warning that Pillow drops. Where the bottom is one grey, the picture
    is decoded again with some more data before its end marker: only a picture that lacked data changes.
    """
    bottom = pixels[-8:]
    if bottom.min() != bottom.max():
        return False
    return not np.array_equal(_decode(body[:-2] + _MORE_DATA + body[-2:], adobe=adobe)[0], pixels)


def _to_grey(image: Image.Image, *, adobe: bool) -> Image.Image:
    if image.mode != "CMYK":
        return image.convert("L")
    # Pillow undoes Adobe's inversion whether or not the marker is there.
    return (image if adobe else ImageChops.invert(image)).convert("RGB").convert("L")


def _segment(data: bytes, position: int) -> tuple[int, int, int]:
    """Marker code, start (at the length field) and end of the next segment; fill bytes and junk before it are skipped."""
    position = data.find(b"\xff", position)
    if position < 0:
        raise refuse("truncated")
    while data[position : position + 1] == b"\xff":
        position += 1
    if position + 3 > len(data):
        raise refuse("truncated")
    marker = data[position]
    start = position + 1
    length = int.from_bytes(data[start : start + 2])
    if marker < 0xC0 or 0xD0 <= marker <= 0xD9 or length < 2:
        raise refuse("corrupt")
    if start + length > len(data):
        raise refuse("truncated")
    return marker, start, start + length


def _scans(data: bytes, start: int) -> bytes:
    """The compressed data from the first scan to the end marker. Within it 0xFF is escaped, so both can be searched for."""
    end = data.find(_END, start)
    if end < 0:
        raise refuse("truncated")
    if data.count(b"\xff\xda", start, end) > MAX_SCANS:
        raise refuse("too-complex")
    return data[start : end + 2]
