"""``report``: RUN or BUNDLE and DATASET in, the whole REPORT out: figures, errors under their heat, features, checklists."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from cxr_ray.cli import console
from cxr_ray.cli.console import Debug, Json
from cxr_ray.cli.models import subject_at
from cxr_ray.cli.train import say_metrics
from cxr_ray.errors import ConfigError

if TYPE_CHECKING:
    from cxr_ray.data.shards import Dataset
    from cxr_ray.evidence.facts import Known


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command()(report)


def report(
    model: Annotated[str, typer.Argument(help="RUN or BUNDLE.")],
    data: Annotated[str, typer.Option(help="DATASET.")],
    out: Annotated[str, typer.Option(help="REPORT folder to write.")],
    split: Annotated[str, typer.Option(help="Part to score.")] = "test",
    run: Annotated[str | None, typer.Option(help="With a BUNDLE: the RUN it comes from, for learning curves and checklists.")] = None,
    audit: Annotated[
        list[str] | None, typer.Option(help="audit.json, of the data or of the model, to be summed up; may be repeated.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Of the heat maps; see explain. Default: the one that finds lesions best.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap and the layouts.")] = 0,
    resamples: Annotated[int, typer.Option(min=100, help="Of the bootstrap.")] = 1000,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Evaluate, and write what takes longer: errors with heat maps, t-SNE and UMAP, every figure as SVG, PNG and CSV, checklists.

    Example: cxr-ray report bundle --data dataset --run run --out report
    """
    from cxr_ray import storage
    from cxr_ray.audit.record import AuditRecord
    from cxr_ray.data.shards import open_dataset
    from cxr_ray.evaluation.explain import BEST, METHODS
    from cxr_ray.evidence.report import write_report
    from cxr_ray.settings import parse_settings
    from cxr_ray.training.run import open_run

    if method is not None and method not in METHODS:
        raise ConfigError([f"{method!r} is unknown; valid: {', '.join(METHODS)}"], where="--method")
    subject, dataset = subject_at(model), open_dataset(data)
    if run is not None:
        trained = open_run(run)
        subject = replace(subject, history=[asdict(record) for record in trained.history()], best_epoch=trained.best().epoch)
    audits = [parse_settings(AuditRecord, storage.read_json(path), where=path) for path in audit or ()]
    known = _known(model, run, dataset, split)
    metrics = write_report(subject, dataset, out, known, split=split, seed=seed, resamples=resamples, method=method or BEST, audits=audits)
    say_metrics(metrics)
    page = storage.join(out, "report.html")
    console.say(f"report: {page}; figures/ and checklists/ beside it")
    console.result({**metrics, "out": out}, next_step=f"open {page}")


def _known(model: str, run: str | None, dataset: Dataset, split: str) -> Known:
    """What the checklists are filled from."""
    from cxr_ray import storage
    from cxr_ray.bundle import MANIFEST, read_bundle
    from cxr_ray.evidence.facts import Known
    from cxr_ray.training.run import open_run

    bundle = read_bundle(model).manifest if storage.exists(storage.join(model, MANIFEST)) else None
    trained = open_run(run if bundle is not None and run is not None else model).manifest if bundle is None or run is not None else None
    name = bundle.name if bundle is not None else trained.recipe.name if trained is not None else model
    return Known(name, dataset.manifest, split, bundle, trained)
