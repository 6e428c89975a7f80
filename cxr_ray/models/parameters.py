"""The network's parameters: groups for the optimiser, counts for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from cxr_ray.models.classifier import Classifier


def parameter_groups(model: Classifier, lr: float, backbone_lr_scale: float = 1.0, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Groups for a torch optimiser: backbone and rest, each with and without weight decay.

    Biases and the parameters of normalisation layers (all of one dimension) do not decay. Stages that are frozen for good are left
    out; those with an ``unfreeze_epoch`` are in from the start (without a gradient an optimiser passes them by), so that the
    optimiser's state has one layout from the first epoch to the last.

    Args:
        model: The network.
        lr: Learning rate of the RNN and the head.
        backbone_lr_scale: The backbone's learning rate as a part of ``lr``.
        weight_decay: Of matrices and kernels.

    Returns:
        At most four groups ``{name, params, lr, weight_decay}``, none empty, always in the same order.
    """
    frozen = model.backbone.never_learning()
    backbone = [parameter for parameter in model.backbone.parameters() if parameter not in frozen]
    rest = [parameter for name, parameter in model.named_parameters() if not name.startswith("backbone.")]
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


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
