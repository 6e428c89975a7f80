"""PNG -> grey. The chunks are walked here, and only those that hold the picture are given to Pillow.

So text, colour-profile and unknown chunks (decompression bombs, warnings) never reach a decoder, the size is known before
anything is decoded, every checksum is verified, missing rows are noticed, and what follows the end of the picture is ignored. Decided here:

- Compressed text that inflates to more than a mebibyte is refused, though nothing here reads it: no X-ray machine wrote that file.
- 16 bit grey is scaled from the full range 0..65535, as the PNG specification (section 12.4) has encoders write it, not from
  the brightest value found: ``round(value / 257)``. Pillow reads 16 bit colour and alpha by their upper 8 bits.
- Colour becomes luma (ITU-R 601). ``gAMA``, ``sRGB`` and profiles are ignored, as every training pipeline does.
- Transparency is shown over black, which is air in a radiograph.
- An animated PNG is refused: which of its frames is the radiograph is not ours to guess.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops
from PIL.PngImagePlugin import PngImageFile

from cxr_ray.imaging.exif import orientation, upright
from cxr_ray.imaging.grey import map_pixels
from cxr_ray.imaging.picture import DecodedImage, Limits, PixelsHW
from cxr_ray.imaging.reasons import refuse

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PICTURE = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_ANIMATION = frozenset({b"acTL", b"fcTL", b"fdAT"})
_COMPRESSED_TEXT = frozenset({b"zTXt", b"iTXt"})
_HEADER_LENGTH = 13


_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples a pixel by colour type (PNG specification, 11.2.2)."""
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row, first column, row step and column step of each pass of an interlaced picture (8.2)."""
_INFLATE_BYTES = 2**18
_TEXT_BYTES = 2**20
_LEAST_TEXT_BYTES = 2**10
"""What each compressed text counts at least, so that a million of them do not have to be inflated."""


@dataclass(frozen=True, slots=True)
class _Header:
    width: int
    height: int
    bits: int
    colour: int
    interlaced: bool

    @property
    def raw_bytes(self) -> int:
        """Length of the inflated picture: a filter byte and the packed samples for each row of each pass."""
        passes = _ADAM7 if self.interlaced else ((0, 0, 1, 1),)
        sizes = [(-(-(self.height - top) // down), -(-(self.width - left) // right)) for top, left, down, right in passes]
        pixel_bits = self.bits * _CHANNELS[self.colour]
        return sum(rows * (1 + -(-columns * pixel_bits // 8)) for rows, columns in sizes if rows > 0 and columns > 0)


@dataclass(frozen=True, slots=True)
class _Layout:
    header: _Header
    turned: int
    body: bytes


def decode_png(data: bytes, limits: Limits) -> DecodedImage:
    """Decode a PNG of any colour type and bit depth.

    Raises:
        ImageError: ``truncated``, ``corrupt``, ``animated``, ``too-many-pixels`` or ``too-complex``.
    """
    layout = _read_layout(data, limits)
    try:
        with PngImageFile(io.BytesIO(layout.body)) as image:
            image.load()
            mode = image.mode
            pixels, remarks = _to_grey(image)
    except MemoryError:
        raise
    except Exception:
        # Pillow raises half a dozen kinds on damaged data, with file content in their text: none of it goes further.
        raise refuse("corrupt") from None
    if layout.turned != 1:
        remarks = (*remarks, "rotated")
    pixels = upright(pixels, layout.turned)
    height, width = pixels.shape
    return DecodedImage(pixels, "png", width, height, mode, layout.header.bits, remarks=remarks)


def _read_layout(data: bytes, limits: Limits) -> _Layout:
    """Check structure, checksums, size, stillness and completeness, and collect the chunks that hold the picture."""
    header: _Header | None = None
    turned, text_bytes = 1, 0
    kept = [SIGNATURE]
    compressed: list[bytes] = []
    for kind, start, end in _chunks(data):
        if kind in _ANIMATION:
            raise refuse("animated")
        if header is None:
            header = _read_header(kind, data[start + 8 : end - 4])
            limits.check_pixels(header.width, header.height)
        if kind == b"eXIf":
            turned = orientation(data[start + 8 : end - 4])
        if kind in _COMPRESSED_TEXT:
            text_bytes += _inflated_bytes(kind, data[start + 8 : end - 4])
            if text_bytes > _TEXT_BYTES:
                raise refuse("too-complex")
        if kind in _PICTURE:
            chunk = data[start:end]
            if zlib.crc32(memoryview(chunk)[4:-4]) != int.from_bytes(chunk[-4:]):
                raise refuse("corrupt")
            kept.append(chunk)
            if kind == b"IDAT":
                compressed.append(chunk[8:-4])
    if header is None:
        raise refuse("corrupt")
    _check_complete(compressed, header.raw_bytes)
    return _Layout(header, turned, b"".join(kept))


def _read_header(kind: bytes, payload: bytes) -> _Header:
    if kind != b"IHDR" or len(payload) != _HEADER_LENGTH:
        raise refuse("corrupt")
    width, height, bits, colour, _, _, interlace = struct.unpack(">IIBBBBB", payload)
    if colour not in _CHANNELS or bits not in {1, 2, 4, 8, 16}:
        raise refuse("corrupt")
    return _Header(width, height, bits, colour, interlace == 1)


def _inflated_bytes(kind: bytes, payload: bytes) -> int:
    """Bytes that compressed text inflates to, counted no further than the limit."""
    rest = payload.partition(b"\0")[2]  # behind the keyword: a method and the text; or a flag, a method, two strings and the text
    packed = kind == b"zTXt" or rest[:1] == b"\1"
    text = rest[1:] if kind == b"zTXt" else rest[2:].split(b"\0", 2)[-1]
    try:
        inflated = len(zlib.decompressobj().decompress(text, _TEXT_BYTES + 1)) if packed else 0
    except zlib.error:  # nobody can be made to inflate it
        inflated = 0
    return max(inflated, _LEAST_TEXT_BYTES)


def _check_complete(compressed: list[bytes], raw_bytes: int) -> None:
    """Inflate to nowhere and count: Pillow shows missing rows as black without a word."""
    inflater = zlib.decompressobj()
    try:
        for part in compressed:
            while part and raw_bytes > 0 and not inflater.eof:
                raw_bytes -= len(inflater.decompress(part, _INFLATE_BYTES))
                part = inflater.unconsumed_tail
        while raw_bytes > 0 and (rest := inflater.decompress(b"", _INFLATE_BYTES)):
            raw_bytes -= len(rest)
    except zlib.error:
        raise refuse("corrupt") from None
    if raw_bytes > 0:
        raise refuse("truncated")


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk, up to and with IEND."""
    position = len(SIGNATURE)
    while True:
        if position + 12 > len(data):
            raise refuse("truncated")
        length, kind = struct.unpack_from(">I4s", data, position)
        if not kind.isalpha() or length >= 2**31:
            raise refuse("corrupt")
        end = position + 12 + length
        if end > len(data):
            raise refuse("truncated")
        yield kind, position, end
        if kind == b"IEND":
            return
        position = end


def _to_grey(image: Image.Image) -> tuple[PixelsHW, tuple[str, ...]]:
    if image.mode == "I;16":
        return map_pixels(_SIXTEEN_TO_EIGHT, np.asarray(image)), ()
    if "transparency" in image.info:
        image = image.convert("LA" if image.mode in {"1", "L"} else "RGBA")
    grey = image.convert("L")
    if image.mode in {"LA", "RGBA"}:
        alpha = image.getchannel("A")
        if alpha.getextrema() != (255, 255):
            return np.asarray(ImageChops.multiply(grey, alpha)), ("transparent",)
    return np.asarray(grey), ()


_SIXTEEN_TO_EIGHT = ((np.arange(2**16) + 128) // 257).astype(np.uint8)
