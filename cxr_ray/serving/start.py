"""The service on this machine: started, told of, stopped."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from cxr_ray.errors import ClusterError
from cxr_ray.serving.app import ServeSettings, checked
from cxr_ray.serving.deployed import deploy
from cxr_ray.serving.keys import KEY_VARIABLE, ApiKey, obtain_key


@contextlib.contextmanager
def running(settings: ServeSettings, *, host: str = "127.0.0.1", port: int = 8000) -> Iterator[str]:
    """Serve within a block; yields the service's address once it answers.

    Raises:
        ClusterError: The port is taken, or the application did not come up.
    """
    port = port or _free_port(host)
    _check_port(host, port)
    settings = checked(settings)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # of this process: its own three lines say less than ours
    serve.start(http_options=HTTPOptions(host=host, port=port), logging_config=LoggingConfig(enable_access_log=False))
    try:
        deploy(settings)
        yield f"http://{host}:{port}"
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ClusterError(
                f"cannot listen on {host}:{port}: {error.strerror}", hint="--port another, or --port 0 for any free one"
            ) from None


def serve_until_stopped(settings: ServeSettings, *, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; ``ready`` is called with the address once it answers."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with running(settings, host=host, port=port) as url:
        ready(url)
        stop.wait()


def ask_once(bundle: str, image: bytes) -> dict[str, Any]:
    """Serve, send one image over HTTP, stop: what the demo shows."""
    key = obtain_key() if KEY_VARIABLE not in os.environ else ApiKey(obtain_key().digest, os.environ[KEY_VARIABLE])
    with running(ServeSettings(bundle=bundle, key_sha256=key.digest), port=0) as url:
        headers = {"Authorization": f"Bearer {key.shown}", "Content-Type": "application/octet-stream"}
        request = urllib.request.Request(f"{url}/v1/predict?gate=flag", data=image, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return dict(json.load(response))
