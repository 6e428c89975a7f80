"""The one place that starts or joins Ray, with the settings that the rest of the system counts on.

Ray is imported inside the functions, never on import: most commands do without it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cxr_ray import front
from cxr_ray.errors import ClusterError

logger = logging.getLogger(__name__)

RAY_ENVIRONMENT: Mapping[str, str] = {
    # The second Parquet reader reads nearly everything before the first batch and drops a path that is listed twice.
    "RAY_DATA_USE_DATASOURCE_V2": "0",
    # The controller polls its workers every 2 s by default: 8 s of a short run on a laptop.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Workers that find no room are tried four times so long: with no node left a run ends in words after 80 s, not 4 minutes.
    # A node that joins within that time is used at once. A cluster that grows on demand needs more: deploy/ and cluster.yaml set it.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_V2_ENABLED": "1",
    # A process a training that warns workers of a node about to go. Ours write a checkpoint an epoch, warned or not.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # What stands before Serve's HTTP proxy: limits that Ray has not (cxr_ray.serving.proxy).
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "cxr_ray.serving.proxy:middlewares",
    # A front that died is found out after three probes: back in seconds, not in half a minute.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "2",
    # One that starts on a busy machine is given longer than Ray's 5 s, or it is killed and started again without end.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
    # Replicas run their routes in the loop that receives requests: ours never block it, and a second one costs each request four hops.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    # How often the controller looks, and replicas hand on Ray's counters: ten times a second took 4 % of a core for nothing.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
    # Two lines an execution on the user's terminal, and a warning that bars are off; errors still come through.
    "RAY_DATA_LOG_LEVEL": "ERROR",
    # Ray reads the mode once, when it is first imported; unset, servers demand tokens that clients do not send.
    "RAY_AUTH_MODE": "token",
    # Idle OpenMP threads that spin take the cores away from decoding and augmentation.
    "OMP_WAIT_POLICY": "PASSIVE",
    "NO_ALBUMENTATIONS_UPDATE": "1",
}
"""Set in this process and in every Ray worker, unless the user has set them."""

CLUSTER_LIMIT = "CXR_RAY_CLUSTER_LIMIT"
"""Environment variable that says what a cluster may grow to, such as ``CPU=64,GPU=8``: Ray tells nobody."""

LEAST_LOGICAL_CPUS = 4
"""A laptop's cluster offers at least so many logical CPUs: training and reading must be scheduled side by side."""


_came_late = False
"""Whether Ray was imported before its environment was set: it then speaks to its own cluster without the token that this asks for."""


def prepare_environment() -> None:
    """Set :data:`RAY_ENVIRONMENT` where the user has not. Must run before ``ray`` is first imported."""
    global _came_late
    _came_late |= "ray" in sys.modules and "RAY_AUTH_MODE" not in os.environ
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def connect(address: str | None = None, *, num_cpus: int | None = None, object_store_bytes: int | None = None) -> None:
    """Join the cluster at ``address``, or start one on this machine; nothing happens where this process is in one.

    Token authentication is on in both cases. A cluster started here has no dashboard and ends with this process.

    Args:
        address: ``auto`` or ``host:port`` of a running cluster, or ``ray://…``. None: ``RAY_ADDRESS`` if set, else a local cluster.
        num_cpus: Logical CPUs of a local cluster. None: the cores, at least :data:`LEAST_LOGICAL_CPUS`.
        object_store_bytes: Shared memory of a local cluster's object store. None: Ray's default (30 % of memory).

    Raises:
        ClusterError: No cluster answers at ``address``, or it refuses the token; or Ray was imported too early to have one.
    """
    prepare_environment()
    import ray

    if ray.is_initialized():
        return
    if _came_late:
        raise ClusterError(
            "ray was imported before its environment was set, and would refuse itself",
            hint="call cxr_ray.cluster.prepare_environment() before anything imports ray, or set RAY_AUTH_MODE=token",
        )
    address = address or os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address and address != "local":
        environment = {name: os.environ[name] for name in RAY_ENVIRONMENT if name not in _environment_of_job()}
        try:
            ray.init(address=address, runtime_env={"env_vars": environment}, **common)
        except Exception as error:  # Ray raises many kinds here; each means the same to the user
            raise ClusterError(
                f"no Ray cluster could be joined at {address}: {type(error).__name__}",
                hint="check `ray status` there, and that RAY_AUTH_TOKEN (or ~/.ray/auth_token) is the cluster's token",
            ) from error
        return
    _make_token_private()
    front.prepare()
    ray.init(
        address="local",
        num_cpus=num_cpus or max(LEAST_LOGICAL_CPUS, os.cpu_count() or 1),
        object_store_memory=object_store_bytes,
        include_dashboard=False,
        **common,
    )


@contextlib.contextmanager
def connected(address: str | None = None, *, num_cpus: int | None = None) -> Iterator[None]:
    """:func:`connect` for the length of a block; a connection that stood before stays."""
    prepare_environment()
    import ray

    stood = ray.is_initialized()
    connect(address, num_cpus=num_cpus)
    try:
        yield
    finally:
        if not stood:
            ray.shutdown()


def _environment_of_job() -> Mapping[str, str]:
    """Variables of the Ray job that this process runs in: Ray refuses a driver that names one of them again."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return (job.get("runtime_env") or {}).get("env_vars") or {}


def _make_token_private() -> None:
    """Ray would write its token readable to all; write it, or narrow it, ourselves."""
    if os.environ.get("RAY_AUTH_MODE") != "token" or "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as stream:
                stream.write(secrets.token_hex(32))
    path.chmod(0o600)


def resources() -> dict[str, float]:
    """All that the joined cluster has or, by :data:`CLUSTER_LIMIT`, may grow to: ``CPU``, ``GPU``, ``memory`` …, in Ray's units.

    Raises:
        ClusterError: The limit is not written as ``NAME=NUMBER,…``.
    """
    import ray

    there = dict(ray.cluster_resources())  # type: ignore[no-untyped-call]
    return there | {name: max(most, there.get(name, 0.0)) for name, most in _limit().items()}


def _limit() -> dict[str, float]:
    text = os.environ.get(CLUSTER_LIMIT, "")
    try:
        pairs = [part.split("=") for part in text.split(",") if part]
        return {name.strip(): float(number) for name, number in pairs}
    except ValueError:
        raise ClusterError(f"{CLUSTER_LIMIT}={text!r} says nothing", hint=f"{CLUSTER_LIMIT}=CPU=64,GPU=8") from None


def require(cpus: float, gpus: float, *, what: str) -> None:
    """Check that the cluster could ever give these resources, before anything waits for them.

    Args:
        cpus: Logical CPUs needed at once.
        gpus: GPUs needed at once.
        what: What needs them, for the message.

    Raises:
        ClusterError: It never could; the message says what there is.
    """
    there = resources()
    lacking = [
        f"{need:g} {name} (there are {there.get(name, 0):g})" for name, need in (("CPU", cpus), ("GPU", gpus)) if need > there.get(name, 0)
    ]
    if lacking:
        raise ClusterError(f"{what} needs {' and '.join(lacking)}", hint="fewer --workers, or a larger cluster (--address)")


def joined_address() -> str:
    """Where others join the cluster that this process is in, as ``--address`` takes it."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def nodes() -> int:
    """Nodes of the cluster that are alive; Ray must be connected."""
    import ray

    return sum(bool(node["Alive"]) for node in ray.nodes())  # type: ignore[no-untyped-call]


def quiet_data_log() -> None:
    """Keep what Ray Data says of every pipeline (plan, start, end) off stderr; it stays in the session's log files, and errors are shown.

    Call it before a pipeline of ours starts: ``ray.data`` sets its log up when it is imported.
    """
    import ray.data

    for handler in logging.getLogger(ray.data.__name__).handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.ERROR)
