"""Several networks that answer as one: the weighted mean of their probabilities, given back as logits.

The mean is taken in log space in float64, so that no probability has to be kept away from 0 and 1:

    multiclass   log p_k = logsumexp_m(log w_m + log softmax(z_m)_k)
    multilabel   log p_k = logsumexp_m(log w_m + log sigmoid(z_mk)),  log(1 - p_k) likewise of -z_mk,  logit = log p_k - log(1 - p_k)

Softmax and sigmoid of these logits are the mean again. Shapes: M members, B images, H x W pixels, K labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cxr_ray.errors import ModelError
from cxr_ray.labels import Task
from cxr_ray.models.classifier import Classifier


class Ensemble(nn.Module):
    """What evaluation, ``predict`` and serving need of a :class:`Classifier`, of several at once.

    The members share nothing: memory and time are the sum of theirs. They run one after the other on one device. Feature maps are each
    member's own, so what looks inside a network (Grad-CAM, attention) asks ``members``.

    Args:
        members: At least one network, all of the same number of outputs and image size; they may differ in everything else.
        weights: One above 0 a member; only their ratios matter. None: all alike.
        task: Whether the members' logits go through a softmax or a sigmoid.

    Raises:
        ModelError: No members, members that do not fit together, or weights that are not as said.
    """

    log_weights: Tensor

    def __init__(self, members: Sequence[Classifier], *, task: Task, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if not members:
            raise ModelError("an ensemble needs at least one member")
        shapes = {(member.num_outputs, member.image_size) for member in members}
        if len(shapes) > 1:
            told = "; ".join(f"{outputs} outputs for {height}x{width} images" for outputs, (height, width) in sorted(shapes))
            raise ModelError(f"the members of an ensemble must agree in labels and image size: {told}")
        if task not in ("multiclass", "multilabel"):
            raise ModelError(f"unknown task {task!r}; there are: multiclass, multilabel")
        shares = normalized_weights(weights if weights is not None else [1.0] * len(members))
        if len(shares) != len(members):
            raise ModelError(f"{len(members)} members and {len(shares)} weights: one each is needed")
        self.members = nn.ModuleList(members)
        self.task: Task = task
        self.num_outputs, self.image_size = members[0].num_outputs, members[0].image_size
        log_weights_M = torch.tensor([math.log(share) for share in shares], dtype=torch.float64)
        self.register_buffer("log_weights", log_weights_M, persistent=False)

    @property
    def mean(self) -> Tensor:
        """The first member's mean pixel: on the device where the images must be."""
        return self.members[0].mean  # type: ignore[return-value]

    @property
    def channels(self) -> int:
        """Of the first member's feature map."""
        return self.members[0].channels  # type: ignore[return-value]

    def forward(self, images: Tensor) -> Tensor:
        """(B, H, W) or (B, 1, H, W), uint8 or float in 0 … 255 -> logits (B, K) float32 of the mean probabilities.

        Raises:
            ModelError: The images have another shape or size than the networks were built for.
        """
        return self._together([member(images) for member in self.members])

    def logits_and_pooled(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`Classifier.logits_and_pooled`; the pooled feature map is the first member's."""
        first, pooled_BC = self.members[0].logits_and_pooled(images)  # type: ignore[operator]
        return self._together([first, *(member(images) for member in self.members[1:])]), pooled_BC

    def _together(self, members: Sequence[Tensor]) -> Tensor:
        """(B, K) logits of each member -> logits (B, K) float32 of the mean probabilities."""
        logits_MBK = torch.stack([logits_BK.double() for logits_BK in members])
        log_weights_M11 = self.log_weights[:, None, None]
        if self.task == "multiclass":
            return torch.logsumexp(F.log_softmax(logits_MBK, dim=-1) + log_weights_M11, dim=0).float()
        present_BK = torch.logsumexp(F.logsigmoid(logits_MBK) + log_weights_M11, dim=0)
        absent_BK = torch.logsumexp(F.logsigmoid(-logits_MBK) + log_weights_M11, dim=0)
        return (present_BK - absent_BK).float()


def normalized_weights(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights as shares that sum to 1.

    Raises:
        ModelError: One is not a number above 0.
    """
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ModelError(f"weights must be numbers above 0, got {', '.join(f'{weight:g}' for weight in weights)}")
    whole = math.fsum(weights)
    return tuple(weight / whole for weight in weights)
