"""Decoding in guarded processes: the same pixels and reasons as in this one, and a child that fails costs one answer."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from cxr_ray.errors import ImageError
from cxr_ray.imaging.preprocess import PreprocessSpec, load_image
from cxr_ray.serving.decoding import DecodePool

SPEC = PreprocessSpec(height=32, width=24)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    opened = DecodePool(SPEC, processes=2, seconds=60)
    yield opened
    opened.close()


def test_pixels_are_those_of_ingest(pool: DecodePool, hostile: ModuleType) -> None:
    for name, data in hostile.good_files().items():
        np.testing.assert_array_equal(pool.decode(data), load_image(data, SPEC)[0], err_msg=name)


def test_reasons_are_those_of_ingest(pool: DecodePool, hostile: ModuleType) -> None:
    found = {}
    for name, data in hostile.hostile_files().items():
        with pytest.raises(ImageError) as error:
            pool.decode(data)
        found[name] = error.value.reason
    assert found == hostile.hostile_reasons()


def children() -> list[int]:
    """Decoding processes that this process has started and that still run."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/stat") as stat, open(f"/proc/{entry}/cmdline") as command:
                parent, state = stat.read().rpartition(")")[2].split()[1::-1]
                if int(parent) == os.getpid() and state != "Z" and "decode_child" in command.read():
                    found.append(int(entry))
        except (OSError, ValueError):
            continue
    return found


def test_a_child_that_dies_costs_one_answer(png: bytes) -> None:
    before, replaced = set(children()), []
    pool = DecodePool(SPEC, seconds=60, on_replace=lambda: replaced.append(1))
    try:
        pool.decode(png)
        (child,) = set(children()) - before
        os.kill(child, signal.SIGKILL)
        with pytest.raises(ImageError) as error:
            pool.decode(png)
        assert error.value.reason == "corrupt"
        assert pool.decode(png).shape == (32, 24)
        assert replaced == [1]
    finally:
        pool.close()
    assert set(children()) == before


def test_a_child_that_hangs_is_killed(png: bytes) -> None:
    before = set(children())
    pool = DecodePool(SPEC, seconds=60)
    try:
        pool.decode(png)
        (child,) = set(children()) - before
        os.kill(child, signal.SIGSTOP)
        pool.seconds = 0.2
        start = time.monotonic()
        with pytest.raises(ImageError) as error:
            pool.decode(png)
        assert error.value.reason == "too-complex"
        assert time.monotonic() - start < 5
        assert child not in children()
        pool.seconds = 60
        assert pool.decode(png).shape == (32, 24)
    finally:
        pool.close()


def test_memory_is_held_by_the_operating_system(png: bytes) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (7000, 7000)).save(stream, "PNG")
    pool = DecodePool(SPEC, seconds=60, memory_bytes=64 * 2**20)
    try:
        with pytest.raises(ImageError) as error:
            pool.decode(stream.getvalue())
        assert error.value.reason == "too-complex"
        assert pool.decode(png).shape == (32, 24)
    finally:
        pool.close()


def test_threads_wait_for_a_free_child(pool: DecodePool, png: bytes) -> None:
    expected, found = load_image(png, SPEC)[0], []
    threads = [threading.Thread(target=lambda: found.append(pool.decode(png))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12
    assert all((pixels == expected).all() for pixels in found)


def test_a_child_keeps_its_memory_from_one_image_to_the_next() -> None:
    """Given back and cleared anew by the kernel it costs a third of the time of decoding."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (1000, 1000), dtype=np.uint8)).save(file, "JPEG")
    before = set(children())
    with contextlib.closing(DecodePool(SPEC)) as pool:
        pool.decode(file.getvalue())
        (child,) = set(children()) - before
        start, times = _page_faults(child), 20
        for _ in range(times):
            pool.decode(file.getvalue())
        assert (_page_faults(child) - start) / times < 100


def _page_faults(process: int) -> int:
    with open(f"/proc/{process}/stat") as stat:
        return int(stat.read().rpartition(")")[2].split()[7])
