"""``cxr-ray serve`` as a user starts it, with all that it writes below one folder, and what its processes hold."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from process_tree import below, command_of

ROOT = Path(__file__).parents[1]
KEY = "a-key-for-a-service-of-tests"
REPLICA = "ray::ServeReplica:cxr-ray:"
_START_SECONDS = 180


@dataclass(frozen=True)
class Service:
    """A service that runs, and later what it has left behind.

    Args:
        folder: Holds Ray's session, the temporary files, the audit log and both output streams.
        url: Where it answers.
        pid: Of the command.
    """

    folder: Path
    url: str
    pid: int

    @property
    def port(self) -> int:
        """On 127.0.0.1."""
        return int(self.url.rpartition(":")[2])

    def get(self, path: str) -> bytes:
        """The body of a GET with the key; ``urllib.error.HTTPError`` where it is refused."""
        with urllib.request.urlopen(urllib.request.Request(self.url + path, headers={"X-API-Key": KEY}), timeout=30) as answer:
            return bytes(answer.read())

    def replica(self) -> int:
        """Process id of the one replica."""
        (pid,) = [pid for pid in below(self.pid) if command_of(pid).startswith(REPLICA)]
        return pid

    def memory(self) -> int:
        """Bytes that the replica, its decoding processes and their codecs hold; what they share counts once (PSS)."""
        replica = self.replica()
        return sum(map(_pss, [replica, *below(replica)]))


@dataclass
class Watch:
    """Samples a service's memory while a block runs.

    Args:
        service: Whose.
    """

    service: Service
    before: int = 0
    peak: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self.before = self.peak = self.service.memory()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        """Bytes between the start and the largest sample."""
        return self.peak - self.before

    def _sample(self) -> None:
        while not self._ended.wait(0.1):
            with contextlib.suppress(ValueError):  # the replica is gone, which the test will say
                self.peak = max(self.peak, self.service.memory())


@contextlib.contextmanager
def serving(bundle: str, folder: Path, *options: str) -> Iterator[Service]:
    """Serve ``bundle`` on a free port within a block.

    Args:
        bundle: BUNDLE.
        folder: Empty, for all that is written; its path must be short, as Ray puts sockets there.
        options: More of the command line.

    Raises:
        RuntimeError: It does not come up, or does not end cleanly on SIGINT.
    """
    (folder / "tmp").mkdir()
    places = {"RAY_TMPDIR": str(folder), "TMPDIR": str(folder / "tmp")}
    environment = {**os.environ, **places, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "CXR_RAY_API_KEY": KEY}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "cxr_ray", "serve", bundle, "--port", "0", "--json", "--audit", str(folder / "audit.jsonl"), *options]
    with open(folder / "stdout", "w") as out, open(folder / "stderr", "w") as error:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=error)
    try:
        yield Service(folder, _address(process, folder), process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    if code != 0:
        raise RuntimeError(f"the service ended with {code}\n{(folder / 'stderr').read_text()}")


def _address(process: subprocess.Popen[bytes], folder: Path) -> str:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        for line in (folder / "stdout").read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                return str(json.loads(line)["url"])
        time.sleep(0.1)
    raise RuntimeError(f"the service did not come up\n{(folder / 'stderr').read_text()}")


def _pss(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0
