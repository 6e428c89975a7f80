"""Where the lungs are, without a trained network: a pair of lung shapes is found by correlation, then each is fitted to its own darkness.

Made for audits, which ask on what side of the lungs' rim evidence stands, not for measurement. Against the true lungs of phantoms the
Dice coefficient is above 0.8 on average (``tests/unit/imaging/test_lungs.py``). The outline is convex: the heart's edge is straightened,
and an opaque lobe stays inside as long as the rest of its lung is seen. Where nothing looks like a pair of lungs, the pair's most usual
place is given.

Shapes: H x W pixels of the image; all work is done on a copy of S x S.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE: Final = 64
"""S."""
LEAST_LIKENESS: Final = 0.25
"""Correlation with the shape, less what an unusual place costs, below which the usual place is given."""
_USUAL_CENTER: Final = (0.47, 0.5)
_USUAL_SIZE: Final = (0.66, 0.72)
"""Rows, columns, as shares of the image."""
_PLACE_SPREAD: Final = (0.12, 0.08)
_SIZE_SPREAD: Final = 0.25
_PENALTY: Final = 0.05
_HEIGHTS: Final = (0.42, 0.5, 0.58, 0.66, 0.76, 0.86, 0.98)
_WIDTHS: Final = (0.5, 0.58, 0.66, 0.75, 0.85, 0.96)
_ASPECTS: Final = (0.7, 1.5)
"""Least and greatest width over height."""
_MARGIN: Final = SIDE // 4
"""Lungs may reach over the edge of the image by this much."""
_RIGHT: Final = (
    *((-0.30, -1.0), (-0.48, -0.97), (-0.68, -0.72), (-0.84, -0.35), (-0.95, 0.10), (-1.0, 0.55), (-1.0, 0.95), (-0.90, 0.80)),
    *((-0.70, 0.66), (-0.45, 0.64), (-0.26, 0.74), (-0.22, 0.45), (-0.20, 0.10), (-0.18, -0.40), (-0.20, -0.80)),
)
_LEFT: Final = (
    *((0.30, -1.0), (0.48, -0.97), (0.68, -0.72), (0.84, -0.35), (0.95, 0.10), (1.0, 0.55), (1.0, 0.98), (0.86, 0.88)),
    *((0.72, 0.78), (0.58, 0.72), (0.50, 0.45), (0.36, 0.10), (0.24, -0.20), (0.20, -0.50), (0.20, -0.80)),
)
"""Outlines (x, y) in the box -1 … 1 around both; the heart takes its part of the left one, which is on the right of the image."""


def lung_mask(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where the lungs of an upright frontal chest X-ray lie.

    Args:
        image: (H, W) uint8, dense tissue bright.

    Returns:
        (H, W), True inside the two lungs.
    """
    return find_lungs(image)[0]


def find_lungs(image: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], float]:
    """As :func:`lung_mask`, and how like a pair of lungs the image is there, at most 1.

    Below :data:`LEAST_LIKENESS` the mask is the usual place, whatever the image shows.
    """
    small = cv2.equalizeHist(cv2.resize(np.ascontiguousarray(image), (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    grey_SS = cv2.GaussianBlur(small, (0, 0), SIDE / 64).astype(np.float32)
    local_SS = grey_SS - 0.7 * cv2.GaussianBlur(grey_SS, (0, 0), SIDE / 5)
    likeness, box = _locate(local_SS)
    if likeness < LEAST_LIKENESS:
        height, width = (round(share * SIDE) for share in _USUAL_SIZE)
        top, left = (round(center * SIDE - side / 2) for center, side in zip(_USUAL_CENTER, (height, width), strict=True))
        mask_SS = sum(_drawn((top, left, height, width)))
    else:
        mask_SS = sum(_fitted(local_SS, lung_SS, box[2]) for lung_SS in _drawn(box))
    full = cv2.resize(np.minimum(mask_SS, 1) * np.uint8(255), image.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(full > 127), likeness


def _locate(local_SS: NDArray[Any]) -> tuple[float, tuple[int, int, int, int]]:
    """The best likeness, and top, left, height and width of the pair there."""
    wide = cv2.copyMakeBorder(local_SS, *(_MARGIN,) * 4, cv2.BORDER_REPLICATE)
    found = []
    for template, size, cost in _templates():
        likeness = cv2.matchTemplate(wide, template, cv2.TM_CCOEFF_NORMED)
        offset = [(whole - side) // 2 for whole, side in zip(template.shape, size, strict=True)]
        for axis, (center, spread) in enumerate(zip(_USUAL_CENTER, _PLACE_SPREAD, strict=True)):
            middle = (np.arange(likeness.shape[axis]) + template.shape[axis] / 2 - _MARGIN) / SIDE
            likeness -= np.expand_dims(_PENALTY * ((middle - center) / spread) ** 2, 1 - axis).astype(np.float32)
        row, column = np.unravel_index(likeness.argmax(), likeness.shape)
        found.append((float(likeness[row, column]) - cost, (int(row) + offset[0] - _MARGIN, int(column) + offset[1] - _MARGIN, *size)))
    return max(found)


@cache
def _templates() -> list[tuple[NDArray[np.float32], tuple[int, int], float]]:
    """Dark lungs on bright ground with a rim, their height and width in pixels, and what an unusual size costs."""
    made = []
    for height, width in ((h, w) for h in _HEIGHTS for w in _WIDTHS if _ASPECTS[0] <= w / h <= _ASPECTS[1]):
        size = round(height * SIDE), round(width * SIDE)
        rim = round(0.1 * size[1])
        shape = cv2.copyMakeBorder(_outline(_RIGHT, size) + _outline(_LEFT, size), rim, rim, rim, rim, cv2.BORDER_CONSTANT, value=0)
        cost = _PENALTY * float(np.log(height * width / (_USUAL_SIZE[0] * _USUAL_SIZE[1])) / 2 / _SIZE_SPREAD) ** 2
        made.append((-shape.astype(np.float32), size, cost))
    return made


def _outline(points: tuple[tuple[float, float], ...], size: tuple[int, int]) -> NDArray[np.uint8]:
    drawn = np.zeros(size, np.uint8)
    corners = (np.array(points) + 1) / 2 * (size[1] - 1, size[0] - 1)
    return np.asarray(cv2.fillPoly(drawn, [np.rint(corners * 16).astype(np.int32)], 255, cv2.LINE_AA, 4))


def _drawn(box: tuple[int, int, int, int]) -> list[NDArray[np.uint8]]:
    """The two shapes (S, S) of 0 and 1, cut off at the image's edge."""
    top, left, height, width = box
    lungs = []
    for points in (_RIGHT, _LEFT):
        canvas = np.zeros((3 * SIDE, 3 * SIDE), np.uint8)
        canvas[SIDE + top : SIDE + top + height, SIDE + left : SIDE + left + width] = _outline(points, (height, width)) > 127
        lungs.append(canvas[SIDE : 2 * SIDE, SIDE : 2 * SIDE])
    return lungs


def _fitted(local_SS: NDArray[Any], lung_SS: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    """One lung, grown to where it ends: what near the shape is nearer to the inside's grey than to the rim's; its convex hull."""
    near_by, core_by = _disc(0.08 * height), _disc(0.06 * height)
    near = cv2.dilate(lung_SS, near_by) > 0
    rim = near & (lung_SS == 0)
    if not lung_SS.any() or not rim.any():
        return lung_SS
    cut = 0.35 * np.median(local_SS[lung_SS > 0]) + 0.65 * np.median(local_SS[rim])
    dark = (near & (local_SS < cut)) | (cv2.erode(lung_SS, core_by) > 0)
    dark_SS = cv2.morphologyEx(cv2.morphologyEx(dark.astype(np.uint8), cv2.MORPH_CLOSE, core_by), cv2.MORPH_OPEN, _disc(2))
    outlines, _ = cv2.findContours(dark_SS, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not outlines:
        return lung_SS
    hull = cv2.convexHull(max(outlines, key=cv2.contourArea))
    return np.asarray(cv2.dilate(cv2.fillConvexPoly(np.zeros_like(lung_SS), hull, 1), _disc(1)), np.uint8)


def _disc(radius: float) -> NDArray[np.uint8]:
    side = 2 * max(1, round(radius)) + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
