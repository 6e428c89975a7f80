"""Calibration: a probability of 0.8 shall be right in 8 of 10 cases. What was fitted, and its application to a model's probabilities.

temperature
    Softened or sharpened as if the logits were divided by T (Guo 2017): multiclass ``p_k ∝ p_k^(1/T)``, one T; multilabel
    ``logit(p_k) / T_k``, one T a label. The order of a row's classes (multiclass), or of a label's images (multilabel), stays.
isotonic
    A rising step function a label (Zadrozny & Elkan 2002), straight between its knots. Multiclass: each class against the rest, then
    divided by the row's sum, so that another class than before may come out on top.

Fitted by :mod:`cxr_ray.evaluation.calibration` on held-out images. Shapes: N images, K labels.
"""

from __future__ import annotations

from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cxr_ray.labels import Task
from cxr_ray.settings import Settings

Method = Literal["temperature", "isotonic"]
Floats = NDArray[np.float64]
NOT_ASKED_FOR: Final = "it was exported without a calibration"
_LEAST: Final = 1e-12
"""Probabilities are kept so far from 0 and 1 before their logarithm is taken."""


class CalibrationScores(Settings):
    """How well probabilities mean what they say; 0 is best of each."""

    ece: float
    """Expected calibration error, 15 bins of equal width: of the called class, or the mean over labels."""
    brier: float
    log_loss: float


class Calibration(Settings):
    """What a BUNDLE keeps of a calibration."""

    method: Method
    temperatures: tuple[float, ...] = ()
    """``temperature``: one, or one a label for multilabel; 1 where nothing could be fitted."""
    knots: tuple[tuple[tuple[float, float], ...], ...] = ()
    """``isotonic``: for each label (said, so), rising; none where nothing could be fitted."""
    fitted_on: str
    """In words, such as ``val of chest14``."""
    n: int = Field(ge=1)
    """Images of that part."""
    patients: int = Field(ge=1)
    before: CalibrationScores
    """On that part, as the model says it."""
    after: CalibrationScores
    """On that part, each image by a calibration fitted without its patient."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if bool(self.temperatures) != (self.method == "temperature") or bool(self.knots) != (self.method == "isotonic"):
            raise ValueError("temperatures belong to 'temperature', knots to 'isotonic', and one of both is needed")
        if not all(0.0 < temperature < float("inf") for temperature in self.temperatures):
            raise ValueError("temperatures must be above 0")
        for knots in self.knots:
            said, so = [knot[0] for knot in knots], [knot[1] for knot in knots]
            if said != sorted(said) or so != sorted(so) or not all(0.0 <= value <= 1.0 for value in (*said, *so)):
                raise ValueError("knots must rise and lie in 0..1")
        return self

    def fits(self, task: Task, labels: int) -> bool:
        """Whether it has as many temperatures, or step functions, as a model of K labels needs."""
        if self.method == "isotonic":
            return len(self.knots) == labels
        return len(self.temperatures) == (1 if task == "multiclass" else labels)

    def apply(self, probabilities_NK: NDArray[Any], task: Task) -> NDArray[np.float32]:
        """(N, K) probabilities of the model -> (N, K) float32 calibrated ones; rows of a multiclass model sum to 1."""
        said = np.asarray(probabilities_NK, dtype=np.float64)
        if self.method == "temperature":
            return at_temperature(said, np.array(self.temperatures), task).astype(np.float32)
        columns = [np.interp(said[:, label], *np.array(knots).T) if knots else said[:, label] for label, knots in enumerate(self.knots)]
        return (normalised(np.column_stack(columns)) if task == "multiclass" else np.column_stack(columns)).astype(np.float32)

    def told(self) -> str:
        """In a sentence, for the model card and the report."""
        if self.method == "isotonic":
            how = "isotonic regression of each label"
        elif len(self.temperatures) == 1:
            how = f"temperature {self.temperatures[0]:.3f}"
        else:
            how = f"a temperature for each label, {min(self.temperatures):.3f} to {max(self.temperatures):.3f}"
        return f"{how}, fitted on {self.fitted_on} ({self.n} images of {self.patients} patients)"


def at_temperature(probabilities_NK: Floats, temperatures: Floats, task: Task) -> Floats:
    """Probabilities as if the logits had been divided by the temperatures (1,) or (K,)."""
    if task == "multiclass":
        scaled = np.log(np.maximum(probabilities_NK, _LEAST)) / temperatures
        return normalised(np.exp(scaled - scaled.max(axis=1, keepdims=True)))
    inside = np.clip(probabilities_NK, _LEAST, 1.0 - _LEAST)
    odds = (np.log(inside) - np.log1p(-inside)) / temperatures
    return np.asarray(1.0 / (1.0 + np.exp(-odds)))


def normalised(scores_NK: Floats) -> Floats:
    """Rows divided by their sums, which must be above 0."""
    return np.asarray(scores_NK / scores_NK.sum(axis=1, keepdims=True))
