"""Memory that is kept, and work that yields."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from cxr_ray.cpu import in_background

FAULTS = """
import resource
from cxr_ray import cpu
assert getattr(cpu, {name!r})()
def once(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(size)
    block[::4096] = b"x" * len(block[::4096])
    del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
once({size})
print(max(once({size}) for _ in range(5)))
"""


def faults(name: str, size: int) -> int:
    """Most page faults of a block that is taken again, in a process of its own."""
    script = FAULTS.format(name=name, size=size)
    return int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_small_blocks_are_kept_and_huge_ones_go_back() -> None:
    assert faults("keep_small_blocks", 8 << 20) < 100
    assert faults("keep_small_blocks", 80 << 20) > 1000
    assert faults("keep_memory", 80 << 20) < 100


def test_background_work_gives_its_result_or_its_error() -> None:
    assert in_background(lambda: 6 * 7) == 42
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 // 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere niceness is that of a process")
def test_background_work_yields_and_nothing_else_does() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = niceness()
    assert in_background(niceness) == 19
    assert niceness() == before < 19
