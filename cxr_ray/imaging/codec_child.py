"""One compressed DICOM frame, decoded in a process of its own. Run as a script by ``imaging.frames``; imports nothing of ours.

    python codec_child.py CODEC ROWS COLUMNS SAMPLES BITS MEMORY_BYTES CPU_SECONDS < frame > pixels

Native decoders of damaged or hostile streams do not always return: GDCM 3.2 ends its whole process with an uncaught C++ exception
or a segmentation fault within a few hundred mutated JPEG-LS or lossless JPEG streams. Here that costs one image, not a Ray
worker or a replica of the service; memory and CPU time are held by the operating system.

Standard output: the pixels, colour by pixel, 1 byte a sample up to 8 bits and 2 (native order) above. Nothing else: what the
decoders themselves print goes nowhere. Exit status: 0 done, 3 not decodable, 4 the codec is not installed, 5 out of memory.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

DONE, DAMAGED, NOT_INSTALLED, OUT_OF_MEMORY = 0, 3, 4, 5


class Frame(NamedTuple):
    """What the DICOM header says about the frame."""

    rows: int
    columns: int
    samples: int
    bits: int

    @property
    def sample_bytes(self) -> int:
        """Of the output."""
        return 1 if self.bits <= 8 else 2


Decoder = Callable[[bytes, Frame], bytes]


def _openjpeg() -> Decoder:
    from openjpeg.utils import decode_pixel_data

    return lambda stream, frame: bytes(decode_pixel_data(stream, version=2))


def _rle() -> Decoder:
    from rle.utils import decode_pixel_data

    def decode(stream: bytes, frame: Frame) -> bytes:
        order = "<" if sys.byteorder == "little" else ">"
        bits = 8 * frame.sample_bytes
        return bytes(decode_pixel_data(stream, version=2, rows=frame.rows, columns=frame.columns, bits_allocated=bits, byteorder=order))

    return decode


def _gdcm(syntax: str) -> Callable[[], Decoder]:
    def load() -> Decoder:
        import gdcm

        def decode(stream: bytes, frame: Frame) -> bytes:
            image = _gdcm_image(gdcm, stream, frame, getattr(gdcm.TransferSyntax, syntax))
            # GDCM hands its bytes out as text.
            text: str = image.GetBuffer()
            return text.encode("utf-8", "surrogateescape")

        return decode

    return load


def _gdcm_image(gdcm: Any, stream: bytes, frame: Frame, syntax: int) -> Any:
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(stream)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((frame.columns, frame.rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.RGB if frame.samples == 3 else gdcm.PhotometricInterpretation.MONOCHROME2
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    if frame.samples == 3:
        image.SetPlanarConfiguration(0)
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    image.SetPixelFormat(gdcm.PixelFormat(frame.samples, 8 * frame.sample_bytes, frame.bits, frame.bits - 1, 0))
    return image


CODECS: dict[str, Callable[[], Decoder]] = {
    "jpeg-2000": _openjpeg,
    "rle": _rle,
    "jpeg-ls": _gdcm("JPEGLSLossless"),
    "jpeg-lossless": _gdcm("JPEGLosslessProcess14_1"),
    "jpeg-12bit": _gdcm("JPEGExtendedProcess2_4"),
}


def _limit(memory_bytes: int, cpu_seconds: int) -> None:
    """Hold this process, as it stands with its codec loaded, to so much more memory, and to so much CPU time."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes, used + memory_bytes))


def main(arguments: list[str]) -> int:
    """Decode standard input as the arguments say; see the module's text."""
    rows, columns, samples, bits, memory_bytes, cpu_seconds = (int(argument) for argument in arguments[1:])
    output = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        decode = CODECS[arguments[0]]()
    except ImportError:
        return NOT_INSTALLED
    _limit(memory_bytes, cpu_seconds)
    try:
        pixels = decode(sys.stdin.buffer.read(), Frame(rows, columns, samples, bits))
        with os.fdopen(output, "wb") as sink:
            sink.write(pixels)
    except MemoryError:
        return OUT_OF_MEMORY
    except BaseException:  # Rust panics are no Exceptions
        return DAMAGED
    return DONE


if __name__ == "__main__":
    # Not sys.exit: GDCM's objects sometimes crash on the way out, after the pixels are written.
    os._exit(main(sys.argv[1:]))
