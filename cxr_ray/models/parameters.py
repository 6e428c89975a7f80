"""The network's parameters: groups for the optimiser, counts of parameters and operations for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cxr_ray.models.other_networks import on_meta

if TYPE_CHECKING:
    from cxr_ray.models.classifier import Classifier


def parameter_groups(model: Classifier, lr: float, backbone_lr_scale: float = 1.0, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Groups for a torch optimiser: backbone and rest, each with and without weight decay.

    Biases and the parameters of normalisation layers (all of one dimension) do not decay. Stages and RNNs that are frozen for good are
    left out; those with an ``unfreeze_epoch`` are in from the start (without a gradient an optimiser passes them by), so that the
    optimiser's state has one layout from the first epoch to the last.

    Args:
        model: The network.
        lr: Learning rate of the RNN and the head.
        backbone_lr_scale: The backbone's learning rate as a part of ``lr``.
        weight_decay: Of matrices and kernels.

    Returns:
        At most four groups ``{name, params, lr, weight_decay}``, none empty, always in the same order.
    """
    frozen = model.backbone.never_learning() | model.recurrent.never_learning()
    learning = [(name, parameter) for name, parameter in model.named_parameters() if parameter not in frozen]
    backbone = [parameter for name, parameter in learning if name.startswith("backbone.")]
    rest = [parameter for name, parameter in learning if not name.startswith("backbone.")]
    groups = [
        {
            "name": f"{part}/{'decay' if decays else 'no-decay'}",
            "params": [parameter for parameter in members if (parameter.ndim > 1) == decays],
            "lr": rate,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for part, members, rate in (("backbone", backbone, lr * backbone_lr_scale), ("rest", rest, lr))
        for decays in (True, False)
    ]
    return [group for group in groups if group["params"]]


def count_parameters(model: Classifier) -> dict[str, int]:
    """How many parameters each part holds (``backbone``, ``rnn``, ``readout``, ``head``), in ``total``, and of these ``learning`` now.

    For a count without memory or work, build the network under ``torch.device("meta")``.
    """
    parts = {"backbone": model.backbone, "rnn": model.recurrent, "readout": model.readout, "head": model.head}
    counts = {name: _count(part) for name, part in parts.items()}
    return {**counts, "total": _count(model), "learning": sum(p.numel() for p in model.parameters() if p.requires_grad)}


def layer_parameters(model: nn.Module) -> dict[str, int]:
    """How many parameters each layer that has any holds itself: dotted name of the layer -> count, in the order of definition."""
    counts = {name: sum(p.numel() for p in module.parameters(recurse=False)) for name, module in model.named_modules()}
    return {name: count for name, count in counts.items() if count}


def count_flops(model: Classifier) -> int:
    """Floating-point operations of one image's forward pass: a multiply-add counts as two.

    Counted are convolutions and matrix products of the backbone, the readout and the head by torch's counter, on shapes alone, and the
    RNN by formula: T steps x layers x directions x 2 G H (D + H), with G gates of H units over D inputs. As usual in the field,
    normalisation, activations, pooling and additions are not. (What vision papers call FLOPS is often half of it, multiply-adds.)
    """
    height, width = model.image_size
    steps, features = model.sequence.steps, model.recurrent.out_features
    with FlopCounterMode(display=False) as counter:
        on_meta(model.backbone, 1, 1, height, width)
        on_meta(model.head, *on_meta(model.readout, 1, steps, features).shape)
    config = model.config.rnn
    rnn = 0
    if config.kind != "none":
        gates, directions = (4 if config.kind == "lstm" else 3), (2 if config.bidirectional else 1)
        widths = [model.sequence.width_of(model.backbone.channels), *[features] * (config.layers - 1)]
        rnn = sum(steps * directions * 2 * gates * config.hidden_size * (width + config.hidden_size) for width in widths)
    return int(counter.get_total_flops()) + rnn


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
