"""What is settled on held-out images when a model is exported: first its calibration, then its thresholds on calibrated probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from cxr_ray.errors import ConfigError
from cxr_ray.evaluation.calibration import CHOICES, Choice, calibrate
from cxr_ray.evaluation.thresholds import operating_points
from cxr_ray.labels import LabelSet
from cxr_ray.models.calibration import NOT_ASKED_FOR, Calibration
from cxr_ray.models.decision import parse_policy
from cxr_ray.models.record import ThresholdOrigin


@dataclass(frozen=True, slots=True)
class Wish:
    """What a user wants settled; checked by :func:`wish`.

    Args:
        calibrate: See :func:`cxr_ray.evaluation.calibration.calibrate`.
        policy: Of the thresholds; None: multiclass, and the most probable label is called.
        positive: Multiclass: the label that gets a threshold.
    """

    calibrate: Choice
    policy: str | None
    positive: str | None

    @property
    def needs_images(self) -> bool:
        """Whether anything is to be fitted."""
        return self.calibrate != "none" or self.policy not in (None, "fixed")


@dataclass(frozen=True, slots=True)
class Settled:
    """What came of it.

    Args:
        calibration: Or why there is none.
        thresholds: One a label; None: multiclass without any.
        origin: How they were chosen.
    """

    calibration: Calibration | str
    thresholds: tuple[float | None, ...] | None
    origin: ThresholdOrigin | None


def wish(labels: LabelSet, calibrate: str = "auto", policy: str | None = None, positive: str | None = None) -> Wish:
    """Check what a user wants.

    Raises:
        ConfigError: An unknown choice or policy, a threshold for a multiclass model without its label, or a label that is none.
    """
    if calibrate not in CHOICES:
        raise ConfigError([f"{calibrate!r} is unknown; valid: {', '.join(CHOICES)}"], where="--calibrate")
    if policy is not None:
        parse_policy(policy)
    if labels.task == "multilabel":
        if positive is not None:
            raise ConfigError(["every label of a multilabel model has a threshold of its own"], where="--positive")
        return Wish(calibrate, policy or "f1", None)  # type: ignore[arg-type]
    if policy is not None and positive is None:
        raise ConfigError(
            ["a multiclass model calls its most probable label; with --positive LABEL, that label where it reaches its threshold"],
            where="--thresholds",
            hint=f"--positive, one of {', '.join(labels.names)}",
        )
    if positive is not None and positive not in labels.names:
        raise ConfigError([f"{positive!r} is none of the model's labels: {', '.join(labels.names)}"], where="--positive")
    return Wish(calibrate, policy or ("youden" if positive is not None else None), positive)  # type: ignore[arg-type]


def settle(
    wanted: Wish,
    probabilities: NDArray[Any],
    targets: NDArray[Any],
    patients: Sequence[str] | NDArray[Any],
    labels: LabelSet,
    *,
    part: str,
    by_all: bool = True,
) -> Settled:
    """Fit what is wanted.

    Args:
        wanted: From :func:`wish`.
        probabilities: (N, K) of images that were held out of training, as the models say them.
        targets: (N,) or (N, K).
        patients: (N,)
        labels: The K names and the task.
        part: Where the images come from, in words.
        by_all: Whether the whole ensemble scored each image. If not, ``auto`` does not calibrate: the mean of several models is less
            sure of itself than each of them.
    """
    calibration, reason = None, NOT_ASKED_FOR
    if wanted.calibrate == "auto" and not by_all:
        reason = "each held-out image was scored by some of the members only, and their mean is less sure of itself than they are"
    elif wanted.calibrate != "none":
        calibration = calibrate(probabilities, targets, patients, labels, choice=wanted.calibrate, part=part)
        reason = f"no method lowers the cross-fitted log-loss on {part} ({len(probabilities)} images)"
    if wanted.policy is None:
        return Settled(calibration or reason, None, None)
    said = probabilities if calibration is None else calibration.apply(probabilities, labels.task)
    cuts, origin = operating_points(said, targets, labels, policy=wanted.policy, part=part, positive=wanted.positive)
    return Settled(calibration or reason, cuts, origin)


def nothing_fitted(wanted: Wish, labels: LabelSet, reason: str) -> Settled:
    """Without images: thresholds of 0.5 where a policy is wanted, and no calibration."""
    if wanted.policy is None:
        return Settled(reason, None, None)
    cuts = tuple(0.5 if wanted.positive in (None, name) else None for name in labels.names)
    return Settled(reason, cuts, ThresholdOrigin(policy="fixed", positive=wanted.positive))
