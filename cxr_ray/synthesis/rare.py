"""The real training images of one class, and the square that the GAN works on. No Ray.

Shapes: N images of H x W pixels (the DATASET's) or S x S (the GAN's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxr_ray.data.columns import IMAGE, pixels, targets_of
from cxr_ray.data.shards import Dataset
from cxr_ray.errors import DatasetError
from cxr_ray.imaging.preprocess import PreprocessSpec, preprocess
from cxr_ray.synthesis.config import LEAST_REAL

PART = "train"
"""The only partition that is read, and the only one that grows."""

Images = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class RareClass:
    """The real images of a class in the training part, in the order of the shards."""

    label: str
    images_NHW: Images
    groups: tuple[str, ...]
    """``group_id`` of each: images of one group are of one patient, or copies."""

    def __len__(self) -> int:
        return len(self.groups)


def count_class(dataset: Dataset, label: str) -> int:
    """Real training images of ``label``, where a GAN can be made of them.

    Raises:
        DatasetError: Several labels an image, folds, an unknown label, no training part, too few real images, or synthetic ones already.
    """
    if dataset.labels.task != "multiclass":
        raise DatasetError(
            f"{dataset.location} has several labels an image; what a GAN of one label draws has no known others",
            hint="a DATASET of one label an image (multiclass)",
        )
    place = dataset.labels.index(label)
    if PART not in dataset.partitions:
        raise DatasetError(
            f"{dataset.location} is split into {', '.join(dataset.partitions)}: with folds, a GAN would have to be trained anew for every "
            "fold on the others alone, or held-out images would show in what is trained on",
            hint="cxr-ray ingest SOURCE --out DATASET --split 0.7,0.15,0.15",
        )
    rows = dataset.read(PART, ["label", "synthetic"])
    of_class = targets_of(rows, dataset.labels) == place
    synthetic = int((of_class & np.asarray(rows["synthetic"].to_numpy())).sum())
    if synthetic:
        raise DatasetError(
            f"{dataset.location} holds {synthetic:,} synthetic images of {label!r} already", hint="start from the DATASET it was made of"
        )
    if of_class.sum() < LEAST_REAL:
        raise DatasetError(
            f"{dataset.location} has {int(of_class.sum()):,} training images of {label!r}; a GAN needs at least {LEAST_REAL} real ones",
            hint="another --label, or more images of this one",
        )
    return int(of_class.sum())


def read_class(dataset: Dataset, label: str) -> RareClass:
    """The real training images of ``label``.

    Raises:
        DatasetError: See :func:`count_class`; or a shard cannot be read.
    """
    count_class(dataset, label)
    place, spec = dataset.labels.index(label), dataset.preprocess
    images: list[Images] = []
    groups: list[str] = []
    for table in dataset.tables(PART, [IMAGE, "label", "group_id"]):
        rows = np.flatnonzero(targets_of(table, dataset.labels) == place)
        images.append(pixels(table, spec.height, spec.width)[rows])
        groups += [str(group) for group in table["group_id"].take(rows).to_pylist()]
    return RareClass(label, np.concatenate(images), tuple(groups))


def resize(images: Images, height: int, width: int) -> Images:
    """(N, H, W) uint8 -> (N, height, width) uint8, by the resize that ingest uses."""
    if images.shape[1:] == (height, width):
        return images
    spec = PreprocessSpec(height=height, width=width)
    resized = np.empty((len(images), height, width), np.uint8)
    for number, image in enumerate(images):
        resized[number] = preprocess(image, spec)
    return resized


def tile(images: Sequence[Images] | Images, columns: int, *, gap: int = 2) -> Images:
    """One grey picture of (N, H, W) images, row by row; what is left of the last row, and the gaps, are white.

    Raises:
        ValueError: No images.
    """
    if not len(images):
        raise ValueError("no images to show")
    height, width = images[0].shape
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), 255, np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet
