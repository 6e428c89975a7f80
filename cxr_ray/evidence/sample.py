"""The images that are looked at, with what the model makes of them.

Shapes: N images of H x W pixels, K labels, C channels of the feature map, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cxr_ray.data.columns import IMAGE, pixels, targets_of
from cxr_ray.data.shards import Dataset
from cxr_ray.evaluation.metrics import bootstrap
from cxr_ray.imaging.lungs import lung_mask
from cxr_ray.labels import LabelSet
from cxr_ray.models.classifier import Classifier
from cxr_ray.models.ensemble import Ensemble
from cxr_ray.models.inference import predict_with_pooled

Floats = NDArray[np.float64]
RESAMPLES: Final = 400


@dataclass(frozen=True)
class Sample:
    """Some images of a part and what the model makes of them."""

    images: NDArray[np.uint8]
    """(N, H, W)."""
    targets: NDArray[Any]
    """(N,) positions in the label set, or (N, K) of 1, 0 and NaN."""
    about: pa.Table
    """(N) rows of the part without pixels."""
    labels: LabelSet
    probabilities: NDArray[np.float32]
    """(N, K), before any calibration: the checks compare ranks."""
    pooled: NDArray[np.float32]
    """(N, C), the feature map's mean."""
    whole: int
    """Images of the part."""
    seed: int

    def __len__(self) -> int:
        return len(self.images)

    @property
    def groups(self) -> NDArray[np.str_]:
        """(N,) patient with all copies: what is drawn together, and never stands on both sides of a fold."""
        return np.array(self.about.column("group_id").to_pylist(), dtype=str)

    @property
    def sources(self) -> NDArray[np.str_]:
        """(N,)."""
        return np.array(self.about.column("source").to_pylist(), dtype=str)

    @cached_property
    def lungs(self) -> NDArray[np.bool_]:
        """(N, H, W) masks of :func:`cxr_ray.imaging.lungs.lung_mask`."""
        return np.stack([lung_mask(image) for image in self.images])

    @cached_property
    def spread(self) -> dict[str, tuple[float, Floats]]:
        """``macro_auroc`` and ``macro_f1`` of the sample: value and (R,) resamples."""
        return self.figures(self.probabilities)

    def figures(self, probabilities: NDArray[Any]) -> dict[str, tuple[float, Floats]]:
        """The same of other answers for the same images, with the same patients in each resample."""
        point, spread = bootstrap(probabilities, self.targets, self.groups, self.labels, seed=self.seed, resamples=RESAMPLES)
        return {name: (float(point[name][0]), spread[name]) for name in ("macro_auroc", "macro_f1")}

    def first(self, count: int) -> Sample:
        """The first ``count`` of the images, which stand in random order."""
        few = slice(0, count)
        return Sample(
            self.images[few],
            self.targets[few],
            self.about.slice(0, count),
            self.labels,
            self.probabilities[few],
            self.pooled[few],
            self.whole,
            self.seed,
        )


def draw_sample(model: Classifier | Ensemble, dataset: Dataset, split: str, *, most: int, seed: int) -> Sample:
    """At most ``most`` images of a part, drawn at random and in random order, with the model's answers.

    Raises:
        DatasetError: No such part, or a shard cannot be read.
    """
    whole = dataset.count(split)
    chosen = np.random.default_rng(seed).permutation(whole)[:most]
    place = np.argsort(np.argsort(chosen))  # where each drawn row comes to stand when the part is read in order
    wanted, start, images, tables = np.sort(chosen), 0, [], []
    for table in dataset.tables(split):
        rows = wanted[(wanted >= start) & (wanted < start + table.num_rows)] - start
        start += table.num_rows
        if len(rows):
            images.append(pixels(table, dataset.preprocess.height, dataset.preprocess.width)[rows])
            tables.append(table.drop_columns([IMAGE]).take(pa.array(rows)))
    pixels_NHW, about = np.concatenate(images)[place], pa.concat_tables(tables).take(pa.array(place))
    probabilities, pooled = predict_with_pooled(model, pixels_NHW, dataset.labels.task)
    return Sample(pixels_NHW, targets_of(about, dataset.labels), about, dataset.labels, probabilities, pooled, whole, seed)


def interval(values_R: Floats) -> tuple[float, float] | None:
    """The middle 95 % of the resamples that are defined; None: none is."""
    defined = values_R[np.isfinite(values_R)]
    if not len(defined):
        return None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)
