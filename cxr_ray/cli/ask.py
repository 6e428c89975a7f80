"""``ask``: send images to a running service."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from cxr_ray.cli import console
from cxr_ray.cli.console import Debug, Json
from cxr_ray.errors import CxrRayError

KEY_VARIABLE = "CXR_RAY_API_KEY"


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command()(ask)


def ask(
    url: Annotated[str, typer.Argument(help="Of the service, such as http://127.0.0.1:8000.")],
    images: Annotated[list[Path], typer.Argument(help="PNG, JPEG or DICOM files.")],
    key_file: Annotated[Path | None, typer.Option(help="File holding an API key; default: CXR_RAY_API_KEY.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Also write where the model looked, as IMAGE.heat.png here.")] = False,
    model: Annotated[str | None, typer.Option(help="Model of the service to ask; default: the one it is named for.")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for each image.")] = 60.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Ask a running service about images. Exit code 2 where any of them got no answer.

    Example: cxr-ray ask http://127.0.0.1:8000 xray.png --key-file key.txt
    """
    from cxr_ray.client import Client, ServiceError

    client = Client(url, read_key(key_file), timeout=timeout, model=model)
    rows, answers, refused = [], [], 0
    for image in images:
        try:
            answer: dict[str, Any] = {"file": str(image), **client.predict(image).model_dump(mode="json")}
            rows.append([image.name, "|".join(answer["labels"]) or "none", f"{max(answer['probabilities'].values()):.3f}", _gate(answer)])
            if explain:
                answer["heat_map"] = str(_write_overlay(client, image))
        except ServiceError as error:
            if error.status in {0, 401} and error.reason != "unreadable":  # the next image would fare no better
                raise
            refused += 1
            answer = {"file": str(image), "reason": error.reason, "message": error.message}
            rows.append([image.name, "refused", "", error.message])
        answers.append(answer)
    console.table(url, ["image", "called", "largest probability", "gate"], rows)
    console.result({"url": url, "answers": answers, "refused": refused})
    if refused:
        raise CxrRayError(f"{refused} of {len(images)} images got no answer")


def read_key(key_file: Path | None) -> str:
    """The API key from ``key_file``, else from the environment."""
    if key_file is None:
        if KEY_VARIABLE not in os.environ:
            raise CxrRayError("no API key was given", hint=f"--key-file FILE, or set {KEY_VARIABLE}")
        return os.environ[KEY_VARIABLE].strip()
    try:
        return key_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CxrRayError(f"{key_file} cannot be read: {type(error).__name__}") from None


def _gate(answer: dict[str, Any]) -> str:
    gate = answer["gate"]
    if gate is None:
        return "none"
    return "; ".join(check["message"] for check in gate["checks"] if check["verdict"] != "ok") or "ok"


def _write_overlay(client: Any, image: Path) -> Path:
    import base64

    target = Path(f"{image.name}.heat.png")
    target.write_bytes(base64.b64decode(client.explain(image).overlay))
    return target
