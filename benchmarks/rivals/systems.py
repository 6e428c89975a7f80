"""The systems: how each is started, with which settings it may be tried, and what memory it takes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rivals.load import Client

FOLDER = Path(__file__).parents[1]


@dataclass(frozen=True)
class System:
    """A service that can be started.

    Args:
        name: In the results.
        route: Of the upload.
        command: With ``{port}`` where the port goes.
        environment: Beside this process's.
    """

    name: str
    route: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def ours(name: str, settings: Mapping[str, object], front: str) -> System:
    """Our service with some of ServeSettings."""
    return System(name, "/v1/predict", (sys.executable, "-m", "rivals.ours", json.dumps(settings), "{port}", front))


def alone(name: str, settings: Mapping[str, object]) -> System:
    """Our routes without Ray."""
    return System(name, "/v1/predict", (sys.executable, "-m", "rivals.alone", json.dumps(settings), "{port}"))


def fastapi(python: str, bundle: str, *, workers: int, threads: int, pool: int) -> System:
    """Plain FastAPI on uvicorn."""
    command = (python, "-m", "uvicorn", "rivals.fastapi_app:app", "--port", "{port}", "--workers", str(workers), "--log-level", "warning")
    return System("fastapi", "/predict", command, _settings(bundle, THREADS=threads, POOL=pool))


def litserve(python: str, bundle: str, *, workers: int, threads: int, batch: int) -> System:
    """LitServe."""
    environment = _settings(bundle, WORKERS=workers, THREADS=threads, BATCH=batch)
    return System("litserve", "/predict", (python, "-m", "rivals.litserve_app"), environment | {"PORT": "{port}"})


def bentoml(python: str, bundle: str, home: Path, *, workers: int, threads: int, pool: int, batch: int) -> System:
    """BentoML."""
    command = (python, "-m", "bentoml", "serve", "rivals.bentoml_app:Rival", "--host", "127.0.0.1", "--port", "{port}")
    environment = _settings(bundle, WORKERS=workers, THREADS=threads, POOL=pool, BATCH=batch)
    return System("bentoml", "/predict", command, environment | {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"})


def _settings(bundle: str, **numbers: int) -> dict[str, str]:
    return {"BUNDLE": bundle, "OMP_WAIT_POLICY": "PASSIVE", **{name: str(number) for name, number in numbers.items()}}


class Running:
    """A started system.

    Args:
        process: Its first process.
        url: Of the upload.
    """

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process, self.url = process, url

    def memory_mib(self) -> float:
        """Proportional set size of all its processes."""
        return sum(map(_pss, _descendants(self.process.pid))) / 2**20

    def cpu_seconds(self) -> float:
        """Processor time that its processes have taken."""
        return sum(map(_ticks, _descendants(self.process.pid))) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def started(system: System, port: int, client: Client, log: Path) -> Iterator[Running]:
    """The system for the length of a block, from its first good answer on."""
    command = [part.replace("{port}", str(port)) for part in system.command]
    environment = {**os.environ, **{name: value.replace("{port}", str(port)) for name, value in system.environment.items()}}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(FOLDER), str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
    with log.open("ab") as out:
        process = subprocess.Popen(command, env=environment, cwd=FOLDER, stdout=out, stderr=out, start_new_session=True)
    running = Running(process, f"http://127.0.0.1:{port}{system.route}")
    try:
        _await_answer(running, client, system.name, log)
        yield running
    finally:
        left = _descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        for pid in left:  # its own, known from before
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        _await_port(port)


def _await_port(port: int) -> None:
    """The next system listens there; a process that was killed holds it a moment longer."""
    end = time.monotonic() + 30
    while True:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                if time.monotonic() > end:
                    raise SystemExit(f"port {port} is not free") from None
                time.sleep(0.2)
                continue
            return


def _await_answer(running: Running, client: Client, name: str, log: Path) -> None:
    end = time.monotonic() + 180
    request = urllib.request.Request(running.url, data=client.form, headers=client.headers)
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30):
                return
        except OSError as error:
            ours_to_mend = isinstance(error, urllib.error.HTTPError) and error.code in (400, 401, 415, 422)
            if ours_to_mend or time.monotonic() > end or running.process.poll() is not None:
                raise SystemExit(f"{name} does not answer ({error}); see {log}") from None
            time.sleep(0.2)


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            children.setdefault(int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1]), []).append(int(entry))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def _ticks(pid: int) -> int:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    return 0


def _pss(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0
