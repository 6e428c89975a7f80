"""How near the GAN's images are to the real ones as a set: KID, and FID where there are enough images.

KID (Binkowski et al. 2018, arXiv:1801.01401) is the squared maximum mean discrepancy of features under a cubic kernel. Unlike FID
it has no bias in small samples, and a rare class is one. Alone the number says little, so it comes with a floor (real images
against other real ones) and two ceilings (real against blurred, and against noise), all by subsets of one size.

Shapes: N real images, M made ones, F features.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from cxr_ray.synthesis.extractor import Extractor, Features
from cxr_ray.synthesis.gan import stream_seed
from cxr_ray.synthesis.rare import Images

_KID_STREAM = 0x6A15
SUBSETS = 50
MOST_IN_SUBSET = 100
HALVINGS = 10
"""Random halves of the real images that the floor and the blurred ceiling are means over."""
BLUR = 1 / 16
"""Deviation of the Gaussian of the blurred ceiling, as a part of the height."""
FID_LEAST = 1024
"""FID is left out below so many images of either kind, and below twice as many as there are features."""


@dataclass(frozen=True, slots=True)
class Kid:
    """Mean and standard deviation over subsets; near 0 is good, and it may be below."""

    value: float
    sd: float


@dataclass(frozen=True)
class Quality:
    """KID of the made images, what it could be at best and at worst, and what that was measured with."""

    kid: Kid
    floor: Kid
    """Real against other real images."""
    blurred: Kid
    """Real against other real images that were blurred."""
    noise: Kid
    """Real images against noise."""
    subset: int
    """Images in a subset."""
    images: int
    """Made images that it was measured on: those added, and more of the same generator where these were few."""
    extractor: str
    random_extractor: bool
    fid: float | None
    """None: too few images."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data: ``{"value", "sd", "floor", "blurred", "noise", "subset", "images", "extractor", …}``."""
        numbers = {name: getattr(self, name).value for name in ("floor", "blurred", "noise")}
        rest = {"subset": self.subset, "images": self.images, "extractor": self.extractor, "random_extractor": self.random_extractor}
        return {**asdict(self.kid), **numbers, **rest, "fid": self.fid}


def images_needed(real: int) -> int:
    """Made images to measure on at least, for ``real`` real ones."""
    return min(real, 4 * MOST_IN_SUBSET)


def measure_quality(real: Images, made: Images, extractor: Extractor, *, seed: int = 0) -> Quality:
    """Compare ``made`` with ``real``, both (N, H, W) uint8 of one size; at least 4 real and 2 made images."""
    real_NF, made_MF = extractor.measure(real), extractor.measure(made)
    noise = np.random.default_rng(seed).integers(0, 256, real.shape, dtype=np.uint8)
    blurred_NF, noise_NF = extractor.measure(blur(real)), extractor.measure(noise)
    subset = min(len(real) // 2, len(made), MOST_IN_SUBSET)
    halves = [np.array_split(np.random.default_rng([seed, number]).permutation(len(real)), 2) for number in range(HALVINGS)]
    few = SUBSETS // HALVINGS
    return Quality(
        kid=kid(real_NF, made_MF, subset, seed=seed),
        floor=_mean([kid(real_NF[one], real_NF[other], subset, subsets=few, seed=seed) for one, other in halves]),
        blurred=_mean([kid(real_NF[one], blurred_NF[other], subset, subsets=few, seed=seed) for one, other in halves]),
        noise=kid(real_NF, noise_NF, subset, seed=seed),
        subset=subset,
        images=len(made),
        extractor=extractor.name,
        random_extractor=extractor.is_random,
        fid=fid(real_NF, made_MF) if min(len(real), len(made)) >= max(FID_LEAST, 2 * real_NF.shape[1]) else None,
    )


def kid(real_NF: Features, other_MF: Features, subset: int, *, subsets: int = SUBSETS, seed: int = 0) -> Kid:
    """KID of two sets of features, computed by torchmetrics.

    Args:
        real_NF: Features of one set.
        other_MF: Of the other.
        subset: Images of each in a subset, 2 at least.
        subsets: How many are drawn.
        seed: Of the subsets.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(_KID_STREAM, seed))
        metric = KernelInceptionDistance(feature=nn.Identity(), subsets=subsets, subset_size=subset)
        metric.update(torch.from_numpy(real_NF).double(), real=True)
        metric.update(torch.from_numpy(other_MF).double(), real=False)
        mean, deviation = metric.compute()
    return Kid(float(mean), float(deviation))


def fid(real_NF: Features, other_MF: Features) -> float:
    """Fréchet distance of two sets of features, computed by torchmetrics; biased upwards in small samples."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    same = nn.Identity()
    same.num_features = real_NF.shape[1]
    with _quiet():
        metric = FrechetInceptionDistance(feature=same)
        metric.update(torch.from_numpy(real_NF), real=True)
        metric.update(torch.from_numpy(other_MF), real=False)
        return float(metric.compute())


def blur(images: Images) -> Images:
    """(N, H, W) uint8, each blurred until only the large shapes are left."""
    sigma = images.shape[1] * BLUR
    return np.stack([np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8) for image in images])


def _mean(found: list[Kid]) -> Kid:
    return Kid(float(np.mean([one.value for one in found])), float(np.mean([one.sd for one in found])))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torchmetrics' remark that it keeps all features in memory, which is what we gave it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `.*` will save all extracted features", category=UserWarning)
        yield
