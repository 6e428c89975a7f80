"""Images of several requests in one forward pass, without ever waiting for company.

A batch is what came while the model was busy with the one before: a lone image starts at once, and under load batches grow by
themselves. (``ray.serve.batch`` holds the first image of a batch for a fixed time, and closes batches while an earlier one is
still at work, so that under load they stay small.) Runs in one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Calls ``work`` with what is waiting, one batch at a time.

    Args:
        work: Items -> as many results, in their order; an exception is that of every item.
        most: Largest batch; may be changed at any time.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]], most: int) -> None:
        self._work, self.most = work, most
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Result:
        """The result of one item. One that is cancelled while it waits is left out."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._task is None:
            self._task = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        try:
            while batch := self._next():
                items, futures = zip(*batch, strict=True)
                try:
                    results: Sequence[Result | BaseException] = await self._work(items)
                except Exception as error:
                    results = [error] * len(items)
                for future, result in zip(futures, results, strict=True):
                    if future.done():
                        continue
                    if isinstance(result, BaseException):
                        future.set_exception(result)
                    else:
                        future.set_result(result)
        finally:
            self._task = None

    def _next(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._waiting and len(batch) < self.most:
            item, future = self._waiting.popleft()
            if not future.done():
                batch.append((item, future))
        return batch
