"""Where a multilabel model calls a label present: one threshold a label, fitted on a validation part, never on a test part.

Policies:

- ``f1``: the cut with the largest F1 score of the label. For screening lists with rare findings, where 0.5 is often never reached.
- ``youden``: the cut with the largest sensitivity + specificity - 1 (Youden, Cancer 3:32-35, 1950). It weighs both errors by how common
  they are within their own group, so that a rare label is called far more often than it occurs.
- ``fixed``: 0.5.

Fitted thresholds of a label with a handful of positives are mostly noise: the part they come from and its size stand in the bundle.
Shapes: N images, K labels.
"""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cxr_ray.errors import DatasetError
from cxr_ray.labels import LabelSet
from cxr_ray.models.record import ThresholdOrigin

Policy = Literal["f1", "youden", "fixed"]
POLICIES: Final[tuple[str, ...]] = get_args(Policy)
DEFAULT = 0.5


def fit_thresholds(probabilities: NDArray[Any], targets: NDArray[Any], *, policy: Policy) -> tuple[float, ...]:
    """A threshold a label; a label is called present at or above it.

    Candidates lie midway between neighbouring probabilities that occur, the lowest midway to 0, so that rounding between devices does not
    move an image across. Of cuts that score alike, the one nearest to 0.5 is taken, and of two as near, the higher. A label that never, or
    always, occurs among the known answers keeps 0.5: see :func:`without_contrast`.

    Args:
        probabilities: (N, K), 0..1.
        targets: (N, K) of 1, 0 or NaN (unknown, left out).
        policy: See the module.

    Returns:
        K numbers in 0..1.

    Raises:
        DatasetError: Shapes that do not fit, or an unknown policy.
    """
    scores, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if scores.ndim != 2 or scores.shape != truth.shape:
        raise DatasetError(f"thresholds need probabilities and targets of one shape (N, K), got {scores.shape} and {truth.shape}")
    if policy not in POLICIES:
        raise DatasetError(f"unknown policy {policy!r} of thresholds; there are: {', '.join(POLICIES)}")
    one_sided = without_contrast(truth)
    return tuple(
        DEFAULT if policy == "fixed" or one_sided[label] else _fit_label(scores[:, label], truth[:, label], policy)
        for label in range(scores.shape[1])
    )


def operating_points(
    probabilities: NDArray[Any], targets: NDArray[Any], labels: LabelSet, *, policy: Policy, part: str
) -> tuple[tuple[float, ...], ThresholdOrigin]:
    """:func:`fit_thresholds`, and the record of it that a BUNDLE keeps.

    Args:
        probabilities: (N, K), 0..1.
        targets: (N, K) of 1, 0 or NaN.
        labels: The K names.
        policy: See the module.
        part: Where the images come from, in words.
    """
    cuts = fit_thresholds(probabilities, targets, policy=policy)
    if policy == "fixed":
        return cuts, ThresholdOrigin(policy="fixed")
    kept = tuple(name for name, missing in zip(labels.names, without_contrast(targets), strict=True) if missing)
    return cuts, ThresholdOrigin(policy=policy, part=part, n=len(targets), not_fitted=kept)


def without_contrast(targets: NDArray[Any]) -> tuple[bool, ...]:
    """Which of K labels have no known positive, or no known negative, among (N, K) targets: nothing can be fitted there."""
    truth = np.asarray(targets, dtype=np.float64)
    return tuple(bool(missing) for missing in ~((truth == 1).any(0) & (truth == 0).any(0)))


def _fit_label(scores: NDArray[np.float64], truth: NDArray[np.float64], policy: Policy) -> float:
    known = ~np.isnan(truth)
    values, place = np.unique(scores[known], return_inverse=True)
    positives = np.bincount(place, weights=truth[known], minlength=len(values))
    negatives = np.bincount(place, minlength=len(values)) - positives
    true, false = np.cumsum(positives[::-1])[::-1], np.cumsum(negatives[::-1])[::-1]  # called at or above each value
    # Whole numbers, or one division of them: cuts that are alike are alike to the last bit.
    quality = 2 * true / (true + false + true[0]) if policy == "f1" else true * false[0] - false * true[0]
    cuts = (values + np.concatenate([[0.0], values[:-1]])) / 2
    best = cuts[quality == quality.max()]
    return float(max(best, key=lambda cut: (-abs(cut - DEFAULT), cut)))
