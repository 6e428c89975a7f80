"""Spreading groups over partitions so that every partition gets its share of every label.

Shape letters: G groups, P partitions, C counts that are balanced (images with each label, images).

Iterative stratification (Sechidis, Tsoumakas and Vlahavas, ECML PKDD 2011) carried over from single examples to groups.
The group that is hardest to place comes first (rare labels, many images); it goes where the shares of all its counts
then deviate least. We differ in the yardstick: the deviation is taken from the share due of what is placed so far, not
of the final total, so that large and small patients are spread in proportion too; the original fills the largest
partition first. Then single groups are moved where that evens the shares further, and where a partition would have no
image of a label. Few groups are hard to place evenly: several orders are tried, and the best kept.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

MOVES = 400
"""At most so many single groups are moved to even the shares after all are placed."""
TRIES, GROUPS_TRIED = 16, 20_000
"""Orders tried: as many as keep the groups placed in all below the second number; at least one, at most the first."""
GAP = 1e6
"""What a partition without any image of a label adds to the unevenness: more than all else."""

Counts = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


def stratify(counts_GC: Counts, fractions_P: Counts, names_G: npt.NDArray[np.str_], *, labels: int, seed: int) -> Index:
    """Choose a partition for each group.

    Args:
        counts_GC: (G, C) what each group adds to each count.
        fractions_P: (P,) share of each partition, above 0, with sum 1.
        names_G: (G,) distinct names; with the seed they decide where counts do not, so that the order of the groups is
            without meaning.
        labels: The first so many counts are images with a label: no partition is left without one if it can be helped.
        seed: Another seed gives another split of the same quality.

    Returns:
        (G,) positions of partitions.
    """
    if len(fractions_P) == 1:
        return np.zeros(len(counts_GC), np.int64)
    best, least = np.zeros(len(counts_GC), np.int64), np.inf
    for attempt in range(max(1, min(TRIES, GROUPS_TRIED // len(counts_GC)))):
        place_G = _place(counts_GC, fractions_P, hashes(names_G, seed, f"place {attempt}"))
        place_G = _fill_gaps(counts_GC, fractions_P, _even(counts_GC, fractions_P, place_G), labels)
        uneven = _unevenness(counts_GC, fractions_P, place_G)
        if uneven < least:
            best, least = place_G, uneven
        if uneven < GAP and np.abs(_excess(counts_GC, fractions_P, place_G)).max() < 1:
            break  # no count is off by a whole image
    return best


def _place(counts_GC: Counts, fractions_P: Counts, hashes_G: npt.NDArray[np.uint64]) -> Index:
    """The greedy pass. Returns (G,) the position of each group's partition."""
    totals_C = counts_GC.sum(axis=0)
    weights_C = np.divide(1.0, totals_C, out=np.zeros_like(totals_C), where=totals_C > 0)
    # Halved, not ranked exactly: within a band of like difficulty the seed decides, so that seeds differ.
    band_G = np.floor(np.log2((counts_GC**2 * weights_C).sum(axis=1)))
    order = np.lexsort((hashes_G, -band_G))
    place = np.zeros(len(counts_GC), np.int64)
    excess_PC = np.zeros((len(fractions_P), len(totals_C)))  # over the share due of what is placed so far
    for group in order:
        counts_C = counts_GC[group]
        excess_PC -= np.outer(fractions_P, counts_C)
        cost_P = (2 * excess_PC + counts_C) @ (weights_C * counts_C) / fractions_P
        # Equal folds tie at the start; the hash of the group breaks the tie.
        best = np.flatnonzero(cost_P <= cost_P.min() + 1e-12)
        chosen = best[int(hashes_G[group]) % len(best)]
        excess_PC[chosen] += counts_C
        place[group] = chosen
    return place


def _excess(counts_GC: Counts, fractions_P: Counts, place_G: Index) -> Counts:
    """(P, C) how much more than its share a partition has."""
    have_PC = np.zeros((len(fractions_P), counts_GC.shape[1]))
    np.add.at(have_PC, place_G, counts_GC)
    return np.asarray(have_PC - np.outer(fractions_P, counts_GC.sum(axis=0)))


def _unevenness(counts_GC: Counts, fractions_P: Counts, place_G: Index) -> float:
    """Squared deviations, each in units of the share due; a partition without a count that others have weighs most."""
    totals_C = counts_GC.sum(axis=0)
    there = totals_C > 0
    due_PC = np.outer(fractions_P, totals_C)[:, there]
    excess_PC = _excess(counts_GC, fractions_P, place_G)[:, there]
    return float((excess_PC**2 / due_PC).sum()) + GAP * int((excess_PC + due_PC < 0.5).sum())


def _gains(counts_GC: Counts, fractions_P: Counts, place_G: Index) -> Counts:
    """(G, P) how much the squared deviation falls if one group moves to another partition; 0 for its own."""
    totals_C = counts_GC.sum(axis=0)
    weighted_GC = counts_GC * np.divide(1.0, totals_C, out=np.zeros_like(totals_C), where=totals_C > 0)
    excess_PC = _excess(counts_GC, fractions_P, place_G)
    own_G = (counts_GC * weighted_GC).sum(axis=1)
    slope_GP = 2 * weighted_GC @ excess_PC.T
    leave_G = (slope_GP[np.arange(len(place_G)), place_G] - own_G) / fractions_P[place_G]
    gains_GP = leave_G[:, None] - (slope_GP + own_G[:, None]) / fractions_P
    gains_GP[np.arange(len(place_G)), place_G] = 0
    return np.asarray(gains_GP)


def _even(counts_GC: Counts, fractions_P: Counts, place_G: Index) -> Index:
    """Move the single group that evens the shares most, again and again, as long as it does."""
    place_G = place_G.copy()
    for _ in range(MOVES):
        gains_GP = _gains(counts_GC, fractions_P, place_G)
        group, target = np.unravel_index(int(gains_GP.argmax()), gains_GP.shape)
        if gains_GP[group, target] <= 1e-9:
            break
        place_G[group] = target
    return place_G


def _fill_gaps(counts_GC: Counts, fractions_P: Counts, place_G: Index, labels: int) -> Index:
    """Give each partition that has no image of a label one group of it, where another can spare it."""
    place_G = place_G.copy()
    has_GK = counts_GC[:, :labels] > 0
    for _ in range(len(fractions_P) * labels):
        groups_PK = np.zeros((len(fractions_P), labels), np.int64)
        np.add.at(groups_PK, place_G, has_GK)
        gaps = np.argwhere((groups_PK == 0) & (has_GK.sum(axis=0) >= len(fractions_P)))
        if not len(gaps):
            break
        gains_GP = _gains(counts_GC, fractions_P, place_G)
        spare_G = ~(has_GK & (groups_PK[place_G] == 1)).any(axis=1)  # the last of a label in its partition stays
        moves = [(group, partition) for partition, label in gaps for group in np.flatnonzero(spare_G & has_GK[:, label])]
        if not moves:
            break
        group, partition = max(moves, key=lambda move: float(gains_GP[move]))
        place_G[group] = partition
    return place_G


def hashes(names: npt.NDArray[np.str_], seed: int, purpose: str) -> npt.NDArray[np.uint64]:
    """A number for each name that follows from it, the seed and the purpose alone."""
    start = hashlib.blake2b(f"{purpose}:{seed}:".encode(), digest_size=8)

    def number(name: str) -> int:
        state = start.copy()
        state.update(name.encode())
        return int.from_bytes(state.digest(), "big")

    return np.array([number(name) for name in names.tolist()], dtype=np.uint64)
