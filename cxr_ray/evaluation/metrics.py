"""``metrics.json``: every figure with a 95 % interval from a bootstrap over patients (:mod:`cxr_ray.evaluation.weighted`).

Shapes: R resamples, N images, K labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_ray.errors import DatasetError
from cxr_ray.evaluation.weighted import UPWARD, CalibrationError, Curve, Floats, Statistics, bootstrap_of, figure, mean_defined, ratio
from cxr_ray.labels import LabelSet
from cxr_ray.models.decision import DEFAULT, Cuts, called

Patients = Sequence[str] | NDArray[Any]
CALIBRATION = ("ece", "mce", "brier", "log_loss")


def compute_metrics(
    probabilities: NDArray[Any],
    targets: NDArray[Any],
    patients: Patients,
    labels: LabelSet,
    *,
    split: str,
    thresholds: Cuts | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """The figures of ``metrics.json``.

    Args:
        probabilities: (N, K), in 0..1; rows sum to 1 for multiclass.
        targets: (N,) label index for multiclass; (N, K) of 1, 0 or NaN (unknown, left out) for multilabel.
        patients: (N,) patient of each image: the unit of the bootstrap.
        labels: Names of the K outputs and the task.
        split: Name of the part that was evaluated.
        thresholds: (K,), see :func:`cxr_ray.models.decision.called`, or (N, K) where images have thresholds of their own
            (``per_label`` then has their mean).
        seed: Of the bootstrap.
        resamples: R, how many patients' samples are drawn.

    Returns:
        ``{split, n, patients, task, labels, confusion_matrix, accuracy, macro_f1, macro_auroc, ece, mce, brier, log_loss, per_label,
        bootstrap}``. A figure is ``{"value", "ci95": [low, high]}``, None where it is undefined (a label that never, or always, occurs).
        ``confusion_matrix`` is rows truth x columns prediction, for multilabel one ``[[tn, fp], [fn, tp]]`` a label.

    Raises:
        DatasetError: No rows, or shapes that do not fit.
    """
    if not len(probabilities):
        raise DatasetError(f"part {split!r} has no images to evaluate")
    point, spread = bootstrap(probabilities, targets, patients, labels, thresholds=thresholds, seed=seed, resamples=resamples)
    figures = {name: figure(point[name], spread[name], upward=name in UPWARD) for name in point if not name.startswith("_")}
    truth = one_hot(targets, labels)
    known = ~np.isnan(truth)
    cut = _mean_cuts(thresholds, labels)
    per_label = {
        label: {
            **{name.removeprefix("label_"): value[index] for name, value in figures.items() if name.startswith("label_")},
            "n": int(np.nansum(truth[:, index])),
            **({"known": int(known[:, index].sum())} if labels.task == "multilabel" else {}),
            **({} if np.isnan(cut[index]) else {"threshold": float(cut[index])}),
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
    patients: Patients,
    labels: LabelSet,
    *,
    thresholds: Cuts | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Every statistic of :func:`compute_metrics`, which says what the arguments are: of all rows (1, …), and of R resamples (R, …).

    Raises:
        DatasetError: Shapes that do not fit.
    """
    if len(patients) != len(probabilities):
        raise DatasetError(f"probabilities {np.shape(probabilities)} and patients ({len(patients)},) do not fit")
    return bootstrap_of(statistics(probabilities, targets, labels, thresholds=thresholds), patients, seed=seed, resamples=resamples)


def statistics(probabilities: NDArray[Any], targets: NDArray[Any], labels: LabelSet, *, thresholds: Cuts | None = None) -> Statistics:
    """What :func:`compute_metrics` computes of every weighting of the rows.

    Raises:
        DatasetError: Shapes that do not fit.
    """
    scores, truth = np.asarray(probabilities, dtype=np.float64), one_hot(targets, labels)
    if scores.shape != truth.shape:
        raise DatasetError(f"probabilities {scores.shape} and targets {truth.shape} do not fit")
    decided = called(scores, labels.task, thresholds).astype(np.float64)
    return _Multiclass(scores, truth, decided) if labels.task == "multiclass" else _Multilabel(scores, truth, decided)


def one_hot(targets: NDArray[Any], labels: LabelSet) -> Floats:
    """Targets as (N, K) of 1, 0 and NaN, of either task.

    Raises:
        DatasetError: Multiclass targets that are no label's index.
    """
    targets = np.asarray(targets)
    if labels.task == "multilabel":
        return targets.astype(np.float64)
    if targets.ndim != 1 or (len(targets) and not (int(targets.min()) >= 0 and int(targets.max()) < len(labels))):
        raise DatasetError(f"multiclass targets must be (N,) integers in 0..{len(labels) - 1}")
    return np.eye(len(labels))[targets.astype(np.int64)]


def _mean_cuts(thresholds: Cuts | None, labels: LabelSet) -> Floats:
    """(K,) NaN where a label has none."""
    none = DEFAULT if labels.task == "multilabel" else np.nan
    cuts = np.asarray(thresholds if thresholds is not None else [none] * len(labels), dtype=np.float64)
    return np.asarray(np.atleast_2d(cuts).mean(axis=0))


class _Multiclass:
    """Weighted statistics of a task where exactly one label applies."""

    def __init__(self, scores: Floats, truth: Floats, decided: Floats) -> None:
        self.labels = scores.shape[1]
        self.cells = np.einsum("nt,np->ntp", truth, decided).reshape(len(scores), -1)
        self.curves = [Curve(scores[:, label], truth[:, label]) for label in range(self.labels)]
        self.calibration = CalibrationError(scores, truth, "multiclass")

    def __call__(self, weights: Floats) -> dict[str, Floats]:
        confusion = (weights @ self.cells).reshape(-1, self.labels, self.labels)
        positives = np.einsum("rll->rl", confusion)
        counts = _Counts(
            tp=positives,
            fp=confusion.sum(1) - positives,
            fn=confusion.sum(2) - positives,
            total=confusion.sum((1, 2))[:, None],
        )
        accuracy = ratio(positives.sum(1), confusion.sum((1, 2)))
        return {"_confusion": confusion, "accuracy": accuracy, **_summary(counts, self.curves, weights), **self.calibration(weights)}


class _Multilabel:
    """Weighted statistics of a task where each label is a question of its own; unknown answers carry no weight."""

    def __init__(self, scores: Floats, truth: Floats, decided: Floats) -> None:
        self.known = ~np.isnan(truth)
        self.truth, self.called = np.nan_to_num(truth), decided
        self.curves = [Curve(scores[:, label], self.truth[:, label], self.known[:, label]) for label in range(scores.shape[1])]
        self.calibration = CalibrationError(scores, truth, "multilabel")

    def __call__(self, weights: Floats) -> dict[str, Floats]:
        counts = _Counts(
            tp=weights @ (self.known * self.truth * self.called),
            fp=weights @ (self.known * (1 - self.truth) * self.called),
            fn=weights @ (self.known * self.truth * (1 - self.called)),
            total=weights @ self.known.astype(np.float64),
        )
        tn = counts.total - counts.tp - counts.fp - counts.fn
        confusion = np.stack([np.stack([tn, counts.fp], -1), np.stack([counts.fn, counts.tp], -1)], -2)
        accuracy = ratio((counts.tp + tn).sum(1), counts.total.sum(1))
        return {"_confusion": confusion, "accuracy": accuracy, **_summary(counts, self.curves, weights), **self.calibration(weights)}


class _Counts:
    """Weighted true positives, false positives, false negatives and known cases, each (R, K)."""

    def __init__(self, *, tp: Floats, fp: Floats, fn: Floats, total: Floats) -> None:
        self.tp, self.fp, self.fn, self.total = tp, fp, fn, total


def _summary(counts: _Counts, curves: Sequence[Curve], weights: Floats) -> dict[str, Floats]:
    tn = counts.total - counts.tp - counts.fp - counts.fn
    f1 = ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn)
    areas = [curve(weights) for curve in curves]
    auroc = np.stack([area[0] for area in areas], 1)
    return {
        "macro_f1": mean_defined(f1),
        "macro_auroc": mean_defined(auroc),
        "label_sensitivity": ratio(counts.tp, counts.tp + counts.fn),
        "label_specificity": ratio(tn, tn + counts.fp),
        "label_precision": ratio(counts.tp, counts.tp + counts.fp),
        "label_npv": ratio(tn, tn + counts.fn),
        "label_f1": f1,
        "label_auroc": auroc,
        "label_average_precision": np.stack([area[1] for area in areas], 1),
        "label_accuracy": ratio(counts.tp + tn, np.broadcast_to(counts.total, tn.shape)),
    }


def flat(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """The headline values without intervals, for tables and logs."""
    return {name: metrics[name]["value"] for name in ("accuracy", "macro_f1", "macro_auroc", "ece")}
