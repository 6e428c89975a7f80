"""Images of several requests in one forward pass, without ever waiting for company.

A batch is what came while the model was busy with the one before: a lone image starts at once, and under load batches grow by
themselves. (``ray.serve.batch`` holds the first image of a batch for a fixed time, and closes batches while an earlier one is
still at work, so that under load they stay small.) Thread-safe: what decodes an image hands it on from its own thread, so that a
busy event loop does not keep the model waiting.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Other = TypeVar("Other")


class Batcher(Generic[Item, Result]):
    """Calls ``work`` with what is waiting, in one thread, which is always the same one.

    Args:
        work: Items -> as many results, in their order; an exception is that of every item.
        most: Largest batch; may be changed at any time.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Sequence[Result]], most: int) -> None:
        self._work, self.most = work, most
        self._lock, self._busy = threading.Lock(), False
        self._waiting: deque[tuple[Item, Future[Result]]] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    async def __call__(self, item: Item) -> Result:
        """The result of one item. One that is cancelled while it waits is left out."""
        future: Future[Result] = Future()
        self.put(item, future)
        return await asyncio.wrap_future(future)

    def put(self, item: Item, future: Future[Result]) -> None:
        """Have the result of one item set to ``future``, unless that is cancelled before it is at work."""
        with self._lock:
            self._waiting.append((item, future))
            if not self._busy:
                self._busy = True
                self._thread.submit(self._one_batch)

    async def between(self, call: Callable[[], Other]) -> Other:
        """The result of something else, done in the same thread between two batches."""
        return await asyncio.wrap_future(self._thread.submit(call))

    def _one_batch(self) -> None:
        try:
            batch = self._next()
            if batch:
                self._answer(batch)
        finally:
            with self._lock:
                self._busy = bool(self._waiting)
                if self._busy:
                    self._thread.submit(self._one_batch)  # behind what else came for this thread

    def _answer(self, batch: Sequence[tuple[Item, Future[Result]]]) -> None:
        items, futures = zip(*batch, strict=True)
        try:
            results = self._work(items)
        except Exception as error:
            for future in futures:
                future.set_exception(error)
            return
        for future, result in zip(futures, results, strict=True):
            future.set_result(result)

    def _next(self) -> list[tuple[Item, Future[Result]]]:
        batch: list[tuple[Item, Future[Result]]] = []
        with self._lock:
            while self._waiting and len(batch) < self.most:
                item, future = self._waiting.popleft()
                if future.set_running_or_notify_cancel():
                    batch.append((item, future))
        return batch
