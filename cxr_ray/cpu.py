"""What a process that computes on the CPU sets once: threads, and memory that is kept instead of given back.

glibc hands every freed block of more than 128 KiB back to the kernel, which clears it again for the next batch: on two cores
MobileNetV2's first stages spent three quarters of their time on those page faults (``benchmarks/README.md``).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # names of glibc's malloc.h
_PAD_BYTES = 64 << 20


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
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(ctypes.util.find_library("c") or "libc.so.6", use_errno=True)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, _PAD_BYTES))
    return all(library.mallopt(name, value) == 1 for name, value in settings)
