from __future__ import annotations

import torch
from torch import nn

from cxr_ray.training.ema import MovingAverage


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.norm = nn.BatchNorm1d(1)
        self.register_buffer("order", torch.tensor([3, 1, 2]))


def test_average_of_weights_and_statistics() -> None:
    model = Layer()
    average = MovingAverage(model, 0.9)
    expected, statistic = model.weight.detach().clone(), 0.0
    for step in range(1, 4):
        with torch.no_grad():
            model.weight += step
            model.norm.running_mean += step
        average.update(model)
        expected = 0.9 * expected + 0.1 * model.weight.detach()
        statistic = 0.9 * statistic + 0.1 * float(model.norm.running_mean)
    assert torch.allclose(average.model.weight, expected)
    assert abs(float(average.model.norm.running_mean) - statistic) < 1e-6
    assert not average.model.weight.requires_grad
    assert not average.model.training


def test_integer_buffers_are_copied() -> None:
    model = Layer()
    average = MovingAverage(model, 0.9)
    model.order.copy_(torch.tensor([2, 3, 1]))
    model.norm.num_batches_tracked += 7
    average.update(model)
    assert average.model.order.tolist() == [2, 3, 1]
    assert int(average.model.norm.num_batches_tracked) == 7
