"""``reproduce``: the papers' claims beside what their systems give here."""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cxr_ray.cli import console
from cxr_ray.cli.console import Debug, Json
from cxr_ray.cli.train import show_epoch
from cxr_ray.errors import ConfigError

if TYPE_CHECKING:
    from cxr_ray.training.progress import TrainProgress


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(reproduce)


def reproduce(
    data: Annotated[list[str], typer.Option(help="DATASET for a key of the plan: key=DATASET; give it several times.")],
    out: Annotated[str, typer.Option(help="Directory to write: runs, reproduction.md, .html and .json.")],
    names: Annotated[list[str] | None, typer.Argument(help="Systems of the plan; default: all.")] = None,
    plan: Annotated[str, typer.Option(help="Built-in plan (cpu) or a YAML file.")] = "cpu",
    let: Annotated[list[str] | None, typer.Option(help="name=value for a $name in the plan, such as a weight file.")] = None,
    page: Annotated[str | None, typer.Option(help="Also write the Markdown here, such as docs/reproduction.md.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Training workers of each run.")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU a worker.")] = False,
    parallel: Annotated[int | None, typer.Option(min=1, help="Folds at a time; default: as the cluster has room.")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster; default: one on this machine.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run the papers' systems and write claimed | as released | honest, with intervals and costs; goes on where it stopped.

    Example: cxr-ray reproduce croup-cnn-lstm --data croup=croup-dataset --out reproduction
    """
    from cxr_ray import storage
    from cxr_ray.reproduction.arms import Machine
    from cxr_ray.reproduction.plan import load_plan
    from cxr_ray.reproduction.reproduce import MARKDOWN, PAGE
    from cxr_ray.reproduction.reproduce import reproduce as run_reproduce

    def show(system: str, where: str, progress: TrainProgress) -> None:
        show_epoch(progress, before=f"{system}  {where}  ")

    result = run_reproduce(
        load_plan(plan, names or ()),
        _pairs(data, "--data"),
        out,
        values=_pairs(let or [], "--let"),
        machine=Machine(workers, gpu, parallel),
        address=address,
        command=_command(names or (), plan, data, let or []),
        show=show,
    )
    text = storage.read_bytes(storage.join(out, MARKDOWN))
    if page is not None:
        storage.write_bytes(page, text)
    for row in result["rows"]:
        for kind, arm in row["arms"].items():
            console.say(
                f"{row['title']:24} {kind:10} " + "  ".join(f"{n} {f['value']:.4f}" for n, f in arm["figures"].items() if f["value"])
            )
        for kind, why in row["failed"].items():
            console.say(f"{row['title']:24} {kind:10} failed: {why}")
    console.result(result, next_step=f"open {storage.join(out, PAGE)}")


def _command(names: Sequence[str], plan: str, data: Sequence[str], let: Sequence[str]) -> str:
    """What was asked for, without the folders of this machine: the page may be published."""
    options = [("--data", entry) for entry in data] + [("--let", entry) for entry in let]
    shown = [
        f"{option} {shlex.quote(key)}={shlex.quote(posixpath.basename(value.rstrip('/')))}"
        for option, entry in options
        for key, _, value in [entry.partition("=")]
    ]
    return " ".join(["cxr-ray reproduce", *map(shlex.quote, names), "--plan", shlex.quote(posixpath.basename(plan)), *shown])


def _pairs(entries: Sequence[str], option: str) -> dict[str, str]:
    found = {}
    for entry in entries:
        key, equals, value = entry.partition("=")
        if not equals or not key or not value:
            raise ConfigError([f"{entry!r}: expected key=value"], where=option)
        found[key] = value
    return found
