"""Makers of image files for tests: good ones that all show one picture, and hostile ones, each with the reason it is refused for.

Plain functions without pytest; everything is made here, nothing is read from disk.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    EncapsulatedPDFStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    MediaStorageDirectoryStorage,
    RLELossless,
)

Pixels = NDArray[Any]
LIMIT_BYTES = 20 * 2**20


def picture(height: int = 96, width: int = 80) -> Pixels:
    """(H, W) uint8: a bright spine between two dark lungs, brighter to the right and below, so that turning it shows."""
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    lungs = sum(np.exp(-((x - center) ** 2 / 0.02 + (y - 0.5) ** 2 / 0.08)) for center in (0.28, 0.72))
    return np.asarray((60 + 50 * x + 60 * y + 80 * (1 - lungs)).clip(0, 255)).astype(np.uint8)


# --- PNG and JPEG ------------------------------------------------------------------------------------------------------


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """What Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, payload: bytes = b"") -> bytes:
    """One PNG chunk with its checksum."""
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def png(
    width: int, height: int, bits: int, colour: int, rows: bytes, *, before: Iterable[bytes] = (), after: Iterable[bytes] = ()
) -> bytes:
    """A PNG from its parts; ``rows`` hold the filter bytes."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    chunks = [header, *before, png_chunk(b"IDAT", zlib.compress(rows)), *after, png_chunk(b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def filtered(samples: Pixels) -> bytes:
    """Rows as PNG wants them: big endian, each behind a zero filter byte."""
    rows = samples.astype(samples.dtype.newbyteorder(">")).reshape(len(samples), -1)
    return b"".join(b"\0" + row.tobytes() for row in rows)


def exif_block(orientation: int) -> bytes:
    """A TIFF block that holds nothing but an orientation."""
    return b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 3, 1, orientation, 0)


def packed_text(kind: bytes, size: int) -> bytes:
    """A ``zTXt`` or ``iTXt`` chunk whose text inflates to ``size`` bytes."""
    head = {b"zTXt": b"Comment\0\0", b"iTXt": b"Comment\0\1\0\0\0"}[kind]
    return png_chunk(kind, head + zlib.compress(bytes(size), 9))


# --- DICOM -------------------------------------------------------------------------------------------------------------


def dicom(pixels: Pixels, *, syntax: UID = ExplicitVRLittleEndian, stored: int = 0, preamble: bytes = bytes(128), **elements: Any) -> bytes:
    """A DICOM file of ``pixels`` ((H, W) or (H, W, 3) of 8 or 16 bits), written by pydicom.

    Args:
        pixels: Stored values.
        syntax: Transfer syntax; ``RLELossless`` and ``JPEG2000Lossless`` compress, ``JPEGBaseline8Bit`` takes 8 bit.
        stored: Bits Stored; 0: all that are allocated.
        preamble: The 128 free bytes.
        elements: By keyword, in place of the defaults; None leaves one out.
    """
    allocated = 8 * pixels.dtype.itemsize
    native = pixels.astype(pixels.dtype.newbyteorder(">" if syntax == ExplicitVRBigEndian else "<")).tobytes()
    values: dict[str, Any] = {
        "SOPClassUID": ComputedRadiographyImageStorage,
        "SOPInstanceUID": "1.2.3.4",
        "Modality": "CR",
        "PatientID": "P-0007",
        "PatientName": "Doe^Jane",
        "PatientSex": "F",
        "PatientAge": "044Y",
        "ViewPosition": "PA",
        "SamplesPerPixel": 1 if pixels.ndim == 2 else 3,
        "PhotometricInterpretation": "MONOCHROME2" if pixels.ndim == 2 else "RGB",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": allocated,
        "BitsStored": stored or allocated,
        "HighBit": (stored or allocated) - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": native + b"\0" * (len(native) % 2),
    }
    if pixels.ndim == 3:
        values["PlanarConfiguration"] = 0
    dataset = Dataset()
    for keyword, value in (values | elements).items():
        if value is not None:
            setattr(dataset, keyword, value)
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OB" if allocated == 8 else "OW"
    encapsulated = syntax == JPEGBaseline8Bit
    if encapsulated:
        dataset.PixelData = encapsulate([saved(Image.fromarray(pixels), "JPEG", quality=95)])
    target = ExplicitVRLittleEndian if syntax in {RLELossless, JPEG2000Lossless} else syntax
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = target
    if syntax != target:
        dataset.compress(syntax, generate_instance_uid=False)
    buffer = io.BytesIO()
    dataset.preamble = preamble
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def with_syntax(data: bytes, syntax: str) -> bytes:
    """The file with another transfer syntax written into its file meta; nothing else is changed."""
    start = data.index(b"\x02\x00\x10\x00UI")
    (length,) = struct.unpack_from("<H", data, start + 6)
    value = syntax.encode() + b"\0" * (len(syntax) % 2)
    return data[: start + 6] + struct.pack("<H", len(value)) + value + data[start + 8 + length :]


def without_meta(data: bytes) -> bytes:
    """The bare data set: no preamble, no file meta."""
    (length,) = struct.unpack_from("<I", data, 140)
    return data[144 + length :]


def deflated(data: bytes, *, padding: int = 0) -> bytes:
    """The file with its data set deflated, behind ``padding`` zero bytes that inflate with it."""
    bare = without_meta(data)
    meta = with_syntax(data[: len(data) - len(bare)], "1.2.840.10008.1.2.1.99")
    packer = zlib.compressobj(9, wbits=-15)
    packed = packer.compress(bare) + b"".join(packer.compress(bytes(2**20)) for _ in range(padding // 2**20)) + packer.flush()
    return meta + packed


def with_elements_before(data: bytes, elements: bytes) -> bytes:
    """The file with encoded ``elements`` at the head of its data set."""
    at = len(data) - len(without_meta(data))
    return data[:at] + elements + data[at:]


def nested_sequences(depth: int) -> bytes:
    """A private sequence of undefined length within a sequence within a sequence ..."""
    sequence, item = b"\x09\x00\x10\x10SQ\0\0\xff\xff\xff\xff", b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    return (sequence + item) * depth + (b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0") * depth


def empty_items(count: int) -> bytes:
    """A private sequence of ``count`` empty items: it costs pydicom 120 s and 1 GB for 20 MB of them."""
    item = b"\xfe\xff\x00\xe0\0\0\0\0"
    return b"\x09\x00\x10\x10SQ\0\0\xff\xff\xff\xff" + item * count + b"\xfe\xff\xdd\xe0\0\0\0\0"


def encapsulated(stream: bytes, syntax: str, *, rows: int, columns: int, bits: int = 8, **elements: Any) -> bytes:
    """A DICOM around any compressed ``stream``, which need not be what the header says."""
    dtype = np.uint8 if bits <= 8 else np.uint16
    template = dicom(np.zeros((2, 2), dtype), stored=bits, Rows=rows, Columns=columns, PixelData=None, **elements)
    fragment = stream + b"\0" * (len(stream) % 2)
    pixel_data = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\0\0\0\0"
    pixel_data += b"\xfe\xff\x00\xe0" + struct.pack("<I", len(fragment)) + fragment + b"\xfe\xff\xdd\xe0\0\0\0\0"
    return with_syntax(template, syntax) + pixel_data


# --- the collections ---------------------------------------------------------------------------------------------------


def good_files() -> dict[str, bytes]:
    """Name -> content of files that all decode to :func:`picture` (within a few grey levels where compression loses)."""
    grey = picture()
    alpha = np.full_like(grey, 255)
    image = Image.fromarray(grey)
    rgb = image.convert("RGB")
    words = grey.astype(np.uint16) * 257
    twelve = np.round(grey / 255 * 4095).astype(np.uint16)
    bare = saved(image, "PNG")
    return {
        "grey.png": bare,
        "wrong-name.txt": bare,
        "grey-alpha.png": saved(Image.merge("LA", (image, Image.fromarray(alpha))), "PNG"),
        "rgb.png": saved(rgb, "PNG"),
        "rgba.png": saved(rgb.convert("RGBA"), "PNG"),
        "palette.png": saved(rgb.quantize(256), "PNG"),
        "sixteen-bit.png": png(80, 96, 16, 0, filtered(words)),
        "sixteen-bit-rgb.png": png(80, 96, 16, 2, filtered(np.repeat(words[..., None], 3, axis=2))),
        "turned.png": png(96, 80, 8, 0, filtered(np.ascontiguousarray(np.rot90(grey))), before=[png_chunk(b"eXIf", exif_block(6))]),
        "with-text.png": png(80, 96, 8, 0, filtered(grey), before=[packed_text(b"zTXt", 1000), packed_text(b"iTXt", 1000)]),
        "appended.png": bare + b"PK\x03\x04" + bytes(500),
        "grey.jpg": saved(image, "JPEG", quality=95),
        "rgb.jpg": saved(rgb, "JPEG", quality=95),
        "progressive.jpg": saved(rgb, "JPEG", quality=95, progressive=True),
        "cmyk.jpg": saved(rgb.convert("CMYK"), "JPEG", quality=95),
        "turned.jpg": saved(Image.fromarray(np.rot90(grey)), "JPEG", quality=95, exif=b"Exif\0\0" + exif_block(6)),
        "appended.jpg": saved(image, "JPEG", quality=95) + saved(rgb, "JPEG"),
        "eight-bit.dcm": dicom(grey),
        "monochrome1.dcm": dicom(255 - grey, PhotometricInterpretation="MONOCHROME1"),
        "twelve-bit.dcm": dicom(twelve, stored=12),
        "twelve-bit-monochrome1.dcm": dicom(4095 - twelve, stored=12, PhotometricInterpretation="MONOCHROME1"),
        "sixteen-bit.dcm": dicom(words),
        "signed.dcm": dicom((words.astype(np.int32) - 2**15).astype(np.int16)),
        "window.dcm": dicom(twelve // 4 + 1000, stored=12, WindowCenter=1512.5, WindowWidth=1024),
        "implicit.dcm": dicom(twelve, stored=12, syntax=ImplicitVRLittleEndian),
        "big-endian.dcm": dicom(twelve, stored=12, syntax=ExplicitVRBigEndian),
        "bare": without_meta(dicom(twelve, stored=12)),
        "colour.dcm": dicom(np.repeat(grey[..., None], 3, axis=2)),
        "baseline.dcm": dicom(grey, syntax=JPEGBaseline8Bit),
        "rle.dcm": dicom(twelve, stored=12, syntax=RLELossless),
        "jpeg-2000.dcm": dicom(twelve, stored=12, syntax=JPEG2000Lossless),
        "nested-little.dcm": with_elements_before(dicom(grey), nested_sequences(8)),
        "tiff-preamble.dcm": dicom(grey, preamble=b"II*\0".ljust(128, b"\0")),
    }


def hostile_files() -> dict[str, bytes]:
    """Name -> content of files that must be refused, each for the reason in :func:`hostile_reasons`."""
    return {name: data for name, (data, _) in {**_hostile_rasters(), **_hostile_dicoms()}.items()}


def cut_files() -> dict[str, bytes]:
    """Name -> a PNG, a JPEG and DICOMs cut at every tenth of their length; every one of them is refused."""
    good = good_files()
    whole = {name: good[name] for name in ("grey.png", "grey.jpg", "progressive.jpg", "twelve-bit.dcm", "rle.dcm", "jpeg-2000.dcm")}
    return {f"cut-{tenth}-tenths-{name}": data[: len(data) * tenth // 10] for name, data in whole.items() for tenth in range(10)}


def hostile_reasons() -> dict[str, str]:
    """Name -> the reason each of :func:`hostile_files` is refused for."""
    return {name: reason for name, (_, reason) in {**_hostile_rasters(), **_hostile_dicoms()}.items()}


def _hostile_rasters() -> dict[str, tuple[bytes, str]]:
    image = Image.fromarray(picture())
    png_file, jpeg_file = saved(image, "PNG"), saved(image, "JPEG")
    progressive = saved(image, "JPEG", progressive=True)
    scan = progressive.rindex(b"\xff\xda")
    damaged = bytearray(png_file)
    damaged[len(damaged) // 2] ^= 0x10
    lossless = jpeg_file.replace(b"\xff\xc0", b"\xff\xc3", 1)
    frame = jpeg_file.index(b"\xff\xc0")
    huge_jpeg = jpeg_file[: frame + 5] + struct.pack(">HH", 65000, 65000) + jpeg_file[frame + 9 :]
    animation = png_chunk(b"acTL", struct.pack(">II", 2, 0))
    files = {
        "empty.png": (b"", "empty"),
        "text.png": (b"patient,finding\n1,normal\n" * 20, "not-an-image"),
        "noise.jpg": (random.Random(0).randbytes(4000), "not-an-image"),
        "zeros.dcm": (bytes(4000), "not-an-image"),
        "signature-only.png": (png_file[:8], "truncated"),
        "bomb-100k.png": (png(100_000, 100_000, 8, 0, bytes(10_000)), "too-many-pixels"),
        "bomb-13k.png": (png(13_000, 13_000, 8, 0, bytes(10_000)), "too-many-pixels"),
        "text-bomb.png": (png(80, 96, 8, 0, filtered(picture()), before=[packed_text(b"zTXt", 32 * 2**20)]), "too-complex"),
        "long-text-bomb.png": (png(80, 96, 8, 0, filtered(picture()), after=[packed_text(b"iTXt", 32 * 2**20)]), "too-complex"),
        "many-texts.png": (png(80, 96, 8, 0, filtered(picture()), before=[packed_text(b"zTXt", 9)] * 1100), "too-complex"),
        "bomb.jpg": (huge_jpeg, "too-many-pixels"),
        "long.png": (png_file + bytes(LIMIT_BYTES), "too-large"),
        "damaged.png": (bytes(damaged), "corrupt"),
        "few-rows.png": (png(80, 96, 8, 0, filtered(picture()[:40])), "truncated"),
        "no-size.png": (png(0, 96, 8, 0, b""), "corrupt"),
        "animated.png": (png(80, 96, 8, 0, filtered(picture()), before=[animation]), "animated"),
        "cut-closed.jpg": (jpeg_file[: len(jpeg_file) // 2] + b"\xff\xd9", "truncated"),
        "scans.jpg": (progressive[:-2] + progressive[scan:-2] * 200 + b"\xff\xd9", "too-complex"),
        "lossless.jpg": (lossless, "unsupported-codec"),
        "page.jpg": (b"<!DOCTYPE html><html></html>", "unsupported-format"),
        "report.png": (b"%PDF-1.7\n" + bytes(300), "unsupported-format"),
        "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported-format"),
    }
    for kind in ("GIF", "TIFF", "WEBP", "BMP"):
        files[f"really-{kind.lower()}.png"] = (saved(image, kind), "unsupported-format")
    for suffix, data in (("png", png_file), ("jpg", jpeg_file), ("progressive.jpg", progressive)):
        for name, end in (("head", 30), ("quarter", len(data) // 4), ("half", len(data) // 2), ("last", len(data) - 1)):
            files[f"cut-{name}.{suffix}"] = (data[:end], "truncated")
    return files


def _hostile_dicoms() -> dict[str, tuple[bytes, str]]:
    grey = picture()
    good = dicom(grey)
    count = grey.size
    codestream = saved(Image.fromarray(grey), "JPEG2000", irreversible=False)
    codestream = codestream[codestream.index(b"\xff\x4f\xff\x51") :]
    runs = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\x00" * 20
    files = {
        "deflated.dcm": (deflated(good, padding=64 * 2**20), "deflated"),
        "directory": (dicom(grey, SOPClassUID=MediaStorageDirectoryStorage, PixelData=None), "dicomdir"),
        "document.dcm": (
            dicom(grey, SOPClassUID=EncapsulatedPDFStorage, PixelData=None, EncapsulatedDocument=b"%PDF-1.7"),
            "encapsulated-document",
        ),
        "frames.dcm": (dicom(grey, NumberOfFrames="3", PixelData=grey.tobytes() * 3), "multi-frame"),
        "video.dcm": (with_syntax(good, "1.2.840.10008.1.2.4.102"), "multi-frame"),
        "nested.dcm": (with_elements_before(good, nested_sequences(5000)), "nested-too-deep"),
        "items.dcm": (with_elements_before(good, empty_items(2_000_000)), "too-complex"),
        "no-rows.dcm": (dicom(grey, Rows=None), "no-pixels"),
        "no-pixel-data.dcm": (dicom(grey, PixelData=None), "no-pixels"),
        "bomb.dcm": (dicom(grey, Rows=60_000, Columns=60_000), "too-many-pixels"),
        "few-pixels.dcm": (dicom(grey, PixelData=bytes(count - 2)), "wrong-pixel-length"),
        "many-pixels.dcm": (dicom(grey, PixelData=bytes(count + 2)), "wrong-pixel-length"),
        "palette.dcm": (dicom(grey, PhotometricInterpretation="PALETTE COLOR"), "unsupported-pixels"),
        "deep.dcm": (dicom(grey.astype(np.uint32)), "unsupported-pixels"),
        "jpip.dcm": (with_syntax(good, "1.2.840.10008.1.2.4.94"), "unsupported-codec"),
        "flat-slope.dcm": (dicom(grey, RescaleSlope="0", RescaleIntercept="0"), "corrupt"),
        "not-j2k.dcm": (encapsulated(bytes(500), JPEG2000Lossless, rows=96, columns=80), "corrupt"),
        "cut-j2k.dcm": (encapsulated(codestream[:120], JPEG2000Lossless, rows=96, columns=80), "corrupt"),
        "other-size-j2k.dcm": (encapsulated(codestream, JPEG2000Lossless, rows=8000, columns=8000), "corrupt"),
        "other-size-jpeg.dcm": (encapsulated(saved(Image.fromarray(grey), "JPEG"), JPEGBaseline8Bit, rows=8000, columns=8000), "corrupt"),
        "few-runs-rle.dcm": (encapsulated(runs, RLELossless, rows=96, columns=80), "corrupt"),
        "program.dcm": (dicom(grey, preamble=b"MZ".ljust(128, b"\x90")), "polyglot"),
        "also-pdf.dcm": (dicom(grey, preamble=b"%PDF-1.7\n".ljust(128)), "polyglot"),
        "also-png.dcm": (dicom(grey, preamble=saved(Image.fromarray(grey), "PNG")[:128]), "polyglot"),
    }
    for name, end in (("head", 140), ("meta", 300), ("half", len(good) // 2), ("last", len(good) - 1)):
        files[f"cut-{name}.dcm"] = (good[:end], "truncated")
    return files
