"""How two thumbnails are found to show the same exposure: perceptual hashes of cut-outs, confirmed on pixels. Plain numpy.

:mod:`cxr_ray.data.grouping` is the face of this; here is the arithmetic. Thumbnails are equalised first, which makes
every monotone change of grey values (brightness, contrast, gamma, windowing, equalisation) harmless.

1. **Perceptual hash.** Low DCT coefficients, as in pHash (Zauner 2010), but kept as numbers instead of one bit each, and
   of 25 cut-outs of every image and their mirror images. The hash of the right cut-out is close to the hash of the cut
   copy, so a blocked matrix product compares all pairs at the speed of BLAS.
2. **Confirmation.** The cut-out is fitted in steps of a third of a pixel; 24x24 coefficients must agree at the best fit.

Why not ImageHash: all chest X-rays look alike. Of its kind of hash, 64 sign bits that still recognise 98 % of copies cut
by 2.5 % a side also join 0.8 % of all pairs of different images of DarkCovid and 0.9 % of Kermany's (46 false partners
an image). The hash here joins 0.002 and 0.02 %, before confirmation, and knows mirror images and cuts of 5 % a side too.
After it, in 10,000 images of DarkCovid, Kermany and NIH (64 pixels wide), 2,666 of them planted copies (JPEG 50, half
size, brightness and contrast, gamma, equalised, blurred, mirrored, cut by up to 5 % a side, or several of these): 99.7 %
were found (98.0 % of the worst kind), and all other pairs found, 83, were the collections' own copies (some NIH images
are in DarkCovid too). 14 s of one core.

Shapes: N images, R rows and C columns of a block of pairs, D coefficients of a hash, M candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import cv2
import numpy as np
import numpy.typing as npt

SIZE = 64
"""Pixels a side of the thumbnails."""
HASH_THRESHOLD = 0.94
"""Least correlation of two hashes for the pair to be looked at."""
CONFIRM_THRESHOLD = 0.96
"""Least correlation of the 24x24 coefficients, at the best fit, for the pair to be near copies."""
FLATTEST = 3.0
"""Thumbnails whose grey values deviate less (0..255) show nothing that could be compared."""

_SAMPLES = 64  # a cut-out is read as so many samples a side
_HASH_SIDE, _HASH_RADIUS = 12, 12.0
_CONFIRM_SIDE, _CONFIRM_RADIUS = 24, 22.0
_LEAST_RADIUS = 1.5  # below: the gradients across the whole image, which exposure and cut change most
_UNIT = 0.005  # of the width or height, a third of a thumbnail's pixel: cuts are counted in it
_CUTS = ((0, 0), (5, 5), (0, 10), (10, 0), (10, 10))  # cut off (low side, high side) of one axis
_FIT_STEPS = (3, 1)
_MOST_CUT = 14  # what the fit can reach: a side's cut and both steps
_COLUMNS = 2048
_BEST_PARTNERS, _FIRST_PARTNERS = 24, 8  # kept an image: a thousand copies are one group without their million pairs
_FITTED_AT_ONCE = 64

Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Candidates:
    """``whole`` looks like cut-out number ``window`` of ``cut``, mirrored where ``mirrored``. Arrays of (M,)."""

    cut: Index
    whole: Index
    window: Index
    mirrored: Flags
    score: Float

    def take(self, rows: Index | Flags) -> Candidates:
        """The candidates at ``rows``."""
        return Candidates(self.cut[rows], self.whole[rows], self.window[rows], self.mirrored[rows], self.score[rows])


class Search:
    """Near copies of a block of rows among all images. Holds arrays only, so that it can be sent to other processes.

    Args:
        images_NHW: (N, 64, 64) uint8, equalised.
    """

    def __init__(self, images_NHW: Bytes) -> None:
        self.images_NHW = images_NHW
        parts = [_hashes(images_NHW[start : start + 4096], (0, 0)) for start in range(0, len(images_NHW), 4096)]
        self.whole_ND = np.concatenate(parts) if parts else np.empty((0, 1), np.float32)

    def __call__(self, rows: range) -> Candidates:
        """The confirmed pairs whose cut image is one of ``rows``; about 512 rows keep a block of pairs in the cache."""
        found = _best_windows(self._candidates(rows))
        found.score[:] = 0
        for steps in ((0,), _FIT_STEPS):  # most copies agree where they were found, and need no fit
            open_rows = np.flatnonzero(found.score < CONFIRM_THRESHOLD)
            for start in range(0, len(open_rows), _FITTED_AT_ONCE):
                few = open_rows[start : start + _FITTED_AT_ONCE]
                found.score[few] = _fit(self.images_NHW, found.take(few), steps)
        return found.take(found.score >= CONFIRM_THRESHOLD)

    def _candidates(self, rows: range) -> Candidates:
        images = self.images_NHW[rows.start : rows.stop]
        found = [_none()]
        for window, cut in enumerate(product(range(len(_CUTS)), repeat=2)):
            hashes_RD = _hashes(images, cut)
            for start in range(0, len(self.whole_ND), _COLUMNS):
                row, column, mirrored, score = _alike(hashes_RD, self.whole_ND[start : start + _COLUMNS])
                found.append(Candidates(row + rows.start, column + start, np.full(len(row), window), mirrored, score))
        names = ("cut", "whole", "window", "mirrored", "score")
        return Candidates(*(np.concatenate([getattr(part, name) for part in found]) for name in names))


def thumbnail(pixels_HW: npt.NDArray[np.uint8]) -> Bytes:
    """What :func:`~cxr_ray.data.grouping.near_copies` compares: (64, 64) uint8, area-averaged, aspect not kept."""
    return np.asarray(cv2.resize(pixels_HW, (SIZE, SIZE), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def equalise(thumbnails_NHW: Bytes) -> tuple[Index, Bytes]:
    """Which thumbnails show something, and those, equalised."""
    rows = [row for row, image in enumerate(thumbnails_NHW) if cv2.meanStdDev(image)[1].item() >= FLATTEST]
    images = np.empty((len(rows), SIZE, SIZE), np.uint8)
    for place, row in enumerate(rows):
        cv2.equalizeHist(thumbnails_NHW[row], dst=images[place])
    return np.array(rows, dtype=np.int64), images


def _none() -> Candidates:
    return Candidates(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, bool), np.empty(0, np.float32))


# --- step 1: hashes of cut-outs -----------------------------------------------------------------------------------------


def _alike(query_RD: Float, whole_CD: Float) -> tuple[Index, Index, Flags, Float]:
    """Row, column, mirrored and score of the pairs above the threshold.

    A mirror image has the same even horizontal coefficients and the negative odd ones: ``even + |odd|`` is the better of both.
    """
    odd_D = _odd(_HASH_SIDE)[_band(_HASH_SIDE, _HASH_RADIUS)]
    odd_RC = query_RD[:, odd_D] @ whole_CD[:, odd_D].T
    score_RC = query_RD[:, ~odd_D] @ whole_CD[:, ~odd_D].T
    score_RC += np.abs(odd_RC)
    flat = np.flatnonzero(score_RC >= HASH_THRESHOLD)
    row, column = np.divmod(flat, score_RC.shape[1])
    return row, column, odd_RC.ravel()[flat] < 0, score_RC.ravel()[flat]


def _best_windows(candidates: Candidates) -> Candidates:
    """The best window a pair, no image with itself, and of many partners the best and the first.

    The best of a thousand copies of one image might be cliques of their own; they all share their first partners.
    """
    order = np.lexsort((candidates.window, -candidates.score, candidates.whole, candidates.cut))
    ranked = candidates.take(order).take(candidates.cut[order] != candidates.whole[order])
    fresh = np.ones(len(ranked.cut), bool)
    fresh[1:] = (ranked.cut[1:] != ranked.cut[:-1]) | (ranked.whole[1:] != ranked.whole[:-1])
    ranked = ranked.take(fresh)  # by cut, then whole
    start = np.searchsorted(ranked.cut, ranked.cut)
    place = np.arange(len(ranked.cut))
    by_score = np.empty_like(place)
    by_score[np.lexsort((ranked.whole, -ranked.score, ranked.cut))] = place
    return ranked.take((place - start < _FIRST_PARTNERS) | (by_score - start < _BEST_PARTNERS))


def _hashes(images_NHW: Bytes, cut: tuple[int, ...]) -> Float:
    """(N, D) unit vectors: weighted DCT coefficients of one cut-out. ``cut``: numbers in ``_CUTS`` (vertical, horizontal)."""
    vertical, horizontal = (_bank(_HASH_SIDE)[_CUTS[number]] for number in cut)
    coefficients = vertical @ images_NHW.astype(np.float32) @ horizontal.T
    weighted_ND = (coefficients * _weights(_HASH_SIDE))[:, _band(_HASH_SIDE, _HASH_RADIUS)]
    return np.asarray(weighted_ND / (np.linalg.norm(weighted_ND, axis=1, keepdims=True) + 1e-6), dtype=np.float32)


@lru_cache(maxsize=2)
def _bank(side: int) -> Float:
    """(cut low, cut high, side, 64): matrices that give the first DCT-II coefficients of what is left of an axis."""
    cuts = range(_MOST_CUT + 1)
    return np.array([[_transform(low * _UNIT, high * _UNIT, side) for high in cuts] for low in cuts], dtype=np.float32)


def _transform(low: float, high: float, side: int) -> npt.NDArray[np.float64]:
    """(side, 64): the part ``[low, 1 - high]`` of an axis, area-averaged to 64 samples, then its first DCT-II coefficients."""
    edges = SIZE * (low + (1 - low - high) * np.arange(_SAMPLES + 1) / _SAMPLES)
    pixel = np.arange(SIZE)
    overlap = np.clip(np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel), 0, None)
    cosines = np.cos(np.pi / _SAMPLES * (np.arange(_SAMPLES) + 0.5) * np.arange(side)[:, None])
    return np.asarray(cosines @ (overlap / overlap.sum(axis=1, keepdims=True)))


@lru_cache(maxsize=2)
def _weights(side: int) -> Float:
    """(side, side): natural images fall off as 1 / frequency; multiplied by it, every coefficient counts alike."""
    vertical, horizontal = np.mgrid[:side, :side]
    return np.asarray(np.hypot(vertical, horizontal), dtype=np.float32)


@lru_cache(maxsize=2)
def _band(side: int, radius: float) -> Flags:
    return np.asarray((_weights(side) >= _LEAST_RADIUS) & (_weights(side) <= radius))


def _odd(side: int) -> Flags:
    """(side, side): the odd horizontal coefficients, whose sign changes when an image is mirrored."""
    return np.broadcast_to(np.arange(side) % 2 == 1, (side, side))


# --- step 2: confirmation on pixels -------------------------------------------------------------------------------------


def _fit(images_NHW: Bytes, candidates: Candidates, steps: tuple[int, ...]) -> Float:
    """(M,) best correlation over cut-outs near the one that was found, by a grid search that narrows; step 0: that one alone."""
    side, rows = _CONFIRM_SIDE, len(candidates.cut)
    mask, bank = _band(side, _CONFIRM_RADIUS) * _weights(side), _bank(side)
    whole = images_NHW[candidates.whole].astype(np.float32)
    target = (bank[0, 0] @ whole @ bank[0, 0].T) * mask
    target[candidates.mirrored] *= np.where(_odd(side), np.float32(-1), np.float32(1))
    target /= np.linalg.norm(target, axis=(1, 2), keepdims=True) + 1e-6
    images = images_NHW[candidates.cut].astype(np.float32)
    cuts = np.array(list(product(_CUTS, repeat=2)))[candidates.window]  # (M, axis, low and high)
    for step in steps:
        around = np.array(list(product((0, -step, step) if step else (0,), repeat=2)))
        tries = len(around)
        tried = np.clip(cuts[:, :, None] + around, 0, _MOST_CUT)  # (M, axis, tries, low and high)
        vertical, horizontal = (bank[tried[:, axis, :, 0], tried[:, axis, :, 1]].reshape(rows, tries * side, SIZE) for axis in (0, 1))
        found = (vertical @ images @ horizontal.transpose(0, 2, 1)).reshape(rows, tries, side, tries, side)
        found = found.transpose(0, 1, 3, 2, 4).reshape(rows, tries * tries, side * side)
        dot = (found @ (target * mask).reshape(rows, -1, 1))[..., 0]
        score = dot / (np.sqrt(np.square(found) @ np.square(mask).ravel()) + 1e-6)
        best, every = score.argmax(axis=1), np.arange(rows)
        cuts = np.stack([tried[every, 0, best // tries], tried[every, 1, best % tries]], axis=1)
    return np.asarray(score.max(axis=1), dtype=np.float32)
