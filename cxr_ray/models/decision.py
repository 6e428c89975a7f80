"""Probabilities into decisions: which labels are called, and by which policy the cuts were chosen.

====================  ==============================================================================================================
f1                    the cut with the largest F1 score of the label; for lists of rare findings, where 0.5 is often never reached
youden                the largest sensitivity + specificity - 1 (Youden, Cancer 3:32-35, 1950); weighs both errors by how common they
                      are within their own group, so that a rare label is called far more often than it occurs
sensitivity=S         the highest cut that finds at least the share S of the positives
cost=FN:FP[,P]        the smallest expected cost where a missed positive costs FN and a false alarm FP, at a prevalence of P; without P
                      at that of the images it is fitted on
fixed                 0.5
====================  ==============================================================================================================

A multiclass model calls its most probable label. With a cut for one label, that one is called wherever it reaches its cut, and else the
most probable of the others: a reading that rules one disease in or out. Shapes: N images, K labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cxr_ray.errors import ConfigError
from cxr_ray.labels import Task

Cuts = Sequence[float | None] | NDArray[np.float64]
"""One a label; None, in arrays NaN: the label has none of its own. Or (N, K), where images have cuts of their own."""
POLICIES: Final = ("f1", "youden", "sensitivity=S", "cost=FN:FP[,P]", "fixed")
DEFAULT: Final = 0.5
_TOLD: Final = {"f1": "largest F1 score", "youden": "largest Youden index"}


@dataclass(frozen=True, slots=True)
class Policy:
    """How cuts are chosen; the module says what each means.

    Args:
        name: ``f1``, ``youden``, ``sensitivity``, ``cost`` or ``fixed``.
        sensitivity: To be reached, above 0 and at most 1.
        missed: Cost of a missed positive, above 0.
        alarm: Cost of a false alarm, above 0.
        prevalence: For ``cost``; None: of the images it is fitted on.
    """

    name: str
    sensitivity: float | None = None
    missed: float = 1.0
    alarm: float = 1.0
    prevalence: float | None = None

    def told(self) -> str:
        """In a few words."""
        if self.name == "sensitivity":
            return f"highest cut that finds {self.sensitivity:.1%}"
        if self.name == "cost":
            where = f" at a prevalence of {self.prevalence:g}" if self.prevalence is not None else ""
            return f"smallest cost{where}, a missed case {self.missed:g} and a false alarm {self.alarm:g},"
        return _TOLD[self.name]


def parse_policy(text: str) -> Policy:
    """A policy as a user writes it.

    Raises:
        ConfigError: It is none; the message lists those there are.
    """
    name, equals, value = text.partition("=")
    try:
        if not equals and name in ("f1", "youden", "fixed"):
            return Policy(name)
        if name == "sensitivity" and 0.0 < float(value) <= 1.0:
            return Policy(name, sensitivity=float(value))
        if name == "cost":
            costs, comma, share = value.partition(",")
            missed, alarm = (float(cost) for cost in costs.split(":"))
            prevalence = float(share) if comma else None
            if min(missed, alarm) > 0 and math.isfinite(missed + alarm) and (prevalence is None or 0.0 < prevalence < 1.0):
                return Policy(name, missed=missed, alarm=alarm, prevalence=prevalence)
    except ValueError:
        pass
    raise ConfigError(
        [f"{text!r} is no policy; valid: {', '.join(POLICIES)}"],
        where="--thresholds",
        hint="S a share such as 0.95; FN and FP costs above 0 such as 5:1; P a prevalence such as 0.02",
    )


def called(probabilities_NK: NDArray[Any], task: Task, cuts: Cuts | None = None) -> NDArray[np.bool_]:
    """(N, K) which labels are called; of a multiclass model one in each row.

    Args:
        probabilities_NK: (N, K), 0..1.
        task: Of the model.
        cuts: A label is called at or above its own. None: 0.5 for multilabel; for multiclass the most probable is called.
    """
    scores = np.asarray(probabilities_NK, dtype=np.float64)
    if task == "multilabel":
        return np.asarray(scores >= (DEFAULT if cuts is None else np.asarray(cuts, dtype=np.float64)))
    if cuts is not None:
        limits = np.broadcast_to(np.asarray(cuts, dtype=np.float64), scores.shape)
        scores = np.where(np.isnan(limits), scores, np.where(scores >= limits, 2.0, -1.0))
    return np.asarray(np.eye(scores.shape[1], dtype=bool)[scores.argmax(axis=1)])
