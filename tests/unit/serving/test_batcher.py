"""Batches: a lone image starts at once, what comes meanwhile goes together, and one fault is nobody else's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future

import pytest

from cxr_ray.serving.batcher import Batcher


class Model:
    """Squares, once it is let go; remembers its batches and the threads it was called in."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.started, self.go = threading.Semaphore(0), threading.Event()

    def work(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.threads.add(threading.get_ident())
        self.started.release()
        assert self.go.wait(10)
        if -1 in items:
            raise ValueError("minus one")
        return [item * item for item in items]


async def has_begun(model: Model) -> None:
    assert await asyncio.to_thread(model.started.acquire, timeout=10)


def ask(batcher: Batcher[int, int], *items: int) -> list[Future[int]]:
    futures: list[Future[int]] = [Future() for _ in items]
    for item, future in zip(items, futures, strict=True):
        batcher.put(item, future)
    return futures


def test_a_lone_image_starts_at_once_and_the_rest_go_together() -> None:
    async def run() -> None:
        model = Model()
        batcher: Batcher[int, int] = Batcher(model.work, 3)
        asked = ask(batcher, 0)
        await has_begun(model)
        asked += ask(batcher, 1, 2, 3, 4, 5)
        assert model.batches == [[0]]
        model.go.set()
        assert await asyncio.gather(*map(asyncio.wrap_future, asked)) == [0, 1, 4, 9, 16, 25]
        assert model.batches == [[0], [1, 2, 3], [4, 5]]
        assert await batcher(6) == 36

    asyncio.run(run())


def test_what_is_cancelled_while_it_waits_is_left_out() -> None:
    async def run() -> None:
        model = Model()
        batcher: Batcher[int, int] = Batcher(model.work, 8)
        at_work = asyncio.create_task(batcher(0))
        await has_begun(model)
        waiting = [asyncio.create_task(batcher(number)) for number in (3, 4)]
        await asyncio.sleep(0)
        at_work.cancel()
        waiting[0].cancel()
        await asyncio.sleep(0)
        model.go.set()
        assert await waiting[1] == 16
        assert model.batches == [[0], [4]]

    asyncio.run(run())


def test_a_fault_is_told_to_its_batch_alone() -> None:
    async def run() -> None:
        model = Model()
        model.go.set()
        batcher: Batcher[int, int] = Batcher(model.work, 8)
        with pytest.raises(ValueError, match="minus one"):
            await batcher(-1)
        assert await batcher(2) == 4

    asyncio.run(run())


def test_everything_is_done_in_one_thread() -> None:
    async def run() -> None:
        model = Model()
        model.go.set()
        batcher: Batcher[int, int] = Batcher(model.work, 8)
        await asyncio.gather(*map(batcher, range(20)))
        assert model.threads == {await batcher.between(threading.get_ident)}

    asyncio.run(run())


def test_something_else_does_not_wait_for_all_that_is_queued() -> None:
    async def run() -> None:
        model = Model()
        batcher: Batcher[int, int] = Batcher(model.work, 1)
        asked = ask(batcher, 0)
        await has_begun(model)
        asked += ask(batcher, 1, 2, 3)
        seen = asyncio.create_task(batcher.between(lambda: len(model.batches)))
        await asyncio.sleep(0)
        model.go.set()
        assert await seen == 1
        assert await asyncio.gather(*map(asyncio.wrap_future, asked)) == [0, 1, 4, 9]

    asyncio.run(run())
