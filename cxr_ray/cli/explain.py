"""``explain``: BUNDLE and images in, pictures of where the model sees what it calls out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cxr_ray.cli import console
from cxr_ray.cli.console import Debug, Json
from cxr_ray.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from cxr_ray.serving.predictor import Predictor

RECORD = "explain.json"


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command()(explain)


def explain(
    bundle: Annotated[str, typer.Argument(help="BUNDLE.")],
    images: Annotated[list[str], typer.Argument(help="Image files: PNG, JPEG or DICOM.")],
    out: Annotated[str, typer.Option(help="Folder to write: explain.json, and two PNGs an image.")],
    label: Annotated[str | None, typer.Option(help="Label to explain; default: of each image the most probable one.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="gradcam, gradcam++, hirescam, eigencam, integrated or occlusion (slow). Default: what finds lesions best, integrated."
        ),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show where the model sees a label: the image under a heat map, and the heat map alone, as PNG; explain.json says what they show.

    Example: cxr-ray explain bundle xray.png --out explained
    """
    from cxr_ray import storage
    from cxr_ray.bundle import read_bundle
    from cxr_ray.evaluation.explain import BEST, METHODS
    from cxr_ray.serving.predictor import Predictor

    opened = read_bundle(bundle)
    method = method or BEST
    if method not in METHODS:
        raise ConfigError([f"{method!r} is unknown; valid: {', '.join(METHODS)}"], where="--method")
    if label is not None and label not in opened.labels.names:
        raise ConfigError([f"{label!r} is none of the model's labels: {', '.join(opened.labels.names)}"], where="--label")
    opened.warn_if_unsound()
    predictor = Predictor(opened)
    found = []
    with console.progress("explain") as meter:
        for number, image in enumerate(images):
            found.append(_explained(predictor, image, label, method, out, number))
            meter.update(number + 1, len(images))
    record = {"model": opened.manifest.name, "model_version": opened.version, "method": method, "images": found}
    storage.write_json(storage.join(out, RECORD), record)
    refused = sum("error" in row for row in found)
    console.say(f"wrote {storage.join(out, RECORD)}: {len(found) - refused} images explained, {refused} that cannot be read")
    console.result({"out": out, **record})


def _explained(predictor: Predictor, image: str, label: str | None, method: str, out: str, number: int) -> dict[str, Any]:
    """Write the pictures of one image; what ``explain.json`` says of it. ``number`` keeps apart files of one name."""
    from pathlib import PurePosixPath

    from cxr_ray import storage
    from cxr_ray.evaluation.explain import explain, grey_png, overlay_png

    data = storage.read_bytes(image)
    try:
        pixels = predictor.decode(data)
    except ImageError as error:
        return {"file": image, "error": error.reason}
    names = predictor.bundle.labels.names
    probabilities, (verdict,) = predictor.predict_checked(pixels[None])
    found = explain(predictor.model, pixels, names.index(label) if label is not None else int(probabilities[0].argmax()), method)
    stem = f"{number:03d}-{PurePosixPath(image).stem}"
    storage.write_bytes(storage.join(out, f"{stem}-overlay.png"), overlay_png(pixels, found.heat_HW))
    storage.write_bytes(storage.join(out, f"{stem}-heat.png"), grey_png(found.heat_HW))
    return {
        "file": image,
        "sha256": storage.sha256(data),
        "label": names[found.label],
        "probability": float(probabilities[0, found.label]),
        "overlay": f"{stem}-overlay.png",
        "heat_map": f"{stem}-heat.png",
        "gate": verdict.reason or "ok" if verdict is not None else None,
    }
