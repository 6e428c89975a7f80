"""The Ray Serve application: replicas that decode in threads, batch dynamically, and push back when full."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig, HTTPOptions
from ray.serve.schema import LoggingConfig

from cxr_ray.bundle import Bundle, read_bundle
from cxr_ray.cpu import use_cores
from cxr_ray.errors import ClusterError, ConfigError
from cxr_ray.serving.edge import KEY_VARIABLE, ApiKey, EdgeLimits, build_api, obtain_key
from cxr_ray.serving.predictor import Prediction, Predictor
from cxr_ray.serving.schema import ModelInfo
from cxr_ray.settings import Settings

APPLICATION = "cxr-ray"


class ServeSettings(Settings):
    """Arguments of the application, from the command line or from the ``args`` of a Serve config file."""

    bundle: str
    """BUNDLE, a local path or a URI that every replica can read."""
    replicas: int = Field(default=1, ge=1)
    cpus: float = Field(default=1.0, gt=0)
    """Logical CPUs of a replica."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs of a replica; above 0 the model runs there."""
    max_batch_size: int = Field(default=16, ge=1)
    batch_wait_ms: float = Field(default=2.0, ge=0)
    """How long the first image of a batch waits for company."""
    max_ongoing_requests: int = Field(default=64, ge=1)
    """Requests a replica works on at once; must hold more than one batch."""
    max_queued_requests: int = Field(default=128, ge=-1)
    """Requests a proxy holds beyond that; the next one is answered 429 with Retry-After."""
    deadline_s: float = Field(default=10.0, gt=0)
    key_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """Hex SHA-256 of the API key. None: of the environment's CXR_RAY_API_KEY, without which the service does not start."""


class Classifier:
    """One replica: a model and the routes around it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = ServeSettings(**settings)
        if self.settings.key_sha256 is None:
            raise ConfigError([f"set {KEY_VARIABLE} or args.key_sha256: a service without a key is not started"], where="serve")
        use_cores(min(round(self.settings.cpus), os.cpu_count() or 1))  # Ray starts its workers with one thread
        device = "cuda" if self.settings.gpus else "cpu"
        self.predictor = Predictor(read_bundle(self.settings.bundle), device=device)
        self._decoders = ThreadPoolExecutor(max_workers=max(2, round(self.settings.cpus)), thread_name_prefix="decode")
        self._warm_up()

    def _warm_up(self) -> None:
        """The first pass allocates; no client should wait for it."""
        spec = self.predictor.bundle.preprocess
        for size in {1, self.settings.max_batch_size}:
            self.predictor.predict_arrays(np.zeros((size, spec.height, spec.width), dtype=np.uint8))

    def __serve_build_asgi_app__(self) -> Any:
        """The ASGI application of this replica (called by Ray Serve after ``__init__``)."""
        key = self.settings.key_sha256
        assert key is not None
        return build_api(
            self.answer, model_info(self.predictor.bundle), key_digest=key, limits=EdgeLimits(deadline_seconds=self.settings.deadline_s)
        )

    async def answer(self, data: bytes) -> Prediction:
        """File bytes -> answer. A bad image fails here, before it could join a batch."""
        image = await asyncio.get_running_loop().run_in_executor(self._decoders, self.predictor.decode, data)
        return self.predictor.call(await self._infer(image))

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.002)
    async def _infer(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        return list(await asyncio.to_thread(self.predictor.predict_arrays, np.stack(images)))

    def reconfigure(self, batching: dict[str, Any]) -> None:
        """Ray Serve's hook: batch size and wait can change without a restart."""
        infer: Any = self._infer  # the decorator adds these
        infer.set_max_batch_size(int(batching["max_batch_size"]))
        infer.set_batch_wait_timeout_s(float(batching["batch_wait_ms"]) / 1000)

    async def check_health(self) -> None:
        """Ray Serve's probe: a forward pass that fails makes this replica be replaced."""
        spec = self.predictor.bundle.preprocess
        blank = np.zeros((1, spec.height, spec.width), dtype=np.uint8)
        answer = await asyncio.to_thread(self.predictor.predict_arrays, blank)
        if not np.isfinite(answer).all():
            raise RuntimeError("the model answers with numbers that are not finite")


def model_info(bundle: Bundle) -> ModelInfo:
    """What ``GET /v1/model`` says of a bundle."""
    manifest = bundle.manifest
    return ModelInfo(
        name=manifest.name,
        version=bundle.version,
        task=manifest.task,
        labels=list(manifest.labels),
        thresholds=list(manifest.thresholds) if manifest.thresholds is not None else None,
        image_height=bundle.preprocess.height,
        image_width=bundle.preprocess.width,
        preprocessing_fingerprint=manifest.preprocess.fingerprint,
        dataset_fingerprint=", ".join(bundle.dataset_fingerprints),
        unsound=manifest.unsound,
    )


def build(args: ServeSettings) -> Application:
    """The application, as ``import_path: cxr_ray.serving.app:build`` of a Serve config file names it.

    Raises:
        BundleError: The bundle cannot be served; found out here, before any replica starts.
        ConfigError: No API key.
    """
    read_bundle(args.bundle).warn_if_unsound()
    if args.key_sha256 is None and KEY_VARIABLE in os.environ:
        args = args.model_copy(update={"key_sha256": obtain_key().digest})
    if args.key_sha256 is None:
        raise ConfigError([f"set {KEY_VARIABLE} or args.key_sha256: a service without a key is not started"], where="serve")
    deployment: Any = serve.deployment(
        serve.ingress()(Classifier),
        name="classifier",
        num_replicas=args.replicas,
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus},
        max_ongoing_requests=args.max_ongoing_requests,
        max_queued_requests=args.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        user_config={"max_batch_size": args.max_batch_size, "batch_wait_ms": args.batch_wait_ms},
        logging_config=LoggingConfig(enable_access_log=False),
    )
    application: Application = deployment.bind(args.model_dump())
    return application


@contextlib.contextmanager
def running(settings: ServeSettings, *, host: str = "127.0.0.1", port: int = 8000) -> Iterator[str]:
    """Serve within a block; yields the service's address once it answers.

    Raises:
        ClusterError: The port is taken, or the application did not come up.
    """
    port = port or _free_port(host)
    _check_port(host, port)
    application = build(settings)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # of this process: its own three lines say less than ours
    serve.start(http_options=HTTPOptions(host=host, port=port), logging_config=LoggingConfig(enable_access_log=False))
    try:
        try:
            serve.run(application, name=APPLICATION, route_prefix="/")
        except RuntimeError as error:
            raise ClusterError(
                "the service did not come up; its log is in Ray's session folder", hint="the same command with --debug"
            ) from error
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


def serve_until_stopped(bundle: str, *, host: str, port: int, replicas: int, key: ApiKey, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; ``ready`` is called with the address once it answers."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with running(ServeSettings(bundle=bundle, replicas=replicas, key_sha256=key.digest), host=host, port=port) as url:
        ready(url)
        stop.wait()


def ask_once(bundle: str, image: bytes) -> dict[str, Any]:
    """Serve, send one image over HTTP, stop: what the demo shows."""
    key = obtain_key() if KEY_VARIABLE not in os.environ else ApiKey(obtain_key().digest, os.environ[KEY_VARIABLE])
    with running(ServeSettings(bundle=bundle, key_sha256=key.digest), port=0) as url:
        headers = {"Authorization": f"Bearer {key.shown}", "Content-Type": "application/octet-stream"}
        with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/predict", data=image, headers=headers), timeout=30) as response:
            return dict(json.load(response))
