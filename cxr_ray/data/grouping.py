"""Copies of one image, and the groups (patients and copies) that a split must not tear apart. Plain numpy; no Ray.

Exact copies share the SHA-256 of their bytes. Near copies were saved again as JPEG, resized, given other brightness,
contrast or equalisation, mirrored, or cut by up to 5 % a side; :mod:`cxr_ray.data.likeness` says how they are found, and
how well.

What is not found: rotation, cuts beyond 7 % a side, wide frames around an image, negatives, and heavy noise on images of
64 pixels (82 % found). Two exposures of one patient minutes apart may be taken for copies; they belong together anyway.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from threadpoolctl import threadpool_limits

from cxr_ray.data.likeness import SIZE, Bytes, Candidates, Flags, Float, Index, Search, equalise, thumbnail

__all__ = ["CopyPairs", "exact_copies", "find_copies", "group_ids", "in_threads", "near_copies", "thumbnail"]

BLOCK_ROWS = 512
"""Rows of a block of :func:`near_copies`: with 2,048 columns its pairs stay in the cache."""

Apply = Callable[[Search, Sequence[range]], Iterable[Candidates]]


@dataclass(frozen=True, slots=True)
class CopyPairs:
    """Pairs of rows that show the same exposure: ``first < second``, each pair once, sorted. Arrays of (M,)."""

    first: Index
    second: Index
    score: Float
    """Correlation at the best fit; 1 for exact copies."""
    mirrored: Flags
    """One is the mirror image of the other."""

    def __len__(self) -> int:
        return len(self.first)


def exact_copies(digests: Sequence[str]) -> CopyPairs:
    """Pairs of rows with the same digest: every later row with the first of its kind (not each with each)."""
    first_of: dict[str, int] = {}
    pairs = [(first_of.setdefault(digest, row), row) for row, digest in enumerate(digests)]
    rows = np.array([pair for pair in pairs if pair[0] != pair[1]], dtype=np.int64).reshape(-1, 2)
    return _pairs(rows[:, 0], rows[:, 1], np.zeros(len(rows), bool), np.ones(len(rows), np.float32))


def near_copies(thumbnails_NHW: Bytes, *, apply: Apply | None = None) -> CopyPairs:
    """All pairs of near copies among N thumbnails.

    The work grows with N squared; its blocks of rows are independent of each other.

    Args:
        thumbnails_NHW: (N, 64, 64) uint8 of :func:`thumbnail`, none an exact copy of another (see :func:`find_copies`).
            Flat ones are copies of nothing. Of more than 24 copies of one image not every pair is named, but all are linked.
        apply: Maps the search over the blocks, in any order. None: threads, one a core.
    """
    if thumbnails_NHW.shape[1:] != (SIZE, SIZE) or thumbnails_NHW.dtype != np.uint8:
        raise ValueError(f"expected (N, {SIZE}, {SIZE}) uint8 thumbnails, got {thumbnails_NHW.shape} {thumbnails_NHW.dtype}")
    rows, images = equalise(thumbnails_NHW)
    blocks = [range(start, min(start + BLOCK_ROWS, len(rows))) for start in range(0, len(rows), BLOCK_ROWS)]
    with threadpool_limits(limits=1, user_api="blas"):  # on matrices this small BLAS threads wait more than they work
        found = list((apply or in_threads)(Search(images), blocks))
    if not found:
        return exact_copies([])
    cut, whole, mirrored, score = (
        np.concatenate([getattr(part, name) for part in found]) for name in ("cut", "whole", "mirrored", "score")
    )
    return _pairs(rows[cut], rows[whole], mirrored, score)


def find_copies(digests: Sequence[str], thumbnails_NHW: Bytes, *, apply: Apply | None = None) -> tuple[CopyPairs, CopyPairs]:
    """Exact and near copies among N images.

    Args:
        digests: (N,) digest of each image's bytes.
        thumbnails_NHW: (N, 64, 64) uint8.
        apply: As for :func:`near_copies`.

    Returns:
        The exact pairs, and the near ones among the first images of their kind: together they link all copies.
    """
    exact = exact_copies(digests)
    distinct = np.setdiff1d(np.arange(len(digests)), exact.second)
    near = near_copies(thumbnails_NHW[distinct], apply=apply)
    return exact, CopyPairs(distinct[near.first], distinct[near.second], near.score, near.mirrored)


def in_threads(search: Search, blocks: Sequence[range]) -> Iterator[Candidates]:
    """What each block gives, in their order, searched in as many threads as there are cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(search, blocks)


def group_ids(patients: Sequence[str], *copies: CopyPairs) -> npt.NDArray[np.str_]:
    """A name for every row: rows of one patient, and rows that are copies of each other, share it (and so on, transitively).

    Args:
        patients: (N,) patient of each row.
        copies: Pairs among the rows.

    Returns:
        (N,) 16 hex digits that follow from the patients of the group alone, not from the order of the rows.
    """
    names, code = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    first, second = (np.concatenate([code[:0], *(code[getattr(pairs, side)] for pairs in copies)]) for side in ("first", "second"))
    links = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(len(names), len(names)))
    _, component = connected_components(links, directed=False)
    _, first_of = np.unique(component, return_index=True)  # names are sorted: the smallest name of each group
    labels = [hashlib.sha256(b"group:" + str(names[row]).encode()).hexdigest()[:16] for row in first_of]
    groups: npt.NDArray[np.str_] = np.array(labels, dtype=str)[component[code]]
    return groups


def _pairs(one: Index, other: Index, mirrored: Flags, score: Float) -> CopyPairs:
    """Sorted, lower row first; of the same pair the best score only."""
    low, high = np.minimum(one, other), np.maximum(one, other)
    order = np.lexsort((-score, high, low))
    low, high = low[order], high[order]
    fresh = np.ones(len(low), bool)
    fresh[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    return CopyPairs(low[fresh], high[fresh], score[order][fresh], mirrored[order][fresh])
