"""Statistics of weighted rows, and the bootstrap over patients that draws the weights.

Images of one patient are not independent, so patients, not images, are drawn with replacement (cluster bootstrap:
Davison and Hinkley 1997, section 3.8; percentile intervals). A resample is a vector of row weights, so that point
value and interval come from the same weighted formulas, a thousand resamples at a time; tests hold them equal to
scikit-learn's.

Shapes: R resamples, N images, K labels, B bins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cxr_ray.labels import Task

Floats = NDArray[np.float64]
Statistics = Callable[[Floats], dict[str, Floats]]
"""Row weights (R, N) -> each statistic of every weighting, (R, …)."""
ECE_BINS: Final = 15
_CELLS_AT_ONCE = 4_000_000  # weights held at once: 32 MB
_TINY: Final = 1e-12


def bootstrap_of(
    statistics: Statistics, patients: Sequence[str] | NDArray[Any], *, seed: int = 0, resamples: int = 1000
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Statistics of all rows (1, …), and of R resamples of patients (R, …).

    Which patients a resample draws follows from ``patients``, ``seed`` and ``resamples`` alone: whatever is computed of the same images
    can be compared resample by resample.
    """
    point = statistics(np.ones((1, len(patients))))
    names, cluster = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    drawn: dict[str, list[Floats]] = {name: [] for name in point}
    for weights in _resamples(cluster, len(names), len(patients), seed=seed, resamples=resamples):
        for name, values in statistics(weights).items():
            drawn[name].append(values)
    return point, {name: np.concatenate(values) for name, values in drawn.items()}


def _resamples(cluster: NDArray[Any], clusters: int, rows: int, *, seed: int, resamples: int) -> Iterator[Floats]:
    """Row weights (R', N) piece by piece: how often each row's patient was drawn."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _CELLS_AT_ONCE // max(rows, clusters))
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        times = generator.multinomial(clusters, np.full(clusters, 1.0 / clusters), size=count)
        yield times[:, cluster].astype(np.float64)


UPWARD: Final = frozenset({"ece", "mce"})
"""Statistics that grow with noise: sums and largest of absolute gaps. A resample has more of it than the sample."""


def figure(point: Floats, spread: Floats, *, upward: bool = False) -> Any:
    """``{"value", "ci95"}`` of a statistic (1,) and its resamples (R,), or a list of them where it is one a label (1, K), (R, K).

    ``upward`` (:data:`UPWARD`): the interval is moved by what the resamples are too large on average, and ends at 0; the percentiles
    themselves may lie above the value.
    """
    if point.ndim > 1:
        return [figure(point[:, index], spread[:, index], upward=upward) for index in range(point.shape[1])]
    value = float(point[0])
    defined = spread[np.isfinite(spread)]
    if not np.isfinite(value):
        return {"value": None, "ci95": None}
    if not len(defined):
        return {"value": value, "ci95": None}
    bounds = np.percentile(defined, [2.5, 97.5])
    if upward:
        bounds = np.maximum(bounds - (defined.mean() - value), 0.0)
    return {"value": value, "ci95": [float(bound) for bound in bounds]}


class Curve:
    """Area under the ROC curve (ties count half) and average precision of one label, for many weightings at once."""

    def __init__(self, scores: Floats, truth: Floats, known: NDArray[np.bool_] | None = None) -> None:
        rows = np.arange(len(scores)) if known is None else np.flatnonzero(known)
        self.order = rows[np.argsort(-scores[rows], kind="stable")]
        ranked = scores[self.order]
        self.last_of_tie = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.array([], dtype=int)
        self.positive = truth[self.order]

    def __call__(self, weights: Floats) -> tuple[Floats, Floats]:
        """(R, N) -> both, each (R,)."""
        ranked = weights[:, self.order]
        true = np.cumsum(ranked * self.positive, 1)[:, self.last_of_tie]
        false = np.cumsum(ranked * (1 - self.positive), 1)[:, self.last_of_tie]
        if not true.shape[1]:
            empty = np.full(len(weights), np.nan)
            return empty, empty
        step_true, step_false = np.diff(true, axis=1, prepend=0.0), np.diff(false, axis=1, prepend=0.0)
        area = (step_false * (true - step_true / 2)).sum(1)
        precision = np.divide(true, true + false, out=np.zeros_like(true), where=true + false > 0)
        return ratio(area, true[:, -1] * false[:, -1]), ratio((step_true * precision).sum(1), true[:, -1])


class CalibrationError:
    """How far probabilities are from meaning what they say: ``ece``, ``mce``, ``brier``, ``log_loss``.

    Bins are of equal width (Naeini 2015). Multiclass: ECE and MCE are of the most probable class, the Brier score is the sum over classes
    (Brier 1950). Multilabel: each is the mean over labels, of the known answers.

    Args:
        scores: (N, K) probabilities.
        truth: (N, K) of 1, 0 and NaN (unknown, left out).
        task: Of the model.
    """

    def __init__(self, scores: Floats, truth: Floats, task: Task) -> None:
        inside = np.clip(scores, _TINY, 1 - _TINY)
        if task == "multiclass":
            top = np.arange(len(scores)), scores.argmax(1)
            said, so, known = scores[top][:, None], truth[top][:, None], np.ones((len(scores), 1))
            square, surprise = ((scores - truth) ** 2).sum(1)[:, None], -np.log((inside * truth).sum(1))[:, None]
        else:
            said, so, known = scores, np.nan_to_num(truth), (~np.isnan(truth)).astype(np.float64)
            square, surprise = (said - so) ** 2, -so * np.log(inside) - (1 - so) * np.log1p(-inside)
        self.known, self.square, self.surprise = known, square * known, surprise * known
        place = np.clip((said * ECE_BINS).astype(int), 0, ECE_BINS - 1)
        self.inside_KNB = np.moveaxis(np.eye(ECE_BINS)[place] * known[..., None], 1, 0)
        self.gap_KNB = self.inside_KNB * np.moveaxis((so - said)[..., None], 1, 0)

    def __call__(self, weights: Floats) -> dict[str, Floats]:
        """(R, N) -> each (R,)."""
        total = weights @ self.known
        gaps = [np.abs(weights @ gap_NB) for gap_NB in self.gap_KNB]
        inside = [weights @ inside_NB for inside_NB in self.inside_KNB]
        widest = [np.nan_to_num(ratio(gap, count)).max(1) for gap, count in zip(gaps, inside, strict=True)]
        return {
            "ece": mean_defined(ratio(np.stack([gap.sum(1) for gap in gaps], 1), total)),
            "mce": mean_defined(np.where(total > 0, np.stack(widest, 1), np.nan)),
            "brier": mean_defined(ratio(weights @ self.square, total)),
            "log_loss": mean_defined(ratio(weights @ self.surprise, total)),
        }


def ratio(top: Floats, bottom: Floats) -> Floats:
    """``top / bottom``, NaN where ``bottom`` is 0."""
    quotient: Floats = np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=np.asarray(bottom) != 0)
    return quotient


def mean_defined(values: Floats) -> Floats:
    """Mean over the labels where it is defined; NaN where it is for none."""
    defined = np.isfinite(values)
    return ratio(np.where(defined, values, 0.0).sum(1), defined.sum(1).astype(np.float64))
