"""What a process that computes on the CPU sets: threads, memory that is kept instead of given back, and work that yields to others.

glibc hands every freed block of more than 128 KiB back to the kernel, which clears it again for the next batch: on two cores
MobileNetV2's first stages spent three quarters of their time on those page faults (``benchmarks/README.md``).
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # names of glibc's malloc.h
_PAD_BYTES = 64 << 20
_SMALL_BYTES = 32 << 20
"""The largest that glibc takes for ``M_MMAP_THRESHOLD``."""

_LAST = 19
"""The largest niceness."""
Result = TypeVar("Result")


def use_cores(threads: int) -> None:
    """Let torch use ``threads`` cores of this process, and keep freed memory for the next batch.

    Only for processes that do the same computation again and again (training, serving, offline prediction): their memory
    stays at its highest mark until they end.
    """
    import torch

    torch.set_num_threads(max(1, threads))
    keep_memory()


def keep_memory() -> bool:
    """Tell glibc's allocator not to return memory to the kernel. Returns whether it could be told (Linux with glibc)."""
    return _tell((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, _PAD_BYTES))


def keep_small_blocks() -> bool:
    """As :func:`keep_memory`, but blocks above 32 MiB, and what is free beyond 64 MiB, go back at once.

    For processes that work on one file after another, of which one may be huge.
    """
    return _tell((_MMAP_THRESHOLD, _SMALL_BYTES), (_TRIM_THRESHOLD, 2 * _SMALL_BYTES))


def _tell(*settings: tuple[int, int]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(ctypes.util.find_library("c") or "libc.so.6", use_errno=True)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all(library.mallopt(name, value) == 1 for name, value in settings)


def in_background(call: Callable[[], Result]) -> Result:
    """The result of a call, made in a thread that gets what others leave of the cores.

    So a replica that starts does not slow those that answer on the same machine; where cores are idle it is as fast as ever. On Linux
    niceness is a thread's own and needs no right to grow: 19 ends with the thread (``SCHED_IDLE`` served no better, and beside a training
    on all cores a replica would not come up). Elsewhere an ordinary thread. What the call starts and outlives it stays of the same kind.
    """
    future: Future[Result] = Future()

    def run() -> None:
        if sys.platform.startswith("linux"):
            with contextlib.suppress(OSError):  # a sandbox that forbids it
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LAST)
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="background", daemon=True).start()
    return future.result()
