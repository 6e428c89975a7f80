"""``train``: DATASET in, RUN or cross-validation out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cxr_ray import storage
from cxr_ray.cli import console
from cxr_ray.cli.audit import Audit, AuditOption, audited
from cxr_ray.cli.console import Debug, Json
from cxr_ray.errors import ConfigError

if TYPE_CHECKING:
    from cxr_ray.config import Recipe
    from cxr_ray.training.progress import TrainProgress
    from cxr_ray.training.run import AuditNote


FOLD_FIGURES = ("accuracy", "macro_f1", "macro_auroc")


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(train)


def train(
    recipe: Annotated[str, typer.Option(help="Name of a built-in recipe (cxr-ray recipes) or a YAML file.")],
    data: Annotated[str, typer.Option(help="DATASET.")],
    out: Annotated[str, typer.Option(help="RUN to write; an unfinished one of the same recipe and data goes on.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings as key=value, such as training.epochs=3.", metavar="KEY=VALUE")
    ] = None,
    workers: Annotated[
        str, typer.Option(help="Training workers, or the least and the most of them, as 2-8; the batch is divided among them.")
    ] = "1",
    resize_seconds: Annotated[
        float, typer.Option(help="With --workers LEAST-MOST: look for more room so often; growing starts the epoch in progress again.")
    ] = 60.0,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU a worker.")] = False,
    fold: Annotated[int | None, typer.Option(min=0, help="Validate on this fold, train on the others.")] = None,
    cv: Annotated[bool, typer.Option("--cv", help="Every fold, each from scratch; figures by fold, and pooled with intervals.")] = False,
    parallel: Annotated[int | None, typer.Option(min=1, help="With --cv: folds at a time; default: as the cluster has room.")] = None,
    without_rnn: Annotated[bool, typer.Option("--without-rnn", help="The recipe's control: its network and budget, no RNN.")] = False,
    track: Annotated[list[str] | None, typer.Option(help="mlflow or wandb, beside TensorBoard; repeatable.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a RUN that stands at --out.")] = False,
    audit: AuditOption = Audit.auto,
    address: Annotated[str | None, typer.Option(help="Ray cluster; default: one on this machine.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a recipe with Ray Train; run again after a kill, it goes on where it stopped.

    Example: cxr-ray train --recipe cnn-lstm --data dataset --out run training.epochs=20
    """
    from cxr_ray.cluster import connected
    from cxr_ray.config import load_recipe
    from cxr_ray.training.elastic import Workers

    if cv and fold is not None:
        raise ConfigError(["--cv trains every fold; --fold one of them"], where="train")
    if parallel is not None and not cv:
        raise ConfigError(["--parallel says how many folds of --cv run at a time"], where="train")
    wanted = Workers.parse(workers, resize_seconds)
    if cv and wanted.elastic:
        raise ConfigError([f"--cv divides the cluster between folds of one size; {wanted} is none"], where="--workers")
    if track:
        from cxr_ray.training.tracking import check_trackers

        check_trackers(track)
    settings = load_recipe(recipe, overrides or [])
    if without_rnn:
        settings = settings.without_rnn()
    note = audited(data, out, skip=audit is Audit.skip, overwrite=overwrite)
    with connected(address):
        if cv:
            _cross_validate(
                settings,
                data,
                out,
                workers=wanted.most,
                gpu=gpu,
                parallel=parallel,
                track=track or (),
                overwrite=overwrite,
                audit=note,
            )
            return
        from cxr_ray.training.trainer import train as run_train

        result = run_train(
            settings,
            data,
            out,
            workers=wanted,
            use_gpu=gpu,
            fold=fold,
            overwrite=overwrite,
            report=show_epoch,
            trackers=track or (),
            audit=note,
        )
    run = result.run
    best = run.best()
    if result.already_finished:
        console.say(f"{out} is finished already: the same recipe on the same data")
    kept = f"kept epoch {best.epoch + 1} of {run.manifest.epochs}"
    console.say(kept + (f": {best.metric} {best.value:.4f}" if best.value is not None else " (the last)"))
    for warning in run.manifest.audit.warnings if run.manifest.audit is not None else ():
        console.say(f"[bold red]warning:[/] {warning}")
    console.result(
        {
            "run": out,
            "fingerprint": run.manifest.fingerprint,
            "audit": run.manifest.audit.verdict if run.manifest.audit is not None else None,
            "epochs": run.manifest.epochs,
            "best": {"epoch": best.epoch, "metric": best.metric, "value": best.value},
            "resumed_after": result.resumed_after,
            "already_finished": result.already_finished,
            "history": [asdict(record) for record in run.history()],
        },
        next_step=f"cxr-ray evaluate {out} --data {data} --out REPORT",
    )


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def show_epoch(progress: TrainProgress, before: str = "") -> None:
    """One line an epoch, ``before`` in front of it."""
    record = progress.record
    parts = [f"{before}epoch {record.epoch + 1:3d}/{progress.epochs}", f"loss {record.train_loss:.4f}"]
    named = (
        ("val loss", record.val_loss),
        ("accuracy", record.val_accuracy),
        ("macro F1", record.val_macro_f1),
        ("AUROC", record.val_macro_auroc),
    )
    parts += [f"{name} {value:.4f}" for name, value in named if value is not None]
    parts += [f"{record.workers} workers"] if record.workers and record.workers > 1 else []
    parts += [f"{record.images_per_second:.0f} images/s", f"{progress.seconds_left:.0f} s left"]
    console.say("  ".join(parts))


def _cross_validate(
    settings: Recipe,
    data: str,
    out: str,
    *,
    workers: int,
    gpu: bool,
    parallel: int | None,
    track: Sequence[str],
    overwrite: bool,
    audit: AuditNote,
) -> None:
    from cxr_ray.data.shards import open_dataset
    from cxr_ray.evaluation.crossval import caveats, pooled_metrics
    from cxr_ray.training.crossval import cross_validate

    def show(fold: int, progress: TrainProgress) -> None:
        show_epoch(progress, before=f"fold {fold}  ")

    done = cross_validate(
        settings,
        data,
        out,
        workers=workers,
        use_gpu=gpu,
        parallel=parallel,
        overwrite=overwrite,
        report=show,
        trackers=track,
        audit=audit,
    )
    found = (*caveats(done.summary, settings), *audit.warnings)
    metrics = pooled_metrics(done.predictions(), open_dataset(data), out, recipe=settings.name, warnings=found)
    rows = [[str(fold["fold"]), str(fold["n"]), *(_number(fold[name]) for name in FOLD_FIGURES)] for fold in done.summary["folds"]]
    spread = [f"{metrics['folds'][name]['mean']:.4f} ± {metrics['folds'][name]['sd']:.4f}" for name in FOLD_FIGURES]
    console.table(
        f"{settings.name}: {len(rows)} folds",
        ["fold", "images", *(name.replace("_", " ") for name in FOLD_FIGURES)],
        [*rows, ["mean ± sd", "", *spread]],
    )
    say_metrics(metrics)
    console.result({"cv": out, "folds": done.summary["folds"], "pooled": metrics}, next_step=f"open {storage.join(out, 'report.html')}")


def say_metrics(metrics: dict[str, Any]) -> None:
    """The headline figures with their intervals."""
    console.say(f"{metrics['split']}: {metrics['n']} images of {metrics['patients']} patients")
    for key, name in (("accuracy", "accuracy"), ("macro_f1", "macro F1"), ("macro_auroc", "macro AUROC"), ("ece", "calibration error")):
        figure = metrics[key]
        if figure["value"] is None:
            console.say(f"  {name:18} undefined")
        else:
            low, high = figure["ci95"]
            console.say(f"  {name:18} {figure['value']:.4f}  (95 % {low:.4f} to {high:.4f}, by patient)")
    for warning in metrics.get("warnings", ()):
        console.say(f"[bold yellow]note:[/] {warning}")
