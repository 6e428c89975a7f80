"""Where a label is called: one cut a label, fitted on validation by a policy of :mod:`cxr_ray.models.decision`, never on a test part.

Fitted cuts of a label with a handful of positives are mostly noise: the part they come from and its size stand in the bundle.
Shapes: N images, K labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_ray.errors import DatasetError
from cxr_ray.labels import LabelSet
from cxr_ray.models.decision import DEFAULT, Policy, parse_policy
from cxr_ray.models.record import ThresholdOrigin

Floats = NDArray[np.float64]


def fit_thresholds(probabilities: NDArray[Any], targets: NDArray[Any], *, policy: str) -> tuple[float, ...]:
    """A threshold a label; a label is called present at or above it.

    Candidates lie midway between neighbouring probabilities that occur, the lowest midway to 0, so that rounding between devices does not
    move an image across; for ``cost`` also midway between the highest and 1, where nothing is called. Of cuts that score alike, the one
    nearest to 0.5 is taken, and of two as near, the higher. A label that never, or always, occurs among the known answers keeps 0.5: see
    :func:`without_contrast`.

    Args:
        probabilities: (N, K), 0..1.
        targets: (N, K) of 1, 0 or NaN (unknown, left out).
        policy: Such as ``f1`` or ``sensitivity=0.95``.

    Returns:
        K numbers in 0..1.

    Raises:
        DatasetError: Shapes that do not fit.
        ConfigError: An unknown policy.
    """
    scores, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if scores.ndim != 2 or scores.shape != truth.shape:
        raise DatasetError(f"thresholds need probabilities and targets of one shape (N, K), got {scores.shape} and {truth.shape}")
    wanted = parse_policy(policy)
    one_sided = without_contrast(truth)
    return tuple(
        DEFAULT if policy == "fixed" or one_sided[label] else _fit_label(scores[:, label], truth[:, label], wanted)
        for label in range(scores.shape[1])
    )


def operating_points(
    probabilities: NDArray[Any], targets: NDArray[Any], labels: LabelSet, *, policy: str, part: str, positive: str | None = None
) -> tuple[tuple[float | None, ...], ThresholdOrigin]:
    """:func:`fit_thresholds`, and the record of it that a BUNDLE keeps.

    Args:
        probabilities: (N, K), 0..1.
        targets: (N, K) of 1, 0 or NaN; (N,) label index for multiclass.
        labels: The K names.
        policy: As there.
        part: Where the images come from, in words.
        positive: Multiclass: the label that gets a cut; the others have none.

    Raises:
        DatasetError: Multiclass, and no such label.
    """
    chosen = [labels.index(positive)] if positive is not None else list(range(len(labels)))
    truth = np.eye(len(labels))[np.asarray(targets, dtype=np.int64)] if labels.task == "multiclass" else np.asarray(targets)
    fitted = dict(zip(chosen, fit_thresholds(probabilities[:, chosen], truth[:, chosen], policy=policy), strict=True))
    cuts = tuple(fitted.get(label) for label in range(len(labels)))
    if policy == "fixed":
        return cuts, ThresholdOrigin(policy="fixed", positive=positive)
    kept = tuple(labels.names[label] for label, missing in zip(chosen, without_contrast(truth[:, chosen]), strict=True) if missing)
    return cuts, ThresholdOrigin(policy=policy, part=part, n=len(targets), not_fitted=kept, positive=positive)


def without_contrast(targets: NDArray[Any]) -> tuple[bool, ...]:
    """Which of K labels have no known positive, or no known negative, among (N, K) targets: nothing can be fitted there."""
    truth = np.asarray(targets, dtype=np.float64)
    return tuple(bool(missing) for missing in ~((truth == 1).any(0) & (truth == 0).any(0)))


def _fit_label(scores: Floats, truth: Floats, policy: Policy) -> float:
    known = ~np.isnan(truth)
    values, place = np.unique(scores[known], return_inverse=True)
    positives = np.bincount(place, weights=truth[known], minlength=len(values))
    negatives = np.bincount(place, minlength=len(values)) - positives
    true, false = (np.cumsum(counts[::-1])[::-1].astype(np.float64) for counts in (positives, negatives))  # called at or above each value
    cuts = (values + np.concatenate([[0.0], values[:-1]])) / 2
    if policy.name == "cost":
        true, false, cuts = np.append(true, 0.0), np.append(false, 0.0), np.append(cuts, (values[-1] + 1.0) / 2)
    quality = _quality(true, false, cuts, policy)
    best = cuts[quality == quality.max()]
    return float(max(best, key=lambda cut: (-abs(cut - DEFAULT), cut)))


def _quality(true: Floats, false: Floats, cuts: Floats, policy: Policy) -> Floats:
    """What the policy makes as large as it can, of cuts that call ``true`` positives and ``false`` negatives; the first call all."""
    if policy.name == "f1":
        # Whole numbers, or one division of them: cuts that are alike are alike to the last bit.
        return np.asarray(2 * true / (true + false + true[0]))
    if policy.name == "youden":
        return np.asarray(true * false[0] - false * true[0])
    if policy.name == "sensitivity":
        assert policy.sensitivity is not None
        return np.where(true >= policy.sensitivity * true[0] - 1e-9, cuts, -1.0)
    prevalence = policy.prevalence if policy.prevalence is not None else true[0] / (true[0] + false[0])
    missed, alarms = 1 - true / true[0], false / false[0]
    return np.asarray(-np.round(policy.missed * prevalence * missed + policy.alarm * (1 - prevalence) * alarms, 12))
