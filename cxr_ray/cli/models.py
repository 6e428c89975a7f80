"""``evaluate`` and ``export``: RUN in, REPORT and BUNDLE out."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cxr_ray.cli import console
from cxr_ray.cli.console import Debug, Json
from cxr_ray.cli.train import say_metrics
from cxr_ray.errors import BundleError, ConfigError, RunError

if TYPE_CHECKING:
    from cxr_ray.evaluation.evaluate import Subject
    from cxr_ray.evaluation.settle import Settled, Wish
    from cxr_ray.labels import LabelSet
    from cxr_ray.models.gate import Gate
    from cxr_ray.training.export import Export
    from cxr_ray.training.run import Run


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(evaluate)
    app.command()(export)


def evaluate(
    model: Annotated[str, typer.Argument(help="RUN or BUNDLE.")],
    data: Annotated[str, typer.Option(help="DATASET; or a folder or table of X-rays that `ingest` reads: an external test.")],
    out: Annotated[str, typer.Option(help="REPORT folder to write: metrics.json, predictions.parquet, report.html.")],
    split: Annotated[str, typer.Option(help="Part to score, of a DATASET.")] = "test",
    prevalence: Annotated[
        str | None, typer.Option(help="Predictive values where labels are as common as LABEL=SHARE,LABEL=SHARE says. An assumption.")
    ] = None,
    format: Annotated[str, typer.Option(help="External: layout, as of `ingest`.")] = "auto",
    map: Annotated[str | None, typer.Option(help="External: THEIRS=OURS,THEIRS=OURS; labels of one name need no entry.")] = None,
    option: Annotated[list[str] | None, typer.Option("--option", "-o", help="External: adapter option KEY=VALUE, as of `ingest`.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    resamples: Annotated[int, typer.Option(min=100, help="Of the bootstrap.")] = 1000,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Score a model on one part, with intervals by patient, and write the report. It and `report` alone score a test part.

    Example: cxr-ray evaluate run --data dataset --out report
    """
    from cxr_ray import storage
    from cxr_ray.bundle import MANIFEST
    from cxr_ray.data import manifest
    from cxr_ray.evaluation.prevalence import parse_prevalence

    subject = subject_at(model)
    settings: dict[str, Any] = {"seed": seed, "resamples": resamples}
    settings["prevalence"] = parse_prevalence(prevalence, subject.labels) if prevalence is not None else None
    external = not storage.exists(storage.join(data, manifest.MANIFEST))
    if not external and (map is not None or option or format != "auto"):
        raise ConfigError(["--format, --map and -o are for folders of images"], where=f"{data}, a DATASET")
    metrics = (
        _evaluate_external(subject, data, out, format, map, option or [], settings)
        if external
        else _evaluate_part(subject, data, out, split, settings)
    )
    say_metrics(metrics)
    console.say(f"report: {storage.join(out, 'report.html')}")
    exported = storage.exists(storage.join(model, MANIFEST))
    console.result(metrics, next_step=f"cxr-ray serve {model}" if exported else f"cxr-ray export {model} --out BUNDLE --report {out}")


def _evaluate_part(subject: Subject, data: str, out: str, split: str, settings: dict[str, Any]) -> dict[str, Any]:
    from cxr_ray.data.shards import open_dataset
    from cxr_ray.evaluation.evaluate import evaluate

    return evaluate(subject, open_dataset(data), out, split=split, **settings)


def _evaluate_external(
    subject: Subject, data: str, out: str, format: str, mapping: str | None, options: list[str], settings: dict[str, Any]
) -> dict[str, Any]:
    from cxr_ray.cluster import connected
    from cxr_ray.data.progress import IngestProgress
    from cxr_ray.data.sources import SourceOptions, read_source
    from cxr_ray.evaluation.evaluate import evaluate
    from cxr_ray.evaluation.external import PART, in_our_labels, ingested, parse_mapping
    from cxr_ray.settings import apply_overrides, parse_settings

    theirs = parse_mapping(mapping)
    source = read_source(data, format, parse_settings(SourceOptions, apply_overrides({}, options), where="--option"))
    found = in_our_labels(source, subject.labels, theirs)
    for note in source.notes:
        console.say(note)
    with connected(None), console.progress("ingest") as meter:

        def show(step: IngestProgress) -> None:
            meter.update(step.done, step.total, step.stage)

        with ingested(found, subject.preprocess, show) as dataset:
            left_out = dataset.manifest.quarantined
            notes = [*found.notes, *([f"{left_out} files could not be used."] if left_out else [])]
            return evaluate(subject, dataset, out, split=PART, part=f"external: all of {source.name}", notes=notes, **settings)


def subject_at(location: str) -> Subject:
    """The model of a RUN or BUNDLE, ready to be evaluated; BundleError where there is neither."""
    from cxr_ray import bundle, storage
    from cxr_ray.evaluation.evaluate import subject_of_bundle
    from cxr_ray.training.run import RUN, open_run

    if storage.exists(storage.join(location, bundle.MANIFEST)):
        return subject_of_bundle(bundle.read_bundle(location))
    if storage.exists(storage.join(location, RUN)):
        return _subject_of_run(open_run(location))
    raise BundleError(
        f"{location} is neither a RUN nor a BUNDLE",
        hint="cxr-ray train … --out RUN, or cxr-ray export RUN --out BUNDLE (folds are exported as one)",
    )


def _subject_of_run(run: Run) -> Subject:
    from cxr_ray.evaluation.evaluate import Subject
    from cxr_ray.training.export import unsound_reason

    manifest = run.manifest
    return Subject(
        name=run.recipe.name,
        model=run.load_model(),
        labels=run.labels,
        preprocess=manifest.dataset.preprocess,
        trained_on={manifest.dataset.fingerprint: (*manifest.dataset.train, *manifest.dataset.validation)},
        identity={"name": run.recipe.name, "run": manifest.fingerprint},
        unsound=unsound_reason([run]),
        cautions=manifest.audit.warnings if manifest.audit is not None else (),
        history=[asdict(record) for record in run.history()],
        best_epoch=run.best().epoch,
        provenance={
            "Run": manifest.fingerprint,
            "Recipe": run.recipe.name,
            "Training seed": str(manifest.seed),
            "Versions": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
            "Hardware": ", ".join(f"{name} {value}" for name, value in manifest.hardware.items() if value),
        },
    )


def export(
    runs: Annotated[list[str], typer.Argument(help="Finished RUN; several RUNs, or a cross-validation directory, make an ensemble.")],
    out: Annotated[str, typer.Option(help="BUNDLE to write.")],
    report: Annotated[str | None, typer.Option(help="REPORT of the run; its metrics go into the bundle and the model card.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model; default: the recipe's.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Say of each RUN or fold, as 0,1,2,4,8; 0 leaves it out. Default: the recipe's for folds, else all alike."),
    ] = None,
    calibrate: Annotated[
        str, typer.Option(help="auto, temperature, isotonic or none; fitted on the validation part. auto: what lowers the log-loss there.")
    ] = "auto",
    thresholds: Annotated[
        str | None,
        typer.Option(help="f1, youden, sensitivity=S, cost=FN:FP[,P] or fixed (0.5); fitted on the validation part. Multilabel: f1."),
    ] = None,
    positive: Annotated[
        str | None, typer.Option(help="Multiclass: call this label where it reaches its threshold, not only on top.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="DATASET of the training, where it no longer lies where the RUN says.")] = None,
    no_gate: Annotated[
        bool, typer.Option("--no-gate", help="Without the input gate: the model then answers whatever it is shown.")
    ] = False,
    allow_unsound: Annotated[bool, typer.Option("--allow-unsound", help="Export a model whose recipe says it must not be used.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a BUNDLE that stands at --out.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the best epochs as a BUNDLE: weights, preprocessing, labels, calibration, thresholds, input gate, provenance, model card.

    Example: cxr-ray export run --out bundle --report report
    """
    from cxr_ray.evaluation.settle import wish
    from cxr_ray.training.export import NOT_ASKED_FOR, plan_export, write_export

    shares = _numbers(weights, "--weights") if weights is not None else None
    plan = plan_export(runs, out, weights=shares, report=report, name=name, overwrite=overwrite, allow_unsound=allow_unsound)
    settled = _settled(plan, wish(plan.runs[0].labels, calibrate, thresholds, positive), data)
    gate, reason = (None, NOT_ASKED_FOR) if no_gate else _gate(plan, data)
    bundle = write_export(
        plan, thresholds=settled.thresholds, origin=settled.origin, calibration=settled.calibration, gate=gate, no_gate=reason
    )
    manifest = bundle.manifest
    members = f", {len(manifest.members)} members" if len(manifest.members) > 1 else ""
    console.say(f"wrote {out}: {manifest.name}, version {bundle.version}{members}")
    if manifest.unsound is not None:
        console.say(f"[bold yellow]note:[/] this model must not be used: {manifest.unsound}")
    console.result(
        {
            "bundle": out,
            "name": manifest.name,
            "version": bundle.version,
            "labels": list(bundle.labels.names),
            "members": [{"run": run.location, "weight": weight} for run, weight in zip(plan.runs, plan.weights, strict=True)],
            "left_out": [run.location for run in plan.left_out],
            "thresholds": list(manifest.thresholds) if manifest.thresholds is not None else None,
            "threshold_origin": settled.origin.model_dump() if settled.origin is not None else None,
            "calibration": manifest.calibration.model_dump() if manifest.calibration is not None else None,
            "unsound": manifest.unsound,
            "gate": manifest.gate.model_dump() if manifest.gate is not None else None,
        },
        next_step=f"cxr-ray serve {out}",
    )


def _numbers(text: str, where: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError([f"expected numbers with commas between them, such as 0,1,2; got {text!r}"], where=where) from None


def _settled(plan: Export, wanted: Wish, data: str | None) -> Settled:
    """Calibration and thresholds. Ties the layers: training has the predictions, evaluation fits.

    Without the training's DATASET a bundle is still a bundle, unless it was named, or something was asked for by name.
    """
    from cxr_ray.evaluation.settle import nothing_fitted, settle
    from cxr_ray.models.calibration import NOT_ASKED_FOR
    from cxr_ray.training.held_out import held_out

    labels, fits_thresholds = plan.runs[0].labels, wanted.policy not in (None, "fixed")
    if not wanted.needs_images:
        return nothing_fitted(wanted, labels, NOT_ASKED_FOR)
    try:
        found = held_out(plan, data, instead="--thresholds fixed" if fits_thresholds else "--calibrate none")
    except RunError as error:
        if data is not None or fits_thresholds or wanted.calibrate != "auto":
            raise
        console.say(f"[bold yellow]note:[/] not calibrated: {error.message}")
        return nothing_fitted(wanted, labels, error.message)
    settled = settle(wanted, found.probabilities, found.targets, found.patients, labels, part=found.part, by_all=found.by_all)
    _say_settled(settled, labels)
    return settled


def _say_settled(settled: Settled, labels: LabelSet) -> None:
    calibration = settled.calibration
    if isinstance(calibration, str):
        console.say(f"not calibrated: {calibration}")
    else:
        before, after = calibration.before, calibration.after
        console.say(f"calibration: {calibration.told()}; error (ECE) {before.ece:.4f} before, {after.ece:.4f} after, cross-fitted")
    if settled.origin is not None and settled.thresholds is not None:
        cuts = zip(labels.names, settled.thresholds, strict=True)
        rows = [[name, f"{cut:.4f}"] for name, cut in cuts if cut is not None]
        console.table(f"thresholds: {settled.origin.told()}", ["label", "threshold"], rows)


def _gate(plan: Export, data: str | None) -> tuple[Gate | None, str]:
    """The input gate, or why there is none: without the training's DATASET a bundle is still a bundle, unless that was named."""
    from cxr_ray.training.gate import gate_for

    try:
        gate = gate_for(plan, data)
    except RunError as error:
        if data is not None:
            raise
        console.say(f"[bold yellow]note:[/] no input gate: {error.message}")
        return None, error.message
    alarms = gate.record.false_alarms["any"]
    console.say(f"input gate: fitted on {gate.record.n} images, refuses {alarms:.1%} of {gate.record.n_held_out} held-out ones")
    return gate, ""
