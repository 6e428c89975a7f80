"""Which rows stand in which batch: for any sizes, not only those we thought of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_ray.data.order import Share, epoch_order, global_batches, rank_slice, step_sizes, window_order
from cxr_ray.errors import DatasetError

SIZES = st.tuples(st.integers(1, 200), st.integers(1, 5)).flatmap(
    lambda both: st.tuples(st.just(both[0]), st.integers(both[1], 40), st.just(both[1]))
)


@given(rows=st.integers(0, 300), seed=st.integers(0, 2**40), epoch=st.integers(0, 10_000))
def test_an_epoch_is_a_permutation_that_follows_from_seed_and_epoch(rows: int, seed: int, epoch: int) -> None:
    order = epoch_order(rows, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(rows))
    assert np.array_equal(order, epoch_order(rows, seed, epoch))


def test_orders_of_two_epochs_seeds_and_windows_differ() -> None:
    orders = [epoch_order(100, 0, 0), epoch_order(100, 0, 1), epoch_order(100, 1, 0)]
    orders += [window_order(100, 0, 0, rank, window) for rank in (0, 1) for window in (0, 1)]
    assert len({tuple(order) for order in orders}) == len(orders)


@given(sizes=SIZES, epoch=st.integers(0, 3))
def test_training_ranks_share_each_global_batch_and_never_differ_in_steps(sizes: tuple[int, int, int], epoch: int) -> None:
    rows, batch_size, world_size = sizes
    if rows < world_size:
        with pytest.raises(DatasetError, match="cannot be divided"):
            step_sizes(rows, batch_size, world_size=world_size)
        return
    shares = [Share(rank, world_size, batch_size, 3) for rank in range(world_size)]
    ranks = [share.batches(rows, epoch) for share in shares]
    wanted = global_batches(epoch_order(rows, 3, epoch), batch_size, world_size=world_size)
    assert {len(batches) for batches in ranks} == {len(wanted)}
    for step, whole in enumerate(wanted):
        parts = [batches[step][0] for batches in ranks]
        assert np.array_equal(np.concatenate(parts), whole)
        assert {batches[step][1] for batches in ranks} == {len(whole)}
        lengths = [len(part) for part in parts]
        assert min(lengths) >= 1
        assert max(lengths) - min(lengths) <= 1
    assert len(np.unique(np.concatenate(wanted))) == sum(map(len, wanted))
    assert rows - sum(map(len, wanted)) < max(2, world_size)
    assert [[(len(part), size) for part, size in batches] for batches in ranks] == [share.own_sizes(rows) for share in shares]


@given(sizes=SIZES)
def test_validation_counts_every_row_exactly_once(sizes: tuple[int, int, int]) -> None:
    rows, batch_size, world_size = sizes
    ranks = [Share(rank, world_size, batch_size, shuffle=False).batches(rows, 0) for rank in range(world_size)]
    assert sorted(np.concatenate([part for batches in ranks for part, _ in batches])) == list(range(rows))


@given(sizes=SIZES, shuffle=st.booleans())
def test_contiguous_ranges_of_the_ranks_follow_one_another(sizes: tuple[int, int, int], shuffle: bool) -> None:
    rows, batch_size, world_size = sizes
    if shuffle and rows < world_size:
        return
    shares = [Share(rank, world_size, batch_size, shuffle=shuffle) for rank in range(world_size)]
    end = 0
    for share in shares:
        start, stop = share.own_range(rows)
        assert start == end
        assert stop - start == sum(size for size, _ in share.own_sizes(rows))
        end = stop
    assert end == sum(shares[0].sizes(rows))


@pytest.mark.parametrize(
    ("rows", "batch_size", "world_size", "wanted"),
    [
        (100, 32, 1, [32, 32, 32, 4]),
        (100, 32, 2, [32, 32, 32, 4]),
        (97, 32, 1, [32, 32, 32]),  # one row left: batch normalisation cannot learn from it
        (97, 32, 2, [32, 32, 32]),
        (98, 32, 2, [32, 32, 32, 2]),
        (98, 32, 3, [32, 32, 32]),
        (3, 32, 2, [3]),  # the only step is never dropped
        (1, 32, 1, [1]),
        (5, 1, 1, [1, 1, 1, 1, 1]),  # asked for
    ],
)
def test_last_training_step(rows: int, batch_size: int, world_size: int, wanted: list[int]) -> None:
    assert step_sizes(rows, batch_size, world_size=world_size) == wanted


def test_a_batch_smaller_than_the_workers_is_refused_with_what_to_type() -> None:
    with pytest.raises(DatasetError, match=r"batch of 2 cannot be divided over 4(.|\n)*training.batch_size=4"):
        Share(0, 4, 2).sizes(100)


@given(rows=st.integers(2, 100), batch_size=st.integers(2, 20))
def test_one_and_two_workers_see_the_same_global_batches(rows: int, batch_size: int) -> None:
    alone = Share(0, 1, batch_size, 7).batches(rows, 2)
    two = [Share(rank, 2, batch_size, 7).batches(rows, 2) for rank in range(2)]
    assert len(alone) == len(two[0]) == len(two[1])
    for step, (together, _) in enumerate(alone):
        assert np.array_equal(together, np.concatenate([two[0][step][0], two[1][step][0]]))


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_outside_the_world_is_our_bug(rank: int) -> None:
    with pytest.raises(ValueError, match="rank"):
        Share(rank, 2)


def test_rank_slices_are_views() -> None:
    order = epoch_order(20, 0, 0)
    assert np.shares_memory(rank_slice(order, 1, 2), order)
