"""The tree of lung vessels that fans out from both hila; the same seed grows the same tree."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cxr_ray.data.phantoms.canvas import Array, Frame, Points, curve

_WIDEST = 1.5
"""Width (cm) that a full (255) canvas stands for."""
_BINS = (0.05, 0.08, 0.12, 0.17, 0.24, 0.33, 0.45, 0.6, 0.8, 1.2)
"""Widths (cm) in which vessels are drawn: one call a width, thin ones first, so that the thick stay whole."""


class _Branches(NamedTuple):
    """N vessels of one generation."""

    start: Points  # (N, 2), cm
    heading: Points  # (N,), radians; 0 is straight outwards, positive down
    length: Points  # (N,), cm
    width: Points  # (N,), cm


def draw_vessels(frame: Frame, seed: int, apex: float, domes: tuple[float, float], half_width: float, strength: float) -> Array:
    """Depth (cm) of blood in the lungs, (H, W): thick and crowded at the hila, fine and sparse at the wall, denser at the base."""
    rng = np.random.default_rng([seed, 3])
    lines: list[Points] = []
    widths: list[Points] = []
    knots: list[Points] = []
    for side, dome in ((-1, domes[0]), (1, domes[1])):
        hilum = np.array([side * 3.6, -2.2 if side < 0 else -3.2])
        branches = _trunks(rng, side, hilum, (apex, dome, half_width))
        for _ in range(6):
            middle, end, bend = _walk(rng, side, branches)
            lines.append(np.stack([branches.start, middle, end], 1))
            widths.append(branches.width)
            branches = _fork(rng, branches, middle, end, bend)
        knots.append(curve(hilum + np.array([(0, -2.2), (side * 0.8, 0), (side * 0.5, 2.8)])))
    canvas = _draw(frame, np.concatenate(lines), np.concatenate(widths))
    for knot in knots:
        frame.stroke(canvas, knot, 1.1, 1.1 / _WIDEST)
    return np.asarray(frame.blur(canvas.astype(np.float32), 0.05) * (_WIDEST / 255 * 2.2 * strength), np.float32)


def _trunks(rng: np.random.Generator, side: int, hilum: Points, bounds: tuple[float, float, float]) -> _Branches:
    """The first generation: nine vessels a lung, fanned from steeply up to steeply down."""
    apex, dome, half_width = bounds
    heading = np.linspace(-1.25, 1.35, 9)
    start = hilum + np.stack([side * rng.uniform(-0.4, 0.6, 9), 2.6 * np.sin(heading) + rng.normal(0, 0.3, 9)], 1)
    reach = np.interp(heading, [-1.25, 0, 1.35], [-apex - 3.5, half_width - 4.5, dome + 1])
    width = rng.uniform(0.55, 0.85, 9) * np.where(heading > 0.4, 1.15, 0.9)
    return _Branches(start, heading + rng.normal(0, 0.12, 9), reach * rng.uniform(0.34, 0.44, 9), width)


def _walk(rng: np.random.Generator, side: int, branches: _Branches) -> tuple[Points, Points, Points]:
    """Middle and end (N, 2) of each branch, and by how much (N,) it bends there."""
    bend = rng.normal(0, 0.2, len(branches.heading))

    def step(origin: Points, heading: Points) -> Points:
        return origin + np.stack([side * np.cos(heading), np.sin(heading)], 1) * (branches.length / 2)[:, None]

    middle = step(branches.start, branches.heading)
    return middle, step(middle, branches.heading + bend), bend


def _fork(rng: np.random.Generator, branches: _Branches, middle: Points, end: Points, bend: Points) -> _Branches:
    """The next generation: two from each end, sometimes one from the middle; those under half a millimetre stop."""
    count, heading = len(bend), branches.heading + bend
    twigs = np.flatnonzero(rng.random(count) < 0.6)
    turn = rng.choice((-1, 1), len(twigs)) * rng.uniform(0.5, 0.9, len(twigs))
    grown = _Branches(
        np.concatenate([end, end, middle[twigs]]),
        np.concatenate([heading + rng.normal(0, 0.42, count), heading + rng.normal(0, 0.42, count), heading[twigs] + turn]),
        np.concatenate([branches.length * rng.uniform(0.6, 0.85, count) for _ in range(2)] + [branches.length[twigs] * 0.5]),
        np.concatenate([branches.width * rng.uniform(0.55, 0.72, count) for _ in range(2)] + [branches.width[twigs] * 0.45]),
    )
    wide = grown.width > 0.05
    return _Branches(*(part[wide] for part in grown))


def _draw(frame: Frame, lines: Points, widths: Points) -> np.ndarray:
    canvas = frame.blank()
    kinds = np.argmin(np.abs(widths[:, None] - np.array(_BINS)), 1)
    for kind, width in enumerate(_BINS):
        frame.strokes(canvas, lines[kinds == kind], width, width / _WIDEST)
    return canvas
