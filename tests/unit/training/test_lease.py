from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cxr_ray import storage
from cxr_ray.errors import RunError
from cxr_ray.training import lease

HOLD = """
import sys, time
from cxr_ray.training.lease import hold
with hold(sys.argv[1]) as launch:
    print(launch, flush=True)
    time.sleep(60)
"""


def test_one_driver_at_a_time_and_none_after_kill_9(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    command = [sys.executable, "-c", HOLD, out]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout is not None
        launch = other.stdout.readline().strip()
        lease.check(out, launch)
        with pytest.raises(RunError, match=f"in use by process {other.pid}"), lease.hold(out):
            pass
        other.kill()
        other.wait()
    with lease.hold(out) as again:
        assert again != launch
        lease.check(out, again)
        with pytest.raises(RunError, match="taken over"):
            lease.check(out, launch)


def test_a_worker_that_does_not_see_the_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be seen"):
        lease.check(str(tmp_path), "launch")


def test_lease_on_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``file://`` is a URI: no lock of the kernel, as on an object store."""
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.02)
    out = f"file://{tmp_path}/run"
    (tmp_path / "run").mkdir()
    with lease.hold(out) as launch:
        first = storage.read_json(f"{out}/lease.json")["renewed"]
        deadline = time.monotonic() + 10
        while storage.read_json(f"{out}/lease.json")["renewed"] == first:
            assert time.monotonic() < deadline, "the lease was not renewed"
            time.sleep(0.01)
        with pytest.raises(RunError, match="in use"), lease.hold(out):
            pass
        lease.check(out, launch)
    abandoned = {"launch": "old", "host": "elsewhere", "pid": 1, "renewed": time.time()}
    storage.write_json(f"{out}/lease.json", abandoned)
    with pytest.raises(RunError, match="process 1 on elsewhere"), lease.hold(out):
        pass
    storage.write_json(f"{out}/lease.json", {**abandoned, "renewed": time.time() - 2 * lease.STALE_SECONDS})
    with lease.hold(out):
        pass
