"""The commands of the README, as they stand there, and one run of all of them in an empty folder."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
KEY = "a-key-for-the-readme-test"
URL = "http://127.0.0.1:8000"


def shell_blocks() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """The lines of all blocks without comments, without `make`."""
    lines = [line.partition("  #")[0].strip() for block in shell_blocks() for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("make")]


def wait_for(service: subprocess.Popen[str], url: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert service.poll() is None, service.communicate()
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"no answer at {url} within {seconds} s")


@contextlib.contextmanager
def running_line(folder: Path) -> Iterator[dict[str, Any]]:
    """Run every command in ``folder``; the service stays up within the block. Yields where the artefacts lie, and what was said."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CXR_RAY_API_KEY": KEY,
        "PYTHONPATH": str(ROOT),
    }
    shutil.copytree(ROOT / "tune_configs", folder / "tune_configs")  # a user stands in the checkout
    service: subprocess.Popen[str] | None = None
    said: dict[str, str] = {}
    try:
        for command in commands():
            if command.startswith("cxr-ray serve"):
                service = subprocess.Popen(
                    ["bash", "-c", f"exec {command}"],
                    cwd=folder,
                    env=environment,
                    text=True,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )
                wait_for(service, f"{URL}/healthz")
                continue
            done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
            assert "Traceback" not in done.stderr
            said[" ".join(command.split()[:2])] = done.stdout + done.stderr
        yield {"folder": folder / "work", "said": said}
    finally:
        if service is not None:
            service.send_signal(2)
            _, error = service.communicate(timeout=60)
            assert service.returncode == 0, f"the service did not end cleanly on Ctrl-C\n{error}"
