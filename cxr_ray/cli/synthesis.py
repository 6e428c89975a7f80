"""``synthesize``: DATASET in, DATASET with GAN images of a rare class out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from cxr_ray.cli import console
from cxr_ray.cli.console import Debug, Json

if TYPE_CHECKING:
    from cxr_ray.synthesis.gan import GanRecord


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(synthesize)


def synthesize(
    dataset: Annotated[str, typer.Argument(help="DATASET, of one label an image, split into train, val and test.")],
    label: Annotated[str, typer.Option(help="The rare class.")],
    count: Annotated[int, typer.Option(help="Images to add to the training part.")],
    out: Annotated[str, typer.Option(help="DATASET to write.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings of the GAN as key=value, such as batch_size=32.", metavar="KEY=VALUE")
    ] = None,
    run: Annotated[str | None, typer.Option(help="Folder of the GAN: checkpoints, samples, report; default: OUT.gan.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the class's training images; default: what makes 2,000 steps.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Training workers; the batch is divided among them.")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU a worker.")] = False,
    seed: Annotated[int | None, typer.Option(help="Default 0.")] = None,
    extractor: Annotated[
        str | None,
        typer.Option(help="What KID is measured with: a BUNDLE, a RUN, or MobileNetV2 weights; default: random weights, which only rank."),
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster; default: one on this machine.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Enlarge a rare class of the training part with images of a GAN, and say how good they are and whether they are copies.

    Example: cxr-ray synthesize dataset --label croup --count 100 --out dataset2
    """
    from cxr_ray import storage
    from cxr_ray.settings import apply_overrides, parse_settings
    from cxr_ray.synthesis.config import GanRequest
    from cxr_ray.synthesis.synthesize import synthesize as run_synthesize

    start = time.monotonic()
    options = {name: value for name, value in (("epochs", epochs), ("seed", seed)) if value is not None}
    config = parse_settings(GanRequest, {**apply_overrides({}, overrides or []), **options}, where="synthesize")

    def show(record: GanRecord, epochs: int) -> None:
        left = record.seconds * (epochs - record.epoch - 1)
        losses = f"losses {record.generator_loss:.3f} (generator) {record.discriminator_loss:.3f} (discriminator)"
        scores = f"called real: {record.real_score:.2f} of real, {record.fake_score:.2f} of made"
        console.say(f"epoch {record.epoch + 1:4d}/{epochs}  {losses}  {scores}  {left:.0f} s left")

    done = run_synthesize(
        dataset,
        label,
        count,
        out,
        config=config,
        run=run,
        workers=workers,
        use_gpu=gpu,
        extractor=extractor,
        address=address,
        report=show,
    )
    record, manifest = done.record, done.dataset.manifest
    if done.already_finished:
        console.say(f"{out} is there already; the same was asked for before")
    kid, memorisation = record["kid"], record["memorisation"]
    console.table(
        f"KID to {record['real_images']} real images of {label} (0 is best)",
        ["made", "floor: real", "blurred", "noise"],
        [[f"{kid['value']:.4f} ± {kid['sd']:.4f}", *(f"{kid[name]:.4f}" for name in ("floor", "blurred", "noise"))]],
    )
    console.say(f"measured with {kid['extractor']}")
    colour = {"ok": "green", "warn": "yellow", "fail": "red"}[memorisation["verdict"]]
    console.say(f"copies of real images: [bold {colour}]{memorisation['verdict']}[/]. {memorisation['reading']}")
    console.say(f"added {record['count']} images of {label} to part train of {out}, fingerprint {manifest.fingerprint[:12]}")
    page = storage.join(done.run, "report", "report.html")
    report = page if storage.exists(page) else None  # it may be elsewhere, where nothing was left to do
    if report is not None:
        console.say(f"pictures and report in {page}")
    head = {"dataset": out, "fingerprint": manifest.fingerprint, "run": done.run, "report": report, "images_added": record["count"]}
    kept = {name: record[name] for name in ("label", "real_images", "size", "epochs", "kid", "memorisation", "generator", "base")}
    console.result(
        {**head, **kept, "already_finished": done.already_finished, "seconds": round(time.monotonic() - start, 2)},
        next_step=f"cxr-ray train --recipe NAME --data {out} --out RUN",
    )
