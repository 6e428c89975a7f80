"""Settings of a GAN, and which image sizes it can do."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cxr_ray.errors import DatasetError
from cxr_ray.settings import Settings

LEAST_SIDE, MOST_SIDE = 32, 256
"""Height and width of images that can be enlarged, in pixels."""
LARGEST_WORK_SIZE = 128
LEAST_REAL = 16
"""A GAN of fewer real training images could do nothing but copy them."""

STEPS = 2_000
"""Asked for nothing else, a GAN is trained for so many: images of 82 croup phantoms came out like slightly blurred phantoms."""

Change = Literal["translation", "brightness", "cutout"]


class _Gan(Settings):
    batch_size: int = Field(default=16, ge=2)
    """Images a step over all workers; at most the number of real images is used. The paper's 128 would be all of a rare class."""
    size: Literal[32, 64, 128] | None = None
    """Side in pixels of the square the GAN works on. None: the largest power of two that fits the images, at most 128."""
    latent_size: int = Field(default=100, ge=1)
    """Numbers an image is made of; drawn from a normal distribution (the paper: a uniform one)."""
    generator_width: int = Field(default=32, ge=1)
    """Channels of the generator's last hidden layer; each earlier layer has twice as many, at most 8 times (the paper's 64 px: 64)."""
    discriminator_width: int = Field(default=32, ge=1)
    """Channels of the discriminator's first layer, doubled in the same way."""
    lr: float = Field(default=2e-4, gt=0.0)
    """Of Adam, for both networks."""
    beta1: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Of Adam."""
    real_target: float = Field(default=0.9, gt=0.5, le=1.0)
    """What the discriminator should say of real images: one-sided label smoothing (Salimans et al. 2016). 1: off."""
    changes: tuple[Change, ...] = ("translation", "brightness", "cutout")
    """Differentiable augmentation (Zhao et al. 2020) of all that the discriminator sees. Empty: off."""
    ema_decay: float = Field(default=0.999, ge=0.0, lt=1.0)
    """Images are made by a moving average of the generator, a step at a time; it follows faster in the first steps."""
    seed: int = Field(default=0, ge=0)
    """Of the first weights, the order, the noise, the augmentation, and the images made in the end."""


class GanConfig(_Gan):
    """A DCGAN (Radford et al. 2016) with what few images need beside it. Defaults are the paper's unless said."""

    epochs: int = Field(ge=1)
    """Passes over the class's real images; a last, smaller batch is left out."""
    checkpoint_every: int = Field(ge=1)
    """Epochs between checkpoints, sample grids and news."""


class GanRequest(_Gan):
    """A :class:`GanConfig` that leaves to the number of images what depends on it."""

    epochs: int | None = Field(default=None, ge=1)
    """None: as many as make 2,000 steps."""
    checkpoint_every: int | None = Field(default=None, ge=1)
    """None: a twentieth of the epochs."""

    def settle(self, real_images: int) -> GanConfig:
        """The settings for so many real images."""
        steps = max(1, real_images // min(self.batch_size, real_images))
        epochs = self.epochs or -(-STEPS // steps)
        return GanConfig(**{**self.model_dump(), "epochs": epochs, "checkpoint_every": self.checkpoint_every or max(1, epochs // 20)})


def work_size(height: int, width: int, size: int | None = None) -> int:
    """Side in pixels of the square the GAN works on, for images of ``height`` x ``width``.

    Images are resized to that square, in both directions by the project's own resize, and the GAN's images back.

    Args:
        height: Of the DATASET's images.
        width: Of the same.
        size: Asked for. None: the largest power of two that is neither above the smaller side nor above 128.

    Raises:
        DatasetError: The images are smaller than 32 or larger than 256 pixels.
    """
    if min(height, width) < LEAST_SIDE or max(height, width) > MOST_SIDE:
        raise DatasetError(
            f"images of {height}x{width}: a GAN is made for {LEAST_SIDE} to {MOST_SIDE} pixels a side",
            hint="cxr-ray ingest SOURCE --out DATASET --size 64 (or up to 256)",
        )
    return size or min(LARGEST_WORK_SIZE, 1 << (min(height, width).bit_length() - 1))
