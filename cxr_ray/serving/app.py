"""The Ray Serve application: replicas that decode in guarded processes, batch dynamically, and push back when full."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import weakref
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, Final, Self

from prometheus_client.metrics_core import Metric
from pydantic import Field, field_validator, model_validator
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import LoggingConfig

from cxr_ray import storage
from cxr_ray.bundle import CARD, MANIFEST, Bundle, read_bundle
from cxr_ray.cpu import in_background, use_cores
from cxr_ray.errors import ConfigError
from cxr_ray.serving.answers import GatePolicy
from cxr_ray.serving.audit import AuditLog
from cxr_ray.serving.decoding import MEMORY_BYTES, DecodePool
from cxr_ray.serving.edge import Face, build_api, build_routes
from cxr_ray.serving.engine import LocalEngine
from cxr_ray.serving.fleet import MODEL_NAME, Load
from cxr_ray.serving.guard import EdgeLimits
from cxr_ray.serving.keys import KEY_VARIABLE, SHA256, KeyRecord, KeyRing, obtain_key, read_keys
from cxr_ray.serving.metrics import Metrics
from cxr_ray.serving.rollout import Report, Rollout
from cxr_ray.serving.schema import EngineChoice, EngineInfo, ModelInfo
from cxr_ray.serving.traffic import Forwarded, Reply, Traffic
from cxr_ray.serving.versions import answered
from cxr_ray.settings import Settings, parse_settings

logger = logging.getLogger(__name__)

DEPLOYMENT = "classifier"
LOGGING: Final[dict[str, Any]] = {"encoding": "JSON", "log_level": "WARNING", "enable_access_log": False}
"""Of Ray Serve. At INFO it makes a record of every request, and drops it where there is no access log; ours is ``args.audit``."""


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
    engine: EngineChoice = "auto"
    """What computes the forward pass. ``auto``: ONNX Runtime where it is installed, answers alike and is faster, else torch."""
    max_batch_size: int = Field(default=16, ge=1)
    """Images of one forward pass. A batch is what came while the model was busy; no image waits for company."""
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
    models: dict[Annotated[str, Field(pattern=f"^{MODEL_NAME}$")], str] = Field(default_factory=dict)
    """Further BUNDLEs by the name that requests give (``?model=NAME``, ``/v2/models/NAME``); the first of them are loaded once the replica
    answers, others when they are asked for."""
    models_per_replica: int = Field(default=3, ge=1)
    """Of those, how many a replica keeps in memory; the one that was not asked for the longest leaves."""

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

    @property
    def cores(self) -> int:
        """Threads that a replica computes with."""
        return max(1, min(round(self.cpus), os.cpu_count() or 1))

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


def serve_bundle(settings: ServeSettings, bundle: Bundle, metrics: Metrics) -> tuple[LocalEngine, EngineInfo]:
    """One bundle in a replica, with decoding processes of its own, and what computes its forward pass.

    The processes end when nobody holds it any more: a request that is under way outlives the model's place in memory.
    """
    from cxr_ray.serving.predictor import Predictor
    from cxr_ray.serving.selection import select_engine

    decoders = DecodePool(
        bundle.preprocess,
        processes=settings.decoders,
        memory_bytes=settings.decoder_memory_mib * 2**20,
        seconds=settings.deadline_s,
        on_replace=metrics.replaced.inc,
    )
    predictor = Predictor(bundle, device="cuda" if settings.gpus else "cpu")
    chosen = select_engine(predictor, settings.engine, batch_size=settings.max_batch_size, threads=settings.cores)
    engine = LocalEngine(predictor, decoders, metrics, settings.max_batch_size)
    weakref.finalize(engine, decoders.close).atexit = False
    return engine, chosen


class Classifier:
    """One replica: its models, the routes around them, and what it does about a rollout."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = chosen = ServeSettings(**settings)
        self._keys = chosen.key_ring()
        bundle = read_bundle(chosen.bundle)
        self._audit = AuditLog(chosen.audit, model_sha256=manifest_sha256(bundle))
        in_background(lambda: import_module("cxr_ray.serving.selection"))  # torch and all that hangs on it
        use_cores(chosen.cores)  # Ray starts its workers with one thread
        self._metrics = Metrics()
        self.engine, computes = serve_bundle(chosen, bundle, self._metrics)
        self._metrics.engine.info({"engine": computes.name, "reason": computes.reason})
        info = model_info(bundle, computes)
        others = {name: model_info(read_bundle(location)).model_copy(update={"name": name}) for name, location in chosen.models.items()}
        self._traffic = Traffic(info, self._ask, patience=chosen.deadline_s / 2, metrics=self._metrics, audit=self._audit)
        self._load = self._loader()
        self._ahead: asyncio.Task[None] | None = None
        self._face = Face(
            engine=self.engine,
            info=info,
            keys=self._keys,
            audit=self._audit,
            limits=EdgeLimits(body_seconds=chosen.body_s, deadline_seconds=chosen.deadline_s),
            gate=chosen.gate,
            cors_origins=chosen.cors_origins,
            metrics=self._metrics,
            gather=self._all_counters,
            others=others,
            load=self._load,
            traffic=self._traffic,
        )
        self._routes = build_routes(self._face)
        gc.collect()
        gc.freeze()  # what is there by now stays: a collection under load need not look at torch's and Ray's hundred thousands of objects

    def __serve_build_asgi_app__(self) -> Any:
        """The ASGI application of this replica (called by Ray Serve after ``__init__``)."""
        return build_api(self._face)

    def _loader(self) -> Load:
        """Other models than the one that the service is named for: as many in memory as there is room for, by Ray Serve's LRU."""
        chosen, metrics = self.settings, self._metrics

        def fresh(name: str) -> LocalEngine:
            gc.collect()  # the one that had to leave holds itself
            return serve_bundle(chosen, read_bundle(chosen.models[name]), metrics)[0]

        async def load(name: str) -> LocalEngine:
            return await asyncio.to_thread(fresh, name)

        loaded: Load = serve.multiplexed(load, max_num_models_per_replica=chosen.models_per_replica)
        return loaded

    async def _ask(self, application: str, request: Forwarded) -> Reply:
        handle = await asyncio.to_thread(serve.get_deployment_handle, DEPLOYMENT, application)
        reply: Reply = await handle.answer.remote(request)
        return reply

    async def answer(self, request: Forwarded) -> Reply:
        """The answer of this version to a request that another version's guard has let in."""
        return await answered(self._routes, request)

    async def report(self) -> Report:
        """How this replica stands in a rollout."""
        return Report(self._traffic.info.version, self._traffic.rollout, self._traffic.tally())

    async def counters(self) -> tuple[str, list[Metric]]:
        """This replica's name and counters, for the one that is asked for all of them."""
        return serve.get_replica_context().replica_id.unique_id, self._metrics.families()

    async def _all_counters(self) -> dict[str, list[Metric]]:
        context = serve.get_replica_context()
        handle = serve.get_deployment_handle(context.deployment, context.app_name)
        return dict(await handle.broadcast("counters").results_async(timeout_s=5))

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Ray Serve's hook: the batch size and rollouts change without a restart."""
        self.engine.batcher.most = int(user_config["max_batch_size"])
        given = user_config.get("rollout")
        self._traffic.update(None if given is None else Rollout(**given))

    async def check_health(self) -> None:
        """Ray Serve's probe: a forward pass that fails makes this replica be replaced. After the first, other models are loaded."""
        await self.engine.probe()
        if self._ahead is None:
            self._ahead = asyncio.create_task(self._load_ahead())

    async def _load_ahead(self) -> None:
        """As many of the other models as stay in memory, so that nobody waits for them."""
        for name in list(self.settings.models)[: self.settings.models_per_replica]:
            try:
                await self._load(name)
            except Exception as error:  # whoever asks for it is told
                logger.warning("model %s is not loaded: %s", name, type(error).__name__)


def manifest_sha256(bundle: Bundle) -> str:
    """Hex SHA-256 of ``bundle.json``, which holds the checksums of all other files."""
    return storage.sha256(storage.read_bytes(storage.join(bundle.location, MANIFEST)))


def model_info(bundle: Bundle, engine: EngineInfo | None = None) -> ModelInfo:
    """What ``GET /v1/model`` says of a bundle, and of the engine it is served with."""
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
        calibrated=manifest.calibration is not None,
        manifest_sha256=manifest_sha256(bundle),
        card=storage.read_bytes(storage.join(bundle.location, CARD)).decode(),
        metrics=manifest.metrics,
        engine=engine,
        gate=manifest.gate.model_dump(mode="json") if manifest.gate is not None else None,
    )


def checked(args: ServeSettings) -> ServeSettings:
    """The arguments, with the environment's key where they name none: what can be found out before any replica starts.

    Raises:
        BundleError: A bundle cannot be served.
        ConfigError: No API key, or a model has the name of another.
    """
    main = read_bundle(args.bundle)
    main.warn_if_unsound()
    if main.manifest.name in args.models:
        raise ConfigError([f"models.{main.manifest.name}: the bundle {args.bundle} has that name already"], where="serve")
    for location in args.models.values():
        read_bundle(location).warn_if_unsound()
    if args.key_sha256 is None and args.keys is None and KEY_VARIABLE in os.environ:
        args = args.model_copy(update={"key_sha256": obtain_key().digest})
    args.key_ring()
    return args


def build(given: Mapping[str, Any]) -> Application:
    """The application, as ``import_path: cxr_ray.serving.app:build`` of a Serve config file names it.

    Args:
        given: :class:`ServeSettings` as they stand in the file; Ray Serve does not see the type behind a postponed annotation.

    Raises:
        BundleError: As :func:`checked`.
        ConfigError: Likewise, or an argument is unknown or out of range.
    """
    args = checked(parse_settings(ServeSettings, given, where="args"))
    deployment: Any = serve.deployment(
        serve.ingress()(Classifier),
        name=DEPLOYMENT,
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus},
        max_ongoing_requests=args.max_ongoing_requests,
        max_queued_requests=args.max_queued_requests,
        graceful_shutdown_timeout_s=args.body_s + args.deadline_s + 5,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5,
        max_constructor_retry_count=3,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        user_config=user_config(args),
        logging_config=LoggingConfig(**LOGGING),
        **_scaling(args),
    )
    application: Application = deployment.bind(args.model_dump())
    return application


def user_config(args: ServeSettings, rollout: Rollout | None = None) -> dict[str, Any]:
    """What replicas can be told without a restart."""
    told = None if rollout is None else rollout.model_dump(mode="json")
    return {"max_batch_size": args.max_batch_size, "rollout": told}


def _scaling(args: ServeSettings) -> dict[str, Any]:
    if args.max_replicas is None:
        return {"num_replicas": args.replicas}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=args.replicas, max_replicas=args.max_replicas, target_ongoing_requests=args.target_ongoing_requests
        )
    }
