"""Decision curves: what a model is worth to whoever acts from a probability of t on (Vickers & Elkin, Medical Decision Making 26, 2006).

    net benefit(t) = TP / n - FP / n * t / (1 - t)

t says how many false alarms one found case is worth. A model is of use at t where its net benefit is above that of acting on everybody
(``all``) and of acting on nobody (0). It asks for calibrated probabilities. Shapes: N images, K labels, T thresholds.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cxr_ray.evaluation.delong import Patients
from cxr_ray.evaluation.metrics import one_hot
from cxr_ray.evaluation.weighted import Floats, bootstrap_of, ratio
from cxr_ray.labels import LabelSet

THRESHOLDS: Final = np.round(np.arange(0.02, 0.99, 0.02), 2)


def decision_curve(
    probabilities: NDArray[Any], targets: NDArray[Any], patients: Patients, labels: LabelSet, *, seed: int = 0, resamples: int = 1000
) -> dict[str, Any]:
    """Net benefit of each label against the rest, with 95 % intervals by patient.

    Args:
        probabilities: (N, K), calibrated.
        targets: (N,) label index, or (N, K) of 1, 0 and NaN.
        patients: (N,)
        labels: The K names and the task.
        seed: Of the bootstrap.
        resamples: How many samples of patients are drawn.

    Returns:
        ``{"thresholds": [T], "per_label": {L: {"model", "low", "high", "all"}}}``, each a list of T; None for a label that never, or
        always, occurs.
    """
    said, truth = np.asarray(probabilities, dtype=np.float64), one_hot(targets, labels)
    names = np.asarray(patients, dtype=str)
    curves: dict[str, Any] = {}
    for index, label in enumerate(labels.names):
        known = ~np.isnan(truth[:, index])
        positive = truth[known, index]
        if not 0 < positive.sum() < len(positive):
            curves[label] = None
            continue
        point, spread = bootstrap_of(_NetBenefit(said[known, index], positive), names[known], seed=seed, resamples=resamples)
        low, high = np.nanpercentile(spread["model"], [2.5, 97.5], axis=0)
        curves[label] = {
            name: [float(value) for value in values]
            for name, values in (("model", point["model"][0]), ("low", low), ("high", high), ("all", point["all"][0]))
        }
    return {"thresholds": THRESHOLDS.tolist(), "per_label": curves}


class _NetBenefit:
    """Row weights (R, N) -> net benefit (R, T) of the model, and of acting on everybody."""

    def __init__(self, said: Floats, positive: Floats) -> None:
        odds_T = THRESHOLDS / (1 - THRESHOLDS)
        gain_NT = positive[:, None] - (1 - positive[:, None]) * odds_T
        self.all_NT, self.model_NT = gain_NT, gain_NT * (said[:, None] >= THRESHOLDS)

    def __call__(self, weights: Floats) -> dict[str, Floats]:
        total = weights.sum(1, keepdims=True)
        return {"model": ratio(weights @ self.model_NT, total), "all": ratio(weights @ self.all_NT, total)}
