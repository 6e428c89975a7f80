"""Intervals and tests of areas under ROC curves without resampling.

DeLong, DeLong & Clarke-Pearson (Biometrics 44:837-845, 1988), by the mid-ranks of Sun & Xu (IEEE Signal Processing Letters 21:1389-1393,
2014), in time n log n. Several images of one patient are not independent: with ``patients`` the components are summed by patient first
(Obuchowski, Biometrics 53:567-578, 1997), which is DeLong's estimate again where each patient has one image.

Intervals are of the normal distribution, cut off at 0 and 1. Shapes: S sets of scores, m positives, n negatives, N = m + n, I patients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from cxr_ray.evaluation.metrics import one_hot
from cxr_ray.evaluation.weighted import Floats
from cxr_ray.labels import LabelSet

Patients = Sequence[str] | NDArray[Any]
_QUANTILE = float(norm.ppf(0.975))


def auroc_of_labels(probabilities: NDArray[Any], targets: NDArray[Any], patients: Patients, labels: LabelSet) -> dict[str, Any]:
    """Each label's area with its standard error and interval, by images and by patients; one class against the rest.

    Returns:
        Label -> ``{"auroc", "images": {"se", "ci95"}, "patients": {"se", "ci95"}}``, None where it is undefined.
    """
    truth, names = one_hot(targets, labels), np.asarray(patients, dtype=str)
    found: dict[str, Any] = {}
    for index, label in enumerate(labels.names):
        known = ~np.isnan(truth[:, index])
        scores, positive = np.asarray(probabilities, dtype=np.float64)[known, index][None], truth[known, index] == 1
        if not 0 < positive.sum() < len(positive):
            found[label] = None
            continue
        areas, by_image = delong(scores, positive)
        _, by_patient = delong(scores, positive, names[known])
        told = {"images": _interval(areas[0], by_image[0, 0]), "patients": _interval(areas[0], by_patient[0, 0])}
        found[label] = {"auroc": float(areas[0]), **told}
    return found


def auroc_difference(
    a: NDArray[Any], b: NDArray[Any], targets: NDArray[Any], patients: Patients, labels: LabelSet
) -> dict[str, dict[str, Any] | None]:
    """Each label's difference of areas of two models on the same images, with DeLong's test, by patients.

    Args:
        a: (N, K) probabilities.
        b: (N, K)
        targets: (N,) or (N, K).
        patients: (N,)
        labels: The K names and the task.

    Returns:
        Label -> ``{"difference", "se", "ci95", "p"}``, None where it is undefined; above 0 speaks for ``a``.
    """
    truth, names = one_hot(targets, labels), np.asarray(patients, dtype=str)
    found: dict[str, dict[str, Any] | None] = {}
    for index, label in enumerate(labels.names):
        known = ~np.isnan(truth[:, index])
        positive = truth[known, index] == 1
        if not 0 < positive.sum() < len(positive):
            found[label] = None
            continue
        both = np.stack([np.asarray(side, dtype=np.float64)[known, index] for side in (a, b)])
        areas, covariance = delong(both, positive, names[known])
        difference, variance = float(areas[0] - areas[1]), float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
        se = math.sqrt(variance) if variance > 0 else 0.0  # a NaN, too, of a single patient, is no standard error
        p = float(2 * norm.sf(abs(difference) / se)) if se else 1.0
        found[label] = {"difference": difference, "se": se, "ci95": [difference - _QUANTILE * se, difference + _QUANTILE * se], "p": p}
    return found


def delong(scores_SN: Floats, positive_N: NDArray[np.bool_], patients: Patients | None = None) -> tuple[Floats, Floats]:
    """Areas (S,) of several scores of the same images, and their covariance (S, S).

    Args:
        scores_SN: (S, N) higher for positives.
        positive_N: (N,) at least one of each kind.
        patients: (N,) whose images these are; None: each image is independent.

    Returns:
        The covariance is NaN where all positives, or all negatives, are of one patient.
    """
    above, below = scores_SN[:, positive_N], scores_SN[:, ~positive_N]
    m, n = above.shape[1], below.shape[1]
    pooled = rankdata(np.concatenate([above, below], axis=1), axis=1)
    won_Sm = (pooled[:, :m] - rankdata(above, axis=1)) / n  # of each positive, the share of negatives below it; ties count half
    won_Sn = 1.0 - (pooled[:, m:] - rankdata(below, axis=1)) / m
    areas_S = won_Sm.mean(axis=1)
    clusters = np.arange(m + n) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    count = int(clusters.max()) + 1
    of_positives, of_negatives = clusters[positive_N], clusters[~positive_N]
    off_positives_SI = _sums(won_Sm - areas_S[:, None], of_positives, count) / m
    off_negatives_SI = _sums(won_Sn - areas_S[:, None], of_negatives, count) / n
    crossed = off_positives_SI @ off_negatives_SI.T
    covariance_SS = (
        _small_sample(len(np.unique(of_positives))) * off_positives_SI @ off_positives_SI.T
        + _small_sample(len(np.unique(of_negatives))) * off_negatives_SI @ off_negatives_SI.T
        + _small_sample(count) * (crossed + crossed.T)
    )
    return areas_S, covariance_SS


def _sums(values_SN: Floats, place_N: NDArray[Any], count: int) -> Floats:
    return np.stack([np.bincount(place_N, weights=values, minlength=count) for values in values_SN])


def _small_sample(count: int) -> float:
    return count / (count - 1) if count > 1 else float("nan")


def _interval(area: float, variance: float) -> dict[str, Any] | None:
    if not np.isfinite(variance):
        return None
    se = math.sqrt(max(float(variance), 0.0))
    return {"se": se, "ci95": [max(0.0, float(area) - _QUANTILE * se), min(1.0, float(area) + _QUANTILE * se)]}
