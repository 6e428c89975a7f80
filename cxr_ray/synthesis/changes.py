"""Differentiable augmentation (Zhao et al. 2020, arXiv:2006.10738): what the discriminator sees, real or made, is changed alike in kind.

The generator learns through the changes, so they do not show in its images. Shapes: B images of S x S pixels, (B, 1, S, S) in -1 … 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_SHIFT = 1 / 8
"""Of the side; what moves in is mid-grey (0)."""
CUTOUT = 1 / 2
"""Side of the square that is set to 0, as a part of the image's."""


@dataclass(frozen=True)
class ChangePlan:
    """Random numbers of the changes for B images; None: that change is off. Drawn for a whole global batch, so ranks can share it."""

    shift_B2: Tensor | None
    """int64, pixels down and to the right."""
    brightness_B: Tensor | None
    """Added to all pixels; -0.5 … 0.5."""
    cutout_B2: Tensor | None
    """int64, middle of the square: row and column."""

    def part(self, start: int, stop: int) -> ChangePlan:
        """Those of images ``start`` to ``stop``."""
        every = (self.shift_B2, self.brightness_B, self.cutout_B2)
        return ChangePlan(*(None if values is None else values[start:stop] for values in every))


def draw_plan(names: Sequence[str], count: int, size: int, generator: torch.Generator) -> ChangePlan:
    """Random numbers for ``count`` images.

    Args:
        names: Of ``translation``, ``brightness``, ``cutout``.
        count: B.
        size: S.
        generator: On the CPU.
    """
    most = round(size * MOST_SHIFT)
    return ChangePlan(
        torch.randint(-most, most + 1, (count, 2), generator=generator) if "translation" in names else None,
        torch.rand(count, generator=generator) - 0.5 if "brightness" in names else None,
        torch.randint(0, size, (count, 2), generator=generator) if "cutout" in names else None,
    )


def change(x_B1SS: Tensor, plan: ChangePlan) -> Tensor:
    """The images with the changes of ``plan``; gradients pass through."""
    device = x_B1SS.device
    if plan.brightness_B is not None:
        x_B1SS = x_B1SS + plan.brightness_B.to(device, x_B1SS.dtype)[:, None, None, None]
    if plan.shift_B2 is not None:
        x_B1SS = _translate(x_B1SS, plan.shift_B2.to(device))
    if plan.cutout_B2 is not None:
        x_B1SS = x_B1SS * _outside(plan.cutout_B2.to(device), x_B1SS.shape[-1]).to(x_B1SS.dtype)
    return x_B1SS


def _translate(x_B1SS: Tensor, shift_B2: Tensor) -> Tensor:
    size = x_B1SS.shape[-1]
    most = round(size * MOST_SHIFT)
    padded = F.pad(x_B1SS, (most,) * 4)
    places_B2S = torch.arange(size, device=x_B1SS.device) + most - shift_B2[:, :, None]  # where each row and column comes from
    images = torch.arange(len(x_B1SS), device=x_B1SS.device)[:, None, None]
    return padded[:, 0][images, places_B2S[:, 0, :, None], places_B2S[:, 1, None, :]].unsqueeze(1)


def _outside(middle_B2: Tensor, size: int) -> Tensor:
    """(B, 1, S, S) of True where the square is not; squares may stand over the edge."""
    side = round(size * CUTOUT)
    first_B21 = (middle_B2 - side // 2)[:, :, None]
    places_S = torch.arange(size, device=middle_B2.device)
    inside_B2S = (places_S >= first_B21) & (places_S < first_B21 + side)
    return ~(inside_B2S[:, 0, :, None] & inside_B2S[:, 1, None, :]).unsqueeze(1)
