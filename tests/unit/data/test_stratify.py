"""The placement itself, on counts."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from cxr_ray.data.stratify import hashes, stratify


def worst(counts_GC: NDArray[np.float64], place_G: NDArray[np.int64], partitions: int) -> float:
    """Largest deviation of any fold from its share of any count, in images."""
    have = np.array([counts_GC[place_G == index].sum(axis=0) for index in range(partitions)])
    return float(np.abs(have - counts_GC.sum(axis=0) / partitions).max())


def groups_of(seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    sizes = random.geometric(0.3, 200)
    groups = np.repeat(np.arange(200), sizes)
    return random.choice(3, len(groups), p=[0.1, 0.3, 0.6]), groups


@pytest.mark.parametrize("seed", range(4))
def test_at_least_as_even_as_scikit_learn(seed: int) -> None:
    targets, groups = groups_of(seed)
    counts = np.zeros((200, 4))
    np.add.at(counts, (groups, targets), 1)
    counts[:, 3] = counts.sum(axis=1)
    names = np.array([f"g{index}" for index in range(200)])
    ours = stratify(counts, np.full(5, 0.2), names, labels=3, seed=seed)
    theirs = np.zeros(200, np.int64)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    for index, (_, rows) in enumerate(folds.split(targets, targets, groups)):
        theirs[groups[rows]] = index
    assert worst(counts, ours, 5) <= worst(counts, theirs, 5)
    assert worst(counts, ours, 5) < 1.5


def test_the_order_of_the_groups_does_not_matter() -> None:
    counts = np.random.default_rng(0).integers(1, 9, (60, 3)).astype(float)
    names = np.array([f"g{index}" for index in range(60)])
    order = np.random.default_rng(1).permutation(60)
    shares = np.array([0.7, 0.15, 0.15])
    placed = stratify(counts, shares, names, labels=2, seed=5)
    assert np.array_equal(stratify(counts[order], shares, names[order], labels=2, seed=5), placed[order])


def test_one_partition_takes_all() -> None:
    assert stratify(np.ones((5, 2)), np.array([1.0]), np.array(list("abcde")), labels=1, seed=0).tolist() == [0] * 5


def test_a_rare_label_reaches_every_partition_though_it_costs_evenness() -> None:
    counts = np.zeros((63, 3))
    counts[:60, 0] = 1
    counts[60:, 1] = [9, 5, 1]
    counts[:, 2] = counts[:, :2].sum(axis=1)
    place = stratify(counts, np.array([0.8, 0.1, 0.1]), np.array([str(index) for index in range(63)]), labels=2, seed=0)
    assert sorted(place[60:].tolist()) == [0, 1, 2]


def test_hashes_follow_from_name_seed_and_purpose() -> None:
    names = np.array(["a", "b"])
    first = hashes(names, 0, "x")
    assert np.array_equal(first, hashes(names, 0, "x"))
    assert first[0] != first[1]
    assert not np.array_equal(first, hashes(names, 1, "x"))
    assert not np.array_equal(first, hashes(names, 0, "y"))


@pytest.mark.parametrize("seed", [1, 8, 18])
def test_no_single_move_would_be_more_even(seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = random.geometric(0.2, 40)
    counts = np.stack([*(random.binomial(sizes, share) for share in (0.25, 0.2, 0.15, 0.1, 0.1, 0.05)), sizes], axis=1).astype(float)
    shares = np.array([0.7, 0.15, 0.15])

    def uneven(place_G: NDArray[np.int64]) -> float:
        have = np.array([counts[place_G == index].sum(axis=0) for index in range(3)])
        due = np.outer(shares, counts.sum(axis=0))
        return float(((have - due) ** 2 / due).sum())

    place = stratify(counts, shares, np.array([str(index) for index in range(40)]), labels=6, seed=seed)
    here = uneven(place)
    for group in range(40):
        for partition in range(3):
            moved = place.copy()
            moved[group] = partition
            assert uneven(moved) >= here - 1e-6
