"""The client: ``wrk``, which is compiled and takes little of the cores it shares with the service."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BOUNDARY = "----cxr-ray-benchmark"
_SCRIPT = """
function init(args)
  local file = io.open(args[1], "rb")
  wrk.method, wrk.body = "POST", file:read("*a")
  file:close()
  wrk.headers["Content-Type"] = "multipart/form-data; boundary=" .. args[2]
  wrk.headers["X-API-Key"] = args[3]
end
function done(summary, latency, requests)
  local lost = summary.errors
  io.write(string.format('\\n{"seconds": %.6f, "requests": %d, "errors": %d, "p50": %.3f, "p99": %.3f}\\n', summary.duration / 1e6,
    summary.requests, lost.connect + lost.read + lost.write + lost.status + lost.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


@dataclass(frozen=True)
class Measured:
    """What one load found.

    Args:
        rate: Good answers a second.
        p50: Milliseconds.
        p99: Milliseconds.
        errors: Requests without an answer, or with another status than 200.
        cpu: Milliseconds of processor time that the system took for a good answer, all its processes counted.
    """

    rate: float
    p50: float
    p99: float
    errors: int
    cpu: float


class Client:
    """Sends one form with one image, again and again.

    Args:
        work: Where its files are put.
        image: The file in the form's field ``image``.
        key: API key; the rivals do not look at it.
    """

    def __init__(self, work: Path, image: bytes, key: str) -> None:
        if shutil.which("wrk") is None:
            raise SystemExit("wrk is needed: apt-get install wrk")
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="xray.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
        self.form = head.encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()
        self.headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}", "X-API-Key": key}
        self._body, self._script, self._key = work / "form", work / "post.lua", key
        self._body.write_bytes(self.form)
        self._script.write_text(_SCRIPT)

    def load(self, url: str, connections: int, seconds: float, cpu_seconds: Callable[[], float]) -> Measured:
        """Keep ``connections`` requests under way for some seconds; ``cpu_seconds`` tells the system's processor time so far."""
        whole = max(1, round(seconds))
        command = ["wrk", "-t1", f"-c{connections}", f"-d{whole}s", "--timeout", "30s", "-s", str(self._script), url]
        before = cpu_seconds()
        out = subprocess.run([*command, "--", str(self._body), BOUNDARY, self._key], capture_output=True, text=True, check=True).stdout
        found = json.loads(out.strip().splitlines()[-1])
        good = max(0, found["requests"] - found["errors"])
        cpu = 1000 * (cpu_seconds() - before) / max(good, 1)
        return Measured(good / found["seconds"], found["p50"], found["p99"], found["errors"], cpu)
