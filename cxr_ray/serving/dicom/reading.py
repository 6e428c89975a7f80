"""What a model says of one image, as the DICOM objects need it, whether it was asked in this process or over HTTP."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cxr_ray.errors import ImageError

if TYPE_CHECKING:
    from cxr_ray.serving.predictor import Predictor

NOTICE: Final = "For research. Not a medical device, not for diagnosis."


@dataclass(frozen=True, slots=True)
class Finding:
    """One label.

    Args:
        label: Its name.
        probability: 0..1.
        threshold: At or above which it is called; None: the largest probability decides.
        called: Whether it is.
    """

    label: str
    probability: float
    threshold: float | None
    called: bool


@dataclass(frozen=True, slots=True, eq=False)
class HeatMap:
    """Where the model sees a label.

    Args:
        label: Its name.
        overlay_HW3: (H, W, 3) uint8 RGB: the heat over the image as the model saw it.
    """

    label: str
    overlay_HW3: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Reading:
    """All that is said of one image.

    Args:
        findings: Every label, in the order of the model's.
        model: Name of the bundle.
        version: 12 hex digits, of all that answers follow from.
        remarks: Sentences that a reader must see, such as what the input gate flags.
        heat_map: None: not asked for.
    """

    findings: Sequence[Finding]
    model: str
    version: str
    remarks: Sequence[str] = ()
    heat_map: HeatMap | None = None

    @property
    def digest(self) -> str:
        """Hex SHA-256 of all of it, probabilities to four digits: what differs is another answer and needs another UID."""
        said = [(finding.label, f"{finding.probability:.4f}", finding.threshold, finding.called) for finding in self.findings]
        seen = (self.heat_map.label, self.heat_map.overlay_HW3.tobytes()) if self.heat_map else None
        return hashlib.sha256(repr((said, self.model, self.version, list(self.remarks), seen)).encode()).hexdigest()


Reader = Callable[[bytes], Reading]
"""File bytes -> what the model says. Raises ImageError where the image is refused, another CxrRayError where no answer can be had now."""


def heat_map(label: str, overlay_png: bytes) -> HeatMap:
    """From an RGB PNG."""
    with Image.open(io.BytesIO(overlay_png), formats=["PNG"]) as picture:
        return HeatMap(label, np.asarray(picture.convert("RGB")))


def remarks(unsound: str | None, flags: Sequence[str] = ()) -> tuple[str, ...]:
    """Sentences for :class:`Reading`: why the model must not be used, if so, and what the input gate flags."""
    warning = [f"This model must not be used: {unsound}"] if unsound else []
    return (*warning, *(f"The input gate flags this image: {flag}" for flag in flags))


def local_reader(predictor: Predictor, *, picture: bool) -> Reader:
    """Ask a model in this process; ``picture``: with a heat map of the most probable label."""
    from cxr_ray.evaluation.explain import explain, overlay_png

    manifest, lock = predictor.bundle.manifest, threading.Lock()  # an explanation and a forward pass must not meet in one network

    def read(data: bytes) -> Reading:
        image = predictor.decode(data)
        with lock:
            probabilities, (verdict,) = predictor.predict_checked(image[None])
        if verdict is not None and verdict.refusal is not None and verdict.reason is not None:
            raise ImageError(verdict.reason, verdict.refusal.message)
        said = predictor.call(probabilities[0])
        thresholds = manifest.thresholds or (None,) * len(said.probabilities)
        findings = tuple(
            Finding(label, value, threshold, label in said.labels)
            for (label, value), threshold in zip(said.probabilities.items(), thresholds, strict=True)
        )
        seen = None
        if picture:
            with lock:
                found = explain(predictor.model, image, int(probabilities[0].argmax()))
            seen = heat_map(manifest.labels[found.label], overlay_png(image, found.heat_HW))
        return Reading(findings, manifest.name, predictor.bundle.version, remarks(manifest.unsound), seen)

    return read
