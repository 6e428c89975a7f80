"""PNG and JPEG: bit depths, transparency, ink, and which way up."""

from __future__ import annotations

import io
import zlib
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, ImageOps

from cxr_ray.errors import ImageError
from cxr_ray.imaging.decode import decode
from cxr_ray.imaging.exif import orientation


def test_sixteen_bits_are_scaled_from_the_full_range(hostile: ModuleType) -> None:
    values = np.array([[0, 128, 129, 257, 4095, 32768, 65406, 65407, 65535]], dtype=np.uint16)
    image = decode(hostile.png(9, 1, 16, 0, hostile.filtered(values)))
    np.testing.assert_array_equal(image.pixels, np.round(values / 257).astype(np.uint8))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_span_black_to_white(hostile: ModuleType, bits: int) -> None:
    levels = np.arange(2**bits)
    packed = np.packbits(((levels[:, None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8).ravel())
    image = decode(hostile.png(len(levels), 1, bits, 0, b"\0" + packed.tobytes()))
    np.testing.assert_array_equal(image.pixels[0], levels * 255 // (2**bits - 1))
    assert image.bits == bits


def test_interlaced_png_is_read_whole(hostile: ModuleType) -> None:
    # Adam7 of a 3 x 3 picture: its passes hold 1, 0, 0, 1, 2, 2 and 3 pixels
    rows = b"\0\x0a" + b"\0\x0c" + b"\0\x28\x2a" + b"\0\x0b" + b"\0\x29" + b"\0\x14\x15\x16"
    header = hostile.png_chunk(b"IHDR", (3).to_bytes(4) + (3).to_bytes(4) + bytes([8, 0, 0, 0, 1]))
    body = hostile.png_chunk(b"IDAT", zlib.compress(rows)) + hostile.png_chunk(b"IEND")
    image = decode(b"\x89PNG\r\n\x1a\n" + header + body)
    np.testing.assert_array_equal(image.pixels, [[10, 11, 12], [20, 21, 22], [40, 41, 42]])


def test_transparent_is_shown_over_black(hostile: ModuleType) -> None:
    colour = np.zeros((1, 3, 4), dtype=np.uint8)
    colour[..., :3] = 200
    colour[0, :, 3] = (0, 128, 255)
    image = decode(hostile.saved(Image.fromarray(colour), "PNG"))
    np.testing.assert_array_equal(image.pixels, [[0, 100, 200]])
    assert image.remarks == ("transparent",)


def test_transparent_grey_and_palette_entry_are_black(hostile: ModuleType) -> None:
    rows = hostile.filtered(np.array([[7, 9]], dtype=np.uint8))
    key = hostile.png_chunk(b"tRNS", b"\0\x09")
    np.testing.assert_array_equal(decode(hostile.png(2, 1, 8, 0, rows, before=[key])).pixels, [[7, 0]])
    palette = hostile.png_chunk(b"PLTE", bytes([50] * 3 + [60] * 3))
    entry = hostile.png_chunk(b"tRNS", b"\xff\x00")
    rows = hostile.filtered(np.array([[0, 1]], dtype=np.uint8))
    np.testing.assert_array_equal(decode(hostile.png(2, 1, 8, 3, rows, before=[palette, entry])).pixels, [[50, 0]])


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_compressed_text_has_a_limit(hostile: ModuleType, kind: bytes) -> None:
    def reading(size: int) -> str:
        try:
            decode(hostile.png(80, 96, 8, 0, hostile.filtered(hostile.picture()), before=[hostile.packed_text(kind, size)] * 2))
        except ImageError as error:
            return error.reason
        return "decoded"

    assert reading(2**19) == "decoded"
    assert reading(2**19 + 1) == "too-complex"


def test_wrong_checksum_is_corrupt(hostile: ModuleType, good: dict[str, bytes]) -> None:
    data = bytearray(good["grey.png"])
    data[data.index(b"IDAT") - 5] ^= 1  # the checksum of IHDR
    with pytest.raises(ImageError) as caught:
        decode(bytes(data))
    assert caught.value.reason == "corrupt"


@pytest.mark.parametrize("turned", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_would(hostile: ModuleType, turned: int) -> None:
    data = hostile.saved(Image.fromarray(hostile.picture()), "JPEG", exif=b"Exif\0\0" + hostile.exif_block(turned))
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    decoded = decode(data)
    np.testing.assert_array_equal(decoded.pixels, expected)
    assert (decoded.height, decoded.width) == expected.shape
    assert decoded.remarks == (() if turned == 1 else ("rotated",))


@pytest.mark.parametrize("block", [b"", b"II*\0", b"XX*\0" + bytes(20), b"II*\0\xff\xff\xff\x7f" + bytes(20), b"MM\0*\0\0\0\x08\xff\xff"])
def test_damaged_exif_is_upright(block: bytes) -> None:
    assert orientation(block) == 1


def test_orientation_out_of_range_is_upright(hostile: ModuleType) -> None:
    assert orientation(hostile.exif_block(9)) == 1
    assert orientation(hostile.exif_block(6)) == 6


def test_ink_without_adobe_marker_is_not_inverted(hostile: ModuleType) -> None:
    adobe = hostile.saved(Image.new("CMYK", (16, 16), (255, 255, 255, 200)), "JPEG", quality=95)
    start = adobe.index(b"\xff\xee")
    plain = adobe[:start] + adobe[start + 16 :]
    assert decode(adobe).pixels.max() <= 2  # all ink
    assert decode(plain).pixels.mean() == pytest.approx(200, abs=2)  # the same numbers, of light


def test_black_bottom_is_not_taken_for_a_cut(hostile: ModuleType) -> None:
    shown = hostile.picture()
    shown[40:] = 0
    for options in ({}, {"progressive": True}, {"restart_marker_rows": 1}):
        assert decode(hostile.saved(Image.fromarray(shown), "JPEG", **options)).pixels[-1].max() <= 1


def test_second_picture_behind_a_jpeg_is_not_shown(hostile: ModuleType, good: dict[str, bytes]) -> None:
    np.testing.assert_array_equal(decode(good["appended.jpg"]).pixels, decode(good["grey.jpg"]).pixels)


def test_damaged_mpo_index_warns_nobody(hostile: ModuleType) -> None:
    data = hostile.saved(Image.fromarray(hostile.picture()), "JPEG")
    index = b"\xff\xe2\x00\x10MPF\0" + b"II*\0garb.."
    assert decode(data[:2] + index + data[2:]).height == 96
