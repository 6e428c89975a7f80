from __future__ import annotations

import signal
import sys

import pytest

from cxr_ray.errors import ClusterError, DatasetError, RunError
from cxr_ray.training.launch import _explained, _interruptible


def test_the_users_mistake_is_found_in_what_ray_reports() -> None:
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    mistake = DatasetError("torn shard", hint="copy it again")
    wrapped = UserExceptionWithTraceback(mistake, "Traceback …\nDatasetError: torn shard")
    other = UserExceptionWithTraceback(RuntimeError("connection reset"), "Traceback …\nRuntimeError: connection reset")
    assert _explained(WorkerGroupError("failed", {0: other, 1: wrapped}), "run") is mistake
    bug = _explained(WorkerGroupError("failed", {1: other}), "run")
    assert isinstance(bug, RunError)
    assert "worker 1: UserExceptionWithTraceback: RuntimeError: connection reset" in bug.message
    assert "same command" in str(bug)


def test_workers_that_never_start_are_the_clusters_affair() -> None:
    from ray.train import ControllerError

    found = _explained(ControllerError(TimeoutError("no room for 2 workers")), "run")
    assert isinstance(found, ClusterError)
    assert "no room for 2 workers" in found.message


def test_an_interrupted_driver_does_not_look_finished() -> None:
    before = signal.getsignal(signal.SIGINT)

    def as_ray_train_does() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.exit(0)

    with pytest.raises(RunError, match="interrupted"), _interruptible():
        as_ray_train_does()
    assert signal.getsignal(signal.SIGINT) is before
