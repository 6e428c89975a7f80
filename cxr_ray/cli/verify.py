"""``verify``: is this bundle, report or prediction what it says it comes from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cxr_ray.cli import console
from cxr_ray.cli.console import Debug, Json
from cxr_ray.errors import ConfigError

_MARKS = {True: "holds", False: "BROKEN", None: "–"}


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command()(verify)


def verify(
    bundle: Annotated[str, typer.Argument(help="BUNDLE.")],
    run: Annotated[str | None, typer.Option(help="RUN that it was exported from.")] = None,
    data: Annotated[str | None, typer.Option(help="DATASET that it was trained, or judged, on.")] = None,
    report: Annotated[str | None, typer.Option(help="REPORT of it.")] = None,
    prediction: Annotated[
        str | None, typer.Option(help="Table of `predict` (.csv, .parquet), or an answer of the service (.json).")
    ] = None,
    images: Annotated[str | None, typer.Option(help="Folder with the prediction's images: some are predicted again.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Trace a model, report or prediction back: checksums and fingerprints are computed again, and some images predicted again.

    Exit code 2 at the first link that is broken.

    Example: cxr-ray verify bundle --run run --data dataset --report report
    """
    from cxr_ray.provenance import BrokenLinkError, Chain

    if images is not None and prediction is None:
        raise ConfigError(["a folder of images says something of a prediction only"], where="--images", hint="--prediction FILE")
    links = Chain(bundle, run=run, data=data, report=report, prediction=prediction, images=images).verify()
    console.table("provenance", ["link", "", "found"], [[link.name, _MARKS[link.holds], link.detail] for link in links])
    broken = next((link for link in links if link.holds is False), None)
    console.result({"bundle": bundle, "holds": broken is None, "links": [asdict(link) for link in links]})
    if broken is not None:
        raise BrokenLinkError(f"{broken.name}: {broken.detail}", hint="the artefact as it was written, or the one that belongs to it")
