"""Finished RUNs become a BUNDLE: the best epochs' weights, what serving must do to an image, and a model card.

One RUN gives a model; several RUNs, or the folds of a cross-validation, an ensemble. Calibration and thresholds are fitted on images that
were held out of training: ``held_out`` finds their predictions, the caller fits (``cxr_ray.evaluation.settle``).
The input gate is fitted likewise (``training.gate``) and handed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cxr_ray import __version__, storage
from cxr_ray.bundle import Bundle, NewMember, check_target, overwrite_guard, write_members
from cxr_ray.errors import ConfigError, RunError
from cxr_ray.models.calibration import NOT_ASKED_FOR as NOT_CALIBRATED
from cxr_ray.models.calibration import Calibration
from cxr_ray.models.gate import Gate
from cxr_ray.models.record import Provenance, ThresholdOrigin
from cxr_ray.training.card import model_card
from cxr_ray.training.run import RUN, Run, open_run

if TYPE_CHECKING:
    from cxr_ray.training.crossval import CrossValidation

NOT_ASKED_FOR = "it was exported without one"
_TABLES = ("reliability", "subgroups", "decision_curve")
"""Of ``metrics.json``: they stay in the REPORT, a bundle carries the figures."""


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


def write_export(
    plan: Export,
    *,
    thresholds: tuple[float | None, ...] | None = None,
    origin: ThresholdOrigin | None = None,
    calibration: Calibration | str = NOT_CALIBRATED,
    gate: Gate | None = None,
    no_gate: str = NOT_ASKED_FOR,
) -> Bundle:
    """Write the bundle.

    Args:
        plan: From :func:`plan_export`.
        thresholds: One a label, or of a multiclass model one for one label. None: 0.5 each, or none for multiclass.
        origin: How they were chosen.
        calibration: Of the probabilities, or why there is none, for the model card.
        gate: The input gate, fitted for these models (:func:`cxr_ray.training.gate.gate_for`).
        no_gate: Why there is none, for the model card.

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
            calibration=calibration,
            gate=gate.record if gate is not None else no_gate,
        ),
        thresholds=thresholds,
        threshold_origin=origin,
        calibration=calibration if not isinstance(calibration, str) else None,
        metrics=plan.metrics,
        unsound=plan.unsound,
        gate=gate,
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
    """Export one RUN, or one cross-validation, as it is: no calibration, no gate, thresholds of 0.5; see :func:`plan_export`."""
    return write_export(plan_export([location], out, report=report, name=name, overwrite=overwrite, allow_unsound=allow_unsound))


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
    return {name: value for name, value in metrics.items() if name not in _TABLES}


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
        cautions=run.manifest.audit.warnings if run.manifest.audit is not None else (),
    )
    return NewMember(run.load_model, run.recipe.model, data.mean, data.std, provenance, weight)
