"""Finished RUNs become a BUNDLE: the best epochs' weights, what serving must do to an image, and a model card.

One RUN gives a model; several RUNs, or the folds of a cross-validation, an ensemble. Thresholds of a multilabel bundle are fitted on
images that were held out of training: :func:`held_out` finds their predictions, the caller fits (``cxr_ray.evaluation.thresholds``).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cxr_ray import __version__, storage
from cxr_ray.bundle import Bundle, NewMember, check_target, overwrite_guard, write_members
from cxr_ray.data.columns import pixels, targets_of
from cxr_ray.data.shards import Dataset, open_dataset
from cxr_ray.errors import ConfigError, DatasetError, RunError, StorageError
from cxr_ray.models.inference import predict_probabilities
from cxr_ray.models.record import Provenance, ThresholdOrigin
from cxr_ray.training.card import model_card
from cxr_ray.training.run import RUN, Run, open_run

if TYPE_CHECKING:
    from cxr_ray.training.crossval import CrossValidation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Export:
    """What is to be exported, checked.

    Args:
        out: BUNDLE to write.
        overwrite: Replace one that stands there.
        name: Of the model.
        runs: Finished RUNs, one a member.
        weights: Their say in the mean, above 0.
        left_out: RUNs of weight 0.
        unsound: Why the models must not be used; None: nothing is known against them.
        folds: The cross-validation the runs are of; None: they stand for themselves.
        metrics: ``metrics.json`` of the REPORT, if one was named.
    """

    out: str
    overwrite: bool
    name: str
    runs: tuple[Run, ...]
    weights: tuple[float, ...]
    left_out: tuple[Run, ...] = ()
    unsound: str | None = None
    folds: CrossValidation | None = None
    metrics: dict[str, Any] | None = None


def plan_export(
    locations: Sequence[str],
    out: str,
    *,
    weights: Sequence[float] | None = None,
    report: str | None = None,
    name: str | None = None,
    overwrite: bool = False,
    allow_unsound: bool = False,
) -> Export:
    """Find out what an export would write, and whether it may.

    Args:
        locations: Finished RUNs, or one cross-validation directory.
        out: BUNDLE to write.
        weights: One a RUN, or one a fold, at least 0; a member of weight 0 is left out. None: of the recipe's ``cross_validation.weights``
            for a cross-validation, else all alike.
        report: REPORT; its metrics go into the bundle and the card. None: the card says "not evaluated".
        name: Of the model; None: the recipe's, or the recipes' joined by ``+``.
        overwrite: Replace a BUNDLE that stands at ``out``.
        allow_unsound: Export runs that say they must not be used.

    Raises:
        RunError: A run is not finished or must not be used, the runs do not fit together, or the report is of other data.
        BundleError: ``out`` is not empty.
        ConfigError: The weights are not one a run, at least 0 and not all 0.
    """
    folds = _cross_validation(locations)
    runs = [open_run(location) for location in (folds.runs() if folds else locations)]
    for run in runs:
        if run.manifest.status != "finished":
            raise RunError(f"{run.location} is not finished", hint="run the same `cxr-ray train` again; it goes on where it stopped")
    _check_alike(runs)
    shares = _weights(weights, runs, of_folds=folds is not None)
    kept = [(run, share) for run, share in zip(runs, shares, strict=True) if share]
    reason = unsound_reason([run for run, _ in kept])
    if reason is not None and not allow_unsound:
        raise RunError(f"this model must not be used: {reason}", hint="--allow-unsound, if it is to be shown and not used")
    check_target(out, overwrite=overwrite)
    return Export(
        out=out,
        overwrite=overwrite,
        name=name or "+".join(dict.fromkeys(run.recipe.name for run, _ in kept)),
        runs=tuple(run for run, _ in kept),
        weights=tuple(share for _, share in kept),
        left_out=tuple(run for run, share in zip(runs, shares, strict=True) if not share),
        unsound=reason,
        folds=folds,
        metrics=_metrics(runs[0], report),
    )


def write_export(plan: Export, *, thresholds: tuple[float, ...] | None = None, origin: ThresholdOrigin | None = None) -> Bundle:
    """Write the bundle.

    Args:
        plan: From :func:`plan_export`.
        thresholds: Multilabel: one a label. None: 0.5 each, or multiclass.
        origin: How they were chosen.

    Raises:
        BundleError: ``plan.out`` is not empty.
        RunError: A checkpoint has been lost.
    """
    overwrite_guard(plan.out, overwrite=plan.overwrite)
    first = plan.runs[0]
    if first.labels.task == "multilabel" and origin is None:
        origin = ThresholdOrigin(policy="fixed")
    return write_members(
        plan.out,
        [_member(run, weight) for run, weight in zip(plan.runs, plan.weights, strict=True)],
        name=plan.name,
        labels=first.labels,
        preprocess=first.manifest.dataset.preprocess,
        card=model_card(
            plan.name,
            plan.runs,
            plan.weights,
            left_out=plan.left_out,
            unsound=plan.unsound,
            metrics=plan.metrics,
            thresholds=thresholds,
            origin=origin,
        ),
        thresholds=thresholds,
        threshold_origin=origin,
        metrics=plan.metrics,
        unsound=plan.unsound,
    )


def export_run(
    location: str,
    out: str,
    *,
    report: str | None = None,
    name: str | None = None,
    overwrite: bool = False,
    allow_unsound: bool = False,
) -> Bundle:
    """Export one RUN, or one cross-validation, with thresholds of 0.5; see :func:`plan_export` and :func:`write_export`."""
    return write_export(plan_export([location], out, report=report, name=name, overwrite=overwrite, allow_unsound=allow_unsound))


# --- predictions of held-out images ---------------------------------------------------------------------------------------


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
    override = open_dataset(data) if data is not None else None
    trained_on = [run.manifest.dataset.fingerprint for run in plan.runs]
    if override is not None and override.manifest.fingerprint not in trained_on:
        raise RunError(
            f"{data} has fingerprint {override.manifest.fingerprint[:12]}; the training was on {trained_on[0][:12]}",
            hint="--data with the DATASET of the training, or --thresholds fixed",
        )
    together: dict[tuple[str, str], list[tuple[Run, float]]] = {}
    for run, weight in zip(plan.runs, plan.weights, strict=True):
        if not run.manifest.dataset.validation:
            raise RunError(f"{run.location} has no validation part to fit thresholds on", hint="--thresholds fixed")
        for part in run.manifest.dataset.validation:
            together.setdefault((run.manifest.dataset.fingerprint, part), []).append((run, weight))
    scored = []
    for (_, part), members in together.items():
        dataset = _dataset_of(members[0][0], override)
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


def _dataset_of(run: Run, override: Dataset | None) -> Dataset:
    record = run.manifest.dataset
    if override is not None and override.manifest.fingerprint == record.fingerprint:
        return override
    try:
        dataset = open_dataset(record.location)
    except (DatasetError, StorageError) as error:
        raise RunError(
            f"thresholds are fitted on {', '.join(record.validation)} of {record.name}, which cannot be read: {error.message}",
            hint="--data DATASET where it lies now, or --thresholds fixed",
        ) from None
    if dataset.manifest.fingerprint != record.fingerprint:
        raise RunError(
            f"{record.location} is no longer the DATASET that {run.location} was trained on",
            hint="--data DATASET where that lies now, or --thresholds fixed",
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


# --- what a plan is made of -------------------------------------------------------------------------------------------------


def _cross_validation(locations: Sequence[str]) -> CrossValidation | None:
    """The cross-validation at the one location; None where RUNs were named."""
    if all(storage.exists(storage.join(location, RUN)) for location in locations):
        return None
    from cxr_ray.training.crossval import SCHEMA, SUMMARY, CrossValidation  # only now: it brings Ray

    named = [location for location in locations if storage.exists(storage.join(location, SUMMARY))]
    if not named:
        for location in locations:
            if not storage.exists(storage.join(location, RUN)) and storage.exists(storage.join(location, "fold-0", RUN)):
                raise RunError(
                    f"{location} is a cross-validation that is not finished", hint="run the same `cxr-ray train … --cv` again; it goes on"
                )
        return None
    if len(locations) > 1:
        raise RunError(f"{named[0]} is a cross-validation, which is exported alone", hint="its fold-K can be named with other RUNs")
    summary = storage.read_json(storage.join(named[0], SUMMARY))
    if summary.get("schema") != SCHEMA:
        raise RunError(f"{named[0]}: schema {summary.get('schema')!r}; cxr_ray {__version__} reads {SCHEMA!r}")
    return CrossValidation(storage.absolute(named[0]), summary)


def _check_alike(runs: Sequence[Run]) -> None:
    first = runs[0].manifest.dataset
    for run in runs[1:]:
        data = run.manifest.dataset
        if (data.labels, data.task) != (first.labels, first.task):
            raise RunError(
                f"{run.location} answers {', '.join(data.labels)} ({data.task}), {runs[0].location} "
                f"{', '.join(first.labels)} ({first.task}): they make no ensemble",
                hint="RUNs of the same labels in the same order",
            )
        if data.preprocess.fingerprint != first.preprocess.fingerprint:
            raise RunError(
                f"{run.location} and {runs[0].location} expect images that were preprocessed differently: they make no ensemble",
                hint="RUNs of data ingested with the same --size, --equalize and --blur",
            )
    locations = [run.location for run in runs]
    if len(set(locations)) < len(locations):
        raise RunError("a RUN was named twice", hint="--weights, to give one more say")


def _weights(weights: Sequence[float] | None, runs: Sequence[Run], *, of_folds: bool) -> tuple[float, ...]:
    where = "--weights"
    if weights is None and of_folds:
        weights, where = runs[0].recipe.cross_validation.weights, "cross_validation.weights"
    if weights is None:
        return (1.0,) * len(runs)
    if len(weights) != len(runs):
        what = "folds" if of_folds else "runs"
        raise ConfigError([f"{len(weights)} weights for {len(runs)} {what}: one each is needed"], where=where, hint="--weights 1,1,…")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        told = ",".join(f"{weight:g}" for weight in weights)
        raise ConfigError([f"expected numbers of at least 0, not all 0, got {told}"], where=where)
    return tuple(float(weight) for weight in weights)


def unsound_reason(runs: Sequence[Run]) -> str | None:
    """Why models of these runs must not be used: what their recipes say, or that a fold went on from another. None: nothing is known."""
    reasons = [run.recipe.unsound for run in runs if run.recipe.unsound]
    chained = any(run.manifest.initial is not None and run.recipe.cross_validation.start == "previous" for run in runs)
    if chained and not reasons:
        reasons = ["its training went on from the fold before, which had learned from the images that are held out here"]
    return "; ".join(dict.fromkeys(reasons)) or None


def _metrics(run: Run, report: str | None) -> dict[str, Any] | None:
    if report is None:
        return None
    metrics: dict[str, Any] = storage.read_json(storage.join(report, "metrics.json"))
    if metrics.get("labels") != list(run.labels.names):
        raise RunError(f"{report} is a report of other labels: {metrics.get('labels')}", hint="the REPORT of this RUN, or none")
    return metrics


def _member(run: Run, weight: float) -> NewMember:
    data = run.manifest.dataset
    provenance = Provenance(
        cxr_ray=__version__,
        recipe=run.recipe.name,
        seed=run.manifest.seed,
        epoch=run.best().epoch,
        dataset=data.name,
        dataset_fingerprint=data.fingerprint,
        run_fingerprint=run.manifest.fingerprint,
        versions=run.manifest.versions,
        trained_on=(*data.train, *data.validation),
    )
    return NewMember(run.load_model, run.recipe.model, data.mean, data.std, provenance, weight)
