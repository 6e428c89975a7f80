"""Exponential moving average of the weights, a step at a time."""

from __future__ import annotations

import copy

import torch
from torch import nn


class MovingAverage:
    """A copy of a network whose weights follow the original's: ``average = decay * average + (1 - decay) * weight``.

    Floating-point buffers (the statistics of batch normalisation) are averaged too; others are copied. Not
    ``torch.optim.swa_utils.AveragedModel``: with ``use_buffers`` it averages integer buffers in floating point and cuts off the
    rest, which would spoil an index.

    Args:
        model: The network that learns; the average starts from its weights.
        decay: Between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of ``model`` after a step."""
        averages, weights = [], []
        own = self.model.state_dict()
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                averages.append(own[name])
                weights.append(value)
            else:
                own[name].copy_(value)
        torch._foreach_lerp_(averages, weights, 1 - self.decay)
