"""Optimiser, the learning rate of every step, and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from cxr_ray.config import ClipConfig, OptimizerConfig, ScheduleConfig

if TYPE_CHECKING:
    from cxr_ray.models.classifier import Classifier

ONE_CYCLE_RISE = 0.3
"""Part of the steps in which ``one_cycle`` rises."""
ONE_CYCLE_START = 1 / 25
"""Where ``one_cycle`` starts, as a part of the learning rate."""
ONE_CYCLE_END = ONE_CYCLE_START / 1e4
"""Where ``one_cycle`` ends, as a part of the learning rate."""


def build_optimizer(model: Classifier, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimiser over all parameters of ``model``, frozen ones too: they have no gradient and are passed over until they thaw.

    Nesterov momentum for SGD.
    """
    groups = model.parameter_groups(lr=config.lr, backbone_lr_scale=config.backbone_lr_scale, weight_decay=config.weight_decay)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    if config.name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=config.lr, alpha=config.rms_decay, momentum=config.momentum)
    if config.name == "adam":
        return torch.optim.Adam(groups, lr=config.lr)
    return torch.optim.AdamW(groups, lr=config.lr)


def learning_rate_factor(config: ScheduleConfig, step: int, *, steps_per_epoch: int, epochs: int) -> float:
    """What the learning rate of step ``step`` is multiplied by: a pure function, so a resumed run needs no scheduler state.

    Warm-up rises linearly and reaches 1 with its last step; the schedule begins after it. ``cosine`` falls with every step,
    ``step`` and ``exponential`` once in so many epochs. ``one_cycle`` is that of Smith and Topin (arXiv:1708.07120) with
    cosine sides and without the cycle of the momentum.

    Args:
        config: Which schedule.
        step: Of the whole run, from 0.
        steps_per_epoch: Steps of one epoch.
        epochs: Epochs of the run.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    done, total = step - warmup, max(1, epochs * steps_per_epoch - warmup)
    if config.name == "cosine":
        return _cosine(1.0, config.final_lr_ratio, done / total)
    if config.name == "step":
        return float(config.gamma ** (done // (config.step_epochs * steps_per_epoch)))
    if config.name == "exponential":
        return float(config.gamma ** (done // steps_per_epoch))
    if config.name == "one_cycle":
        peak, last = max(1.0, ONE_CYCLE_RISE * total - 1), float(total - 1)
        if done <= peak:
            return _cosine(ONE_CYCLE_START, 1.0, done / peak)
        return _cosine(1.0, ONE_CYCLE_END, (done - peak) / (last - peak))
    return 1.0


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group to ``factor`` times the learning rate it was built with (kept as its ``initial_lr``)."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def clip_gradients(parameters: Iterable[nn.Parameter], config: ClipConfig) -> None:
    """Clip by the global L2 norm or by value; call it after the ranks' gradients were averaged."""
    if config.by == "norm":
        torch.nn.utils.clip_grad_norm_(parameters, config.limit)
    elif config.by == "value":
        torch.nn.utils.clip_grad_value_(parameters, config.limit)
