"""``tune``: a sweep file and DATASETs in, the best model as a BUNDLE out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cxr_ray.cli import console
from cxr_ray.cli.audit import Audit, AuditOption, audited
from cxr_ray.cli.console import Debug, Json
from cxr_ray.cli.train import show_epoch
from cxr_ray.errors import ConfigError

if TYPE_CHECKING:
    from cxr_ray.training.progress import TrainProgress
    from cxr_ray.tuning.searcher import EpochTold, TrialTold
    from cxr_ray.tuning.sweep import Sweep
    from cxr_ray.tuning.sweeping import Swept

SHOWN = 10
"""Trials in the table at the end, best first; all are in trials.csv."""


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(tune)


def tune(
    file: Annotated[str, typer.Argument(help="Sweep file, such as tune_configs/cnn_lstm.yaml.", metavar="FILE")],
    data: Annotated[list[str], typer.Option(help="DATASET; NAME=DATASET, several times, where the sweep chooses among them.")],
    out: Annotated[str, typer.Option(help="Directory to write: study, a RUN a trial, sweep.html, bundle.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings of the sweep, such as trials=20.", metavar="KEY=VALUE")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep at --out; finished trials are not run again.")] = False,
    study: Annotated[str, typer.Option(help="Where the Optuna study is kept: journal, sqlite, or a database URL.")] = "journal",
    workers: Annotated[int, typer.Option(min=1, help="Training workers of each trial.")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU a worker.")] = False,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Trials at a time; default: as the cluster has room.")] = None,
    fold: Annotated[int | None, typer.Option(min=0, help="Validate on this fold, train on the others.")] = None,
    retrain: Annotated[int | None, typer.Option(min=0, help="Train the winner again with so many other seeds.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Validate the sweep with the data, and stop.")] = False,
    audit: AuditOption = Audit.auto,
    address: Annotated[str | None, typer.Option(help="Ray cluster; default: one on this machine.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Search over whole trainings with Ray Tune and Optuna; killed, it goes on with --resume.

    Example: cxr-ray tune tune_configs/cnn_lstm.yaml --data dataset --out sweep --retrain 3
    """
    from cxr_ray.tuning.sweep import load_sweep

    sweep = load_sweep(file, overrides or [])
    datasets = named_datasets(data)
    if check:
        from cxr_ray.tuning.sweeping import check_data

        check_data(sweep, datasets, fold)
        console.say(f"{file}: {sweep.planned} trials, {len(sweep.space.parameters)} parameters, valid for {', '.join(datasets.values())}")
        console.result({"sweep": sweep.name, "trials": sweep.planned, "valid": True})
        return
    from cxr_ray.tuning.sweeping import check_data, run_sweep
    from cxr_ray.tuning.trial import location

    check_data(sweep, datasets, fold)
    first = location(out, 0)
    notes = {name: audited(where, first, skip=audit is Audit.skip, overwrite=False) for name, where in datasets.items()}
    swept = run_sweep(
        sweep,
        datasets,
        out,
        resume=resume,
        study=study,
        workers=workers,
        use_gpu=gpu,
        fold=fold,
        max_concurrent=max_concurrent,
        retrain=retrain,
        address=address,
        told=_Teller(sweep),
        report=_show_seed,
        audits=notes,
    )
    _conclude(sweep, swept, out)


def named_datasets(entries: list[str]) -> dict[str, str]:
    """``["a=x", "b=y"]`` or ``["x"]`` -> name -> DATASET; a single one needs no name.

    Raises:
        ConfigError: Several without names, or a name twice.
    """
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, location = entry.partition("=")
        if not equals or "/" in name:  # a path or URI may hold an equals sign itself
            name, location = "", entry
        if name in found:
            what = f"the name {name!r} stands twice" if name else "several DATASETs need names"
            raise ConfigError([what], where="--data", hint="--data small=DATASET --data large=DATASET")
        found[name] = location
    if len(found) > 1 and "" in found:
        raise ConfigError(["several DATASETs need names"], where="--data", hint="--data small=DATASET --data large=DATASET")
    return {name or "data": location for name, location in found.items()}


class _Teller:
    """A line an epoch and a line a trial."""

    def __init__(self, sweep: Sweep) -> None:
        self._metrics = [objective.metric for objective in sweep.objectives]

    def __call__(self, told: EpochTold | TrialTold) -> None:
        from cxr_ray.tuning.searcher import EpochTold

        if isinstance(told, EpochTold):
            console.say(f"trial {told.trial:3d}  epoch {told.epochs:3d}/{told.of}  {self._metrics[0]} {told.value:.4f}")
            return
        values = "  ".join(f"{metric} {value:.4g}" for metric, value in zip(self._metrics, told.values, strict=False))
        said = {"complete": f"done: {values}", "pruned": f"stopped early: {values}"}.get(told.state, f"failed: {told.reason}")
        console.say(f"trial {told.trial:3d}  {said}")


def _show_seed(seed: int, progress: TrainProgress) -> None:
    show_epoch(progress, before=f"seed {seed}  ")


def _conclude(sweep: Sweep, swept: Swept, out: str) -> None:
    best, winner = swept.best, swept.winner
    first = sweep.objectives[0]
    sign = -1 if first.mode == "max" else 1
    ended = sorted((row for row in swept.rows if row.state == "complete"), key=lambda row: sign * float(row.values[0] or 0))
    columns = ["trial", *(objective.metric for objective in sweep.objectives), "epochs", "parameters"]
    rows = [
        [
            str(row.number),
            *(f"{value:.4g}" for value in row.values),
            str(row.epochs),
            "  ".join(f"{key.rsplit('.', 1)[-1]} {_brief(value)}" for key, value in row.params.items()),
        ]
        for row in ended[:SHOWN]
    ]
    console.table(f"{sweep.name}: the best of {len(swept.rows)} trials on the validation part", columns, rows)
    epochs = sum(row.epochs for row in swept.rows)
    counts = {state: sum(row.state == state for row in swept.rows) for state in ("complete", "pruned", "failed")}
    console.say(f"{counts['complete']} complete, {counts['pruned']} stopped early, {counts['failed']} failed; {epochs} epochs")
    facts: dict[str, Any] = {
        "out": out,
        "best": {
            "trial": best.number,
            "params": best.params,
            "metric": {first.metric: best.values[0]},
            "run": winner.run,
            "bundle": winner.bundle,
        },
        "trials": len(swept.rows),
        **counts,
        "epochs": epochs,
    }
    if winner.retrained is not None:
        again = winner.retrained
        console.say(
            f"retrained with {len(again.seeds)} seeds: {first.metric} {again.mean:.4f} ± {again.deviation:.4f} on the validation part"
        )
        facts["retrained"] = {"seeds": again.seeds, "values": again.values, "mean": again.mean, "deviation": again.deviation}
    console.say(f"the search in pictures: {out}/sweep.html; the winner's recipe: {out}/best.yaml")
    console.result(facts, next_step=f"cxr-ray evaluate {winner.bundle} --data {winner.data} --out REPORT")


def _brief(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
