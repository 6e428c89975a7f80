"""Probabilities for many images: the one forward pass that evaluation, predict and serving share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cxr_ray.errors import ModelError
from cxr_ray.labels import Task
from cxr_ray.models.classifier import Classifier
from cxr_ray.models.ensemble import Ensemble


def predict_probabilities(
    model: Classifier | Ensemble, images: npt.NDArray[np.uint8], task: Task, batch_size: int = 64, device: str | torch.device | None = None
) -> npt.NDArray[np.float32]:
    """What the network makes of each image; see :func:`predict_with_pooled`, of which this is the first half.

    Returns:
        (N, K) float32 in 0 … 1.
    """
    return predict_with_pooled(model, images, task, batch_size, device)[0]


def predict_with_pooled(
    model: Classifier | Ensemble, images: npt.NDArray[np.uint8], task: Task, batch_size: int = 64, device: str | torch.device | None = None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """What the network makes of each image, in evaluation mode and without gradients; the mode it had before is restored.

    Args:
        model: The network.
        images: (N, H, W) uint8, preprocessed; N may be 0. Read batch by batch, so it may be a memory map or a view of Arrow data.
        task: ``multiclass``: softmax, a row sums to 1. ``multilabel``: a sigmoid a label.
        batch_size: Images a forward pass; changes the speed alone.
        device: Where to compute; the network is moved there and stays. None: where the network is.

    Returns:
        Probabilities (N, K) in 0 … 1, and the mean of the feature map over its pixels (N, C) from the same pass; both float32.

    Raises:
        ModelError: The images are not (N, H, W) uint8 of the network's size, or the task is unknown.
    """
    images = np.asanyarray(images)
    if images.dtype != np.uint8 or images.ndim != 3:
        raise ModelError(f"expected images (N, H, W) uint8, got {images.shape} {images.dtype}")
    if batch_size < 1:
        raise ModelError(f"batch_size must be at least 1, got {batch_size}")
    if device is not None:
        model.to(device)
    target = model.mean.device
    probabilities_NK = np.empty((len(images), model.num_outputs), dtype=np.float32)
    pooled_NC = np.empty((len(images), model.channels), dtype=np.float32)
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(images), batch_size):
            # Copied: Arrow's memory is read-only, which torch does not know.
            batch = torch.from_numpy(np.array(images[start : start + batch_size])).to(target)
            logits_BK, pooled_BC = model.logits_and_pooled(batch)
            probabilities_NK[start : start + batch_size] = to_probabilities(logits_BK, task).cpu().numpy()
            pooled_NC[start : start + batch_size] = pooled_BC.cpu().numpy()
    return probabilities_NK, pooled_NC


def to_probabilities(logits_BK: Tensor, task: Task) -> Tensor:
    """(B, K) logits -> (B, K) float32 probabilities; softmax and sigmoid are computed in float32 whatever the logits are.

    Raises:
        ModelError: The task is unknown.
    """
    if task == "multiclass":
        return torch.softmax(logits_BK.float(), dim=1)
    if task == "multilabel":
        return torch.sigmoid(logits_BK.float())
    raise ModelError(f"unknown task {task!r}; there are: multiclass, multilabel")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[Any]:
    """Evaluation mode for the length of a block; afterwards every module is back in the mode it had."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield model
    finally:
        for module in training:
            module.training = True
