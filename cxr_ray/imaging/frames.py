"""Pixel Data -> bit patterns: native, and every compression that DICOM files of plain radiography use.

JPEG at 8 bits goes through Pillow, as JPEG files do. All others go to a process of their own (``codec_child``): the decoders are
native code that cannot be trusted with damaged streams. It costs about 0.1 s an image beside 0.3-2 s of decoding. Whatever the
codec, the size and depth in the stream's own header must first agree with the DICOM header, which bounds what is allocated.

Source: DICOM PS3.5 section 8 and annex A. The codec is chosen by the transfer syntax; within the JPEG family the stream's own
frame marker decides (files that say "extended" hold baseline, and the like).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import signal
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cxr_ray.imaging import codec_child
from cxr_ray.imaging.jpeg import HUFFMAN_8BIT, grey_pixels, read_layout
from cxr_ray.imaging.reasons import refuse

RLE: Final = "1.2.840.10008.1.2.5"
JPEG_FAMILY: Final = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81))
JPEG_2000: Final = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 201, 202, 203))

_MODULES: Final = {"jpeg-2000": "openjpeg", "rle": "rle", "jpeg-ls": "gdcm", "jpeg-lossless": "gdcm", "jpeg-12bit": "gdcm"}
_BASE_MEMORY = 64 * 2**20
_BYTES_A_SAMPLE = 40
_CPU_SECONDS = 60
_WALL_SECONDS = 180
_MAX_TILES = 4096


@dataclass(frozen=True, slots=True)
class Shape:
    """What the DICOM header says about the pixels (PS3.3 C.7.6.3), already checked against each other.

    Args:
        samples: 1 (grey) or 3 (colour).
        photometric: Photometric Interpretation.
        allocated: Bits Allocated, 8 or 16.
        stored: Bits Stored.
        planar: Planar Configuration of native colour: 1 is colour by plane.
    """

    rows: int
    columns: int
    samples: int
    photometric: str
    allocated: int
    stored: int
    planar: int = 0

    @property
    def count(self) -> int:
        """Samples in the frame."""
        return self.rows * self.columns * self.samples


@dataclass(frozen=True, slots=True)
class Samples:
    """Decoded samples: (H, W) grey patterns of ``depth`` bits, or (H, W, 3) 8 bit colour as ``photometric`` says."""

    values: NDArray[Any]
    depth: int
    photometric: str


def codecs() -> dict[str, bool]:
    """Which compressions of DICOM can be decoded here (for ``cxr-ray doctor``)."""
    found = {name: importlib.util.find_spec(module) is not None for name, module in _MODULES.items()}
    return {"native": True, "jpeg-8bit": True, **found}


def native(data: bytes, start: int, shape: Shape, *, little: bool, words: bool) -> Samples:
    """Uncompressed samples; a view of ``data`` where the byte order allows it.

    Args:
        data: The file.
        start: Where the samples begin; as many as ``shape`` asks for (an even number of bytes) must follow.
        shape: The DICOM header's.
        little: Byte order.
        words: Whether the VR is OW: then even 8 bit samples lie in words, and big endian swaps them in pairs.
    """
    if words and not little and shape.allocated == 8:
        words_there = data[start : start + shape.count + shape.count % 2]
        data, start = np.frombuffer(words_there + b"\0" * (len(words_there) % 2), ">u2").astype("<u2").tobytes(), 0
    dtype = np.dtype(np.uint8 if shape.allocated == 8 else np.uint16).newbyteorder("<" if little else ">")
    if shape.photometric == "YBR_FULL_422":  # two pixels: Y Y Cb Cr (PS3.3 C.7.6.3.1.2); luma is Y
        quads = np.frombuffer(data, dtype, shape.rows * shape.columns * 2, start).reshape(-1, 4)
        return Samples(np.ascontiguousarray(quads[:, :2]).reshape(shape.rows, shape.columns), 8, "MONOCHROME2")
    values: NDArray[Any] = np.frombuffer(data, dtype, shape.count, start)
    values = values.astype(dtype.newbyteorder("="), copy=False)
    return Samples(_by_pixel(values, shape, planar=shape.planar == 1), shape.stored, shape.photometric)


def compressed(stream: bytes, syntax: str, shape: Shape) -> Samples:
    """Decode one compressed frame.

    Raises:
        ImageError: ``corrupt`` (also where stream and DICOM header disagree), ``truncated``, ``too-complex``,
            ``unsupported-codec``, ``unsupported-pixels`` or ``codec-not-installed``.
    """
    if syntax in JPEG_FAMILY:
        return _jpeg(stream, shape)
    if syntax in JPEG_2000:
        return _jpeg_2000(stream, shape)
    if syntax == RLE:
        values = _in_child("rle", stream, shape, shape.allocated)
        return Samples(_by_pixel(values, shape, planar=True), shape.stored, shape.photometric)
    raise refuse("unsupported-codec")


def _jpeg(stream: bytes, shape: Shape) -> Samples:
    if not stream.startswith(b"\xff\xd8"):
        raise refuse("corrupt")
    layout = read_layout(stream)
    if (layout.height, layout.width, layout.components) != (shape.rows, shape.columns, shape.samples):
        raise refuse("corrupt")
    if layout.frame in HUFFMAN_8BIT and layout.bits == 8:
        pixels, _ = grey_pixels(layout, rgb=shape.photometric == "RGB")
        return Samples(pixels, 8, shape.photometric if shape.samples == 1 else "MONOCHROME2")
    codec = {0xC1: "jpeg-12bit", 0xC3: "jpeg-lossless", 0xF7: "jpeg-ls"}.get(layout.frame)
    if codec is None or not 2 <= layout.bits <= 16:
        raise refuse("unsupported-codec")
    values = _in_child(codec, layout.body, shape, layout.bits)
    return Samples(_by_pixel(values, shape), layout.bits, shape.photometric)


def _jpeg_2000(stream: bytes, shape: Shape) -> Samples:
    start = stream.find(b"\xff\x4f\xff\x51")  # some writers wrap the codestream in a JP2 file, against PS3.5 A.4.4
    if start < 0 or (start and not stream.startswith(b"\0\0\0\x0cjP  ")):
        raise refuse("corrupt")
    stream = stream[start:]
    try:
        right, bottom, left, top, tile_width, tile_height = struct.unpack_from(">6I", stream, 8)
        components = struct.unpack_from(">H", stream, 40)[0]
        depths = {struct.unpack_from(">BBB", stream, 42 + 3 * index) for index in range(min(components, 4))}
    except struct.error:
        raise refuse("truncated") from None
    if (bottom - top, right - left, components) != (shape.rows, shape.columns, shape.samples) or not (tile_width and tile_height):
        raise refuse("corrupt")
    if -(-right // tile_width) * -(-bottom // tile_height) > _MAX_TILES:
        raise refuse("too-complex")
    bits = (next(iter(depths))[0] & 0x7F) + 1
    if len(depths) != 1 or next(iter(depths))[1:] != (1, 1) or bits > 16:
        raise refuse("unsupported-pixels")
    values = _in_child("jpeg-2000", stream, shape, bits)
    # The decoder has undone JPEG 2000's own colour transforms.
    photometric = "RGB" if shape.photometric in {"YBR_RCT", "YBR_ICT"} else shape.photometric
    return Samples(_by_pixel(values, shape), bits, photometric)


def _by_pixel(values: NDArray[Any], shape: Shape, *, planar: bool = False) -> NDArray[Any]:
    if shape.samples == 1:
        return values.reshape(shape.rows, shape.columns)
    if planar:
        return np.ascontiguousarray(values.reshape(shape.samples, shape.rows, shape.columns).transpose(1, 2, 0))
    return values.reshape(shape.rows, shape.columns, shape.samples)


def _in_child(codec: str, stream: bytes, shape: Shape, bits: int) -> NDArray[Any]:
    """Samples of ``stream``, decoded by ``codec_child`` within limits of memory and time."""
    if shape.samples == 3 and bits != 8:
        raise refuse("unsupported-pixels")
    if not _child_can(codec):
        raise refuse("codec-not-installed")
    memory = _BASE_MEMORY + _BYTES_A_SAMPLE * shape.count + 4 * len(stream)
    arguments = [codec, shape.rows, shape.columns, shape.samples, bits, memory, _CPU_SECONDS]
    # -P: the script's folder, full of modules of ours, does not go on the import path.
    command = [sys.executable, "-P", str(Path(codec_child.__file__)), *map(str, arguments)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        child = subprocess.run(
            command, input=stream, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=_WALL_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        raise refuse("too-complex") from None
    if child.returncode == codec_child.NOT_INSTALLED:
        raise refuse("codec-not-installed")
    if child.returncode in {codec_child.OUT_OF_MEMORY, -signal.SIGXCPU}:
        raise refuse("too-complex")
    dtype = np.dtype(np.uint8 if bits <= 8 else np.uint16)
    if child.returncode != codec_child.DONE or len(child.stdout) != shape.count * dtype.itemsize:
        raise refuse("corrupt")
    return np.frombuffer(child.stdout, dtype)


@functools.cache
def _child_can(codec: str) -> bool:
    return bool(sys.executable) and importlib.util.find_spec(_MODULES[codec]) is not None
