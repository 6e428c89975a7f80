"""The Ray Serve application: replicas that decode in guarded processes, batch dynamically, and push back when full."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from prometheus_client.metrics_core import Metric
from pydantic import Field, field_validator, model_validator
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import LoggingConfig

from cxr_ray import storage
from cxr_ray.bundle import CARD, MANIFEST, Bundle, read_bundle
from cxr_ray.cpu import use_cores
from cxr_ray.errors import ConfigError
from cxr_ray.serving.answers import GatePolicy
from cxr_ray.serving.audit import AuditLog
from cxr_ray.serving.decoding import MEMORY_BYTES, DecodePool
from cxr_ray.serving.edge import Face, build_api
from cxr_ray.serving.engine import LocalEngine, Row
from cxr_ray.serving.guard import EdgeLimits
from cxr_ray.serving.keys import KEY_VARIABLE, SHA256, KeyRecord, KeyRing, obtain_key, read_keys
from cxr_ray.serving.metrics import Metrics
from cxr_ray.serving.predictor import Predictor
from cxr_ray.serving.schema import ModelInfo
from cxr_ray.settings import Settings


class ServeSettings(Settings):
    """Arguments of the application, from the command line or from the ``args`` of a Serve config file."""

    bundle: str
    """BUNDLE, a local path or a URI that every replica can read."""
    replicas: int = Field(default=1, ge=1)
    """Copies of the model; with ``max_replicas`` the least there are."""
    max_replicas: int | None = Field(default=None, ge=1)
    """Ray Serve adds replicas up to so many while requests queue, and removes them again. None: their number is fixed."""
    target_ongoing_requests: float = Field(default=16.0, gt=0)
    """Requests at work a replica, above which another is added."""
    cpus: float = Field(default=1.0, gt=0)
    """Logical CPUs of a replica."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs of a replica; above 0 the model runs there."""
    decoders: int = Field(default=1, ge=1)
    """Decoding processes of a replica."""
    decoder_memory_mib: int = Field(default=MEMORY_BYTES // 2**20, ge=64)
    """Of one decoding process, beside what it has loaded."""
    max_batch_size: int = Field(default=16, ge=1)
    batch_wait_ms: float = Field(default=2.0, ge=0)
    """How long the first image of a batch waits for company."""
    max_ongoing_requests: int = Field(default=64, ge=1)
    """Requests a replica works on at once; must hold more than one batch."""
    max_queued_requests: int = Field(default=128, ge=-1)
    """Requests a proxy holds beyond that; the next one is answered 429 with Retry-After."""
    body_s: float = Field(default=20.0, gt=0)
    """From a request's head to the last byte of its body."""
    deadline_s: float = Field(default=10.0, gt=0)
    """From there to the answer."""
    key_sha256: str | None = Field(default=None, pattern=SHA256)
    """Hex SHA-256 of the one API key. None, and no ``keys``: of the environment's CXR_RAY_API_KEY; without a key nothing starts."""
    keys: str | None = None
    """Key file (``cxr-ray keys``), a path or URI that every replica can read; read again every 30 s."""
    gate: GatePolicy = "refuse"
    """What becomes of an image that the bundle's input gate refuses."""
    audit: str = "off"
    """Audit log: a file on each replica's machine, ``stdout``, or ``off``."""
    cors_origins: tuple[str, ...] = ()
    """Origins (``https://host``) whose pages may ask; by default none."""

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not re.fullmatch(r"https?://[^/*\s]+", origin):
                raise ValueError(f"{origin!r} is no origin; expected such as https://viewer.hospital.example, and no *")
        return origins

    @model_validator(mode="after")
    def _replicas_in_order(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is below replicas {self.replicas}")
        return self

    def key_ring(self) -> KeyRing:
        """The keys of a replica: the file's, and the one.

        Raises:
            ConfigError: The key file has faults, or there is no key at all.
        """
        records = [] if self.keys is None else list(read_keys(self.keys))
        if self.key_sha256 is not None:
            records.append(KeyRecord(id="default", sha256=self.key_sha256))
        if not records:
            raise ConfigError([f"set {KEY_VARIABLE}, args.key_sha256 or args.keys: a service without a key is not started"], where="serve")
        return KeyRing(records, location=self.keys, share=1 / self.replicas)


class Classifier:
    """One replica: a model, its decoding processes, and the routes around them."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = chosen = ServeSettings(**settings)
        self._keys = chosen.key_ring()
        bundle = read_bundle(chosen.bundle)
        self._audit = AuditLog(chosen.audit, model_sha256=manifest_sha256(bundle))
        use_cores(min(round(chosen.cpus), os.cpu_count() or 1))  # Ray starts its workers with one thread
        self._metrics = Metrics()
        decoders = DecodePool(
            bundle.preprocess,
            processes=chosen.decoders,
            memory_bytes=chosen.decoder_memory_mib * 2**20,
            seconds=chosen.deadline_s,
            on_replace=self._metrics.replaced.inc,
        )
        predictor = Predictor(bundle, device="cuda" if chosen.gpus else "cpu")
        self.engine = LocalEngine(predictor, decoders, self._metrics, infer=lambda image: self._infer(image))
        for size in {1, chosen.max_batch_size}:  # the first pass allocates; no client should wait for it
            self.engine.forward(np.zeros((size, bundle.preprocess.height, bundle.preprocess.width), dtype=np.uint8))

    def __serve_build_asgi_app__(self) -> Any:
        """The ASGI application of this replica (called by Ray Serve after ``__init__``)."""
        chosen = self.settings
        return build_api(
            Face(
                engine=self.engine,
                info=model_info(self.engine.predictor.bundle),
                keys=self._keys,
                audit=self._audit,
                limits=EdgeLimits(body_seconds=chosen.body_s, deadline_seconds=chosen.deadline_s),
                gate=chosen.gate,
                cors_origins=chosen.cors_origins,
                metrics=self._metrics,
                gather=self._all_counters,
            )
        )

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.002)
    async def _infer(self, images: Sequence[NDArray[np.uint8]]) -> list[Row]:
        return await asyncio.to_thread(self.engine.forward, np.stack(images))

    async def counters(self) -> tuple[str, list[Metric]]:
        """This replica's name and counters, for the one that is asked for all of them."""
        return serve.get_replica_context().replica_id.unique_id, self._metrics.families()

    async def _all_counters(self) -> dict[str, list[Metric]]:
        context = serve.get_replica_context()
        handle = serve.get_deployment_handle(context.deployment, context.app_name)
        return dict(await handle.broadcast("counters").results_async(timeout_s=5))

    def reconfigure(self, batching: dict[str, Any]) -> None:
        """Ray Serve's hook: batch size and wait can change without a restart."""
        infer: Any = self._infer  # the decorator adds these
        infer.set_max_batch_size(int(batching["max_batch_size"]))
        infer.set_batch_wait_timeout_s(float(batching["batch_wait_ms"]) / 1000)

    async def check_health(self) -> None:
        """Ray Serve's probe: a forward pass that fails makes this replica be replaced."""
        await self.engine.probe()


def manifest_sha256(bundle: Bundle) -> str:
    """Hex SHA-256 of ``bundle.json``, which holds the checksums of all other files."""
    return storage.sha256(storage.read_bytes(storage.join(bundle.location, MANIFEST)))


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
        manifest_sha256=manifest_sha256(bundle),
        card=storage.read_bytes(storage.join(bundle.location, CARD)).decode(),
        metrics=manifest.metrics,
        gate=manifest.gate.model_dump(mode="json") if manifest.gate is not None else None,
    )


def build(args: ServeSettings) -> Application:
    """The application, as ``import_path: cxr_ray.serving.app:build`` of a Serve config file names it.

    Raises:
        BundleError: The bundle cannot be served; found out here, before any replica starts.
        ConfigError: No API key.
    """
    read_bundle(args.bundle).warn_if_unsound()
    if args.key_sha256 is None and args.keys is None and KEY_VARIABLE in os.environ:
        args = args.model_copy(update={"key_sha256": obtain_key().digest})
    args.key_ring()
    deployment: Any = serve.deployment(
        serve.ingress()(Classifier),
        name="classifier",
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus},
        max_ongoing_requests=args.max_ongoing_requests,
        max_queued_requests=args.max_queued_requests,
        graceful_shutdown_timeout_s=args.body_s + args.deadline_s + 5,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5,
        max_constructor_retry_count=3,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        user_config={"max_batch_size": args.max_batch_size, "batch_wait_ms": args.batch_wait_ms},
        logging_config=LoggingConfig(encoding="JSON", enable_access_log=False),
        **_scaling(args),
    )
    application: Application = deployment.bind(args.model_dump())
    return application


def _scaling(args: ServeSettings) -> dict[str, Any]:
    if args.max_replicas is None:
        return {"num_replicas": args.replicas}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=args.replicas, max_replicas=args.max_replicas, target_ongoing_requests=args.target_ongoing_requests
        )
    }
