"""Batches: a lone image starts at once, what comes meanwhile goes together, and one fault is nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from cxr_ray.serving.batcher import Batcher


class Model:
    """Squares, once it is let go; remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = asyncio.Event()

    async def work(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        await self.go.wait()
        if -1 in items:
            raise ValueError("minus one")
        return [item * item for item in items]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_lone_image_starts_at_once_and_the_rest_go_together() -> None:
    async def run() -> None:
        model = Model()
        batcher: Batcher[int, int] = Batcher(model.work, 3)
        asked = [asyncio.create_task(batcher(0))]
        await settle()
        assert model.batches == [[0]]
        asked += [asyncio.create_task(batcher(number)) for number in range(1, 6)]
        await settle()
        assert model.batches == [[0]]
        model.go.set()
        assert await asyncio.gather(*asked) == [0, 1, 4, 9, 16, 25]
        assert model.batches == [[0], [1, 2, 3], [4, 5]]
        assert await batcher(6) == 36

    asyncio.run(run())


def test_what_is_cancelled_while_it_waits_is_left_out() -> None:
    async def run() -> None:
        model = Model()
        batcher: Batcher[int, int] = Batcher(model.work, 8)
        asked = [asyncio.create_task(batcher(number)) for number in range(3)]
        await settle()
        late = [asyncio.create_task(batcher(number)) for number in (3, 4)]
        await settle()
        asked[1].cancel()  # at work
        late[0].cancel()  # waiting
        await settle()
        model.go.set()
        found = await asyncio.gather(*asked, *late, return_exceptions=True)
        assert [found[0], found[2], found[4]] == [0, 4, 16]
        assert model.batches == [[0, 1, 2], [4]]

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
