"""The one thing read from EXIF: which way up the picture is. Everything else in it is thrown away unread."""

from __future__ import annotations

import struct

import numpy as np

from cxr_ray.imaging.picture import PixelsHW

_ORIENTATION = 0x0112
_SHORT = 3


def orientation(tiff: bytes) -> int:
    """Orientation (1-8) in the first directory of an EXIF block; 1 (upright) where it is absent or the block is damaged.

    Args:
        tiff: The block from its byte-order mark on (``II*\\0`` or ``MM\\0*``).
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 10:
        return 1
    (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
    if directory + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(f"{order}H", tiff, directory)
    for index in range(min(count, (len(tiff) - directory - 2) // 12)):
        tag, kind, values, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * index)
        if tag == _ORIENTATION and kind == _SHORT and values == 1:
            return value if 1 <= value <= 8 else 1
    return 1


def upright(pixels: PixelsHW, turned: int) -> PixelsHW:
    """``pixels`` as a person would see them, given their EXIF orientation (EXIF 2.32, table 6)."""
    if turned in (5, 6, 7, 8):
        pixels = pixels.T
    if turned in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if turned in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
