"""Random changes of training images: which there are, their limits, and the named sets.

The random numbers of an image follow from ``(seed, epoch, row id)`` alone: the same image is changed in the same way
whatever the batch it stands in, the number of workers or of threads; a resumed run repeats what an undisturbed one does.

A horizontal flip puts the heart on the right and mirrors the side markers: an anatomy that hardly exists. Paper 004 flips
all the same, for more variety, and so do our sets; list operations without ``flip`` where laterality is a finding.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cxr_ray.config import AugmentOp
from cxr_ray.errors import ConfigError
from cxr_ray.settings import Settings, parse_settings

if TYPE_CHECKING:
    from cxr_ray.data.augment_ops import Pipeline

_AUGMENT_STREAM = 0xA06
"""Keeps these random numbers apart from others that follow from the same seed."""


class Op(Settings):
    """One operation. ``p`` is the probability that an image gets it; limits are uniform unless said otherwise."""

    p: float = Field(default=0.5, ge=0.0, le=1.0)


class Flip(Op):
    """Mirror left and right. See the module's warning on the heart."""


class Affine(Op):
    """Rotation, shift, scale and shear in one resampling (bilinear)."""

    rotate: float = Field(default=15.0, ge=0.0, le=180.0)
    """Largest angle either way, in degrees."""
    shift: float = Field(default=0.0, ge=0.0, le=0.5)
    """Largest shift either way, as a part of height and width."""
    scale: float = Field(default=0.0, ge=0.0, le=0.9)
    """Size 1 - scale to 1 + scale; one factor for both axes."""
    shear: float = Field(default=0.0, ge=0.0, le=45.0)
    """Largest shear of each axis either way, in degrees."""
    border: Literal["black", "replicate"] = "black"
    """What stands outside the image: black, or the nearest edge pixel (Keras ``fill_mode='nearest'``)."""


class BrightnessContrast(Op):
    """pixel * (1 ± contrast) + 255 * (± brightness)."""

    brightness: float = Field(default=0.2, ge=0.0, le=1.0)
    contrast: float = Field(default=0.2, ge=0.0, le=1.0)


class Gamma(Op):
    """(pixel / 255) ** (1 ± gamma)."""

    gamma: float = Field(default=0.2, ge=0.0, lt=1.0)


class Sharpness(Op):
    """Blend with a 3×3 smoothed copy, as torchvision's ``RandomAdjustSharpness``: 0 smooth, 1 unchanged, 2 sharper."""

    low: float = Field(default=2.0, ge=0.0, le=10.0)
    high: float = Field(default=2.0, ge=0.0, le=10.0)

    @model_validator(mode="after")
    def _ordered(self) -> Sharpness:
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        return self


class Autocontrast(Op):
    """Stretch the darkest pixel to 0 and the brightest to 255, as torchvision's ``RandomAutocontrast``."""

    cutoff: float = Field(default=0.0, ge=0.0, lt=50.0)
    """Per cent of the pixels at each end that are ignored."""


class Clahe(Op):
    """Contrast-limited adaptive histogram equalisation."""

    clip_limit: float = Field(default=3.0, ge=1.0, le=40.0)
    """Drawn from 1 to this."""
    tiles: int = Field(default=8, ge=1, le=64)
    """Tiles along each axis."""


class Noise(Op):
    """Gaussian noise, pixel by pixel."""

    std: float = Field(default=0.03, gt=0.0, le=1.0)
    """Largest standard deviation as a part of 255; drawn from a quarter of it to this."""


class Blur(Op):
    """Gaussian blur."""

    sigma: float = Field(default=1.0, ge=0.2, le=10.0)
    """Largest standard deviation in pixels; drawn from 0.2 to this."""


class CoarseDropout(Op):
    """Black rectangles."""

    holes: int = Field(default=4, ge=1, le=64)
    """At most so many."""
    size: float = Field(default=0.15, gt=0.0, le=1.0)
    """Largest height and width as a part of the image's; drawn from a third of it to this."""


OPERATIONS: Mapping[str, type[Op]] = {
    "flip": Flip,
    "affine": Affine,
    "brightness_contrast": BrightnessContrast,
    "gamma": Gamma,
    "sharpness": Sharpness,
    "autocontrast": Autocontrast,
    "clahe": Clahe,
    "noise": Noise,
    "blur": Blur,
    "coarse_dropout": CoarseDropout,
}
"""What a recipe may list under ``augment``, as ``{op: affine, p: 0.5, rotate: 15}``."""

_ROTATION_001 = (Affine(p=1.0, rotate=15.0, border="replicate"),)

NAMED_SETS: Mapping[str, tuple[Op, ...]] = {
    "none": (),
    "flip": (Flip(),),
    "light": (Flip(), Affine(rotate=7.0, shift=0.03, scale=0.05), BrightnessContrast(brightness=0.1, contrast=0.1)),
    "standard": (
        Flip(),
        Affine(p=0.8, rotate=15.0, shift=0.05, scale=0.1, shear=3.0),
        BrightnessContrast(),
        Gamma(p=0.2),
        Sharpness(p=0.2, low=0.5, high=2.0),
        Autocontrast(p=0.1),
        Clahe(p=0.1),
        Noise(p=0.2),
    ),
    "paper-001": _ROTATION_001,  # the authors' script: Keras rotation_range=15, fill_mode='nearest', on every image
    "paper-003": _ROTATION_001,
    "paper-004": (Sharpness(low=2.0, high=2.0), Autocontrast(), Flip()),
}
"""Sets by name. ``paper-*`` are the papers' own."""


class Augmentation:
    """Operations in their order, ready for any number of threads. Empty: nothing is changed.

    Args:
        ops: Checked operations; :func:`build_augmentation` makes them of a recipe.
    """

    def __init__(self, ops: Sequence[Op]) -> None:
        self.ops = tuple(op for op in ops if op.p > 0)
        self._threads = threading.local()  # a pipeline holds the state of its random numbers: one a thread

    def __reduce__(self) -> tuple[Any, ...]:
        return Augmentation, (self.ops,)

    def __len__(self) -> int:
        return len(self.ops)

    def apply(self, images: NDArray[np.uint8], seed: int, epoch: int, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Change each image by random numbers of its own.

        Args:
            images: (B, H, W) uint8; not changed.
            seed: Of the run, at least 0.
            epoch: From 0.
            rows: (B,) row ids in the DATASET, at least 0.

        Returns:
            (B, H, W) uint8.

        Raises:
            ValueError: Another shape or dtype, or another number of row ids.
        """
        if images.ndim != 3 or images.dtype != np.uint8 or len(rows) != len(images):
            raise ValueError(f"expected (B, H, W) uint8 and B row ids, got {images.shape} {images.dtype} and {len(rows)}")
        if not self.ops:
            return images.copy()
        key = int(np.random.SeedSequence([_AUGMENT_STREAM, seed, epoch]).generate_state(1, np.uint64)[0])
        pipeline = self._pipeline()
        changed = np.empty_like(images)
        for position, row in enumerate(np.asarray(rows, dtype=np.int64).tolist()):
            changed[position] = pipeline(images[position], key, row)
        return changed

    def _pipeline(self) -> Pipeline:
        if not hasattr(self._threads, "pipeline"):
            os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it asks the network for a newer version when imported
            from cxr_ray.data.augment_ops import Pipeline

            self._threads.pipeline = Pipeline(self.ops)
        pipeline: Pipeline = self._threads.pipeline
        return pipeline


def build_augmentation(spec: str | Sequence[AugmentOp]) -> Augmentation:
    """The augmentation of a recipe.

    Args:
        spec: A name of :data:`NAMED_SETS`, or operations in order.

    Raises:
        ConfigError: No set of this name, or unknown operations or parameters: all of them, each with what is valid.
    """
    if isinstance(spec, str):
        if spec not in NAMED_SETS:
            raise ConfigError([f"no set named {spec!r}; there are: {', '.join(NAMED_SETS)}, or list operations"], where="augment")
        return Augmentation(NAMED_SETS[spec])
    ops: list[Op] = []
    faults: list[str] = []
    for position, entry in enumerate(spec):
        kind = OPERATIONS.get(entry.op)
        if kind is None:
            faults.append(f"augment.{position}.op: unknown operation {entry.op!r}; valid: {', '.join(OPERATIONS)}")
            continue
        try:
            ops.append(parse_settings(kind, {"p": entry.p, **(entry.model_extra or {})}, where="augment"))
        except ConfigError as error:
            faults += [f"augment.{position}.{entry.op}.{fault}" for fault in error.faults]
    if faults:
        raise ConfigError(faults, where="augment")
    return Augmentation(ops)
