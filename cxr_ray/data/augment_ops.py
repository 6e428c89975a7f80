"""The operations of ``augment.py`` as Albumentations transforms; imported only when an image is first changed.

Two things differ from plain Albumentations. ``Compose.set_random_seed`` gives every transform a generator of the *same*
seed, so that "with probability 0.5" decides alike for all of them; here one generator runs through the whole pipeline.
And a new seed an image costs 25 to 200 µs there; setting the key of one Philox generator costs 10.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_ray.data import augment

_BORDERS = {"black": cv2.BORDER_CONSTANT, "replicate": cv2.BORDER_REPLICATE}


class Pipeline:
    """The transforms of one thread and their random numbers.

    Args:
        ops: In order.
    """

    def __init__(self, ops: Sequence[augment.Op]) -> None:
        self._bits = np.random.Philox(key=np.zeros(2, dtype=np.uint64))
        self._fresh = self._bits.state
        self._python = random.Random()
        self._compose = A.Compose([_transform(op) for op in ops], strict=True)
        self._compose.set_random_state(np.random.Generator(self._bits), self._python)

    def __call__(self, image: NDArray[np.uint8], key: int, row: int) -> NDArray[np.uint8]:
        """(H, W) uint8 -> (H, W) uint8, by the random numbers of ``(key, row)``, both below 2**64."""
        self._fresh["state"]["key"][:] = key, row  # its counter stays 0: the stream begins anew
        self._bits.state = self._fresh
        self._python.seed(self._bits.random_raw())
        changed: NDArray[np.uint8] = self._compose(image=image)["image"]
        return changed


class _Sharpness(A.ImageOnlyTransform):
    """See :class:`cxr_ray.data.augment.Sharpness`. Albumentations' own ``Sharpen`` is another filter."""

    def __init__(self, low: float, high: float, p: float) -> None:
        super().__init__(p=p)
        self.low = low
        self.high = high

    def get_params(self) -> dict[str, Any]:
        return {"factor": self.py_random.uniform(self.low, self.high)}

    def apply(self, img: NDArray[np.uint8], factor: float, **params: Any) -> NDArray[np.uint8]:
        if min(img.shape[:2]) < 3:
            return img
        kernel = np.full((3, 3), (1 - factor) / 13, dtype=np.float32)
        kernel[1, 1] = factor + (1 - factor) * 5 / 13
        changed = img.copy()
        changed[1:-1, 1:-1] = cv2.filter2D(img, -1, kernel)[1:-1, 1:-1]  # torchvision leaves the outermost pixels as they are
        return changed


class _Autocontrast(A.ImageOnlyTransform):
    """See :class:`cxr_ray.data.augment.Autocontrast`. A table of 256 entries takes half the time of Albumentations' own."""

    def __init__(self, cutoff: float, p: float) -> None:
        super().__init__(p=p)
        self.cutoff = cutoff

    def apply(self, img: NDArray[np.uint8], **params: Any) -> NDArray[np.uint8]:
        if self.cutoff:
            counts = np.cumsum(np.bincount(img.ravel(), minlength=256))
            ignored = img.size * self.cutoff / 100
            low = int(np.searchsorted(counts, ignored, side="right"))
            high = int(np.searchsorted(counts, img.size - ignored, side="left"))
        else:
            low, high = int(img.min()), int(img.max())
        if low >= high:
            return img
        table = np.clip((np.arange(256) - low) * 255 // (high - low), 0, 255)
        return np.asarray(cv2.LUT(img, table.astype(np.uint8)), dtype=np.uint8)


def _transform(op: augment.Op) -> A.BasicTransform:
    match op:
        case augment.Flip():
            return A.HorizontalFlip(p=op.p)
        case augment.Affine():
            return A.Affine(
                rotate=(-op.rotate, op.rotate),
                translate_percent=(-op.shift, op.shift),
                scale=(1 - op.scale, 1 + op.scale),
                shear=(-op.shear, op.shear),
                keep_ratio=True,
                border_mode=_BORDERS[op.border],
                p=op.p,
            )
        case augment.BrightnessContrast():
            return A.RandomBrightnessContrast((-op.brightness, op.brightness), (-op.contrast, op.contrast), p=op.p)
        case augment.Gamma():
            return A.RandomGamma((100 * (1 - op.gamma), 100 * (1 + op.gamma)), p=op.p)
        case augment.Sharpness():
            return _Sharpness(op.low, op.high, op.p)
        case augment.Autocontrast():
            return _Autocontrast(op.cutoff, op.p)
        case augment.Clahe():
            return A.CLAHE((1.0, op.clip_limit), (op.tiles, op.tiles), p=op.p)
        case augment.Noise():
            return A.GaussNoise(std_range=(op.std / 4, op.std), p=op.p)
        case augment.Blur():
            return A.GaussianBlur(blur_limit=0, sigma_limit=(0.2, op.sigma), p=op.p)
        case augment.CoarseDropout():
            sides = (op.size / 3, op.size)
            return A.CoarseDropout((1, op.holes), sides, sides, fill=0, p=op.p)
        case _:
            raise TypeError(f"no transform for {type(op).__name__}")  # our own invariant: OPERATIONS and this agree
