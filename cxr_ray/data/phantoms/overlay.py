"""What lies over the anatomy: leads and lines on the patient, the side marker, the collimated border."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_ray.data.phantoms.canvas import Array, Frame, curve, ellipse


def draw_devices(frame: Frame, rng: np.random.Generator, *, portable: bool, neck: bool) -> Array:
    """ECG leads, a central line, a pacemaker, in centimetres of water; most pictures show none. (H, W)"""
    canvas = frame.blank()
    draws = rng.random(3)
    if neck:
        return np.zeros((frame.height, frame.width), np.float32)
    if draws[0] < (0.35 if portable else 0.05):
        for _ in range(int(rng.integers(2, 5))):
            x, y = rng.uniform(-12, 12), rng.uniform(-10, 12)
            frame.stroke(canvas, ellipse(x, y, 0.4, 0.4), 0.5, 0.8)
            wire = [(x, y), (x + rng.normal(0, 3), y + 4), (x + rng.normal(0, 6), y + 9), (x + rng.normal(0, 8), 24)]
            frame.stroke(canvas, curve(wire), 0.14, 0.55)
    if draws[1] < (0.22 if portable else 0.02):
        tip = rng.uniform(-2, 2)
        frame.stroke(canvas, curve([(-7, -18), (-4.5, -13), (-2.2, -9.5), (-2.0, tip - 3), (-2.0, tip)]), 0.24, 0.6)
    if draws[2] < 0.04:
        frame.stroke(canvas, ellipse(9, -9.5, 1.6, 1.9), 1.6, 1.0)
        frame.stroke(canvas, curve([(9, -11), (5, -11), (2.5, -8), (-2.2, -4), (-2.4, 2), (1.5, 7)]), 0.2, 0.9)
    return frame.blur(canvas.astype(np.float32) * (3.5 / 255), 0.04)


def lay_over(image: NDArray[np.uint8], rng: np.random.Generator, *, source: str, view: str) -> NDArray[np.uint8]:
    """Border and side marker as each source makes them. The marker is always on its own side: "R" left in the image, "L" right."""
    style = {"northgate": (0.75, "plain"), "easthill": (0.25, "plate"), "harbour": (0.5, "initials")}[source]
    out = image.copy()
    if rng.random() < style[0]:
        out = _border(out, rng)
    if rng.random() < 0.9:
        _marker(out, rng, style[1], view)
    return out


def _border(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Black outside a slightly turned rectangle."""
    height, width = image.shape
    left, right, top, bottom = rng.uniform(0.0, 0.055, 4) * (rng.random(4) < 0.75)
    turn = rng.normal(0, 0.008)
    x = np.linspace(0, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    u, v = x + turn * (y - 0.5), y - turn * (x - 0.5)
    inside = np.minimum(np.minimum(u - left, 1 - right - u) * width, np.minimum(v - top, 1 - bottom - v) * height)
    open_edge = np.array([left, right, top, bottom]) == 0
    if open_edge.all():
        return image
    part = np.clip(inside + 0.5, 0, 1)
    return np.asarray(np.rint(image * part + rng.uniform(0, 14) * (1 - part)), np.uint8)


def _marker(image: NDArray[np.uint8], rng: np.random.Generator, style: str, view: str) -> None:
    height, width = image.shape
    letter = "R" if rng.random() < 0.5 else "L"
    scale = rng.uniform(0.042, 0.062) * height / 21  # a cv2 letter is 21 pixels high at scale 1
    size = 21 * scale
    inset, level = rng.uniform(0.03, 0.10), int(rng.integers(225, 256))
    x = inset * width if letter == "R" else (1 - inset) * width - 0.8 * size
    y = rng.uniform(0.08, 0.16) * height if rng.random() < 0.85 else rng.uniform(0.85, 0.95) * height
    origin = (round(x), round(y))
    thick = max(1, round(scale * 2.6))
    if style == "plate":
        corner = (round(x - 0.35 * size), round(y - 1.35 * size)), (round(x + 1.15 * size), round(y + 0.35 * size))
        cv2.rectangle(image, *corner, int(rng.integers(0, 30)), -1)
    _text(image, letter, origin, scale, level, thick)
    if style == "initials":
        _text(image, str(rng.choice(("MB", "HK", "TS"))), (origin[0], round(y + 0.8 * size)), 0.5 * scale, level, 1)
    elif view == "AP" and rng.random() < 0.4:
        _text(image, "AP", (origin[0], round(y + 0.8 * size)), 0.5 * scale, level, 1)


def _text(image: NDArray[np.uint8], text: str, origin: tuple[int, int], scale: float, level: int, thick: int) -> None:
    cv2.putText(image, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, level, thick, cv2.LINE_AA)
