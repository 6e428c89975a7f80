"""Whether probabilities mean what they say: reliability by bin, the Brier score in parts, and what a calibration changed.

Shapes: N images, K labels.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from cxr_ray.evaluation.delong import Patients
from cxr_ray.evaluation.metrics import CALIBRATION, one_hot
from cxr_ray.evaluation.weighted import UPWARD, CalibrationError, Floats, bootstrap_of, figure
from cxr_ray.labels import LabelSet

BINS: Final = 10
_Z = float(norm.ppf(0.975))


def reliability(probabilities: NDArray[Any], targets: NDArray[Any], patients: Patients, labels: LabelSet) -> dict[str, Any]:
    """Each label's probabilities in ten bins of equal width, against how often it was so.

    Args:
        probabilities: (N, K)
        targets: (N,) label index, or (N, K) of 1, 0 and NaN.
        patients: (N,)
        labels: The K names and the task.

    Returns:
        Label -> ``{"bins": [{"low", "high", "n", "patients", "said", "so", "ci95"}], "brier": {"score", "reliability", "resolution",
        "uncertainty", "within_bins"}}``. ``said`` is the mean probability, ``so`` the share of positives, its interval Wilson's with
        patients counted, not images: somewhat too wide. Empty bins are left out. Of the Brier score in parts (Murphy 1973):
        score = reliability - resolution + uncertainty + within_bins, the last for probabilities of one bin that differ (Stephenson 2008).
    """
    said, truth, names = np.asarray(probabilities, dtype=np.float64), one_hot(targets, labels), np.asarray(patients, dtype=str)
    found = {}
    for index, label in enumerate(labels.names):
        known = ~np.isnan(truth[:, index])
        found[label] = _of_label(said[known, index], truth[known, index], names[known])
    return found


def _of_label(said: Floats, so: Floats, patients: NDArray[np.str_]) -> dict[str, Any]:
    place = np.clip((said * BINS).astype(int), 0, BINS - 1)
    bins, parts = [], {"reliability": 0.0, "resolution": 0.0}
    for number in np.unique(place):
        inside = place == number
        mean_said, mean_so, share = float(said[inside].mean()), float(so[inside].mean()), float(inside.mean())
        people = len(np.unique(patients[inside]))
        bins.append(
            {
                "low": number / BINS,
                "high": (number + 1) / BINS,
                "n": int(inside.sum()),
                "patients": people,
                "said": mean_said,
                "so": mean_so,
                "ci95": wilson(mean_so, people),
            }
        )
        parts["reliability"] += share * (mean_said - mean_so) ** 2
        parts["resolution"] += share * (mean_so - float(so.mean())) ** 2
    if not bins:
        return {"bins": [], "brier": None}
    score, uncertainty = float(((said - so) ** 2).mean()), float(so.mean() * (1 - so.mean()))
    within = score - (parts["reliability"] - parts["resolution"] + uncertainty)
    return {"bins": bins, "brier": {"score": score, **parts, "uncertainty": uncertainty, "within_bins": within}}


def wilson(share: float, count: int) -> list[float]:
    """Wilson's 95 % interval of a share among ``count`` (JASA 22:209-212, 1927)."""
    scale = 1 + _Z**2 / count
    centre = (share + _Z**2 / (2 * count)) / scale
    half = _Z / scale * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return [max(0.0, centre - half), min(1.0, centre + half)]


def what_calibration_changed(
    raw: NDArray[Any],
    calibrated: NDArray[Any],
    targets: NDArray[Any],
    patients: Patients,
    labels: LabelSet,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """ECE, MCE, Brier score and log-loss of both, and calibrated minus raw with an interval of the same resamples of patients.

    Args:
        raw: (N, K) as the model says it.
        calibrated: (N, K)
        targets: (N,) or (N, K).
        patients: (N,)
        labels: The K names and the task.
        seed: Of the bootstrap.
        resamples: How many samples of patients are drawn.

    Returns:
        ``{"raw", "calibrated", "difference"}``, each name -> figure; a difference below 0 is a gain.
    """
    truth = one_hot(targets, labels)
    sides = [CalibrationError(np.asarray(scores, dtype=np.float64), truth, labels.task) for scores in (raw, calibrated)]
    (point_raw, spread_raw), (point, spread) = (bootstrap_of(side, patients, seed=seed, resamples=resamples) for side in sides)
    return {
        "raw": {name: figure(point_raw[name], spread_raw[name], upward=name in UPWARD) for name in CALIBRATION},
        "calibrated": {name: figure(point[name], spread[name], upward=name in UPWARD) for name in CALIBRATION},
        "difference": {name: figure(point[name] - point_raw[name], spread[name] - spread_raw[name]) for name in CALIBRATION},
    }
