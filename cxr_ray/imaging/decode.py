"""Untrusted bytes -> one grey radiograph, or the reason why not. The one entrance of ingest, prediction and service.

What the bytes are is decided by content, never by a name: PNG, JPEG and DICOM, and nothing else (DESIGN, "Safety").
Thread-safe: no global state is read or changed, no warning is raised by any of the decoders.
"""

from __future__ import annotations

import logging
from typing import Final

from cxr_ray.errors import ImageError
from cxr_ray.imaging import jpeg, png
from cxr_ray.imaging.dicom import decode_dicom
from cxr_ray.imaging.dicom_header import PREFIX, PREFIX_AT, looks_like_dicom
from cxr_ray.imaging.picture import DecodedImage, Format, Limits
from cxr_ray.imaging.reasons import refuse

__all__ = ["DecodedImage", "Limits", "decode", "sniff"]

logger = logging.getLogger(__name__)

_OTHER_IMAGES: Final = (
    *(b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"RIFF", b"BM", b"8BPS", b"\0\0\1\0", b"qoif"),
    *(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"\0\0\0\x0cJXL ", b"\xff\x0a", b"%!PS", b"\xc5\xd0\xd3\xc6", b"NRRD"),
)
_OTHER_FILES: Final = (
    *(b"%PDF", b"PK\x03\x04", b"\x1f\x8b", b"MZ", b"\x7fELF", b"Rar!", b"7z\xbc\xaf", b"#!"),
    *(b"<?xml", b"<!DOCTYPE", b"<html", b"<svg"),
)


def decode(data: bytes, limits: Limits | None = None) -> DecodedImage:
    """Decode one PNG, JPEG or DICOM.

    Args:
        data: The whole file.
        limits: What is accepted; checked before anything is decoded. None: the defaults of :class:`Limits`.

    Returns:
        uint8 grey pixels with dense tissue bright, and what they were decoded from.

    Raises:
        ImageError: For any bytes that are not such an image, with one of ``imaging.reasons.REASONS``. Nothing else is raised.
    """
    limits = limits or Limits()
    limits.check_bytes(len(data))
    kind = sniff(data)
    try:
        if kind == "png":
            return png.decode_png(data, limits)
        if kind == "jpeg":
            return jpeg.decode_jpeg(data, limits)
        return decode_dicom(data, limits)
    except ImageError:
        raise
    except MemoryError:  # of a process with a limit
        raise refuse("too-complex") from None
    except Exception as error:
        # A fault of ours: one image may cost itself, never the batch. The kind alone is logged, the text may hold file content.
        logger.error("unexpected %s while decoding a %s", type(error).__name__, kind)
        raise refuse("corrupt") from None


def sniff(data: bytes) -> Format:
    """What ``data`` is, by its first bytes.

    A DICOM's 128 free bytes may hold the start of another file. A TIFF there is allowed (PS3.10 7.1) and ignored; an image or
    program that would make the file two things at once is refused.

    Raises:
        ImageError: ``not-an-image``, ``unsupported-format`` or ``polyglot``.
    """
    other = data.startswith(_OTHER_IMAGES + _OTHER_FILES)
    if data[PREFIX_AT : PREFIX_AT + 4] == PREFIX:
        if data.startswith((png.SIGNATURE, jpeg.SIGNATURE)) or (other and not data.startswith((b"II", b"MM"))):
            raise refuse("polyglot")
        return "dicom"
    if data.startswith(png.SIGNATURE):
        return "png"
    if data.startswith(jpeg.SIGNATURE):
        return "jpeg"
    if other or data[4:8] == b"ftyp":
        raise refuse("unsupported-format")
    if looks_like_dicom(data):
        return "dicom"
    raise refuse("not-an-image")
