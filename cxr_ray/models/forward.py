"""Who computes the forward pass: torch, torch compiled, or ONNX Runtime (``models.onnx_graph``). The same answers at another speed.

Shapes: N images of H x W pixels, K labels, C channels of the (first member's) feature map.
"""

from __future__ import annotations

import copy
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cxr_ray.labels import Task
from cxr_ray.models.classifier import Classifier
from cxr_ray.models.ensemble import Ensemble
from cxr_ray.models.inference import predict_with_pooled

EngineName = Literal["torch", "onnx", "compile"]
Scores = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Probabilities (N, K) in 0 … 1, and the mean of the feature map over its pixels (N, C)."""


class Forward(Protocol):
    """(N, H, W) uint8 images, preprocessed -> :data:`Scores`."""

    @property
    def name(self) -> EngineName:
        """What it is called in settings and answers."""

    def __call__(self, images: NDArray[np.uint8]) -> Scores:
        """The scores of N >= 1 images. Not for several threads at once."""


class TorchForward:
    """Eager torch, in the memory format that training uses: on a CPU channels-last was faster for each of eight backbones measured.

    Args:
        model: The network; moved to ``device``, where it stays.
        task: Softmax or sigmoid.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
    """

    name: EngineName = "torch"

    def __init__(self, model: Classifier | Ensemble, task: Task, device: str = "cpu") -> None:
        self._model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._task: Task = task

    def __call__(self, images: NDArray[np.uint8]) -> Scores:
        """See :class:`Forward`."""
        return predict_with_pooled(self._model, images, self._task)


class CompiledForward(TorchForward):
    """A copy of the network whose backbones ``torch.compile`` has compiled: once for one image, once for any other number.

    The first pass of each kind takes tens of seconds; :func:`warm` does both. A copy, because an explanation hangs its hooks into the
    network that is not compiled.
    """

    name: EngineName = "compile"

    def __init__(self, model: Classifier | Ensemble, task: Task, device: str = "cpu") -> None:
        super().__init__(copy.deepcopy(model), task, device)
        for member in self._model.members if isinstance(self._model, Ensemble) else [self._model]:
            member.compile(dynamic=True)


def warm(forward: Forward, height: int, width: int, batch_size: int) -> None:
    """The passes that allocate, or compile: of one image, of two (what is compiled for them serves every other number), of a full batch."""
    for size in sorted({1, min(2, batch_size), batch_size}):
        forward(np.zeros((size, height, width), dtype=np.uint8))
