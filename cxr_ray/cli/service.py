"""``predict`` and ``serve``: BUNDLE and images in, answers out."""

from __future__ import annotations

from typing import Annotated

import typer

from cxr_ray.cli import console
from cxr_ray.cli.console import Debug, Json
from cxr_ray.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(predict)
    app.command()(serve)


def predict(
    bundle: Annotated[str, typer.Argument(help="BUNDLE.")],
    source: Annotated[str, typer.Argument(help="Folder of images, searched to any depth; or one image.")],
    out: Annotated[str, typer.Option(help="File to write: .parquet or .csv.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = 64,
    address: Annotated[str | None, typer.Option(help="Ray cluster; default: one on this machine.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Score a folder with Ray Data; a file that cannot be read gets a row with its reason.

    Example: cxr-ray predict bundle xrays --out predictions.csv
    """
    from cxr_ray.cluster import connected
    from cxr_ray.serving.offline import predict_folder

    with connected(address), console.progress("predict") as meter:
        summary = predict_folder(bundle, source, out, batch_size=batch_size, report=meter.update)
    console.say(f"wrote {out}: {summary.scored} images scored, {summary.refused} refused, {summary.seconds:.1f} s")
    console.result(
        {"out": out, "scored": summary.scored, "refused": summary.refused, "seconds": round(summary.seconds, 2), "model": summary.model}
    )


def serve(
    bundle: Annotated[str, typer.Argument(help="BUNDLE.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; anything but loopback is a decision to expose the service.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    tls_cert: Annotated[str | None, typer.Option(help="PEM file of a certificate with its chain; the service then speaks TLS.")] = None,
    tls_key: Annotated[str | None, typer.Option(help="PEM file of its private key, which only you may read.")] = None,
    front: Annotated[
        str,
        typer.Option(help="Before the replicas of a cluster started here: haproxy, ray (its own proxy), or auto (HAProxy if there)."),
    ] = "auto",
    replicas: Annotated[int, typer.Option(min=1, help="Copies of the model.")] = 1,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A further bundle, asked for by its name: ?model=NAME, /v2/models/NAME. Repeatable.", metavar="NAME=BUNDLE"),
    ] = None,
    key_file: Annotated[
        str | None, typer.Option(help="File holding the API key; default: CXR_RAY_API_KEY, or a new key, printed once.")
    ] = None,
    keys: Annotated[str | None, typer.Option(help="Key file of 'cxr-ray keys', for several keys with limits, in place of one key.")] = None,
    gate: Annotated[
        str, typer.Option(help="What becomes of an image that the bundle's input gate refuses: refuse, flag (answer all the same) or off.")
    ] = "refuse",
    audit: Annotated[str, typer.Option(help="Audit log: a file, stdout or off.")] = "off",
    engine: Annotated[
        str, typer.Option(help="What computes the forward pass: auto (the faster of torch and ONNX Runtime), torch, onnx or compile.")
    ] = "auto",
    address: Annotated[str | None, typer.Option(help="Ray cluster; default: one on this machine.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Serve a bundle with Ray Serve until Ctrl-C: a page at /, POST /v1/predict, /v2 (Open Inference Protocol), /docs.

    Example: cxr-ray serve bundle --port 8000
    """
    from cxr_ray.cluster import connected
    from cxr_ray.front import choose
    from cxr_ray.serving.app import ServeSettings
    from cxr_ray.serving.audit import OFF, STDOUT
    from cxr_ray.serving.keys import obtain_key
    from cxr_ray.serving.start import Place, serve_until_stopped
    from cxr_ray.settings import parse_settings
    from cxr_ray.storage import absolute

    if keys is not None and key_file is not None:
        raise ConfigError(["--keys and --key-file exclude each other: one is a file of many keys, the other of one"], where="serve")
    key = obtain_key(key_file) if keys is None else None
    given: dict[str, object] = {"bundle": absolute(bundle), "models": _named(model or []), "replicas": replicas, "gate": gate}
    given |= {"engine": engine}
    given |= {
        "engine": engine,
        "key_sha256": key and key.digest,
        "keys": keys and absolute(keys),
        "audit": audit if audit in (STDOUT, OFF) else absolute(audit),
    }
    settings = parse_settings(ServeSettings, given, where="serve")
    settings.key_ring()
    place = Place(host, port, tls_cert, tls_key)
    place.check()
    choose(front)
    with connected(address):
        serve_until_stopped(settings, place=place, ready=lambda url: _announce(url, key.shown if key else None))


def _named(models: list[str]) -> dict[str, str]:
    """``NAME=BUNDLE`` by name."""
    from cxr_ray.storage import absolute

    pairs = [one.partition("=") for one in models]
    faults = [f"--model {''.join(pair)}: expected NAME=BUNDLE" for pair in pairs if not all(pair)]
    if faults:
        raise ConfigError(faults, where="serve")
    return {name: absolute(location) for name, _, location in pairs}


def _announce(url: str, new_key: str | None) -> None:
    from cxr_ray.cluster import joined_address

    cluster = joined_address()
    console.say(f"serving at [bold]{url}[/]  (page: {url}/, docs: {url}/docs, health: {url}/healthz); Ctrl-C ends it")
    if new_key:
        console.say("API key, shown this once:")
        console.say(f"  {new_key}")
    console.say(f"a new version beside this one: cxr-ray rollout start NEW_BUNDLE --address {cluster}")
    key = new_key or "$CXR_RAY_API_KEY"
    console.result(
        {"url": url, "key_shown": bool(new_key), "cluster": cluster},
        next_step=f'curl -H "Authorization: Bearer {key}" -F image=@xray.png {url}/v1/predict',
    )
