from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cxr_ray.config import ClipConfig, OptimizerConfig, ScheduleConfig
from cxr_ray.models.classifier import Classifier
from cxr_ray.training.optim import build_optimizer, clip_gradients, learning_rate_factor, set_learning_rate


def factors(config: ScheduleConfig, *, steps_per_epoch: int = 5, epochs: int = 4) -> list[float]:
    return [learning_rate_factor(config, step, steps_per_epoch=steps_per_epoch, epochs=epochs) for step in range(steps_per_epoch * epochs)]


def of_torch(make: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler], steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_cosine_is_that_of_torch() -> None:
    expected = of_torch(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20, eta_min=0.1), 20)
    assert factors(ScheduleConfig(name="cosine", final_lr_ratio=0.1)) == pytest.approx(expected)


@pytest.mark.parametrize("epochs", [4, 7])
def test_one_cycle_is_that_of_torch(epochs: int) -> None:
    steps = 5 * epochs
    expected = of_torch(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=steps + 1, cycle_momentum=False), steps + 1
    )
    got = [learning_rate_factor(ScheduleConfig(name="one_cycle"), step, steps_per_epoch=steps + 1, epochs=1) for step in range(steps + 1)]
    assert got == pytest.approx(expected, abs=1e-9)


def test_step_and_exponential_fall_between_epochs() -> None:
    assert factors(ScheduleConfig(name="step", gamma=0.5, step_epochs=2)) == [1.0] * 10 + [0.5] * 10
    assert factors(ScheduleConfig(name="exponential", gamma=0.5)) == [0.5**epoch for epoch in range(4) for _ in range(5)]


def test_warm_up_rises_to_one_before_the_schedule_begins() -> None:
    got = factors(ScheduleConfig(name="cosine", warmup_epochs=1))
    assert got[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert got[5:] == sorted(got[5:], reverse=True)
    assert factors(ScheduleConfig(name="step", gamma=0.5, step_epochs=1, warmup_epochs=1))[5:] == [1.0] * 5 + [0.5] * 5 + [0.25] * 5


def test_constant_and_a_single_step() -> None:
    assert factors(ScheduleConfig(name="constant")) == [1.0] * 20
    for name in ("cosine", "one_cycle", "step", "exponential"):
        assert 0 < learning_rate_factor(ScheduleConfig(name=name), 0, steps_per_epoch=1, epochs=1) <= 1


@pytest.mark.parametrize(("name", "kind"), [("adam", "Adam"), ("adamw", "AdamW"), ("rmsprop", "RMSprop"), ("sgd", "SGD")])
def test_optimizers_and_their_learning_rates(name: str, kind: str, network: Callable[..., Classifier]) -> None:
    config = OptimizerConfig(name=name, lr=0.1, backbone_lr_scale=0.5, weight_decay=0.01, momentum=0.8)
    optimizer = build_optimizer(network(), config)
    assert type(optimizer).__name__ == kind
    before = [group["lr"] for group in optimizer.param_groups]
    assert sorted(set(before)) == [0.05, 0.1]
    set_learning_rate(optimizer, 0.5)
    set_learning_rate(optimizer, 0.1)  # of the first rates, not of the halved ones
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate * 0.1 for rate in before])
    if name in {"sgd", "rmsprop"}:
        assert optimizer.defaults["momentum"] == 0.8


def test_clipping() -> None:
    def clipped(config: ClipConfig) -> torch.Tensor:
        parameter = torch.nn.Parameter(torch.zeros(2))
        parameter.grad = torch.tensor([3.0, 4.0])
        clip_gradients([parameter], config)
        return parameter.grad

    assert torch.allclose(clipped(ClipConfig(by="norm", limit=1.0)), torch.tensor([0.6, 0.8]), atol=1e-5)
    assert torch.equal(clipped(ClipConfig(by="value", limit=3.5)), torch.tensor([3.0, 3.5]))
    assert torch.equal(clipped(ClipConfig()), torch.tensor([3.0, 4.0]))
