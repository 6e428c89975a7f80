"""``phantoms`` and ``ingest``: images in, DATASET out."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated

import typer

from cxr_ray.cli import console
from cxr_ray.cli.console import Debug, Json
from cxr_ray.errors import ConfigError


class PhantomTask(StrEnum):
    """Tasks of the embedded data."""

    covid = "covid"
    croup = "croup"
    multilabel = "multilabel"


class PlantKind(StrEnum):
    """Shortcuts."""

    marker = "marker"
    brightness = "brightness"
    hospital = "hospital"


class Equalize(StrEnum):
    """Histogram methods."""

    none = "none"
    hist = "hist"
    clahe = "clahe"


class Policy(StrEnum):
    """How images are dealt to parts."""

    grouped = "grouped"
    image = "image"
    official = "official"


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(phantoms)
    app.command()(ingest)


def phantoms(
    out: Annotated[str, typer.Option(help="Folder to write; must be empty or absent.")],
    task: Annotated[PhantomTask, typer.Option(help="covid, croup or multilabel.")] = PhantomTask.covid,
    count: Annotated[int, typer.Option(min=12, help="Good images, before planted copies and corrupt files.")] = 600,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    plant: Annotated[
        PlantKind | None, typer.Option(help="A shortcut: a corner marker a class, brightness by class, a hospital a class.")
    ] = None,
    strength: Annotated[float, typer.Option(min=0.0, max=1.0, help="With --plant: how often it goes with the label.")] = 1.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw synthetic radiographs with anatomy, patients, copies and corrupt files.

    Example: cxr-ray phantoms --out xrays --task covid --count 600
    """
    from cxr_ray.data.phantoms import Plant, write_phantoms

    shortcut = None if plant is None else Plant(plant.value, strength)
    summary = write_phantoms(out, task=task.value, count=count, seed=seed, plant=shortcut)
    console.say(
        f"drew {summary.images} images of {summary.patients} patients in {out}; "
        f"planted {summary.copies} copies and {summary.corrupt} corrupt files"
        + (f", and {shortcut.kind} by class with strength {shortcut.strength:g}" if shortcut is not None else "")
    )
    console.result(
        {
            "out": out,
            "task": task.value,
            "images": summary.images,
            "patients": summary.patients,
            "copies": summary.copies,
            "corrupt": summary.corrupt,
        },
        next_step=f"cxr-ray ingest {out} --out DATASET",
    )


def ingest(
    source: Annotated[str, typer.Argument(help="Folder of X-rays, a local path or a URI, in any layout the adapters know.")],
    out: Annotated[str, typer.Option(help="DATASET to write.")],
    format: Annotated[
        str, typer.Option(help="auto, folder, csv, kermany, nih, chexpert, covid-radiography, mendeley, cohen or dicom.")
    ] = "auto",
    size: Annotated[str, typer.Option(help="Side in pixels, or HEIGHTxWIDTH.")] = "224",
    equalize: Annotated[Equalize, typer.Option(help="Histogram equalisation of the whole image, or CLAHE.")] = Equalize.none,
    blur: Annotated[int, typer.Option(help="Gaussian kernel: 0 (off), 3 or 5.")] = 0,
    keep_aspect: Annotated[bool, typer.Option("--keep-aspect", help="Pad with black instead of stretching.")] = False,
    split: Annotated[str, typer.Option(help="Parts train,val,test.")] = "0.7,0.15,0.15",
    folds: Annotated[int | None, typer.Option(min=2, help="Folds for cross-validation, instead of --split.")] = None,
    test: Annotated[float, typer.Option(min=0.0, max=0.9, help="With --folds: share of a test part beside them; 0: none.")] = 0.2,
    policy: Annotated[
        Policy, typer.Option(help="grouped: by patient and near copy. image: image by image (unsound). official: the source's own.")
    ] = Policy.grouped,
    undersample: Annotated[bool, typer.Option("--undersample", help="Cut majority classes of the training part to the rarest.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", help="Adapter option KEY=VALUE, such as labels=3 (kermany) or uncertain=ones (chexpert)."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the data set; default: the source folder's.")] = None,
    near_copies: Annotated[bool, typer.Option(help="Keep near copies in one part.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a DATASET that stands at --out.")] = False,
    address: Annotated[str | None, typer.Option(help="Ray cluster; default: one on this machine.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Decode, preprocess, group by patient and near copy, split, and write Parquet shards.

    Example: cxr-ray ingest xrays --out dataset --size 224 --folds 5
    """
    from cxr_ray import storage
    from cxr_ray.cluster import connected
    from cxr_ray.data.ingest import IngestProgress
    from cxr_ray.data.ingest import ingest as run_ingest
    from cxr_ray.data.sources import SourceOptions, read_source
    from cxr_ray.data.split import SplitSpec
    from cxr_ray.imaging.preprocess import PreprocessSpec
    from cxr_ray.settings import apply_overrides, parse_settings

    start = time.monotonic()
    height, width = _size(size)
    spec = parse_settings(
        PreprocessSpec,
        {"height": height, "width": width, "equalize": equalize.value, "blur": blur, "keep_aspect": keep_aspect},
        where="preprocessing",
    )
    parts = {"folds": folds, "test": test} if folds else {"fractions": _fractions(split)}
    plan = parse_settings(SplitSpec, {**parts, "seed": seed, "policy": policy.value, "undersample": undersample}, where="split")
    options = parse_settings(SourceOptions, apply_overrides({}, option or []), where="--option")
    found = read_source(source, format, options)
    for note in found.notes:
        console.say(note)
    with connected(address), console.progress("ingest") as meter:

        def show(step: IngestProgress) -> None:
            meter.update(step.done, step.total, step.stage)

        dataset = run_ingest(found, out, preprocess=spec, split=plan, name=name, near_copies=near_copies, overwrite=overwrite, report=show)
    seconds = time.monotonic() - start
    manifest = dataset.manifest
    console.table(
        f"{manifest.name}: {sum(part.images for part in manifest.partitions.values())} images of {height}×{width}",
        ["part", "images", "patients", *manifest.labels],
        [
            [part, str(info.images), str(info.patients), *(str(info.per_label[label]) for label in manifest.labels)]
            for part, info in manifest.partitions.items()
        ],
    )
    if manifest.quarantined:
        console.say(f"{manifest.quarantined} files set aside; reasons in {storage.join(out, 'quarantine.csv')}")
    console.say(f"wrote {out} in {seconds:.1f} s, fingerprint {manifest.fingerprint[:12]}")
    console.result(
        {
            "dataset": out,
            "fingerprint": manifest.fingerprint,
            "partitions": {part: info.model_dump() for part, info in manifest.partitions.items()},
            "quarantined": manifest.quarantined,
            "copies": manifest.copies.model_dump(),
            "seconds": round(seconds, 2),
        },
        next_step=f"cxr-ray train --recipe cnn-lstm --data {out} --out RUN" + (" --cv" if folds else ""),
    )


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) not in {1, 2} or not all(side.isdigit() for side in sides):
        raise ConfigError([f"{text!r}: expected pixels, such as 224 or 224x192"], where="--size")
    return int(sides[0]), int(sides[-1])


def _fractions(text: str) -> tuple[float, ...]:
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if len(shares) != 3:
        raise ConfigError([f"{text!r}: expected three shares, such as 0.7,0.15,0.15"], where="--split")
    return shares
