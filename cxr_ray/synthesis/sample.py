"""Images of a finished generator. The same seed gives the same images, and more of them begin with those of fewer.

Shapes: N images of S x S pixels.
"""

from __future__ import annotations

import numpy as np
import torch

from cxr_ray.models.inference import evaluating
from cxr_ray.synthesis.gan import stream_seed
from cxr_ray.synthesis.networks import Generator
from cxr_ray.synthesis.rare import Images

_SAMPLE_STREAM = 0x6A13
BATCH = 64


def make_images(generator: Generator, count: int, *, seed: int) -> Images:
    """(N, S, S) uint8 images, on the generator's device and in evaluation mode.

    Args:
        generator: The moving average.
        count: N.
        seed: Image ``n`` follows from ``(seed, n)`` alone.
    """
    device = next(generator.parameters()).device
    images = np.empty((count, generator.size, generator.size), np.uint8)
    with evaluating(generator), torch.inference_mode():
        for start in range(0, count, BATCH):
            random = torch.Generator().manual_seed(stream_seed(_SAMPLE_STREAM, seed, start // BATCH))
            x_B1SS = generator(torch.randn(BATCH, generator.latent_size, generator=random).to(device))
            images[start : start + BATCH] = to_pixels(x_B1SS)[: count - start]
    return images


def to_pixels(x_B1SS: torch.Tensor) -> Images:
    """(B, 1, S, S) in -1 … 1 -> (B, S, S) uint8."""
    return ((x_B1SS.squeeze(1).float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
