"""Figures of a cross-validation: every image scored once, by the fold that did not see it, pooled, with intervals by patient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cxr_ray import storage
from cxr_ray.config import Recipe
from cxr_ray.data.columns import targets_of
from cxr_ray.data.shards import Dataset
from cxr_ray.evaluation.evaluate import METRICS, REPORT
from cxr_ray.evaluation.metrics import compute_metrics
from cxr_ray.evaluation.report import render_report
from cxr_ray.evaluation.thresholds import fit_thresholds


def caveats(summary: Mapping[str, Any], recipe: Recipe) -> tuple[str, ...]:
    """What a reader must know before the figures of a cross-validation, from its ``cv.json`` and its recipe."""
    found = []
    if summary["folds_go_on_from_the_fold_before"]:
        found.append("Each fold went on from the weights of the fold before, which had trained on its images: these figures say nothing.")
    if summary["held_out_folds_chose_the_epoch"]:
        found.append("The held-out folds chose the epoch, which flatters them.")
    if recipe.unsound is not None:
        found.append(f"Unsound: {recipe.unsound}")
    return tuple(found)


def pooled_metrics(
    predictions: pa.Table, dataset: Dataset, out: str, *, recipe: str, warnings: tuple[str, ...] = (), seed: int = 0
) -> dict[str, Any]:
    """Write ``metrics.json`` and ``report.html`` of the pooled predictions into ``out``.

    Args:
        predictions: A row an image: ``patient_id``, ``fold``, ``label`` or ``labels``, ``probabilities`` (K floats).
        dataset: Where the images come from.
        out: Directory of the cross-validation.
        recipe: Name, for the heading.
        warnings: What a reader must know before the numbers.
        seed: Of the bootstrap.

    Returns:
        What ``metrics.json`` holds: the figures of :func:`compute_metrics`, and ``folds`` with mean and standard deviation
        over folds of accuracy, macro F1 and macro AUROC. Multilabel: decisions are by :func:`cross_fitted` thresholds.
    """
    labels = dataset.labels
    probabilities = np.stack(predictions.column("probabilities").to_numpy()).astype(np.float64)
    targets = targets_of(predictions.combine_chunks(), labels)
    patients = predictions.column("patient_id").to_pylist()
    folds = predictions.column("fold").to_numpy()
    cuts = cross_fitted(probabilities, targets, folds) if labels.task == "multilabel" else None
    rows = None if cuts is None else np.stack([cuts[int(fold)] for fold in folds])
    metrics = compute_metrics(probabilities, targets, patients, labels, split="all folds", thresholds=rows, seed=seed)
    if cuts is not None:
        metrics["thresholds_by_fold"] = {str(fold): [float(cut) for cut in values] for fold, values in cuts.items()}
    each = [
        compute_metrics(
            probabilities[folds == fold],
            targets[folds == fold],
            [p for p, f in zip(patients, folds, strict=True) if f == fold],
            labels,
            split=f"fold-{fold}",
            thresholds=None if cuts is None else cuts[int(fold)],
            resamples=1,
        )
        for fold in np.unique(folds)
    ]
    metrics["folds"] = {name: _spread([fold[name]["value"] for fold in each]) for name in ("accuracy", "macro_f1", "macro_auroc")}
    found = [*warnings]
    if cuts is not None:
        found.append("Thresholds of each fold were fitted (largest F1) on the held-out images of the other folds.")
    if dataset.manifest.policy == "image":
        found.append("The split is image by image: one patient can stand in several folds, and the figures are too good.")
    metrics["warnings"] = found
    metrics["dataset"] = {"name": dataset.manifest.name, "fingerprint": dataset.manifest.fingerprint}
    page = render_report(
        title=f"{recipe}: cross-validation on {dataset.manifest.name}",
        metrics=metrics,
        probabilities=probabilities,
        targets=targets,
        labels=labels,
        samples={"random": [], "errors": []},
        history=[],
        best_epoch=None,
        provenance={
            "Data": f"{dataset.manifest.name}, fingerprint {dataset.manifest.fingerprint}",
            "Split policy": dataset.manifest.policy,
            "Preprocessing": dataset.manifest.preprocess_fingerprint,
            "Folds": ", ".join(f"{name} {value['mean']:.4f} ± {value['sd']:.4f}" for name, value in metrics["folds"].items()),
        },
        warnings=found,
    )
    storage.write_bytes(storage.join(out, REPORT), page.encode())
    storage.write_json(storage.join(out, METRICS), metrics)
    return metrics


def cross_fitted(probabilities: NDArray[Any], targets: NDArray[Any], folds: NDArray[Any]) -> dict[int, tuple[float, ...]]:
    """Thresholds of each fold by the largest F1 of each label on the held-out images of the **other** folds.

    No image takes part in the choice of the thresholds that decide on it.

    Args:
        probabilities: (N, K) by the model that held the image out.
        targets: (N, K) of 1, 0 or NaN.
        folds: (N,) fold that held the image out.
    """
    return {int(fold): fit_thresholds(probabilities[folds != fold], targets[folds != fold], policy="f1") for fold in np.unique(folds)}


def _spread(values: list[float | None]) -> dict[str, float]:
    """Mean and standard deviation (n - 1) over folds where the figure is defined."""
    defined = np.array([value for value in values if value is not None])
    return {"mean": float(defined.mean()), "sd": float(defined.std(ddof=1)) if len(defined) > 1 else 0.0}
