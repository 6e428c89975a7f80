"""``evaluate`` and ``export``: RUN in, REPORT and BUNDLE out."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cxr_ray.cli import console
from cxr_ray.cli.console import Debug, Json
from cxr_ray.cli.train import say_metrics
from cxr_ray.errors import BundleError

if TYPE_CHECKING:
    from cxr_ray.evaluation.evaluate import Subject
    from cxr_ray.training.run import Run


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(evaluate)
    app.command()(export)


def evaluate(
    model: Annotated[str, typer.Argument(help="RUN or BUNDLE.")],
    data: Annotated[str, typer.Option(help="DATASET.")],
    out: Annotated[str, typer.Option(help="REPORT folder to write: metrics.json, predictions.parquet, report.html.")],
    split: Annotated[str, typer.Option(help="Part to score.")] = "test",
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    resamples: Annotated[int, typer.Option(min=100, help="Of the bootstrap.")] = 1000,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Score a model on one part, with intervals by patient, and write the report. The only command that reads a test part.

    Example: cxr-ray evaluate run --data dataset --out report
    """
    from cxr_ray import storage
    from cxr_ray.data.shards import open_dataset
    from cxr_ray.evaluation.evaluate import evaluate as run_evaluate

    subject = _subject(model)
    metrics = run_evaluate(subject, open_dataset(data), out, split=split, seed=seed, resamples=resamples)
    say_metrics(metrics)
    console.say(f"report: {storage.join(out, 'report.html')}")
    console.result(metrics, next_step=f"cxr-ray export {model} --out BUNDLE --report {out}")


def _subject(location: str) -> Subject:
    from cxr_ray import bundle, storage
    from cxr_ray.evaluation.evaluate import subject_of_bundle
    from cxr_ray.training.run import RUN, open_run

    if storage.exists(storage.join(location, bundle.MANIFEST)):
        return subject_of_bundle(bundle.read_bundle(location))
    if storage.exists(storage.join(location, RUN)):
        return _subject_of_run(open_run(location))
    raise BundleError(f"{location} is neither a RUN nor a BUNDLE", hint="cxr-ray train … --out RUN, or cxr-ray export RUN --out BUNDLE")


def _subject_of_run(run: Run) -> Subject:
    from cxr_ray.evaluation.evaluate import Subject

    manifest = run.manifest
    return Subject(
        name=run.recipe.name,
        model=run.load_model(),
        labels=run.labels,
        preprocess_fingerprint=manifest.dataset.preprocess.fingerprint,
        dataset_fingerprint=manifest.dataset.fingerprint,
        trained_on=(*manifest.dataset.train, *manifest.dataset.validation),
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
    run: Annotated[str, typer.Argument(help="Finished RUN.")],
    out: Annotated[str, typer.Option(help="BUNDLE to write.")],
    report: Annotated[str | None, typer.Option(help="REPORT of the run; its metrics go into the bundle and the model card.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model; default: the recipe's.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a BUNDLE that stands at --out.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the best epoch as a BUNDLE: weights, preprocessing, labels, provenance, model card.

    Example: cxr-ray export run --out bundle --report report
    """
    from cxr_ray.training.export import export_run

    bundle = export_run(run, out, report=report, name=name, overwrite=overwrite)
    console.say(f"wrote {out}: {bundle.manifest.name}, version {bundle.version}")
    console.result(
        {"bundle": out, "name": bundle.manifest.name, "version": bundle.version, "labels": list(bundle.labels.names)},
        next_step=f"cxr-ray serve {out}",
    )
