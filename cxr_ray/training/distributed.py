"""What the ranks of a run do together. Without a process group each function is its single-process self.

Shape letters: B images of a rank's part, C channels, S spatial positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True, slots=True)
class World:
    """Where this process stands.

    Args:
        rank: From 0.
        size: Processes in all; above 1, ``torch.distributed`` must be initialised.
        device: What this process computes on.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process writes and reports for all."""
        return self.rank == 0

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over ranks."""
        values = values.to(self.device)
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def least(self, value: torch.Tensor) -> torch.Tensor:
        """Smallest over ranks."""
        if self.size > 1:
            dist.all_reduce(value, op=dist.ReduceOp.MIN)
        return value

    def share(self, value: Any) -> Any:
        """What rank 0 has."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def collect(self, value: Any) -> list[Any]:
        """What each rank has, in their order."""
        if self.size == 1:
            return [value]
        boxes: list[Any] = [None] * self.size
        dist.all_gather_object(boxes, value)
        return boxes

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """Rows of all ranks, one rank after the other; ranks may have different numbers of rows, or none.

        Args:
            values: (B, …), of the same dtype and inner shape on every rank.
        """
        if self.size == 1:
            return values
        values = values.to(self.device).contiguous()
        counts = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor([len(values)], device=self.device))
        sizes = [int(count) for count in counts]
        padded = values.new_zeros((max(sizes), *values.shape[1:]))
        padded[: len(values)] = values
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


# --- batch normalisation over all ranks -------------------------------------------------------------------------------


class SyncedBatchNorm(_BatchNorm):
    """Batch normalisation whose statistics are those of the global batch, on any device (torch's own is for GPUs only).

    Ranks may have different numbers of images. In evaluation mode it is the plain layer.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(B, C) or (B, C, …) -> the same shape."""
        if not self.training:
            return super().forward(input)
        output, mean, variance, count = _SyncedNormalise.apply(input, self.weight, self.bias, self.eps)
        with torch.no_grad():
            if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
                momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked or 1)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                unbiased = variance * count / (count - 1).clamp(min=1)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        return output  # type: ignore[no-any-return]


class _SyncedNormalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> Any:
        axes = [0, *range(2, x.dim())]
        own_variance, own_mean = torch.var_mean(x.float(), dim=axes, correction=0)
        own_count = torch.full_like(own_mean[:1], x.numel() // x.shape[1])
        own = torch.cat([own_mean, own_variance, own_count])
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        table = torch.stack(parts)
        channels = x.shape[1]
        means, variances, counts = table[:, :channels], table[:, channels:-1], table[:, -1:]
        count = counts.sum()
        mean = (means * counts).sum(0) / count
        # parallel variance (Chan et al. 1979): no difference of large squares
        variance = ((variances + (means - mean) ** 2) * counts).sum(0) / count
        output = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps), count)
        ctx.mark_non_differentiable(mean, variance, count)
        return output, mean, variance, count

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> Any:
        x, weight, mean, inverse_std, count = ctx.saved_tensors
        axes = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        normalised = (x.float() - mean.view(shape)) * inverse_std.view(shape)
        grad32 = grad.float()
        grad_bias, grad_weight = grad32.sum(axes), (grad32 * normalised).sum(axes)
        sums = torch.stack([grad_bias, grad_weight])
        dist.all_reduce(sums)
        sums = sums / count
        centred = grad32 - sums[0].view(shape) - normalised * sums[1].view(shape)
        scale = inverse_std if weight is None else inverse_std * weight
        grad_x = (centred * scale.view(shape)).to(x.dtype)
        return grad_x, grad_weight if weight is not None else None, grad_bias if weight is not None else None, None


def synchronise_batch_norm(model: nn.Module, world: World) -> None:
    """Let every batch normalisation of ``model`` use the statistics of the global batch, in place.

    The layers change their class and stay the same objects, so that whoever holds a reference to them (frozen stages) still does;
    names of weights do not change. Nothing happens in a world of one.
    """
    if world.size == 1:
        return
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm | SyncedBatchNorm) or not isinstance(module, _BatchNorm):
            continue
        if world.device.type == "cuda":
            module.__class__ = nn.SyncBatchNorm
            object.__setattr__(module, "process_group", dist.group.WORLD)
        else:
            module.__class__ = SyncedBatchNorm
