"""Feeds without Ray: what comes, in which order, and what happens when something fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cxr_ray.data.batches import Batch, Block, IndexedFeed, MemoryFeed, RowStore, WindowedFeed, run_ahead
from cxr_ray.data.order import Share, epoch_order
from cxr_ray.errors import DatasetError


def images_of(rows: int, side: int = 4) -> NDArray[np.uint8]:
    """Each image tells its row."""
    return np.broadcast_to((np.arange(rows) % 251).astype(np.uint8)[:, None, None], (rows, side, side)).copy()


class AddEpoch:
    """An augmentation that can be seen, and that says in which thread it ran."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def apply(self, images: NDArray[np.uint8], seed: int, epoch: int, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        self.threads.add(threading.get_ident())
        return images + np.uint8(100 + epoch)


def rows_of(batches: Iterator[Batch]) -> list[list[int]]:
    return [batch.rows.tolist() for batch in batches]


def check(batch: Batch, added: int = 0) -> None:
    assert batch.images.dtype == torch.uint8
    assert batch.rows.dtype == torch.int64
    assert torch.equal(batch.images[:, 0, 0].long(), (batch.rows % 251 + added) % 256)
    assert torch.equal(batch.targets, batch.rows * 2)


def test_memory_feed_gives_each_row_its_image_and_target_once() -> None:
    feed = MemoryFeed(images_of(70), np.arange(70) * 2, 16, seed=4)
    batches = list(feed.epoch(1))
    for batch in batches:
        check(batch)
        assert batch.global_size == len(batch.rows)
    assert feed.steps_per_epoch == len(batches) == 5
    assert (feed.rows, feed.dropped) == (70, 0)
    assert np.array_equal(torch.cat([batch.rows for batch in batches]), epoch_order(70, 4, 1))


def test_resumed_feed_repeats_the_epoch() -> None:
    through = MemoryFeed(images_of(50), np.arange(50), 8, seed=1)
    list(through.epoch(0))
    assert rows_of(through.epoch(1)) == rows_of(MemoryFeed(images_of(50), np.arange(50), 8, seed=1).epoch(1))


def test_multilabel_targets_keep_unknowns() -> None:
    targets = np.array([[1, np.nan], [0, 1], [1, 0], [np.nan, np.nan]])
    batch = next(MemoryFeed(images_of(4), targets, 4, shuffle=False).epoch(0))
    assert batch.targets.dtype == torch.float32
    assert np.array_equal(batch.targets.numpy(), targets.astype(np.float32), equal_nan=True)


def test_validation_hands_a_rank_fewer_steps_rather_than_an_empty_batch() -> None:
    feeds = [MemoryFeed(images_of(9), np.arange(9), 4, rank=rank, world_size=4, shuffle=False) for rank in range(4)]
    steps = [rows_of(feed.epoch(0)) for feed in feeds]
    assert [len(own) for own in steps] == [feed.steps_per_epoch for feed in feeds] == [2, 2, 2, 3]
    assert sorted(row for own in steps for batch in own for row in batch) == list(range(9))


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_augmentation_runs_in_the_threads_and_keeps_the_order(threads: int) -> None:
    augmentation = AddEpoch()
    feed = MemoryFeed(images_of(60), np.arange(60) * 2, 8, augmentation=augmentation, threads=threads)
    order = []
    for batch in feed.epoch(2):
        check(batch, added=102)
        order += batch.rows.tolist()
    assert order == epoch_order(60, 0, 2).tolist()
    assert (threading.get_ident() in augmentation.threads) == (threads == 0)


def test_gather_over_chunks_equals_gather_from_one_array() -> None:
    images = images_of(30)
    store = RowStore([images[:7], images[7:7], images[7:8], images[8:]], np.arange(30))
    rows = epoch_order(30, 0, 0)
    out = np.empty_like(images)
    store.gather(rows, out)
    assert np.array_equal(out, images[rows])
    assert all(np.shares_memory(chunk, images) for chunk in store.chunks)


@pytest.mark.parametrize(
    ("chunks", "targets", "message"),
    [
        ([images_of(3)], np.arange(4), "3 images but 4 targets"),
        ([images_of(3, 4), images_of(3, 5)], np.arange(6), "of one size"),
        ([images_of(3).astype(np.float32)], np.arange(3), "uint8"),
        ([], np.arange(0), "of one size"),
    ],
)
def test_store_refuses_what_does_not_fit(chunks: list[Any], targets: NDArray[Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        RowStore(chunks, targets)


# --- ahead of the step -----------------------------------------------------------------------------------------------------


def test_results_come_in_order_although_jobs_end_out_of_order() -> None:
    released = [threading.Event() for _ in range(4)]

    def job(number: int) -> int:
        if number + 1 < len(released):
            assert released[number + 1].wait(10)  # each waits for its successor
        released[number].set()
        return number

    assert list(run_ahead([lambda number=number: job(number) for number in range(4)], 4)) == [0, 1, 2, 3]


def test_no_more_jobs_are_drawn_than_wait() -> None:
    drawn = []

    def jobs() -> Iterator[Callable[[], int]]:
        for number in range(100):
            drawn.append(number)
            yield lambda number=number: number

    results = run_ahead(jobs(), 2)
    assert next(results) == 0
    assert len(drawn) <= 4
    results.close()


def test_a_failure_arrives_where_its_result_would_have_come() -> None:
    def fail() -> int:
        raise KeyError("lost")

    results = run_ahead([lambda: 1, fail, lambda: 3], 2)
    assert next(results) == 1
    with pytest.raises(KeyError, match="lost"):
        next(results)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_closed_feed_leaves_no_thread(threads: int) -> None:
    feed = MemoryFeed(images_of(200), np.arange(200), 2, augmentation=AddEpoch(), threads=threads)
    batches = feed.epoch(0)
    next(batches)
    assert any(thread.name.startswith("cxr-ray-batch") for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith("cxr-ray-batch") for thread in threading.enumerate())


# --- streams ------------------------------------------------------------------------------------------------------------------


class Stream:
    """Reads a rank's part of a stream in blocks of uneven sizes."""

    def __init__(self, share: Share, rows: int, lost: int = 0) -> None:
        self.start, self.stop = share.own_range(rows)
        self.stop -= lost
        self.closed = 0

    def __call__(self, epoch: int) -> Generator[Block, None, None]:
        at, size = self.start, 1
        try:
            while at < self.stop:
                rows = np.arange(at, min(at + size, self.stop))
                yield Block(images_of(self.stop)[rows], rows * 2, rows)
                at, size = at + size, size % 7 + 1
        finally:
            self.closed += 1

    def close(self) -> None:
        self.closed += 1


def windowed(rows: int, share: Share, window: int, **options: Any) -> WindowedFeed:
    return WindowedFeed(Stream(share, rows), rows, share, window=window, **options)


@settings(deadline=None)
@given(
    rows=st.integers(2, 120), batch_size=st.integers(2, 20), window=st.integers(1, 60), world_size=st.integers(1, 2), shuffle=st.booleans()
)
def test_windows_deliver_each_row_once(rows: int, batch_size: int, window: int, world_size: int, shuffle: bool) -> None:
    shares = [Share(rank, world_size, batch_size, 5, shuffle) for rank in range(world_size)]
    seen: list[int] = []
    for share in shares:
        batches = list(windowed(rows, share, window).epoch(0))
        for batch in batches:
            check(batch)
            seen += batch.rows.tolist()
        assert [(len(batch.rows), batch.global_size) for batch in batches] == share.own_sizes(rows)
    assert len(set(seen)) == len(seen) == sum(shares[0].sizes(rows))


def test_windows_shuffle_within_the_window_and_follow_from_the_epoch() -> None:
    share = Share(batch_size=4)
    first = rows_of(windowed(64, share, 16).epoch(0))
    assert first == rows_of(windowed(64, share, 16).epoch(0))
    assert first != rows_of(windowed(64, share, 16).epoch(1))
    for number in range(4):
        window = [row for batch in first[number * 4 : number * 4 + 4] for row in batch]
        assert sorted(window) == list(range(number * 16, number * 16 + 16))
        assert window != sorted(window)


def test_validation_streams_in_natural_order() -> None:
    rows = rows_of(windowed(30, Share(batch_size=8, shuffle=False), 16).epoch(0))
    assert [row for batch in rows for row in batch] == list(range(30))


def test_a_stream_that_ends_early_is_told() -> None:
    share = Share(batch_size=8)
    feed = WindowedFeed(Stream(share, 40, lost=3), 40, share, window=8)
    with pytest.raises(DatasetError, match="ended 3 images early"):
        list(feed.epoch(0))


def test_windows_augment_in_threads_and_close_the_stream() -> None:
    share = Share(batch_size=4)
    stream = Stream(share, 64)
    feed = WindowedFeed(stream, 64, share, window=16, augmentation=AddEpoch(), threads=2)
    batches = feed.epoch(3)
    check(next(batches), added=103)
    batches.close()
    assert stream.closed == 1
    deadline = time.monotonic() + 10
    while any(thread.name.startswith("cxr-ray-batch") for thread in threading.enumerate()):
        assert time.monotonic() < deadline


def test_indexed_feed_takes_an_empty_augmentation_for_none() -> None:
    from cxr_ray.data.augment import build_augmentation

    feed = IndexedFeed(RowStore([images_of(8)], np.arange(8) * 2), Share(batch_size=4), augmentation=build_augmentation("none"), threads=3)
    assert feed.augmentation is None
    assert feed.threads == 0
