"""Decoding in guarded processes: what a hostile file costs is one answer, never the model's process.

Each child decodes one file at a time under a limit of memory that the operating system holds, and is killed and replaced when it takes too
long or dies. The child goes through ``imaging.preprocess.load_image`` like everything else, so pixels are those of training. (Within it,
DICOM codecs other than 8-bit JPEG still run in a grandchild of their own: ``imaging.frames``.)
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

import cxr_ray
from cxr_ray.imaging.picture import Limits
from cxr_ray.imaging.preprocess import PreprocessSpec
from cxr_ray.imaging.reasons import Reason, refuse
from cxr_ray.serving.decode_child import DONE, HEAD, Job

MEMORY_BYTES = 1536 * 2**20
"""Beside what a child has loaded: 64 Mpx of colour take 1 GiB."""


class _ChildFailed(Exception):
    """The child died, or did not answer in time; ``reason`` is the refusal's."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class DecodePool:
    """A fixed number of decoding processes. Thread-safe; a call waits for a free one.

    Args:
        spec: What a decoded image goes through.
        processes: Children.
        limits: What an image may weigh. None: the defaults of :class:`Limits`.
        memory_bytes: Of one child, beside what it has loaded.
        seconds: For one image.
        on_replace: Called whenever a child is replaced.
    """

    def __init__(
        self,
        spec: PreprocessSpec,
        *,
        processes: int = 1,
        limits: Limits | None = None,
        memory_bytes: int = MEMORY_BYTES,
        seconds: float = 10.0,
        on_replace: Callable[[], None] = lambda: None,
    ) -> None:
        self._spec, self.seconds, self._on_replace = spec, seconds, on_replace
        bounds = limits or Limits()
        self._job = Job(spec.model_dump_json(), memory_bytes, bounds.max_bytes, bounds.max_pixels)
        self._idle: queue.LifoQueue[_Child] = queue.LifoQueue()  # the last one used: its pages are warm
        self.processes = processes
        for _ in range(processes):
            self._idle.put(_Child(self._job))

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """File bytes -> (height, width) uint8, as at ingest.

        Raises:
            ImageError: The bytes are no usable image; ``too-complex`` also where they took too long,
                ``corrupt`` where the child died of them.
        """
        child = self._idle.get()
        try:
            status, payload = child.ask(data, self.seconds)
        except _ChildFailed as error:
            child.kill()
            child = _Child(self._job)
            self._on_replace()
            raise refuse(error.reason) from None
        finally:
            self._idle.put(child)
        if status != DONE:
            raise refuse(cast(Reason, payload.decode()))
        return np.frombuffer(payload, np.uint8).reshape(self._spec.height, self._spec.width)

    def close(self) -> None:
        """End the children; no call may be under way."""
        for _ in range(self.processes):
            self._idle.get().kill()


class _Child:
    """One process and the socket to it."""

    def __init__(self, job: Job) -> None:
        self._socket, theirs = socket.socketpair()
        root = str(Path(cxr_ray.__file__).parents[1])
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "cxr_ray.serving.decode_child", *job.arguments()],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # what native decoders print may hold file content
                env=environment,
                start_new_session=True,
            )

    def ask(self, data: bytes, seconds: float) -> tuple[int, bytes]:
        """Status and payload of one file."""
        end = time.monotonic() + seconds
        try:
            self._socket.settimeout(seconds)
            self._socket.sendall(HEAD.pack(0, len(data)))
            self._socket.sendall(data)
            status, length = HEAD.unpack(self._receive(HEAD.size, end))
            return status, self._receive(length, end)
        except TimeoutError:
            raise _ChildFailed("too-complex") from None
        except OSError:
            raise _ChildFailed("corrupt") from None

    def _receive(self, count: int, end: float) -> bytes:
        received = bytearray()
        while len(received) < count:
            self._socket.settimeout(max(end - time.monotonic(), 0.001))
            part = self._socket.recv(count - len(received))
            if not part:
                raise _ChildFailed("corrupt")
            received += part
        return bytes(received)

    def kill(self) -> None:
        """End it, and the codec it may have started."""
        self._socket.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
