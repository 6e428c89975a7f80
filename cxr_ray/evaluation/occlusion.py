"""What an image loses when a part of it is covered (Zeiler & Fergus 2014): slow, and true of any network, without gradients.

A square is moved over the image. It shows what is there strongly blurred, not a flat grey: a flat square is itself a thing that no X-ray
holds, and a lung darkened to the mean grey would look denser than it is. A pixel's heat is the mean fall of the label's logit over the
squares that covered it; where covering raises the logit it is 0.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

SQUARE: Final = 1 / 7
"""Side of the square as a share of the image's sides; neighbouring squares overlap by half."""
BLUR: Final = 1 / 10
"""Standard deviation of the blur inside, likewise."""
_BATCH: Final = 64


@torch.no_grad()
def occlusion(model: nn.Module, image_1HW: Tensor, label: int) -> NDArray[np.float32]:
    """Where covering the image costs the label its logit.

    Args:
        model: Images (B, H, W) -> logits (B, K), in evaluation mode.
        image_1HW: uint8, on the model's device.
        label: 0 … K - 1.

    Returns:
        (H, W), 0 … 1; all 0 where covering costs nothing anywhere.
    """
    height, width = image_1HW.shape[1:]
    grey = image_1HW[0].cpu().numpy()
    deviation = BLUR * max(height, width)
    blurred = torch.from_numpy(cv2.GaussianBlur(grey, (0, 0), deviation)).to(image_1HW.device)
    windows = [(rows, columns) for rows in _spans(height) for columns in _spans(width)]
    whole = float(model(image_1HW)[0, label])
    fall_HW, times_HW = np.zeros((height, width)), np.zeros((height, width))
    for start in range(0, len(windows), _BATCH):
        some = windows[start : start + _BATCH]
        covered = image_1HW.repeat(len(some), 1, 1)
        for copy, (rows, columns) in zip(covered, some, strict=True):
            copy[rows, columns] = blurred[rows, columns]
        for (rows, columns), logit in zip(some, model(covered)[:, label].tolist(), strict=True):
            fall_HW[rows, columns] += whole - logit
            times_HW[rows, columns] += 1
    heat_HW = np.maximum(fall_HW / times_HW, 0.0)
    return np.asarray(heat_HW / max(heat_HW.max(), 1e-12), dtype=np.float32)


def _spans(length: int) -> list[slice]:
    """Overlapping pieces of 0 … ``length``, the last one flush with the end."""
    side = max(1, round(SQUARE * length))
    starts = list(range(0, length - side, max(1, side // 2)))
    return [slice(start, start + side) for start in (*starts, length - side)]
