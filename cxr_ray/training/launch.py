"""``launch``: one Ray Train job on any number of processes, CPU (gloo) or GPU (nccl), its errors in our words.

Ray's own storage gets a new name below ``OUT/ray`` at every launch and holds only pointers to our checkpoints, so nothing torn in it
can stop a run.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cxr_ray import storage
from cxr_ray.cluster import require, resources
from cxr_ray.errors import ClusterError, CxrRayError, RunError
from cxr_ray.training.elastic import Workers
from cxr_ray.training.run import RAY

if TYPE_CHECKING:
    from ray.train import UserCallback

logger = logging.getLogger(__name__)

MAX_FAILURES = 3
"""So many deaths of workers are survived in one launch."""
MAX_LOSSES = 20
"""The same where the training is elastic, for its nodes come and go."""
SPARE_CPUS = 1.0
"""Logical CPUs that workers leave to others (Ray Data, a trial of a search) where the cluster has more."""
LEAST_CPUS_A_WORKER = 0.1


def launch(
    worker: Callable[[], dict[str, Any]],
    out: str,
    name: str,
    *,
    workers: int | Workers,
    use_gpu: bool,
    callbacks: Sequence[UserCallback] = (),
) -> dict[str, Any]:
    """Run ``worker`` in every training process to its end and return what rank 0 says; Ray must be connected.

    Args:
        worker: Called without arguments in each process; ``{"error": CxrRayError}`` is raised here.
        out: Directory of the run, whose lease the caller holds; Ray's own files go to ``out/ray``.
        name: Of this launch; never used before in ``out``.
        workers: Processes, or the least and the most of them.
        use_gpu: One GPU a process.
        callbacks: Of Ray Train.

    Raises:
        CxrRayError: The user's mistake that stopped the workers, or what became of them.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    api: Any = ray.train  # its types are still those of the first version
    trainer_class: Any = TorchTrainer
    workers = Workers.of(workers)
    cpus = cpus_a_worker(workers, use_gpu)
    failures = MAX_LOSSES if workers.elastic else MAX_FAILURES
    ray_storage = storage.join(out, RAY)
    storage.remove(ray_storage)  # of earlier launches, which are over: we hold the lease
    trainer = trainer_class(
        worker,
        scaling_config=api.ScalingConfig(
            num_workers=(workers.least, workers.most) if workers.elastic else workers.most,
            elastic_resize_monitor_interval_s=workers.resize_seconds,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=api.RunConfig(
            name=name,
            storage_path=ray_storage,
            failure_config=api.FailureConfig(max_failures=failures, controller_failure_limit=failures),
            checkpoint_config=api.CheckpointConfig(num_to_keep=1),
            callbacks=list(callbacks),
            logging_config=api.LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        with _interruptible():
            answer = trainer.fit().return_value
    except api.TrainingFailedError as error:
        raise _explained(error, out, failures) from error
    if not isinstance(answer, dict):
        raise RunError(f"the workers ended without an answer: {answer!r}")
    if isinstance(answer.get("error"), CxrRayError):
        raise answer["error"]
    return answer


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ray Train ends an interrupted driver with exit code 0 and keeps its signal handler; we say what to do and put the old one back."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except SystemExit:
        raise RunError("interrupted", hint="the same command goes on after the last finished epoch") from None
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


def _explained(error: Exception, out: str, restarts: int = MAX_FAILURES) -> CxrRayError:
    """Ray's error as one of ours: the user's mistake within it if there is one."""
    from ray.train import ControllerError

    if isinstance(error, ControllerError):
        failure = error.controller_failure
        why = "no node has room for them" if "StartupTimeout" in type(failure).__name__ else _brief(failure)
        return ClusterError(
            f"Ray could not run the workers: {why}",
            hint="`ray status` shows what the cluster has free; the same command goes on where it stopped",
        )
    failures = dict(getattr(error, "worker_failures", {}))
    causes = [cause for failure in failures.values() for cause in _chain(failure)]
    for cause in causes:
        if isinstance(cause, CxrRayError):
            return cause
    lines = "".join(f"\n  - worker {rank}: {_brief(failure)}" for rank, failure in sorted(failures.items()))
    return RunError(
        f"training failed after {restarts} restarts:{lines or ' ' + _brief(error)}",
        hint=f"the same command goes on after the last finished epoch of {out}; --debug shows the traceback",
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = getattr(error, "_base_exc", None) or getattr(error, "cause", None) or error.__cause__


def _brief(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[-1] if text else ''}"


def cpus_a_worker(workers: Workers, use_gpu: bool) -> float:
    """Logical CPUs of each worker: one, or what the cluster has left beside reading.

    Elastic workers take one each; the least of them must fit what the cluster has or may grow to (:func:`cxr_ray.cluster.resources`).

    Raises:
        ClusterError: The cluster could never run so many workers.
    """
    there = resources()
    what = f"training with {workers} worker{'s' if workers.most > 1 else ''}{' on GPUs' if use_gpu else ''}"
    if workers.elastic:
        require(workers.least, workers.least if use_gpu else 0, what=what)
        return 1.0
    each = max(LEAST_CPUS_A_WORKER, min(1.0, math.floor((there.get("CPU", 0.0) - SPARE_CPUS) / workers.most * 100) / 100))
    require(each * workers.most, float(workers.most if use_gpu else 0), what=what)
    return each
