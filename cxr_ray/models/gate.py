"""The input gate: is an image one that the model may judge? Fitted at export (:mod:`cxr_ray.training.gate`), stored in the BUNDLE.

Four checks, in the order in which they give the reason; an image is refused where a value is above its threshold:

========== ====================== ====================================================================================================
check      reason of a refusal    value
========== ====================== ====================================================================================================
radiograph not-a-radiograph       distance of the picture from the training pictures; of an image that looks inverted or turned, the
                                  least of its distance as it is and as it would be the right way
polarity   inverted               probability that black and white are exchanged
upright    not-upright            probability that the image is turned by 90, 180 or 270 degrees
familiar   not-like-training-data distance of the pooled feature map from that of the training images
========== ====================== ====================================================================================================

Distances are Mahalanobis's, as the root mean square over the whitened features: about 1 for an image like those of the training. The
picture is seen without the network, as a small copy and a few statistics of its grey levels. Shapes: N images of H x W pixels, C channels
of the feature map, P features of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from cxr_ray.errors import ModelError
from cxr_ray.models.record import CheckName, GateRecord

Verdict = Literal["ok", "refused"]
CHECKS: Final[tuple[CheckName, ...]] = get_args(CheckName)
REASONS: Final[Mapping[CheckName, str]] = {
    "radiograph": "not-a-radiograph",
    "polarity": "inverted",
    "upright": "not-upright",
    "familiar": "not-like-training-data",
}
_FINE: Final[Mapping[CheckName, str]] = {
    "radiograph": "laid out like the radiographs of the training",
    "polarity": "black and white as in the training",
    "upright": "upright",
    "familiar": "the network responds as to its training images",
}
_TURNS: Final = ("not turned", "turned by 90° to the left", "turned upside down", "turned by 90° to the right")
"""By quarter turns to the left, as ``numpy.rot90`` counts them."""

SIDE: Final = 16
"""Height and width of the small copy, in pixels."""
_PERCENTS: Final = (1, 5, 25, 50, 75, 95, 99)
_EDGES: Final = (
    np.array([[-1.0, 1.0]], dtype=np.float32),
    np.array([[-1.0], [1.0]], dtype=np.float32),
    np.array([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]], dtype=np.float32),
)
"""Differences along rows and along columns, and the Laplacian."""
PICTURE: Final = SIDE * SIDE + 2 + len(_PERCENTS) + 2 + len(_EDGES)
"""P."""
_LARGEST: Final = 1e6
"""What stands for a distance that is no number."""


@dataclass(frozen=True, slots=True)
class GateCheck:
    """What one check says of one image.

    Args:
        name: See the module.
        verdict: ``refused`` where ``value`` is above ``threshold``.
        value: A distance or a probability, at least 0.
        threshold: Of this check.
        message: A sentence for a person.
    """

    name: CheckName
    verdict: Verdict
    value: float
    threshold: float
    message: str


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """What the gate says of one image.

    Args:
        verdict: ``refused`` where any check refuses.
        checks: One of each, in the order of :data:`CHECKS`.
    """

    verdict: Verdict
    checks: tuple[GateCheck, ...]

    @property
    def refusal(self) -> GateCheck | None:
        """The check that gives the reason: the first that refuses; None where none does."""
        return next((check for check in self.checks if check.verdict == "refused"), None)

    @property
    def reason(self) -> str | None:
        """A stable code, as in the table of the module; None: not refused."""
        return REASONS[self.refusal.name] if self.refusal is not None else None


@dataclass(frozen=True, eq=False)
class Gate:
    """A fitted gate. Safe to use from several threads.

    Args:
        record: Thresholds, and how they were found.
        tensors: float32, by :func:`shapes`.

    Raises:
        ModelError: A tensor is missing, or has another shape.
    """

    record: GateRecord
    tensors: Mapping[str, NDArray[np.float32]]

    def __post_init__(self) -> None:
        wanted = shapes(self.record.channels)
        found = {name: tensor.shape for name, tensor in self.tensors.items()}
        if found != wanted:
            raise ModelError(f"a gate has the tensors {wanted}, got {found}")

    def check(self, pooled_NC: NDArray[np.float32], images_NHW: NDArray[np.uint8]) -> list[GateVerdict]:
        """One verdict an image.

        Args:
            pooled_NC: The mean of the feature map over its pixels, as ``predict_with_pooled`` gives it, of the bundle's first member.
            images_NHW: The same images, preprocessed, uint8.
        """
        values, turns = self.values(pooled_NC, images_NHW)
        return [self._verdict({name: float(column[row]) for name, column in values.items()}, int(turns[row])) for row in range(len(turns))]

    def values(
        self, pooled_NC: NDArray[np.float32], images_NHW: NDArray[np.uint8]
    ) -> tuple[dict[CheckName, NDArray[np.float64]], NDArray[np.int64]]:
        """The value (N,) of each check, and the most probable quarter turns (N,) to the left."""
        pictures_NP = picture_features(images_NHW)
        inverted_N = expit(self._linear("polarity", pictures_NP)[:, 0])
        # The turn is judged with black and white as they should be: a picture and its negative have opposite small copies.
        swapped_N = inverted_N > self.record.thresholds["polarity"]
        positive = np.where(swapped_N[:, None, None], 255 - images_NHW, images_NHW)
        distance_N = self._distance("picture", pictures_NP)
        pictures_NP[swapped_N] = picture_features(positive[swapped_N])
        turn_N4 = softmax(self._linear("turn", pictures_NP), axis=1)
        turned_N, turns_N = 1.0 - turn_N4[:, 0], turn_N4.argmax(axis=1)
        for row in np.flatnonzero(swapped_N | (turned_N > self.record.thresholds["upright"])):
            righted = picture_features(np.rot90(positive[row], -turns_N[row])[None])
            distance_N[row] = min(distance_N[row], self._distance("picture", righted)[0])
        familiar_N = self._distance("features", pooled_NC)
        return {"radiograph": distance_N, "polarity": inverted_N, "upright": turned_N, "familiar": familiar_N}, turns_N

    def _linear(self, name: str, features_NP: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(features_NP.astype(np.float64) @ self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"])

    def _distance(self, name: str, features_ND: NDArray[Any]) -> NDArray[np.float64]:
        white_ND: NDArray[np.float64] = (features_ND.astype(np.float64) - self.tensors[f"{name}.mean"]) @ self.tensors[f"{name}.whitening"]
        return np.asarray(np.nan_to_num(np.sqrt((white_ND**2).mean(axis=1)), nan=_LARGEST, posinf=_LARGEST))

    def _verdict(self, values: Mapping[CheckName, float], turns: int) -> GateVerdict:
        checks = []
        for name in CHECKS:
            threshold = self.record.thresholds[name]
            refused = values[name] > threshold
            message = _complaint(name, turns) if refused else _FINE[name]
            checks.append(GateCheck(name, "refused" if refused else "ok", values[name], threshold, message))
        return GateVerdict("refused" if any(check.verdict == "refused" for check in checks) else "ok", tuple(checks))


def shapes(channels: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a gate, for a feature map of C channels."""
    return {
        "picture.mean": (PICTURE,),
        "picture.whitening": (PICTURE, PICTURE),
        "features.mean": (channels,),
        "features.whitening": (channels, channels),
        "polarity.weight": (PICTURE, 1),
        "polarity.bias": (1,),
        "turn.weight": (PICTURE, len(_TURNS)),
        "turn.bias": (len(_TURNS),),
    }


def picture_features(images_NHW: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, H, W) uint8 -> (N, P): the picture at 16 x 16, brought to mean 0 and deviation 1, and statistics of its grey levels."""
    rows = [np.concatenate([_small_copy(image), _statistics(image)]) for image in images_NHW]
    return np.array(rows, dtype=np.float32).reshape(len(rows), PICTURE)


def _small_copy(image_HW: NDArray[np.uint8]) -> NDArray[np.float64]:
    small = cv2.resize(np.ascontiguousarray(image_HW), (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float64)
    return np.asarray((small - small.mean()) / (small.std() + 8.0)).ravel()  # 8 of 255: noise of a flat picture stays small


def _statistics(image_HW: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Brightness, contrast, percentiles, entropy and largest share of the grey levels; how strongly neighbouring pixels differ."""
    share = np.bincount(image_HW.ravel(), minlength=256) / image_HW.size
    percentiles = np.searchsorted(share.cumsum(), np.array(_PERCENTS) / 100.0) / 255.0
    coarse = share.reshape(32, 8).sum(axis=1)
    entropy = -(coarse * np.log(np.maximum(coarse, 1e-12))).sum()
    levels = np.arange(256) / 255.0
    mean = (share * levels).sum()
    deviation = np.sqrt((share * (levels - mean) ** 2).sum())
    grey = np.ascontiguousarray(image_HW, dtype=np.float32)
    edges = [np.abs(cv2.filter2D(grey, -1, kernel)).mean() for kernel in _EDGES]
    return np.array([mean, deviation, *percentiles, entropy, np.log(coarse.max() + 1e-3), *np.log1p(edges)])


def _complaint(name: CheckName, turns: int) -> str:
    if name == "upright":
        return f"the image looks {_TURNS[turns] if turns else 'turned'}; the model has only learned from upright ones"
    return {
        "radiograph": "the image does not look like the radiographs that the model has learned from",
        "polarity": "the image looks inverted: black and white are exchanged",
        "familiar": "the network responds to this image as to none of its training images",
    }[name]
