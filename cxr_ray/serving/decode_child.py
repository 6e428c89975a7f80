"""A decoding process of ``serving.decoding``: files in, pixels out, over the socket that is its standard input.

    python -m cxr_ray.serving.decode_child SPEC_JSON MEMORY_BYTES MAX_BYTES MAX_PIXELS

A message is a head (one byte, then the length of what follows, eight bytes, big endian) and its payload: the file; or back, pixels
(status 0) or the reason of a refusal (status 1). The process ends when the other side closes.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Final, NamedTuple

DONE: Final = 0
REFUSED: Final = 1
HEAD: Final = struct.Struct(">BQ")


class Job(NamedTuple):
    """What a child is started with."""

    spec: str
    memory_bytes: int
    max_bytes: int
    max_pixels: int

    def arguments(self) -> list[str]:
        """Of the command line."""
        return [str(value) for value in self]

    @staticmethod
    def parsed(arguments: list[str]) -> Job:
        """The opposite of :meth:`arguments`."""
        spec, memory, size, pixels = arguments
        return Job(spec, int(memory), int(size), int(pixels))


def _limit(memory_bytes: int) -> None:
    """Hold this process to so much more memory than it has now.

    The soft limit alone: a codec that runs in a process of its own sets a limit that fits its frame.
    """
    import resource

    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = used + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _receive(connection: socket.socket, count: int) -> bytes | None:
    """``count`` bytes, or None where the other side has closed."""
    buffer = bytearray(count)
    view, at = memoryview(buffer), 0
    while at < count:
        read = connection.recv_into(view[at:])
        if not read:
            return None
        at += read
    return bytes(buffer)


def main(arguments: list[str]) -> None:
    """Decode until the other side closes; see the module's text."""
    import cv2

    from cxr_ray.cpu import keep_small_blocks
    from cxr_ray.errors import ImageError
    from cxr_ray.imaging.picture import Limits
    from cxr_ray.imaging.preprocess import PreprocessSpec, load_image

    job = Job.parsed(arguments)
    spec, limits = PreprocessSpec.model_validate_json(job.spec), Limits(job.max_bytes, job.max_pixels)
    cv2.setNumThreads(1)
    keep_small_blocks()  # else a third of the time goes to pages that the kernel clears again
    _limit(job.memory_bytes)
    connection = socket.socket(fileno=0)
    while (head := _receive(connection, HEAD.size)) is not None:
        data = _receive(connection, HEAD.unpack(head)[1])
        if data is None:
            return
        status, payload = DONE, b""
        try:
            payload = load_image(data, spec, limits)[0].tobytes()
        except ImageError as error:
            status, payload = REFUSED, error.reason.encode()
        except (MemoryError, cv2.error):  # OpenCV's way to say that memory ran out
            status, payload = REFUSED, b"too-complex"
        connection.sendall(HEAD.pack(status, len(payload)) + payload)


if __name__ == "__main__":
    main(sys.argv[1:])
