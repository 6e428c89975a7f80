"""A child's neck from the front: the air column of throat and windpipe, with or without the steeple of croup."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxr_ray.data.phantoms.canvas import Array, Frame, Points, curve, ellipse, ribbon, smoothstep


@dataclass(frozen=True)
class Neck:
    """One child. Lengths in cm, y downwards; the vocal cords are near y = 0."""

    sex: str
    age: float
    size: float
    half_width: float
    depth: float
    cords: float
    """y of the vocal cords."""
    throat: float
    """Width of the throat above them."""
    windpipe: float
    """Width of the trachea."""
    sway: tuple[float, float]
    """Sideways bend of the air column and of the spine."""
    chin: float
    """y of the lower jaw's edge: higher with the head thrown back."""
    lung_tops: float
    bone_density: float
    seed: int


def sample_neck(rng: np.random.Generator, sex: str, age: float) -> Neck:
    """A child of this age (years, 0.5 to 6)."""
    return Neck(
        sex=sex,
        age=age,
        size=float(np.clip(0.86 + 0.045 * age + rng.normal(0, 0.04), 0.8, 1.2)),
        half_width=float(rng.uniform(3.5, 4.7)),
        depth=float(rng.uniform(6.5, 9)),
        cords=float(rng.normal(0, 0.5)),
        throat=float(rng.uniform(1.5, 2.6)),
        windpipe=float(rng.uniform(0.85, 1.15)),
        sway=(float(rng.normal(0, 0.3)), float(rng.normal(0, 0.25))),
        chin=float(rng.normal(-4.4, 0.5)),
        lung_tops=float(rng.normal(6.2, 0.5)),
        bone_density=float(rng.uniform(0.8, 1.25)),
        seed=int(rng.integers(2**31)),
    )


@dataclass(frozen=True)
class NeckLayers:
    """Layers of a neck without its air column; (H, W) float32, cm of water."""

    neck: Neck
    frame: Frame
    solid: Array


def draw_neck(neck: Neck, frame: Frame) -> NeckLayers:
    """Soft tissue, jaw, spine, collar bones, first ribs and the tops of the lungs."""
    bones = frame.blur(_spine(neck, frame) + 0.9 * _cage(neck, frame), 0.05)
    lungs = frame.dome(frame.fill(*(ellipse(side * 3.8, neck.lung_tops + 5, 2.9, 5) for side in (-1, 1))), 2.6)
    return NeckLayers(neck, frame, np.asarray(_tissue(neck, frame) + neck.bone_density * bones - 4.8 * lungs, np.float32))


def _mirrored(half: Points) -> Points:
    """A closed outline from its left-hand part, drawn from the top down to the middle line or around below."""
    return curve(np.vstack([half, (half * (-1, 1))[::-1]]), closed=True)


def _tissue(neck: Neck, frame: Frame) -> Array:
    w, chin = neck.half_width, neck.chin
    head_side = [(-w - 2.4, -16), (-w - 1.9, chin - 3.0), (-w - 0.7, chin)]
    body_side = [(-w, 0), (-w - 0.4, 2.2), (-w - 2.5, 4.2), (-9, 5.6), (-13, 7.6), (-15, 14), (-15, 24)]
    body = frame.fill(_mirrored(np.array(head_side + body_side)))
    jaw = curve([(-w - 2, -16), (-w - 0.9, chin - 3.4), (-w + 0.2, chin - 1.6), (-2.2, chin - 0.25), (0, chin + 0.25)])
    head = frame.fill(np.vstack([jaw, (jaw[:-1] * (-1, 1))[::-1]]))
    depth = neck.depth * (1 + 0.25 * smoothstep(frame.grid[1], 3, 8))
    return frame.blur(depth * frame.dome(body, 3.8) + 2.6 * frame.dome(head, 2.4), 0.08)


def _spine(neck: Neck, frame: Frame) -> Array:
    """Vertebrae with the pillars of their joints at both sides."""
    rng = np.random.default_rng([neck.seed, 2])
    bodies, marks = frame.blank(), frame.blank()
    y = -9.0 + rng.uniform(0, 1)
    while y < 16:
        x, half = neck.sway[1] * np.sin(y / 6), float(np.interp(y, [-8, 8], [0.8, 1.0]))
        height = float(np.interp(y, [-8, 8], [0.75, 1.15]))
        across, down = np.array([-1, -0.9, -1, 1, 0.9, 1]), np.array([0, 0.5, 1, 1, 0.5, 0])
        frame.fill(np.stack([x + half * across, y + height * down], 1), into=bodies)
        for side in (-1, 1):
            frame.stroke(marks, ellipse(x + side * (half + 0.45), y + 0.4 * height, 0.42, 0.52 * height), 0.22, 0.9)
            frame.stroke(marks, [(x + side * half, y + 0.4 * height), (x + side * (half + 0.9), y + 0.5 * height)], 0.4, 0.6)
        frame.stroke(marks, [(x, y + 0.5 * height), (x, y + 0.9 * height)], 0.3, 0.9)
        y += height + float(np.interp(y, [-8, 8], [0.25, 0.32]))
    return np.asarray((0.65 * bodies.astype(np.float32) + 0.6 * marks) / 255, np.float32)


def _cage(neck: Neck, frame: Frame) -> Array:
    """Collar bones, the first ribs and the lower jaw, 0..1."""
    canvas = frame.blank()
    collar = curve([(0.9, 6.6), (3.0, 5.5), (5.6, 4.9), (8.5, 5.3)])
    collar_outline = ribbon(collar, np.interp(np.linspace(0, 1, len(collar)), [0, 0.2, 1], [0.95, 0.65, 0.75]))
    w, chin = neck.half_width, neck.chin
    jaw = curve([(w + 1.2, -14), (w + 0.4, chin - 3.0), (w - 0.7, chin - 1.4), (2.0, chin - 0.3), (0, chin + 0.1)])
    angle = np.deg2rad(np.linspace(10, 160, 30))
    for side in ((-1, 1), (1, 1)):
        frame.fill(collar_outline * side, into=canvas)
        for start, reach in ((4.6, 3.4), (5.9, 4.4), (7.4, 5.2), (9.0, 5.8)):
            loop = np.stack([np.maximum(reach * np.sin(angle), 0.9), start + 1.6 * (1 - np.cos(angle))], 1)
            frame.stroke(canvas, loop * side, 0.55, 0.55)
        frame.stroke(canvas, jaw * side, 0.9, 0.9)
    return np.asarray(canvas.astype(np.float32) / 255, np.float32)


def air_column(layers: NeckLayers, rng: np.random.Generator, *, croup: bool) -> tuple[Array, NDArray[np.bool_]]:
    """Depth (cm) of air in throat, larynx and windpipe, and the region below the vocal cords that tells croup.

    Healthy, the windpipe has square shoulders: it is at its full width within millimetres below the cords. In croup it widens
    slowly, over 1.3 to 2.3 cm, like a church steeple. The breathing phase (cord gap, throat width) varies alike in both.
    """
    neck, (x, y) = layers.neck, layers.frame.grid
    levels, widths = _calibre(neck, rng, croup=croup)
    middle = neck.sway[0] * np.sin((y - neck.cords) / 5)
    width = np.interp(y.ravel(), levels, widths).reshape(y.shape)
    across = np.clip(1 - ((x - middle) / (width / 2)) ** 2, 0, 1)
    round_air = np.sqrt(across) * np.minimum(1.9 * width, 2.3)
    sinuses = layers.frame.fill(*(ellipse(side * 0.55 * neck.throat, neck.cords - 1.5, 0.28, 0.9) for side in (-1, 1)))
    air = layers.frame.blur(round_air + 0.8 * layers.frame.dome(sinuses, 0.3), 0.04)
    region = (np.abs(x - middle) < 0.65 * neck.windpipe) & (y > neck.cords) & (y < neck.cords + 2.2)
    return air, region


def _calibre(neck: Neck, rng: np.random.Generator, *, croup: bool) -> tuple[Points, Points]:
    """Heights (cm) and the width of the air column there."""
    c, throat = neck.cords, neck.throat * rng.uniform(0.85, 1.15)
    full, gap = neck.windpipe * rng.uniform(0.94, 1.06), rng.uniform(0.12, 0.3) * neck.windpipe
    ventricle = full * rng.uniform(0.5, 0.9)
    taper, shape = (rng.uniform(1.3, 2.3), 1.0) if croup else (rng.uniform(0.15, 0.4), 0.5)
    rise = np.linspace(0, 1, 8)
    above = [-8.5, -5.2, c - 3.2, c - 2.3, c - 1.3, c - 0.75, c - 0.3, c - 0.06]
    above_widths = [1.6, throat, 1.1 * throat, 0.8 * throat, 0.42 * throat, ventricle, 0.85 * ventricle, gap]
    levels = np.concatenate([above, c + 0.06 + taper * rise, [c + taper + 5, 30]])
    return levels, np.concatenate([above_widths, gap + (full - gap) * rise**shape, [full, full]])
