"""Drawing in centimetres: a frame that maps anatomy to pixels, and the few shapes that anatomy is made of.

Anatomy is laid out in a plane in centimetres: ``x`` grows towards the image's right (the patient's left), ``y`` downwards.
Arrays are (H, W) float32 unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float32]
Points = NDArray[np.float64]

_SHIFT = 4  # cv2 takes points in fixed point; 1/16 pixel


@dataclass(frozen=True)
class Frame:
    """Where the anatomical plane lies on a canvas of ``height`` x ``width`` pixels.

    Args:
        height: Pixels.
        width: Pixels.
        pixels_per_cm: Scale.
        center: The point of the plane (cm) that lands in the middle of the canvas, before ``rotation``.
        rotation: Degrees, positive turns the patient clockwise in the image.
    """

    height: int
    width: int
    pixels_per_cm: float
    center: tuple[float, float] = (0.0, 0.0)
    rotation: float = 0.0

    @cached_property
    def _turn(self) -> Points:
        angle = np.deg2rad(self.rotation)
        cos, sin = np.cos(angle), np.sin(angle)
        return np.array([[cos, -sin], [sin, cos]]) * self.pixels_per_cm

    @property
    def middle(self) -> Points:
        """The canvas's middle, pixels ``x, y``."""
        return np.array([(self.width - 1) / 2, (self.height - 1) / 2])

    def to_pixels(self, points: ArrayLike) -> Points:
        """(…, 2) centimetres -> (…, 2) pixels ``x, y``."""
        pixels: Points = (np.asarray(points, np.float64) - self.center) @ self._turn.T + self.middle
        return pixels

    @cached_property
    def grid(self) -> tuple[Array, Array]:
        """The plane's ``x`` and ``y`` (cm) at every pixel."""
        inverse = np.linalg.inv(self._turn)
        px = np.arange(self.width)[None, :] - self.middle[0]
        py = np.arange(self.height)[:, None] - self.middle[1]
        x = inverse[0, 0] * px + inverse[0, 1] * py + self.center[0]
        y = inverse[1, 0] * px + inverse[1, 1] * py + self.center[1]
        return x.astype(np.float32), y.astype(np.float32)

    def blur(self, image: NDArray[Any], cm: float) -> Array:
        """Gaussian blur with a standard deviation in centimetres. Wide ones run on a smaller copy: the same to the eye, far cheaper."""
        image = np.asarray(image, np.float32)
        sigma = cm * self.pixels_per_cm
        if sigma < 0.3:
            return image
        if sigma <= 5:
            return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE), np.float32)
        factor = sigma / 3
        size = (max(4, round(self.width / factor)), max(4, round(self.height / factor)))
        small = cv2.GaussianBlur(cv2.resize(image, size, interpolation=cv2.INTER_AREA), (0, 0), 3.0, borderType=cv2.BORDER_REPLICATE)
        return np.asarray(cv2.resize(small, (self.width, self.height), interpolation=cv2.INTER_CUBIC), np.float32)

    # --- shapes: each returns, or draws into, (H, W) uint8 with 255 = full, because cv2 smooths edges on 8 bits alone ---

    def blank(self) -> NDArray[np.uint8]:
        """An empty canvas."""
        return np.zeros((self.height, self.width), np.uint8)

    def fill(self, *polygons: ArrayLike, into: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Polygons (N, 2) in cm, filled, edges smooth; drawn over ``into`` if given. Each is filled by itself: overlaps stay full."""
        mask = self.blank() if into is None else into
        for polygon in polygons:
            cv2.fillPoly(mask, [self._fixed(polygon)], 255, cv2.LINE_AA, _SHIFT)
        return mask

    def stroke(self, canvas: NDArray[np.uint8], line: ArrayLike, width_cm: float, value: float = 1.0) -> None:
        """Draw an open line (N, 2) in cm into ``canvas``. Thinner than a pixel: one pixel, fainter in proportion."""
        self.strokes(canvas, np.asarray(line, np.float64)[None], width_cm, value)

    def strokes(self, canvas: NDArray[np.uint8], lines: Points, width_cm: float, value: float = 1.0) -> None:
        """Draw L open lines (L, N, 2) of one width and value; see :meth:`stroke`."""
        if not len(lines):
            return
        thickness = width_cm * self.pixels_per_cm
        level = float(np.clip(255 * value * min(1.0, thickness), 0, 255))
        cv2.polylines(canvas, list(self._fixed(lines)), False, level, max(1, round(thickness)), cv2.LINE_AA, _SHIFT)

    def _fixed(self, points: ArrayLike) -> NDArray[np.int32]:
        return np.rint(self.to_pixels(points) * (1 << _SHIFT)).astype(np.int32)

    def dome(self, mask: NDArray[np.uint8], radius_cm: float) -> Array:
        """Rounded thickness 0..1 of a solid seen face-on: 0 at the rim of ``mask``, 1 from ``radius_cm`` inwards."""
        distance = cv2.distanceTransform((mask > 127).astype(np.uint8), cv2.DIST_L2, 5)
        inward = 1.0 - np.minimum(distance / np.float32(radius_cm * self.pixels_per_cm), 1.0)
        return np.asarray(np.sqrt(1.0 - inward * inward), np.float32)

    def texture(self, rng: np.random.Generator, cm: float) -> Array:
        """Smooth random field of grain ``cm``, mean 0, standard deviation near 1. It lies fixed in the image, not in the patient."""
        rows = max(3, round(self.height / (cm * self.pixels_per_cm)) + 2)
        columns = max(3, round(self.width / (cm * self.pixels_per_cm)) + 2)
        coarse = rng.standard_normal((rows, columns), dtype=np.float32)
        field = cv2.resize(coarse, (self.width, self.height), interpolation=cv2.INTER_CUBIC)
        return np.asarray(field * 1.4, np.float32)


def curve(points: ArrayLike, *, closed: bool = False, samples: int = 10) -> Points:
    """Catmull-Rom curve through ``points`` (N, 2): ``samples`` points a piece."""
    knots = np.asarray(points, np.float64)
    if closed:
        before, after, ahead = np.roll(knots, 1, 0), np.roll(knots, -1, 0), np.roll(knots, -2, 0)
        start = knots
    else:
        padded = np.vstack([2 * knots[0] - knots[1], knots, 2 * knots[-1] - knots[-2]])
        before, start, after, ahead = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    t = np.linspace(0, 1, samples, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (p[:, None, :] for p in (before, start, after, ahead))
    pieces = 0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
    line: Points = pieces.reshape(-1, 2)
    return line if closed else np.vstack([line, knots[-1]])


def ribbon(line: Points, width: ArrayLike) -> Points:
    """Outline (…, 2N, 2) of a band along ``line`` (…, N, 2); ``width`` in cm, one or N values."""
    along = np.gradient(line, axis=-2)
    along /= np.maximum(np.linalg.norm(along, axis=-1, keepdims=True), 1e-9)
    normal = np.stack([-along[..., 1], along[..., 0]], -1)
    across = normal * np.broadcast_to(np.asarray(width, np.float64) / 2, line.shape[-2:-1])[:, None]
    return np.concatenate([line + across, (line - across)[..., ::-1, :]], -2)


def ellipse(x: float, y: float, rx: float, ry: float, *, samples: int = 24) -> Points:
    """Outline (N, 2) of an upright ellipse, cm."""
    angle = np.linspace(0, 2 * np.pi, samples, endpoint=False)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], 1)


def smoothstep(values: ArrayLike, low: ArrayLike, high: ArrayLike) -> Array:
    """0 below ``low``, 1 above ``high``, smooth between; ``low`` > ``high`` turns it around."""
    start, end = np.asarray(low, np.float32), np.asarray(high, np.float32)
    t = np.clip((np.asarray(values, np.float32) - start) / (end - start), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)
