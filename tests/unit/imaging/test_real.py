"""Real files: each decoded, or set aside for its true reason. Skipped where the data are absent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_ray.errors import ImageError
from cxr_ray.imaging.decode import DecodedImage, decode

Watch = Callable[[], AbstractContextManager[None]]

CHEST = {
    # name -> (width, height, bits, mode, whether the lungs come out dark); a polarity that the tags get wrong is told wrong
    "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm": (1024, 1024, 8, "MONOCHROME2", True),
    "966_fixed.dcm": (2000, 2128, 12, "MONOCHROME1", True),
    "CR-MONO1-10-chest": (440, 440, 10, "MONOCHROME1", True),
    "Fake_MONOHR1.dcm": (1024, 1024, 8, "MONOCHROME1", False),
    "JPEG2KLossless_1s_1f_u_16_16.dcm": (1420, 1416, 16, "MONOCHROME2", False),
    "RG1_J2KI.dcm": (1841, 1955, 15, "MONOCHROME1", True),
    "RG1_J2KR.dcm": (1841, 1955, 15, "MONOCHROME1", True),
    "RG1_JLSN.dcm": (1841, 1955, 15, "MONOCHROME1", True),
    "RG1_UNCI.dcm": (1841, 1955, 15, "MONOCHROME1", True),
    "RG1_UNCR.dcm": (1841, 1955, 15, "MONOCHROME1", True),
}
OTHER = {
    "CR-ModalitySequenceLUT.dcm": (1976, 1576, 10, "MONOCHROME1"),
    "RG2_JLSL.dcm": (1760, 2140, 10, "MONOCHROME2"),
    "RG2_JPLL.dcm": (1760, 2140, 10, "MONOCHROME2"),
    "RG2_JPLY.dcm": (1760, 2140, 10, "MONOCHROME2"),
    "RG3_J2KR.dcm": (1760, 1760, 10, "MONOCHROME1"),
    "anon_apct.dcm": (512, 512, 12, "MONOCHROME2"),
}


@pytest.fixture(scope="module")
def chest(real_data: Path) -> dict[str, DecodedImage | str]:
    return decoded(real_data / "dicom_chest")


def decoded(folder: Path) -> dict[str, DecodedImage | str]:
    """Each file's picture, or the reason why there is none; in threads, as the service decodes."""

    def outcome(file: Path) -> DecodedImage | str:
        try:
            return decode(file.read_bytes())
        except ImageError as error:
            return error.reason

    files = sorted(folder.iterdir())
    with ThreadPoolExecutor(2) as pool:
        return {file.name: result for file, result in zip(files, pool.map(outcome, files), strict=True)}


def lungs_are_dark(image: DecodedImage) -> bool:
    """Whether both lung fields are darker than the middle between them."""
    small = cv2.resize(image.pixels, (100, 100), interpolation=cv2.INTER_AREA).astype(float)
    lungs = (small[35:65, 18:35].mean() + small[35:65, 65:82].mean()) / 2
    return bool(lungs < small[35:65, 46:56].mean() - 20)


def test_all_eleven_chest_files(chest: dict[str, DecodedImage | str]) -> None:
    assert chest.pop("966.dcm") == "corrupt"  # its one tile ends in padding: no decoder of JPEG 2000 reads it
    images = {name: image for name, image in chest.items() if isinstance(image, DecodedImage)}
    seen = {name: (image.width, image.height, image.bits, image.mode, lungs_are_dark(image)) for name, image in images.items()}
    assert seen == CHEST
    assert [name for name, image in images.items() if image.remarks] == ["JPEG2KLossless_1s_1f_u_16_16.dcm"]
    for name, image in images.items():
        assert image.pixels.std() > 25, name  # a wrong window is flat


def test_one_picture_in_five_encodings(chest: dict[str, DecodedImage | str]) -> None:
    versions = {
        name: image.pixels.astype(int) for name, image in chest.items() if name.startswith("RG1") and isinstance(image, DecodedImage)
    }
    np.testing.assert_array_equal(versions["RG1_J2KR.dcm"], versions["RG1_UNCR.dcm"])
    np.testing.assert_array_equal(versions["RG1_J2KI.dcm"], versions["RG1_UNCI.dcm"])
    assert np.abs(versions["RG1_JLSN.dcm"] - versions["RG1_UNCR.dcm"]).max() <= 1


def test_false_monochrome1_is_the_negative_of_its_twin(chest: dict[str, DecodedImage | str]) -> None:
    fake, true = chest["Fake_MONOHR1.dcm"], chest["1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm"]
    assert isinstance(fake, DecodedImage)
    assert isinstance(true, DecodedImage)
    np.testing.assert_array_equal(fake.pixels, 255 - true.pixels)


def test_all_six_other_files(real_data: Path) -> None:
    images = {name: image for name, image in decoded(real_data / "dicom_other").items() if isinstance(image, DecodedImage)}
    assert {name: (image.width, image.height, image.bits, image.mode) for name, image in images.items()} == OTHER
    np.testing.assert_array_equal(images["RG2_JLSL.dcm"].pixels, images["RG2_JPLL.dcm"].pixels)
    difference = images["RG2_JPLY.dcm"].pixels.astype(int) - images["RG2_JPLL.dcm"].pixels  # 12 bit JPEG, lossy 35:1
    assert np.abs(difference).mean() < 1
    assert images["anon_apct.dcm"].pixels.mean() == pytest.approx(39, abs=2)


def test_messy_uploads_and_rgba_are_all_read(real_data: Path, silent: Watch) -> None:
    with silent():
        figure1 = [decode(file.read_bytes()) for file in (real_data / "figure1" / "images").iterdir()]
        nih = [decode(file.read_bytes()) for file in sorted((real_data / "nih64" / "images").iterdir())]
    assert Counter(image.format for image in figure1) == {"jpeg": 50, "png": 5}
    assert Counter(image.mode for image in nih) == {"RGB": 979, "RGBA": 21}
    assert all(image.remarks == () for image in figure1 + nih)
    assert min(image.pixels.std() for image in figure1 + nih) > 10
