"""The images that the checks look at: all of a small DATASET, a stratified draw of a large one.

Shapes: N images, K labels, S pixels a side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cxr_ray.data.columns import pixels, targets_of
from cxr_ray.data.shards import Dataset
from cxr_ray.labels import LabelSet

SIDE: Final = 64
"""S: the checks look for what is coarse; a marker of a twentieth of the width is still three pixels."""
MOST: Final = 5_000
"""Images of a whole audit."""


@dataclass(frozen=True)
class Sample:
    """Some images of a DATASET and what is known of them."""

    images: NDArray[np.uint8]
    """(N, S, S); area-averaged from the DATASET's pixels."""
    targets: NDArray[Any]
    """(N,) positions in the label set, or (N, K) of 1, 0 and NaN."""
    groups: NDArray[np.str_]
    """(N,) patient with all copies: what is drawn together and never stands on both sides of a fold."""
    about: pa.Table
    """(N) rows of the index."""
    labels: LabelSet
    whole: int
    """Images of the DATASET that might have been drawn."""

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def truth(self) -> NDArray[np.float64]:
        """(N, K) of 1, 0 and NaN, for either task."""
        if self.labels.task == "multilabel":
            return np.asarray(self.targets, dtype=np.float64)
        return np.asarray(np.eye(len(self.labels))[self.targets])

    @cached_property
    def strata(self) -> NDArray[np.int64]:
        """(N,) the class; of several labels the rarest that the image has, K for none."""
        return strata(self.targets, len(self.labels))

    def column(self, name: str) -> list[Any] | None:
        """A column of the index; None: this DATASET does not have it."""
        return list(self.about.column(name).to_pylist()) if name in self.about.column_names else None


def strata(targets: NDArray[Any], labels: int) -> NDArray[np.int64]:
    """(N,) one number an image to stratify by; see :attr:`Sample.strata`."""
    if targets.ndim == 1:
        return np.asarray(targets, dtype=np.int64)
    rarest_first = np.argsort((targets == 1).sum(axis=0), kind="stable")
    has = (targets == 1)[:, rarest_first]
    return np.where(has.any(axis=1), rarest_first[has.argmax(axis=1)], labels).astype(np.int64)


def draw_sample(dataset: Dataset, *, most: int = MOST, seed: int = 0) -> Sample:
    """Up to ``most`` images, each stratum by its share; one shard's pixels in memory at a time.

    Images made by a GAN are left out, unless there are no others.

    Raises:
        DatasetError: A shard cannot be read.
    """
    index = dataset.index()
    made = np.asarray(index.column("synthetic").to_pylist(), dtype=bool)
    open_rows = np.flatnonzero(~made) if not made.all() else np.arange(len(made))
    targets = targets_of(index, dataset.labels)
    rows = _choose(strata(targets, len(dataset.labels))[open_rows], most, seed)
    rows = open_rows[rows]
    about = index.take(pa.array(rows))
    groups = np.asarray(about.column("group_id").to_pylist(), dtype=str)
    return Sample(_read(dataset, rows), targets[rows], groups, about, dataset.labels, len(open_rows))


def _choose(kinds: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """Sorted positions; of each kind its share, rounded up, in random order cut to ``most``."""
    if len(kinds) <= most:
        return np.arange(len(kinds))
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(kinds))
    of_kind = [order[kinds[order] == kind] for kind in np.unique(kinds)]
    chosen = [rows[: -(-len(rows) * most // len(kinds))] for rows in of_kind]
    return np.sort(generator.permutation(np.concatenate(chosen))[:most])


def _read(dataset: Dataset, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(N, S, S) of the rows of the index, which is in the order of the shards."""
    images = np.empty((len(rows), SIDE, SIDE), np.uint8)
    start = place = 0
    for partition in dataset.partitions:
        for table in dataset.tables(partition, ["image"]):
            found = pixels(table, dataset.preprocess.height, dataset.preprocess.width)
            stop = int(np.searchsorted(rows, start + len(found)))
            for row in rows[place:stop]:
                images[place] = cv2.resize(found[row - start], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
                place += 1
            start += len(found)
    return images
