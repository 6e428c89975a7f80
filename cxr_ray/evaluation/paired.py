"""Two models on the same images: how far apart they are, and whether chance alone could do that.

Both are scored on the same resamples of patients, so that what is hard for both cancels out: the interval of the difference is much
narrower than the two intervals suggest (cluster bootstrap as in :mod:`cxr_ray.evaluation.metrics`, paired). McNemar's exact test
(Psychometrika 12:153-157, 1947) asks about the images that only one of the two gets right; it takes images as independent, which several
images of one patient are not: where the two disagree, believe the interval.

Shapes: N images, K labels.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cxr_ray import storage
from cxr_ray.data.columns import targets_of
from cxr_ray.errors import DatasetError, StorageError
from cxr_ray.evaluation.delong import auroc_difference
from cxr_ray.evaluation.evaluate import METRICS, PREDICTIONS
from cxr_ray.evaluation.metrics import bootstrap
from cxr_ray.evaluation.weighted import figure
from cxr_ray.labels import LabelSet
from cxr_ray.models.decision import Cuts, called

FIGURES = ("accuracy", "macro_f1", "macro_auroc")


@dataclass(frozen=True)
class Scored:
    """What a REPORT or a cross-validation says of each image.

    Args:
        location: Where it was read from.
        labels: The K outputs.
        image_ids: (N,) SHA-256 of the source files; a file that was ingested twice stands twice.
        patients: (N,)
        targets: (N,) label index, or (N, K) of 1, 0 and NaN.
        probabilities: (N, K)
        thresholds: (N, K) that its metrics were computed with, NaN where a label has none; None: multiclass without any.
        warnings: Of its metrics.
    """

    location: str
    labels: LabelSet
    image_ids: NDArray[np.str_]
    patients: NDArray[np.str_]
    targets: NDArray[Any]
    probabilities: NDArray[Any]
    thresholds: NDArray[Any] | None
    warnings: tuple[str, ...] = ()

    def ordered(self) -> Scored:
        """The same, its rows in the order of the images."""
        rows = np.lexsort((self.patients, self.image_ids))
        taken = {name: getattr(self, name)[rows] for name in ("image_ids", "patients", "targets", "probabilities")}
        cuts = self.thresholds[rows] if self.thresholds is not None else None
        return Scored(self.location, self.labels, **taken, thresholds=cuts, warnings=self.warnings)


def read_scored(location: str) -> Scored:
    """The predictions of a REPORT, or of a cross-validation (each image by the fold that held it out).

    Raises:
        DatasetError: Neither stands there.
    """
    for name in (METRICS, PREDICTIONS):
        if not storage.exists(storage.join(location, name)):
            raise DatasetError(
                f"{location} is neither a REPORT nor a finished cross-validation: it has no {name}",
                hint="cxr-ray evaluate … --out REPORT, or cxr-ray train … --cv",
            )
    try:
        metrics = storage.read_json(storage.join(location, METRICS))
        table = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(location, PREDICTIONS))))
        labels = LabelSet(tuple(metrics["labels"]), metrics["task"])
        targets, probabilities = _columns(table, labels)
        thresholds = _thresholds(metrics, table, labels)
        ids, patients = (np.array(table.column(name).to_pylist(), dtype=str) for name in ("image_id", "patient_id"))
    except (KeyError, TypeError, ValueError, pa.ArrowException, StorageError) as error:
        raise DatasetError(
            f"{location} cannot be read as a REPORT or a cross-validation: {type(error).__name__}", hint="make it again with this version"
        ) from None
    return Scored(location, labels, ids, patients, targets, probabilities, thresholds, tuple(metrics.get("warnings", ())))


def _thresholds(metrics: dict[str, Any], table: pa.Table, labels: LabelSet) -> NDArray[Any] | None:
    """(N, K): of the fold that held the image out, or the same for all images; None where no label has one."""
    if "thresholds_by_fold" in metrics:
        by_fold = metrics["thresholds_by_fold"]
        return np.array([by_fold[str(fold)] for fold in table.column("fold").to_pylist()], dtype=np.float64)
    cuts = np.array([metrics["per_label"][name].get("threshold", np.nan) for name in labels.names], dtype=np.float64)
    return None if np.isnan(cuts).all() else np.tile(cuts, (len(table), 1))


def _columns(table: pa.Table, labels: LabelSet) -> tuple[NDArray[Any], NDArray[Any]]:
    """Targets and probabilities, as a cross-validation or as a REPORT has them."""
    if "probabilities" in table.column_names:
        return targets_of(table, labels), np.stack(table.column("probabilities").to_numpy())
    probabilities = np.column_stack([table.column(f"p_{name}").to_numpy() for name in labels.names])
    if labels.task == "multiclass":
        return np.array([labels.names.index(name) for name in table.column("label").to_pylist()]), probabilities
    return np.column_stack([table.column(f"y_{name}").to_numpy() for name in labels.names]), probabilities


def compare(a: str, b: str, *, seed: int = 0, resamples: int = 1000) -> dict[str, Any]:
    """Two REPORTs, or two cross-validations, or one of each, of the same images.

    Returns:
        :func:`paired_difference`, and ``a``, ``b`` (locations), ``task``, ``labels`` and ``warnings`` of both.

    Raises:
        DatasetError: They are of other images, other labels or another truth.
    """
    first, second = read_scored(a).ordered(), read_scored(b).ordered()
    _check_same(first, second)
    found = paired_difference(
        first.probabilities,
        second.probabilities,
        first.targets,
        first.patients,
        first.labels,
        thresholds=(first.thresholds, second.thresholds),
        seed=seed,
        resamples=resamples,
    )
    warnings = [f"{side.location}: {warning}" for side in (first, second) for warning in side.warnings]
    return {"a": a, "b": b, "task": first.labels.task, "labels": list(first.labels.names), **found, "warnings": warnings}


def _check_same(a: Scored, b: Scored) -> None:
    if a.labels != b.labels:
        raise DatasetError(
            f"{a.location} is of {', '.join(a.labels.names)} ({a.labels.task}), "
            f"{b.location} of {', '.join(b.labels.names)} ({b.labels.task}): they cannot be compared"
        )
    if not np.array_equal(a.image_ids, b.image_ids):
        in_a, in_b = Counter(a.image_ids.tolist()), Counter(b.image_ids.tolist())
        raise DatasetError(
            f"not the same images: {a.location} has {(in_a - in_b).total()} of {len(a.image_ids)} that the other lacks, "
            f"{b.location} {(in_b - in_a).total()} of {len(b.image_ids)}",
            hint="evaluate both on the same part of the same DATASET",
        )
    if not np.array_equal(a.targets, b.targets, equal_nan=a.labels.task == "multilabel"):
        raise DatasetError(f"{a.location} and {b.location} have the same images, but not the same truth")


def paired_difference(
    a: NDArray[Any],
    b: NDArray[Any],
    targets: NDArray[Any],
    patients: Sequence[str] | NDArray[Any],
    labels: LabelSet,
    *,
    thresholds: tuple[Cuts | None, Cuts | None] = (None, None),
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Accuracy, macro F1 and macro AUROC of both, ``a`` minus ``b`` with a 95 % interval, and McNemar's exact test.

    Args:
        a: (N, K) probabilities of one model.
        b: (N, K) of the other, of the same images in the same order.
        targets: (N,) label index, or (N, K) of 1, 0 and NaN (unknown, left out).
        patients: (N,) patient of each image, the unit of the bootstrap.
        labels: The K names and the task.
        thresholds: Of ``a`` and of ``b``, each (K,) or (N, K); see :func:`cxr_ray.models.decision.called`.
        seed: Of the bootstrap.
        resamples: How many samples of patients are drawn; each is the same for both models.

    Returns:
        ``{n, patients, figures: {accuracy|macro_f1|macro_auroc: {a, b, difference}}, delong: {…}, mcnemar: {…}, bootstrap}``. A figure is
        ``{"value", "ci95"}``, a difference has ``p``, too (:func:`bootstrap_p`); one above 0 speaks for ``a``. ``delong`` compares each
        label's areas (:func:`cxr_ray.evaluation.delong.auroc_difference`). ``mcnemar`` has one test ``accuracy`` (multiclass) or one a
        label: see :func:`mcnemar`.

    Raises:
        DatasetError: No rows, or shapes that do not fit.
    """
    if not len(a):
        raise DatasetError("there are no images to compare two models on")
    sides = [
        bootstrap(scores, targets, patients, labels, thresholds=cut, seed=seed, resamples=resamples)
        for scores, cut in zip((a, b), thresholds, strict=True)
    ]
    (point_a, spread_a), (point_b, spread_b) = sides
    return {
        "n": len(a),
        "patients": len(np.unique(np.asarray(patients, dtype=str))),
        "figures": {
            name: {
                "a": figure(point_a[name], spread_a[name]),
                "b": figure(point_b[name], spread_b[name]),
                "difference": {
                    **figure(point_a[name] - point_b[name], spread_a[name] - spread_b[name]),
                    "p": bootstrap_p(spread_a[name] - spread_b[name]),
                },
            }
            for name in FIGURES
        },
        "delong": auroc_difference(a, b, targets, patients, labels),
        "mcnemar": _tests(np.asarray(a), np.asarray(b), np.asarray(targets), labels, thresholds),
        "bootstrap": {"unit": "patient", "resamples": resamples, "seed": seed},
    }


def bootstrap_p(differences: NDArray[np.float64]) -> float | None:
    """Two-sided p value of a difference from its resamples (R,): twice the smaller share beyond 0, at least 2 / (R + 1).

    None where the difference is undefined in every resample.
    """
    defined = differences[np.isfinite(differences)]
    if not len(defined):
        return None
    beyond = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (beyond + 1) / (len(defined) + 1))


def mcnemar(a_right: NDArray[np.bool_], b_right: NDArray[np.bool_]) -> dict[str, Any]:
    """McNemar's exact test of two models on the same cases.

    Args:
        a_right: (N,) whether one model is right.
        b_right: (N,) whether the other is.

    Returns:
        ``{both_right, only_a_right, only_b_right, both_wrong, p}``; ``p`` is two-sided, of the binomial distribution with 1/2 over the
        cases that one alone gets right, and 1 where there are none.
    """
    from scipy.stats import binomtest

    only_a, only_b = int((a_right & ~b_right).sum()), int((b_right & ~a_right).sum())
    p = float(binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0
    both, neither = int((a_right & b_right).sum()), int((~a_right & ~b_right).sum())
    return {"both_right": both, "only_a_right": only_a, "only_b_right": only_b, "both_wrong": neither, "p": p}


def _tests(
    a: NDArray[Any], b: NDArray[Any], targets: NDArray[Any], labels: LabelSet, thresholds: tuple[Cuts | None, Cuts | None]
) -> dict[str, dict[str, Any]]:
    decided = [called(scores, labels.task, cuts) for scores, cuts in zip((a, b), thresholds, strict=True)]
    if labels.task == "multiclass":
        right = [each.argmax(1) == targets for each in decided]
        return {"accuracy": mcnemar(right[0], right[1])}
    right = [each == (targets == 1) for each in decided]
    known = ~np.isnan(targets)
    columns = range(len(labels))
    return {labels.names[k]: mcnemar(right[0][known[:, k], k], right[1][known[:, k], k]) for k in columns}
