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
        targets: (N,) label index, or (N, K) of 1, 0 and NaN.
        patients: (N,)
        by_all: Whether each image was scored by all members together, as the bundle will; else by those that had held it out.
    """

    part: str
    probabilities: NDArray[Any]
    targets: NDArray[Any]
    patients: NDArray[np.str_]
    by_all: bool


def held_out(plan: Export, data: str | None = None, *, instead: str = "--thresholds fixed") -> HeldOut:
    """Predictions of validation images, each by the members that held it out: never of a test part.

    Of a cross-validation they are read from its ``predictions.parquet`` (the folds of the members alone). Else the validation part of each
    run is read and scored here; members with the same validation part score it together, as the ensemble will.

    Args:
        plan: What is to be exported.
        data: DATASET, where it no longer lies where the run says.
        instead: What to type to do without.

    Raises:
        RunError: A run has no validation part, or its DATASET is gone or is another.
    """
    if plan.folds is not None:
        return _held_out_folds(plan, plan.folds)
    named = named_dataset(plan, data, instead=instead)
    together: dict[tuple[str, str], list[tuple[Run, float]]] = {}
    for run, weight in zip(plan.runs, plan.weights, strict=True):
        if not run.manifest.dataset.validation:
            raise RunError(f"{run.location} has no validation part to fit on", hint=instead)
        for part in run.manifest.dataset.validation:
            together.setdefault((run.manifest.dataset.fingerprint, part), []).append((run, weight))
    scored = []
    for (_, part), members in together.items():
        dataset = dataset_of(members[0][0], named, instead=instead)
        logger.info("scoring %s of %s (%d images)", part, dataset.manifest.name, dataset.count(part))
        scored.append((f"{part} of {dataset.manifest.name}", *_score(dataset, part, members)))
    told, probabilities, targets, patients = zip(*scored, strict=True)
    return HeldOut(
        part=", ".join(dict.fromkeys(told)),
        probabilities=np.concatenate(probabilities),
        targets=np.concatenate(targets),
        patients=np.concatenate(patients),
        by_all=all(len(members) == len(plan.runs) for members in together.values()),
    )


def _held_out_folds(plan: Export, folds: CrossValidation) -> HeldOut:
    table = folds.predictions()
    mine = {part for run in plan.runs for part in run.manifest.dataset.validation}
    rows = np.array([f"fold-{fold}" in mine for fold in table.column("fold").to_pylist()])
    probabilities = np.stack(table.column("probabilities").to_numpy())
    told = ", ".join(sorted(mine, key=lambda part: int(part.removeprefix("fold-"))))
    name = plan.runs[0].manifest.dataset.name
    return HeldOut(
        part=f"{told} of {name}, each by the fold that held it out",
        probabilities=probabilities[rows],
        targets=targets_of(table, plan.runs[0].labels)[rows],
        patients=np.array(table.column("patient_id").to_pylist(), dtype=str)[rows],
        by_all=len(plan.runs) == 1,
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


def _score(dataset: Dataset, part: str, members: Sequence[tuple[Run, float]]) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.str_]]:
    """(N, K) weighted mean of the members' probabilities, targets, and (N,) patients; one model and one shard's pixels in memory."""
    target = "label" if dataset.labels.task == "multiclass" else "labels"
    known = dataset.read(part, [target, "patient_id"])
    targets, patients = targets_of(known, dataset.labels), np.array(known.column("patient_id").to_pylist(), dtype=str)
    whole = math.fsum(weight for _, weight in members)
    mean = np.zeros((len(targets), len(dataset.labels)))
    for run, weight in members:
        model, start = run.load_model(), 0
        for table in dataset.tables(part, ["image"]):
            images = pixels(table, dataset.preprocess.height, dataset.preprocess.width)
            mean[start : start + len(images)] += weight / whole * predict_probabilities(model, images, dataset.labels.task)
            start += len(images)
    return mean.astype(np.float32), targets, patients
