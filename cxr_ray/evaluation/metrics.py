"""``metrics.json``: every figure with a 95 % interval from a bootstrap over patients.

Images of one patient are not independent, so patients, not images, are drawn with replacement (cluster bootstrap:
Davison and Hinkley 1997, section 3.8; percentile intervals). A resample is a vector of row weights, so that point
value and interval come from the same weighted formulas, a thousand resamples at a time; tests hold them equal to
scikit-learn's.

Shapes: R resamples, N images, K labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_ray.errors import DatasetError
from cxr_ray.labels import LabelSet

Floats = NDArray[np.float64]
_CELLS_AT_ONCE = 4_000_000  # weights held at once: 32 MB
ECE_BINS = 15


def compute_metrics(
    probabilities: NDArray[Any],
    targets: NDArray[Any],
    patients: Sequence[str] | NDArray[Any],
    labels: LabelSet,
    *,
    split: str,
    thresholds: Sequence[float] | Floats | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """All figures of ``metrics.json``.

    Args:
        probabilities: (N, K), in 0..1; rows sum to 1 for multiclass.
        targets: (N,) label index for multiclass; (N, K) of 1, 0 or NaN (unknown, left out) for multilabel.
        patients: (N,) patient of each image: the unit of the bootstrap.
        labels: Names of the K outputs and the task.
        split: Name of the part that was evaluated.
        thresholds: Multilabel: (K,) a label is called present at or above it, or (N, K) where images have thresholds of their own
            (``per_label`` then has their mean); None: 0.5.
        seed: Of the bootstrap.
        resamples: R, how many patients' samples are drawn.

    Returns:
        ``{split, n, patients, labels, confusion_matrix, accuracy, macro_f1, macro_auroc, ece, per_label, bootstrap}``. A
        figure is ``{"value", "ci95": [low, high]}``, None where it is undefined (a label that never, or always, occurs).
        ``confusion_matrix`` is rows truth x columns prediction, for multilabel one ``[[tn, fp], [fn, tp]]`` a label.

    Raises:
        DatasetError: No rows, or shapes that do not fit.
    """
    if not len(probabilities):
        raise DatasetError(f"part {split!r} has no images to evaluate")
    point, spread = bootstrap(probabilities, targets, patients, labels, thresholds=thresholds, seed=seed, resamples=resamples)
    figures = {name: figure(point[name], spread[name]) for name in point if not name.startswith("_")}
    truth = _one_hot(np.asarray(targets), labels)
    known = ~np.isnan(truth)
    cut = np.atleast_2d(thresholds if thresholds is not None else [0.5] * len(labels)).mean(axis=0)
    per_label = {
        label: {
            **{name.removeprefix("label_"): value[index] for name, value in figures.items() if name.startswith("label_")},
            "n": int(np.nansum(truth[:, index])),
            **({"known": int(known[:, index].sum()), "threshold": float(cut[index])} if labels.task == "multilabel" else {}),
        }
        for index, label in enumerate(labels.names)
    }
    return {
        "split": split,
        "n": len(probabilities),
        "patients": len(set(patients)),
        "task": labels.task,
        "labels": list(labels.names),
        "confusion_matrix": point["_confusion"][0].astype(int).tolist(),
        **{name: value for name, value in figures.items() if not name.startswith("label_")},
        "per_label": per_label,
        "bootstrap": {"unit": "patient", "resamples": resamples, "seed": seed},
    }


def bootstrap(
    probabilities: NDArray[Any],
    targets: NDArray[Any],
    patients: Sequence[str] | NDArray[Any],
    labels: LabelSet,
    *,
    thresholds: Sequence[float] | Floats | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Every statistic of :func:`compute_metrics`, which says what the arguments are: of all rows (1, …), and of R resamples (R, …).

    Which patients a resample draws follows from ``patients``, ``seed`` and ``resamples`` alone: two models of the same images can be
    compared resample by resample.

    Raises:
        DatasetError: Shapes that do not fit.
    """
    scores = np.asarray(probabilities, dtype=np.float64)
    truth = _one_hot(np.asarray(targets), labels)
    if scores.shape != truth.shape or len(patients) != len(scores):
        raise DatasetError(f"probabilities {scores.shape}, targets {truth.shape} and patients ({len(patients)},) do not fit")
    cut = np.asarray(thresholds if thresholds is not None else [0.5] * len(labels), dtype=np.float64)
    statistics = _Multiclass(scores, truth) if labels.task == "multiclass" else _Multilabel(scores, truth, cut)
    point = statistics(np.ones((1, len(scores))))
    names, cluster = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    drawn: dict[str, list[Floats]] = {name: [] for name in point}
    for weights in _resamples(cluster, len(names), len(scores), seed=seed, resamples=resamples):
        for name, values in statistics(weights).items():
            drawn[name].append(values)
    return point, {name: np.concatenate(values) for name, values in drawn.items()}


def _one_hot(targets: NDArray[Any], labels: LabelSet) -> Floats:
    if labels.task == "multilabel":
        return targets.astype(np.float64)
    if targets.ndim != 1 or (len(targets) and not (int(targets.min()) >= 0 and int(targets.max()) < len(labels))):
        raise DatasetError(f"multiclass targets must be (N,) integers in 0..{len(labels) - 1}")
    return np.eye(len(labels))[targets.astype(np.int64)]


def _resamples(cluster: NDArray[Any], clusters: int, rows: int, *, seed: int, resamples: int) -> Iterator[Floats]:
    """Row weights (R', N) piece by piece: how often each row's patient was drawn."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _CELLS_AT_ONCE // max(rows, clusters))
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        times = generator.multinomial(clusters, np.full(clusters, 1.0 / clusters), size=count)
        yield times[:, cluster].astype(np.float64)


def figure(point: Floats, spread: Floats) -> Any:
    """``{"value", "ci95"}`` of a statistic (1,) and its resamples (R,), or a list of them where it is one a label (1, K), (R, K)."""
    if point.ndim > 1:
        return [figure(point[:, index], spread[:, index]) for index in range(point.shape[1])]
    value = float(point[0])
    defined = spread[np.isfinite(spread)]
    if not np.isfinite(value):
        return {"value": None, "ci95": None}
    interval = [float(bound) for bound in np.percentile(defined, [2.5, 97.5])] if len(defined) else None
    return {"value": value, "ci95": interval}


class _Multiclass:
    """Weighted statistics of a task where exactly one label applies; the largest probability decides."""

    def __init__(self, scores: Floats, truth: Floats) -> None:
        self.scores, self.truth = scores, truth
        called = np.eye(scores.shape[1])[scores.argmax(1)]
        self.cells = np.einsum("nt,np->ntp", truth, called).reshape(len(scores), -1)
        self.curves = [_Curve(scores[:, label], truth[:, label]) for label in range(scores.shape[1])]
        right = (called * truth).sum(1)
        self.bins = _Bins(scores.max(1), right)

    def __call__(self, weights: Floats) -> dict[str, Floats]:
        labels = self.scores.shape[1]
        confusion = (weights @ self.cells).reshape(-1, labels, labels)
        positives = np.einsum("rll->rl", confusion)
        counts = _Counts(
            tp=positives,
            fp=confusion.sum(1) - positives,
            fn=confusion.sum(2) - positives,
            total=confusion.sum((1, 2))[:, None],
        )
        accuracy = _ratio(positives.sum(1), confusion.sum((1, 2)))
        return {"_confusion": confusion, "accuracy": accuracy, **_summary(counts, self.curves, weights), "ece": self.bins(weights)}


class _Multilabel:
    """Weighted statistics of a task where each label is a question of its own; unknown answers carry no weight."""

    def __init__(self, scores: Floats, truth: Floats, thresholds: Floats) -> None:
        self.known = ~np.isnan(truth)
        self.truth = np.nan_to_num(truth)
        self.called = (scores >= thresholds).astype(np.float64)
        label_range = range(scores.shape[1])
        self.curves = [_Curve(scores[:, label], self.truth[:, label], self.known[:, label]) for label in label_range]
        self.bins = [_Bins(scores[:, label], self.truth[:, label], self.known[:, label]) for label in label_range]

    def __call__(self, weights: Floats) -> dict[str, Floats]:
        counts = _Counts(
            tp=weights @ (self.known * self.truth * self.called),
            fp=weights @ (self.known * (1 - self.truth) * self.called),
            fn=weights @ (self.known * self.truth * (1 - self.called)),
            total=weights @ self.known.astype(np.float64),
        )
        tn = counts.total - counts.tp - counts.fp - counts.fn
        confusion = np.stack([np.stack([tn, counts.fp], -1), np.stack([counts.fn, counts.tp], -1)], -2)
        accuracy = _ratio((counts.tp + tn).sum(1), counts.total.sum(1))
        ece = _mean(np.stack([bins(weights) for bins in self.bins], 1))
        return {"_confusion": confusion, "accuracy": accuracy, **_summary(counts, self.curves, weights), "ece": ece}


class _Counts:
    """Weighted true positives, false positives, false negatives and known cases, each (R, K)."""

    def __init__(self, *, tp: Floats, fp: Floats, fn: Floats, total: Floats) -> None:
        self.tp, self.fp, self.fn, self.total = tp, fp, fn, total


def _summary(counts: _Counts, curves: Sequence[_Curve], weights: Floats) -> dict[str, Floats]:
    tn = counts.total - counts.tp - counts.fp - counts.fn
    f1 = _ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn)
    areas = [curve(weights) for curve in curves]
    auroc = np.stack([area[0] for area in areas], 1)
    return {
        "macro_f1": _mean(f1),
        "macro_auroc": _mean(auroc),
        "label_sensitivity": _ratio(counts.tp, counts.tp + counts.fn),
        "label_specificity": _ratio(tn, tn + counts.fp),
        "label_precision": _ratio(counts.tp, counts.tp + counts.fp),
        "label_f1": f1,
        "label_auroc": auroc,
        "label_average_precision": np.stack([area[1] for area in areas], 1),
        "label_accuracy": _ratio(counts.tp + tn, np.broadcast_to(counts.total, tn.shape)),
    }


class _Curve:
    """Area under the ROC curve (ties count half) and average precision of one label, for many weightings at once."""

    def __init__(self, scores: Floats, truth: Floats, known: NDArray[np.bool_] | None = None) -> None:
        rows = np.arange(len(scores)) if known is None else np.flatnonzero(known)
        self.order = rows[np.argsort(-scores[rows], kind="stable")]
        ranked = scores[self.order]
        self.last_of_tie = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.array([], dtype=int)
        self.positive = truth[self.order]

    def __call__(self, weights: Floats) -> tuple[Floats, Floats]:
        ranked = weights[:, self.order]
        true = np.cumsum(ranked * self.positive, 1)[:, self.last_of_tie]
        false = np.cumsum(ranked * (1 - self.positive), 1)[:, self.last_of_tie]
        if not true.shape[1]:
            empty = np.full(len(weights), np.nan)
            return empty, empty
        step_true, step_false = np.diff(true, axis=1, prepend=0.0), np.diff(false, axis=1, prepend=0.0)
        area = (step_false * (true - step_true / 2)).sum(1)
        precision = np.divide(true, true + false, out=np.zeros_like(true), where=true + false > 0)
        return _ratio(area, true[:, -1] * false[:, -1]), _ratio((step_true * precision).sum(1), true[:, -1])


class _Bins:
    """Expected calibration error (Naeini 2015) with equal-width bins: of the called label, or of one label's probability."""

    def __init__(self, confidence: Floats, outcome: Floats, known: NDArray[np.bool_] | None = None) -> None:
        place = np.clip((confidence * ECE_BINS).astype(int), 0, ECE_BINS - 1)
        weight = np.ones(len(confidence)) if known is None else known.astype(np.float64)
        self.gap = np.eye(ECE_BINS)[place] * ((outcome - confidence) * weight)[:, None]
        self.weight = weight

    def __call__(self, weights: Floats) -> Floats:
        return _ratio(np.abs(weights @ self.gap).sum(1), weights @ self.weight)


def _ratio(top: Floats, bottom: Floats) -> Floats:
    """``top / bottom``, NaN where ``bottom`` is 0."""
    quotient: Floats = np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=np.asarray(bottom) != 0)
    return quotient


def _mean(values: Floats) -> Floats:
    """Mean over the labels where it is defined; NaN where it is for none."""
    defined = np.isfinite(values)
    return _ratio(np.where(defined, values, 0.0).sum(1), defined.sum(1).astype(np.float64))


def flat(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """The headline values without intervals, for tables and logs."""
    return {name: metrics[name]["value"] for name in ("accuracy", "macro_f1", "macro_auroc", "ece")}
