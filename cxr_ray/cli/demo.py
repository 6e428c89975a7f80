"""``demo``: the whole line on embedded data, by the same commands that a user types."""

from __future__ import annotations

import resource
import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from cxr_ray.cli import console
from cxr_ray.cli.console import Debug, Json
from cxr_ray.errors import CxrRayError

IMAGES = 900
SIZE = 112


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command()(demo)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("work/demo"),
    seed: Annotated[int, typer.Option(min=0)] = 0,
    count: Annotated[int, typer.Option(min=60, help="Phantoms to draw.")] = IMAGES,
    override: Annotated[list[str] | None, typer.Option("--override", "-s", help="Recipe setting KEY=VALUE.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw phantoms, ingest, train, evaluate, export, predict, and ask the served model: each step prints its command.

    Example: cxr-ray demo
    """
    from cxr_ray import cli, storage
    from cxr_ray.cluster import connected
    from cxr_ray.evaluation.metrics import flat

    if out.exists() and any(out.iterdir()) and not (out / ".demo").exists():
        raise CxrRayError(f"{out} is not empty and was not made by the demo", hint="--out another folder")
    out.mkdir(parents=True, exist_ok=True)
    (out / ".demo").touch()
    start = time.monotonic()
    xrays, dataset, run, report, bundle = (str(out / name) for name in ("xrays", "dataset", "run", "report", "bundle"))
    steps = [
        ["phantoms", "--out", xrays, "--count", str(count), "--seed", str(seed)],
        ["ingest", xrays, "--out", dataset, "--size", str(SIZE), "--seed", str(seed)],
        ["train", "--recipe", "demo", "--data", dataset, "--out", run, f"training.seed={seed}", *(override or [])],
        ["evaluate", run, "--data", dataset, "--out", report],
        ["export", run, "--out", bundle, "--report", report, "--overwrite"],
        ["predict", bundle, xrays, "--out", str(out / "predictions.csv")],
    ]
    with connected():
        for arguments in steps:
            if arguments[0] == "phantoms" and Path(xrays).exists():
                continue  # the same arguments give the same bytes
            console.say(f"\n[bold]$ cxr-ray {shlex.join(arguments)}[/]")
            cli.run_inside(arguments)
        from cxr_ray.serving.start import ask_once

        image = next(path for path in sorted(Path(xrays).rglob("*.png")) if path.stat().st_size > 1000)
        console.say(f"\n[bold]$ cxr-ray serve {bundle}[/]   (one question: {image.name})")
        answer = ask_once(bundle, image.read_bytes())
        console.say(", ".join(f"{label} {value:.3f}" for label, value in answer["probabilities"].items()))
    seconds = time.monotonic() - start
    metrics = storage.read_json(storage.join(report, "metrics.json"))
    console.say(f"\ndone in {seconds:.0f} s; the report: {Path(report) / 'report.html'}; what was made lies in {out}")
    console.result(
        {
            "out": str(out),
            "seconds": round(seconds, 1),
            "report": str(Path(report) / "report.html"),
            "bundle": bundle,
            "test": flat(metrics),
            "answer": answer,
            "driver_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        },
        next_step=f"cxr-ray serve {bundle}   (the service, on this machine only)",
    )
