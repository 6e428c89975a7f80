"""``select``: several recipes on the same data, the best by validation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cxr_ray.cli import console
from cxr_ray.cli.console import Debug, Json
from cxr_ray.cli.train import show_epoch

if TYPE_CHECKING:
    from cxr_ray.training.progress import TrainProgress


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(select)


def select(
    recipe: Annotated[list[str], typer.Option(help="Name, pattern such as '*-rnn', or YAML file; give it several times.")],
    data: Annotated[str, typer.Option(help="DATASET.")],
    out: Annotated[str, typer.Option(help="Directory to write: a RUN a candidate, select.json; what is finished there is not repeated.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings of all candidates as key=value.", metavar="KEY=VALUE")] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(help="A setting to try in turn, such as training.optimizer.lr=0.001,0.01; repeat it for a grid."),
    ] = None,
    metric: Annotated[str, typer.Option(help="Of the validation part: val_loss, val_accuracy, val_macro_f1 or val_macro_auroc.")] = (
        "val_macro_f1"
    ),
    workers: Annotated[int, typer.Option(min=1, help="Training workers of each run.")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU a worker.")] = False,
    fold: Annotated[int | None, typer.Option(min=0, help="Validate on this fold, train on the others.")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster; default: one on this machine.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train several recipes and keep the best by validation: "Algorithm 1" of paper 003, or an ablation with --vary.

    Example: cxr-ray select --recipe vgg19-rnn --recipe densenet121-rnn --data dataset --out chosen

    Example: cxr-ray select --recipe efficientnetb1 --vary training.optimizer.lr=0.001,0.005,0.01,0.05,0.1 --data dataset --out lr
    """
    from cxr_ray import storage
    from cxr_ray.training.select import candidates, parse_vary
    from cxr_ray.training.select import select as run_select

    def show(name: str, progress: TrainProgress) -> None:
        show_epoch(progress, before=f"{name}  ")

    listed = candidates(recipe, overrides or [], parse_vary(vary or []))
    summary = run_select(listed, data, out, metric=metric, workers=workers, use_gpu=gpu, fold=fold, address=address, report=show)
    console.table(
        f"best by {metric} on the validation part",
        ["candidate", metric, "epoch", "s/epoch"],
        [[fact["name"], "failed" if fact["value"] is None else f"{fact['value']:.4f}", *_epochs(fact)] for fact in summary["candidates"]],
    )
    best = storage.join(out, summary["best"])
    console.result({"out": out, **summary}, next_step=f"cxr-ray evaluate {best} --data {data} --out REPORT")


def _epochs(fact: dict[str, object]) -> list[str]:
    if fact["value"] is None:
        return ["", ""]
    return [f"{int(str(fact['epoch'])) + 1} of {fact['epochs']}", f"{float(str(fact['seconds_per_epoch'])):.1f}"]
