"""The GAN sees the training part's real images of its class and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cxr_ray.data.columns import pixels
from cxr_ray.data.shards import Dataset
from cxr_ray.errors import DatasetError
from cxr_ray.synthesis.rare import read_class, resize, tile


def test_the_real_training_images_of_the_class(dataset: Dataset) -> None:
    found = read_class(dataset, "rare")
    table = dataset.read("train")
    rare = np.asarray(table["label"].to_pylist()) == 1
    assert np.array_equal(found.images_NHW, pixels(table, 32, 36)[rare])
    assert found.groups == tuple(np.asarray(table["group_id"].to_pylist())[rare])
    assert len(found) == 20


@pytest.mark.parametrize(
    ("options", "label", "expected"),
    [
        ({}, "croup", "unknown label 'croup'; this data set has normal, rare"),
        ({"rare": 15}, "rare", "15 training images of 'rare'; a GAN needs at least 16"),
        ({"synthetic": 3}, "rare", "holds 3 synthetic images of 'rare' already"),
        ({"task": "multilabel"}, "rare", "several labels an image"),
        ({"sizes": {"fold-0": 40, "fold-1": 40, "test": 10}}, "rare", "split into fold-0, fold-1, test"),
    ],
)
def test_what_a_gan_cannot_be_made_of(
    options: dict[str, object], label: str, expected: str, tmp_path: Path, write_dataset: Callable[..., Dataset]
) -> None:
    dataset = write_dataset(tmp_path / "dataset", **options)
    with pytest.raises(DatasetError, match=expected):
        read_class(dataset, label)


def test_synthetic_images_of_another_label_are_no_hindrance(tmp_path: Path, write_dataset: Callable[..., Dataset]) -> None:
    assert len(read_class(write_dataset(tmp_path / "dataset", synthetic=3), "normal")) == 20


def test_resize_and_tile() -> None:
    images = np.full((3, 20, 30), 7, np.uint8)
    assert resize(images, 20, 30) is images
    assert np.array_equal(resize(images, 16, 16), np.full((3, 16, 16), 7))
    sheet = tile(images, 2, gap=1)
    assert sheet.shape == (41, 61)
    assert (sheet == 7).sum() == images.size
    with pytest.raises(ValueError, match="no images"):
        tile(images[:0], 2)
