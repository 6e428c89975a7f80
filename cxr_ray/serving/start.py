"""The service on this machine: started, told of, stopped."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from cxr_ray import front
from cxr_ray.errors import ClusterError, ConfigError
from cxr_ray.serving.app import ServeSettings, checked
from cxr_ray.serving.deployed import deploy
from cxr_ray.serving.keys import KEY_VARIABLE, ApiKey, obtain_key

_KEPT_SECONDS: Final = 10
"""How long a server of Ray's keeps a client's idle connection."""
_KEPT_FOR_HAPROXY_SECONDS: Final = 75
"""The same where the client is HAProxy, which must be the first to close one, or it asks on a connection that is gone."""


@dataclass(frozen=True)
class Place:
    """Where the service listens.

    Args:
        host: Address; anything but loopback is a decision to expose the service.
        port: 0 for any free one.
        certificate: PEM file of the certificate with its chain; with it TLS is spoken.
        key: PEM file of its private key, which nobody else may read.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: str | None = None
    key: str | None = None

    def check(self) -> None:
        """Find out now what would otherwise be found out in another process.

        Raises:
            ConfigError: Certificate and key are no pair, or others may read the key.
        """
        if self.certificate is None and self.key is None:
            return
        if self.certificate is None or self.key is None:
            raise ConfigError(["--tls-cert and --tls-key belong together"], where="serve")
        try:
            if Path(self.key).stat().st_mode & 0o077:
                raise ConfigError([f"{self.key} can be read by others: chmod 600 {self.key}"], where="serve")
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(self.certificate, self.key, password="")
        except OSError as error:  # ssl.SSLError is one
            fault = error.reason if isinstance(error, ssl.SSLError) else error.strerror
            raise ConfigError([f"{self.certificate} and {self.key} are no certificate and its key: {fault}"], where="serve") from None


@contextlib.contextmanager
def running(settings: ServeSettings, *, place: Place | None = None, host: str = "127.0.0.1", port: int = 8000) -> Iterator[str]:
    """Serve within a block; yields the service's address once it answers.

    Raises:
        ClusterError: The port is taken, or the application did not come up.
    """
    place = place or Place(host, port)
    place.check()
    place = replace(place, port=place.port or _free_port(place.host))
    _check_port(place.host, place.port)
    settings = checked(settings)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # of this process: its own three lines say less than ours
    try:
        _start(_http_options(place, settings))
        deploy(settings)
        yield f"{'https' if place.certificate else 'http'}://{place.host}:{place.port}"
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]


def _start(options: HTTPOptions) -> None:
    """Start Ray Serve's controller and what stands before the replicas.

    Raises:
        ClusterError: It did not come up.
    """
    try:
        serve.start(http_options=options, logging_config=LoggingConfig(enable_access_log=False))
    except (RayError, TimeoutError) as error:
        raise ClusterError(
            f"Ray Serve's proxy did not come up: {type(error).__name__}",
            hint="is the machine very busy? Its own words are in /tmp/ray/session_latest/logs/serve",
        ) from error


def _http_options(place: Place, settings: ServeSettings) -> HTTPOptions:
    common = HTTPOptions(host=place.host, port=place.port, keep_alive_timeout_s=_KEPT_SECONDS, request_timeout_s=settings.deadline_s + 5)
    if not front.in_use():
        return common.model_copy(update={"ssl_certfile": place.certificate, "ssl_keyfile": place.key})
    most = settings.body_s + settings.deadline_s + 10
    front.show(front.Front(place.host, place.certificate, place.key, body_seconds=settings.body_s, answer_seconds=most))
    # The address is the replicas', too: HAProxy alone is seen.
    return common.model_copy(update={"host": "127.0.0.1", "keep_alive_timeout_s": _KEPT_FOR_HAPROXY_SECONDS})


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


def serve_until_stopped(settings: ServeSettings, *, place: Place, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; ``ready`` is called with the address once it answers."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with running(settings, place=place) as url:
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
