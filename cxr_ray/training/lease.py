"""One driver at a time in a RUN.

A local directory is locked with ``flock``: the kernel lets go when the driver ends, however it ends. On an object store the driver
renews ``lease.json`` every few seconds, and a lease that was not renewed for a while is free. In both cases ``lease.json``
names the launch, so that a worker left over from a killed driver finds out that it no longer owns the RUN.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cxr_ray import storage
from cxr_ray.errors import RunBusyError, RunError, StorageError

logger = logging.getLogger(__name__)

LEASE, LOCK = "lease.json", ".lock"
RENEW_SECONDS = 10.0
"""How often a lease on an object store is renewed."""
STALE_SECONDS = 60.0
"""A lease on an object store that was not renewed for so long is free. Clocks of the drivers must agree better than this."""


@contextlib.contextmanager
def hold(out: str) -> Iterator[str]:
    """Hold the RUN at ``out`` for the length of a block.

    Yields:
        The name of this launch.

    Raises:
        RunBusyError: Another driver holds it.
    """
    launch = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}"
    with _locked(out) if not storage.is_uri(out) else _renewed(out, launch):
        _write(out, launch)
        yield launch


def check(out: str, launch: str) -> None:
    """Make sure that ``launch`` still owns the RUN at ``out``, as seen from this process.

    Raises:
        RunError: Another launch does, or this process does not see the RUN.
    """
    lease = _read(out)
    if lease is None:
        raise RunError(
            f"{out} cannot be seen from {socket.gethostname()}, where a training worker runs",
            hint="an --out on storage that all nodes share: a network file system or s3://…",
        )
    if lease["launch"] != launch:
        raise RunError(f"{out} was taken over by another launch on {lease['host']} (process {lease['pid']})")


def _read(out: str) -> dict[str, Any] | None:
    try:
        lease = storage.read_json(storage.join(out, LEASE))
    except StorageError:
        return None
    return lease if isinstance(lease, dict) and {"launch", "host", "pid", "renewed"} <= set(lease) else None


def _write(out: str, launch: str) -> None:
    facts = {"launch": launch, "host": socket.gethostname(), "pid": os.getpid(), "renewed": time.time()}
    storage.write_json(storage.join(out, LEASE), facts)


def _refusal(out: str) -> RunBusyError:
    lease = _read(out) or {"pid": "?", "host": "?"}
    return RunBusyError(f"{out} is in use by process {lease['pid']} on {lease['host']}", hint="wait for it, or another --out")


@contextlib.contextmanager
def _locked(out: str) -> Iterator[None]:
    Path(out).mkdir(parents=True, exist_ok=True)
    with open(Path(out) / LOCK, "w") as lock:  # never inherited by the processes that Ray starts
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refusal(out) from None
        yield


@contextlib.contextmanager
def _renewed(out: str, launch: str) -> Iterator[None]:
    lease = _read(out)
    if lease is not None and time.time() - lease["renewed"] < STALE_SECONDS and not _died_here(lease):
        raise _refusal(out)
    done = threading.Event()

    def renew() -> None:
        while not done.wait(RENEW_SECONDS):
            try:
                _write(out, launch)
            except StorageError as error:
                logger.warning("the lease could not be renewed: %s", error.message)

    thread = threading.Thread(target=renew, name="cxr-ray-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        storage.remove(storage.join(out, LEASE))


def _died_here(lease: dict[str, Any]) -> bool:
    """Whether the holder was a process of this host that is no more."""
    if lease["host"] != socket.gethostname():
        return False
    try:
        os.kill(int(lease["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
