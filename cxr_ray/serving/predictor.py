"""Bytes or arrays in, probabilities out: the same preprocessing and the same forward pass as ingest and evaluation. No Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxr_ray.bundle import Bundle
from cxr_ray.errors import ImageError
from cxr_ray.imaging.decode import Limits
from cxr_ray.imaging.preprocess import load_image
from cxr_ray.models.forward import Forward, Scores, TorchForward
from cxr_ray.models.gate import GateVerdict


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one image.

    Args:
        labels: What the model calls: exactly one name for multiclass; for multilabel those at or above their thresholds, maybe none.
        probabilities: Name -> 0..1, in the order of the bundle's labels.
    """

    labels: tuple[str, ...]
    probabilities: dict[str, float]


class Predictor:
    """A bundle's model, or all its members, loaded once.

    Args:
        bundle: Verified bundle.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        limits: What an image may weigh.

    Raises:
        BundleError: The weights or the gate do not fit.
    """

    def __init__(self, bundle: Bundle, *, device: str = "cpu", limits: Limits | None = None) -> None:
        self.bundle = bundle
        self.device = device
        self.limits = limits or Limits()
        self.model = bundle.load_model(device)
        self.forward: Forward = TorchForward(self.model, bundle.labels.task, device)
        """What computes the forward pass: torch, but in a service that has chosen another engine (``serving.selection``)."""
        self.gate = bundle.load_gate()

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """File bytes -> (height, width) uint8, as at ingest. Safe to call from several threads.

        Raises:
            ImageError: The bytes are no usable PNG, JPEG or DICOM; ``reason`` says why.
        """
        image, _ = load_image(data, self.bundle.preprocess, self.limits)
        return image

    def predict_arrays(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, height, width) uint8 from :meth:`decode` -> (N, K) float32 probabilities."""
        return self._scores(images)[0]

    def predict_checked(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], list[GateVerdict | None]]:
        """As :meth:`predict_arrays`, with what the input gate says of each image, from one pass; None where the bundle has no gate."""
        probabilities, pooled = self._scores(images)
        return probabilities, [None] * len(images) if self.gate is None else list(self.gate.check(pooled, images))

    def _scores(self, images: NDArray[np.uint8]) -> Scores:
        """Probabilities (N, K), whatever engine computed them, and the pooled feature map (N, C)."""
        return self.forward(images)

    def predict_bytes(self, items: Sequence[bytes]) -> list[Prediction | ImageError]:
        """One answer, or the reason why not, for each file."""
        decoded: list[NDArray[np.uint8] | ImageError] = []
        for data in items:
            try:
                decoded.append(self.decode(data))
            except ImageError as error:
                decoded.append(error)
        arrays = [image for image in decoded if not isinstance(image, ImageError)]
        rows = iter(self.predict_arrays(np.stack(arrays)) if arrays else ())
        return [image if isinstance(image, ImageError) else self.call(next(rows)) for image in decoded]

    def call(self, probabilities: NDArray[np.float32]) -> Prediction:
        """Name the (K,) probabilities of one image and decide which labels are called."""
        names = self.bundle.labels.names
        thresholds = self.bundle.manifest.thresholds
        if thresholds is None:
            called: tuple[str, ...] = (names[int(probabilities.argmax())],)
        else:
            called = tuple(name for name, value, cut in zip(names, probabilities, thresholds, strict=True) if value >= cut)
        return Prediction(called, {name: float(value) for name, value in zip(names, probabilities, strict=True)})
