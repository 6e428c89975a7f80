"""Predictions of images that were held out of training, for what is fitted when a bundle is exported; and the DATASET they come from."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cxr_ray.data.columns import pixels, targets_of
from cxr_ray.data.shards import Dataset, open_dataset
from cxr_ray.errors import DatasetError, RunError, StorageError
from cxr_ray.models.inference import predict_probabilities
from cxr_ray.training.run import Run

if TYPE_CHECKING:
    from cxr_ray.training.crossval import CrossValidation
    from cxr_ray.training.export import Export

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """Images that models did not learn from, and what those models make of them.

    Args:
        part: In words, such as ``val of chest14``.
        probabilities: (N, K)
        targets: (N, K) of 1, 0 and NaN.
    """

    part: str
    probabilities: NDArray[Any]
    targets: NDArray[Any]


def held_out(plan: Export, data: str | None = None) -> HeldOut:
    """Predictions of validation images, each by the members that held it out: never of a test part.

    Of a cross-validation they are read from its ``predictions.parquet`` (the folds of the members alone). Else the validation part of each
    run is read and scored here; members with the same validation part score it together, as the ensemble will.

    Args:
        plan: What is to be exported; a multilabel model.
        data: DATASET, where it no longer lies where the run says.

    Raises:
        RunError: A run has no validation part, or its DATASET is gone or is another.
    """
    if plan.folds is not None:
        return _held_out_folds(plan, plan.folds)
    named = named_dataset(plan, data, instead="--thresholds fixed")
    together: dict[tuple[str, str], list[tuple[Run, float]]] = {}
    for run, weight in zip(plan.runs, plan.weights, strict=True):
        if not run.manifest.dataset.validation:
            raise RunError(f"{run.location} has no validation part to fit thresholds on", hint="--thresholds fixed")
        for part in run.manifest.dataset.validation:
            together.setdefault((run.manifest.dataset.fingerprint, part), []).append((run, weight))
    scored = []
    for (_, part), members in together.items():
        dataset = dataset_of(members[0][0], named, instead="--thresholds fixed")
        logger.info("scoring %s of %s (%d images)", part, dataset.manifest.name, dataset.count(part))
        scored.append((f"{part} of {dataset.manifest.name}", *_score(dataset, part, members)))
    return HeldOut(
        part=", ".join(dict.fromkeys(told for told, _, _ in scored)),
        probabilities=np.concatenate([probabilities for _, probabilities, _ in scored]),
        targets=np.concatenate([targets for _, _, targets in scored]),
    )


def _held_out_folds(plan: Export, folds: CrossValidation) -> HeldOut:
    table = folds.predictions()
    mine = {part for run in plan.runs for part in run.manifest.dataset.validation}
    rows = np.array([f"fold-{fold}" in mine for fold in table.column("fold").to_pylist()])
    probabilities = np.stack(table.column("probabilities").to_numpy())
    told = ", ".join(sorted(mine, key=lambda part: int(part.removeprefix("fold-"))))
    name = plan.runs[0].manifest.dataset.name
    return HeldOut(
        f"{told} of {name}, each by the fold that held it out", probabilities[rows], targets_of(table, plan.runs[0].labels)[rows]
    )


def named_dataset(plan: Export, data: str | None, *, instead: str) -> Dataset | None:
    """The DATASET that a user named in place of where the runs say; None where none was named.

    Raises:
        RunError: It is not one that the models were trained on; ``instead`` is what to type to do without.
    """
    if data is None:
        return None
    named = open_dataset(data)
    trained_on = [run.manifest.dataset.fingerprint for run in plan.runs]
    if named.manifest.fingerprint not in trained_on:
        raise RunError(
            f"{data} has fingerprint {named.manifest.fingerprint[:12]}; the training was on {trained_on[0][:12]}",
            hint=f"--data with the DATASET of the training, or {instead}",
        )
    return named


def dataset_of(run: Run, named: Dataset | None, *, instead: str) -> Dataset:
    """What a run was trained on: ``named`` if it is that, else what stands where the run says.

    Raises:
        RunError: It cannot be read, or is another by now; ``instead`` is what to type to do without.
    """
    record = run.manifest.dataset
    if named is not None and named.manifest.fingerprint == record.fingerprint:
        return named
    try:
        dataset = open_dataset(record.location)
    except (DatasetError, StorageError) as error:
        raise RunError(
            f"{', '.join((*record.train, *record.validation))} of {record.name} cannot be read: {error.message}",
            hint=f"--data DATASET where it lies now, or {instead}",
        ) from None
    if dataset.manifest.fingerprint != record.fingerprint:
        raise RunError(
            f"{record.location} is no longer the DATASET that {run.location} was trained on",
            hint=f"--data DATASET where that lies now, or {instead}",
        )
    return dataset


def _score(dataset: Dataset, part: str, members: Sequence[tuple[Run, float]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """(N, K) weighted mean of the members' probabilities, and (N, K) targets; one model and one shard's pixels in memory at a time."""
    target = "label" if dataset.labels.task == "multiclass" else "labels"
    targets = np.concatenate([targets_of(table, dataset.labels) for table in dataset.tables(part, [target])])
    whole = math.fsum(weight for _, weight in members)
    mean = np.zeros((len(targets), len(dataset.labels)))
    for run, weight in members:
        model, start = run.load_model(), 0
        for table in dataset.tables(part, ["image"]):
            images = pixels(table, dataset.preprocess.height, dataset.preprocess.width)
            mean[start : start + len(images)] += weight / whole * predict_probabilities(model, images, dataset.labels.task)
            start += len(images)
    return mean.astype(np.float32), targets
