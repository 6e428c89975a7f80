"""Intervals by patient and what chance alone would give: resamples and shuffles of groups, AUROC, Cramér's V.

Shapes: R resamples or shuffles, N images, K labels, L levels of a facet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Draws:
    """Drawn once and used by every check, so that two figures of the same images can be compared resample by resample."""

    weights_RN: Floats
    """How often each image's group was drawn, with replacement."""
    shuffles_RN: NDArray[np.int64]
    """Whose label each image gets: the labels of a group go to another group of the same size, together."""

    @classmethod
    def of(cls, groups: NDArray[np.str_], *, count: int, seed: int) -> Draws:
        """``count`` resamples and as many shuffles of (N,) groups."""
        names, cluster = np.unique(groups, return_inverse=True)
        generator = np.random.default_rng(seed)
        times = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=count)
        order = np.argsort(cluster, kind="stable")
        starts = np.searchsorted(cluster[order], np.arange(len(names)))
        sizes = np.bincount(cluster)
        shuffles = np.empty((count, len(groups)), np.int64)
        for size in np.unique(sizes):
            rows = order[starts[sizes == size][:, None] + np.arange(size)]  # (groups of this size, their rows)
            for one in shuffles:
                one[rows] = rows[generator.permutation(len(rows))]
        return cls(times[:, cluster].astype(np.float64), shuffles)


def interval(values_R: Floats, bias: float = 0.0) -> tuple[float, float]:
    """The middle 95 %, less ``bias``, within 0..1 where there is one; undefined resamples are left out."""
    low, high = np.nanpercentile(values_R, [2.5, 97.5]) - bias
    return (float(low), float(high)) if not bias else (float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1)))


def auroc(scores_N: Floats, positive_RN: Floats, negative_RN: Floats) -> Floats:
    """(R,) area under the ROC curve with weights; ties count half; NaN where a side has no weight."""
    order = np.argsort(scores_N, kind="stable")
    starts = np.flatnonzero(np.diff(scores_N[order], prepend=np.nan) != 0)  # NaN differs from everything: the first is a start
    positive = np.add.reduceat(positive_RN[:, order], starts, axis=1)
    negative = np.add.reduceat(negative_RN[:, order], starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((positive * below).sum(axis=1) / pairs)


def macro_auroc(scores_NK: Floats, truth_NK: Floats, weights_RN: Floats | None = None, shuffles_RN: NDArray[Any] | None = None) -> Floats:
    """(R,) mean over labels of one against the rest; labels without scores (NaN) and unknown truths are left out."""
    found = []
    for scores, truth in zip(scores_NK.T, truth_NK.T, strict=True):
        if np.isnan(scores).any():
            continue
        told = truth[None] if shuffles_RN is None else truth[shuffles_RN]
        weights = np.ones((1, 1)) if weights_RN is None else weights_RN
        found.append(auroc(scores, weights * (told == 1), weights * (told == 0)))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.mean(found, axis=0), dtype=np.float64)


def cramers_v(tables_RKL: Floats) -> Floats:
    """(R,) association of two nominal variables, corrected for bias (Bergsma 2013, eq. 9-11); 0 where one does not vary."""
    total = tables_RKL.sum(axis=(1, 2))
    rows, columns = tables_RKL.sum(axis=2), tables_RKL.sum(axis=1)
    expected = rows[:, :, None] * columns[:, None, :] / total[:, None, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        square = np.nansum((tables_RKL - expected) ** 2 / expected, axis=(1, 2)) / total
    k, levels = (rows > 0).sum(axis=1), (columns > 0).sum(axis=1)
    square = np.maximum(0, square - (k - 1) * (levels - 1) / (total - 1))
    least = np.minimum(k - (k - 1) ** 2 / (total - 1), levels - (levels - 1) ** 2 / (total - 1)) - 1
    return np.asarray(np.sqrt(np.divide(square, least, out=np.zeros_like(square), where=least > 0)))


def contingency(truth_NK: Floats, levels_N: NDArray[np.int64], count: int, weights_RN: Floats) -> Floats:
    """(R, K, L) weighted counts of each label by each of ``count`` levels."""
    joint = (truth_NK[:, :, None] == 1) & (levels_N[:, None, None] == np.arange(count))
    counts = weights_RN @ joint.reshape(len(truth_NK), -1)
    return np.asarray(counts.reshape(len(weights_RN), truth_NK.shape[1], count))
