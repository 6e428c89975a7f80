"""Is an image of the GAN a copy of a training image? Its nearest real image tells, beside how near real images are to each other.

Two spaces: pixels (64 x 64, each image of mean 0 and deviation 1, so that brightness and contrast do not hide a copy), and the
features of the extractor (each of mean 0 and deviation 1 over the real images). In both, what all real images have in common (their
mean) is taken away, and what is left of an image is brought to length 1. Else a blurred image, which is near the mean, would be near
to every real one, and look like a copy of all. Distances are root mean squares of differences: 0 for the same direction, 1.41 for
unrelated ones. The yardstick is each real image's nearest real image **of another group**: a patient's own images and copies are not
what is meant.

Shapes: N made images, M real ones, D numbers an image, K nearest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cxr_ray.synthesis.extractor import Features
from cxr_ray.synthesis.rare import Images, resize

SIDE = 64
QUANTILE = 0.05
COPY = 0.5
"""Nearer than this part of the quantile, an image is called a copy."""
NEAREST = 3
BLOCK = 512

Verdict = Literal["ok", "warn", "fail"]
Distances = NDArray[np.float64]


@dataclass(frozen=True)
class Nearness:
    """Distances in one space."""

    made_N: Distances
    """Of each made image to its nearest real one."""
    nearest_NK: NDArray[np.int64]
    """Which real ones are nearest, the nearest first."""
    real_M: Distances
    """Of each real image to its nearest of another group."""

    @property
    def quantile(self) -> float:
        """5 % of the real images are nearer to another one than this."""
        return float(np.quantile(self.real_M, QUANTILE))

    @property
    def share(self) -> float:
        """Of the made images that are nearer to a real one than the quantile; about 0.05 if they were further real images."""
        return float((self.made_N < self.quantile).mean())

    @property
    def copies(self) -> list[int]:
        """Made images at less than half the quantile from a real one."""
        return [int(row) for row in np.flatnonzero(self.made_N < COPY * self.quantile)]

    @property
    def limit(self) -> float:
        """The share that chance explains: 5 % and two standard errors, of both samples."""
        return float(QUANTILE + 2 * (QUANTILE * (1 - QUANTILE) * (1 / len(self.made_N) + 1 / len(self.real_M))) ** 0.5)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "share_below": self.share,
            "limit": self.limit,
            "quantile": self.quantile,
            "copies": len(self.copies),
            "made_median": float(np.median(self.made_N)),
            "made_least": float(self.made_N.min()),
            "real_median": float(np.median(self.real_M)),
        }


@dataclass(frozen=True)
class Memorisation:
    """Nearness in both spaces, and what it comes to."""

    pixels: Nearness
    features: Nearness

    @property
    def copies(self) -> list[int]:
        """Made images that are called copies in either space."""
        return sorted({*self.pixels.copies, *self.features.copies})

    @property
    def verdict(self) -> Verdict:
        """``fail``: there are copies. ``warn``: in either space more images are near a real one than chance explains. Else ``ok``."""
        if self.copies:
            return "fail"
        return "warn" if any(space.share > space.limit for space in (self.pixels, self.features)) else "ok"

    @property
    def reading(self) -> str:
        """The verdict as a sentence."""
        if self.verdict == "fail":
            return f"{len(self.copies)} of {len(self.pixels.made_N)} images are as good as copies of a real one: do not use them."
        shares = f"{self.pixels.share:.1%} by pixels and {self.features.share:.1%} by features"
        if self.verdict == "warn":
            return f"{shares} are nearer to a real image than all but 5 % of real images are to each other: look at the pictures."
        return f"{shares} are nearer to a real image than all but 5 % of real images are to each other; about 5 % is what chance gives."

    def as_dict(self) -> dict[str, Any]:
        """Plain data: ``{"verdict", "reading", "copies", "pixels": {…}, "features": {…}}``."""
        return {
            "verdict": self.verdict,
            "reading": self.reading,
            "copies": len(self.copies),
            "pixels": self.pixels.as_dict(),
            "features": self.features.as_dict(),
        }


def find_memorised(made: Images, real: Images, groups: Sequence[str], made_NF: Features, real_MF: Features) -> Memorisation:
    """Compare made images with the real ones that the GAN saw.

    Args:
        made: (N, H, W) uint8.
        real: (M, H, W) uint8, two at least.
        groups: ``group_id`` of each real image.
        made_NF: Features of the made images.
        real_MF: Features of the real ones.
    """
    spaces = []
    deviation = np.maximum(real_MF.std(0), 1e-6)
    for made_ND, real_MD in ((_as_vectors(made), _as_vectors(real)), (made_NF / deviation, real_MF / deviation)):
        spaces.append(measure_nearness(_individual(made_ND, real_MD), _individual(real_MD, real_MD), groups))
    return Memorisation(*spaces)


def measure_nearness(made_ND: Features, real_MD: Features, groups: Sequence[str]) -> Nearness:
    """Nearest real vectors of each made one, and of each real one among the other groups (all others, if there is one group alone)."""
    made, nearest = [], []
    for start in range(0, len(made_ND), BLOCK):  # all pairs at once would not fit in memory for a class of tens of thousands
        distances_BM = _distances(made_ND[start : start + BLOCK], real_MD)
        order_BK = np.argsort(distances_BM, axis=1, kind="stable")[:, :NEAREST]
        nearest.append(order_BK)
        made.append(np.take_along_axis(distances_BM, order_BK[:, :1], axis=1)[:, 0])
    names = np.array(groups)
    one_group = len(set(groups)) == 1
    others = []
    for start in range(0, len(real_MD), BLOCK):
        distances_BM = _distances(real_MD[start : start + BLOCK], real_MD)
        rows_B = np.arange(start, start + len(distances_BM))
        own_BM = rows_B[:, None] == np.arange(len(names)) if one_group else names[rows_B, None] == names
        others.append(np.where(own_BM, np.inf, distances_BM).min(1))
    return Nearness(np.concatenate(made), np.concatenate(nearest), np.concatenate(others))


def _as_vectors(images: Images) -> Features:
    """(N, H, W) uint8 -> (N, 64 * 64), each of mean 0 and deviation 1."""
    flat = resize(images, SIDE, SIDE).reshape(len(images), -1).astype(np.float32)
    return np.asarray((flat - flat.mean(1, keepdims=True)) / np.maximum(flat.std(1, keepdims=True), 1e-6), np.float32)


def _individual(vectors_ND: Features, real_MD: Features) -> Features:
    """What each vector has beside the mean of the real ones, as a direction: its root mean square is 1."""
    beside = vectors_ND - real_MD.mean(0)
    return np.asarray(beside / np.maximum(np.sqrt((beside**2).mean(1, keepdims=True)), 1e-6), np.float32)


def _distances(one_ND: Features, other_MD: Features) -> Distances:
    one, other = one_ND.astype(np.float64), other_MD.astype(np.float64)  # a copy's distance is a difference of large numbers
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1)[None, :] - 2 * one @ other.T
    return np.asarray(np.sqrt(np.maximum(squares, 0.0) / one.shape[1]))
