"""``dicom-report`` and ``dicom-listen``: answers as DICOM objects in the study of their image."""

from __future__ import annotations

import base64
import importlib.util
import logging
import signal
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxr_ray.cli import console
from cxr_ray.cli.ask import read_key
from cxr_ray.cli.console import Debug, Json
from cxr_ray.errors import CxrRayError, ImageError

if TYPE_CHECKING:
    from cxr_ray.client import Client
    from cxr_ray.serving.dicom.reading import Reader

Model = Annotated[str, typer.Argument(help="BUNDLE, or the address of a running service, such as http://127.0.0.1:8000.")]
KeyFile = Annotated[Path | None, typer.Option(help="File holding an API key of the service; default: CXR_RAY_API_KEY.")]
Picture = Annotated[bool, typer.Option("--picture/--no-picture", help="Also the heat map, as a Secondary Capture.")]
_NAMES = ("report.dcm", "heat-map.dcm")
_OF_THE_IMAGE = frozenset({413, 415, 422})
"""HTTP status of a refusal that the same image would meet again."""


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(dicom_report)
    app.command()(dicom_listen)


def dicom_report(
    model: Model,
    image: Annotated[Path, typer.Argument(help="DICOM file of a chest X-ray.")],
    out: Annotated[Path, typer.Option(help="Folder to write; what is written holds the patient data of the image.")],
    key_file: KeyFile = None,
    picture: Picture = True,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the answer for a DICOM image as a Structured Report and a Secondary Capture in the same study.

    Example: cxr-ray dicom-report bundle xray.dcm --out answer
    """
    _check_installed()
    from cxr_ray.serving.dicom.answer import answer

    try:
        data = image.read_bytes()
    except OSError as error:
        raise CxrRayError(f"{image} cannot be read: {error.strerror}") from None
    answered = answer(data, _reader(model, key_file, picture=picture))
    out.mkdir(parents=True, exist_ok=True)
    names = _NAMES[: len(answered.objects)]
    for name, made in zip(names, answered.objects, strict=True):
        made.save_as(out / name, enforce_file_format=True)
    called = [finding.label for finding in answered.reading.findings if finding.called]
    console.say(f"wrote {' and '.join(str(out / name) for name in names)}; called: {', '.join(called) or 'nothing'}")
    console.result({"out": str(out), "files": list(names), "labels": called, "model_version": answered.reading.version})


def dicom_listen(
    model: Model,
    answer_to: Annotated[str, typer.Option(help="Archive that gets the answers: HOST:PORT/AET.")],
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs --caller.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 11112,
    aet: Annotated[str, typer.Option(help="Our AE title.")] = "CXR_RAY",
    caller: Annotated[list[str] | None, typer.Option(help="AE title that may send; once for each.")] = None,
    key_file: KeyFile = None,
    picture: Picture = True,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Take chest X-rays by C-STORE and send the answers to an archive, until Ctrl-C.

    Example: cxr-ray dicom-listen bundle --answer-to 127.0.0.1:4242/ARCHIVE
    """
    _check_installed()
    from cxr_ray.serving.dicom.answer import answer
    from cxr_ray.serving.dicom.delivery import Delivery, Destination
    from cxr_ray.serving.dicom.listener import ListenSettings, listening
    from cxr_ray.settings import parse_settings

    given = {"host": host, "port": port, "ae_title": aet, "callers": caller or []}
    settings = parse_settings(ListenSettings, given, where="dicom-listen")
    to, reader = Destination.parse(answer_to), _reader(model, key_file, picture=picture)
    logging.getLogger("cxr_ray.serving.dicom").setLevel(logging.INFO)  # a line an image: what an operator watches
    delivery = Delivery(to, ae_title=aet)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with listening(partial(answer, reader=reader), delivery, settings) as listened:
            console.say(f"listening at {host}:{listened} as {aet}, answers go to {answer_to}; Ctrl-C ends it")
            console.result({"host": host, "port": listened, "ae_title": aet, "answer_to": answer_to})
            stop.wait()
    finally:
        delivery.close()


def _check_installed() -> None:
    for package in ("highdicom", "pynetdicom"):
        if importlib.util.find_spec(package) is None:
            raise CxrRayError(f"{package} is not installed", hint="pip install 'cxr-ray[dicom]'")


def _reader(model: str, key_file: Path | None, *, picture: bool) -> Reader:
    """Asks a BUNDLE in this process, or a service."""
    if model.startswith(("http://", "https://")):
        from cxr_ray.client import Client

        return _remote_reader(Client(model, read_key(key_file)), picture=picture)
    from cxr_ray.bundle import read_bundle
    from cxr_ray.serving.dicom.reading import local_reader
    from cxr_ray.serving.predictor import Predictor

    bundle = read_bundle(model)
    bundle.warn_if_unsound()
    return local_reader(Predictor(bundle), picture=picture)


def _remote_reader(client: Client, *, picture: bool) -> Reader:
    from cxr_ray.client import ServiceError
    from cxr_ray.serving.dicom.reading import Finding, Reading, heat_map, remarks

    unsound = client.model().unsound

    def read(data: bytes) -> Reading:
        try:
            answer = client.predict(data)
            explained = client.explain(data) if picture else None
        except ServiceError as error:
            if error.status in _OF_THE_IMAGE:
                raise ImageError(error.reason, error.message) from None
            raise
        if explained is not None and explained.model_version != answer.model_version:
            raise CxrRayError("the service changed its model while it was asked", hint="the same again")
        findings = [Finding(label, said.probability, said.threshold, said.called) for label, said in answer.decision.items()]
        flags = [check.message for check in answer.gate.checks if check.verdict != "ok"] if answer.gate else []
        seen = heat_map(explained.label, base64.b64decode(explained.overlay)) if explained else None
        return Reading(findings, answer.model, answer.model_version, remarks(unsound, flags), seen)

    return read
