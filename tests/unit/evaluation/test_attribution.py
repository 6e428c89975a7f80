"""Occlusion and integrated gradients find the part of the image that alone decides, and leave no hook behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cxr_ray.evaluation.integrated import integrated
from cxr_ray.evaluation.occlusion import occlusion

SIZE, TOP, LEFT, SIDE = 56, 12, 32, 12


class Window(nn.Module):
    """The logit of label 1 is how much varies within one window of the image; all else is ignored."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, bias=False))
        self.backbone[0].weight.data = torch.tensor([[[[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]]]])

    def forward(self, images: Tensor) -> Tensor:
        edges = self.backbone(images.float().unsqueeze(1) / 255)[:, 0, TOP : TOP + SIDE, LEFT : LEFT + SIDE]
        return torch.stack([torch.zeros(len(images)), torch.tanh(edges.abs().mean((1, 2)))], 1)


@pytest.mark.parametrize("method", [occlusion, integrated])
def test_the_heat_stands_where_the_answer_comes_from(method: Any) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE), dtype=np.uint8)
    model = Window().eval().requires_grad_(False)
    heat = method(model, torch.from_numpy(image), 1)
    assert heat.shape == (SIZE, SIZE)
    assert heat.dtype == np.float32
    assert 0 <= heat.min() <= heat.max() == pytest.approx(1)
    inside = heat[TOP : TOP + SIDE, LEFT : LEFT + SIDE]
    assert inside.sum() / heat.sum() > 5 * (SIDE / SIZE) ** 2
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert TOP - 1 <= row <= TOP + SIDE
    assert LEFT - 1 <= column <= LEFT + SIDE
    assert not method(model, torch.from_numpy(image), 0).any()  # nothing speaks for the other label
    assert not model.backbone[0]._forward_hooks
