"""Ribs, collar bones, shoulder blades, upper arms and spine of the chest, as layers in centimetres of water."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from cxr_ray.data.phantoms.canvas import Array, Frame, Points, curve, ellipse, ribbon, smoothstep

_DROPS = np.array((3.4, 5.6, 7.6, 9.2, 10.4, 11.2, 11.6, 11.6, 11.0, 9.6, 7.6))
"""How far (cm) the front end of ribs 1..11 lies below their start at the spine."""
_FRONT_ENDS = np.array((150, 148, 145, 142, 138, 133, 128, 121, 112, 100, 96))
"""Angle (degrees, 0 at the spine, 90 at the side wall) at which the bony part of ribs 1..11 ends."""


class Build(Protocol):
    """What the bones need to know of a chest (:class:`cxr_ray.data.phantoms.anatomy.Chest`); cm."""

    @property
    def apex(self) -> float:
        """y of the lungs' tops."""

    @property
    def half_width(self) -> float:
        """Of the lungs."""

    @property
    def clavicle_rise(self) -> float:
        """How far the collar bones rise from the breast bone outwards."""

    @property
    def scoliosis(self) -> float:
        """Sideways bend of the spine."""

    @property
    def rib_density(self) -> float:
        """1 is normal."""

    @property
    def rib_drop(self) -> float:
        """Slope of the ribs; 1 is normal."""

    @property
    def rib_spacing(self) -> float:
        """Between the starts of two ribs."""

    @property
    def seed(self) -> int:
        """Of what is drawn at random."""

    def wall(self, y: Points) -> Points:
        """Half-width of the lungs at heights ``y``."""


def chest_bones(build: Build, frame: Frame, *, supine: bool) -> Array:
    """What the bones of the chest add over water, cm, (H, W)."""
    ribs = _ribs(build, frame)
    other = frame.blur(_girdle(build, frame, supine) + spine(build, frame), 0.07)
    return np.asarray(build.rib_density * ribs + 1.1 * other, np.float32)


def rib_lines(build: Build, side: int) -> tuple[Points, Points]:
    """Centre lines (11, N, 2) of the posterior and the anterior parts of the ribs of one side.

    A rib is a loop around an elliptic chest, tilted forwards: from the front its side-to-side position is ``wall * sin(angle)``
    and its height falls with ``1 - cos(angle)``.
    """
    start = build.apex - 0.2 + build.rib_spacing * np.arange(len(_DROPS))[:, None]
    reach = np.full((len(_DROPS), 1), 99.0)
    reach[0] = 7.4  # the first rib is a tight loop

    def part(angle: Points) -> Points:
        y = start + build.rib_drop * _DROPS[:, None] * (1 - np.cos(angle)) / 2 - 0.7 * np.sin(np.minimum(2 * angle, np.pi))
        x = np.maximum(np.minimum(build.wall(y) + 0.5, reach) * np.sin(angle), 1.6)
        return np.stack([side * x, y], -1)

    steps = np.linspace(0, 1, 18)[None, :]
    back = part(np.deg2rad(8 + 84 * steps) * np.ones((len(_DROPS), 1)))
    return back, part(np.deg2rad(88 + (_FRONT_ENDS[:, None] - 88) * steps))


def _ribs(build: Build, frame: Frame) -> Array:
    solid, rims = (frame.blank(), frame.blank()), (frame.blank(), frame.blank())
    for side in (-1, 1):
        for layer, (lines, width) in enumerate(zip(rib_lines(build, side), (1.15, 1.3), strict=True)):
            outlines = ribbon(lines, width * np.linspace(0.85, 1.05, lines.shape[1]))
            frame.fill(*outlines, into=solid[layer])
            half = lines.shape[1]
            frame.strokes(rims[layer], outlines[:, :half], 0.16, 0.7)
            frame.strokes(rims[layer], outlines[:, half:], 0.16, 1.0)  # the lower edge is the denser line
    x, _ = frame.grid
    # The X-ray passes along the bone at the side wall and through its breadth elsewhere.
    along = 1 + 0.6 * smoothstep(np.abs(x), 0.75 * build.half_width, build.half_width + 0.5)
    back = 1.25 * solid[0].astype(np.float32) + 0.75 * rims[0]
    front = 0.85 * solid[1].astype(np.float32) + 0.55 * rims[1]
    return np.asarray(frame.blur((back + front) / 255, 0.07) * along, np.float32)


def _girdle(build: Build, frame: Frame, supine: bool) -> Array:
    """Collar bones, shoulder blades and upper arms; ``supine`` leaves the shoulder blades over the lungs."""
    rise, out = build.clavicle_rise, 0.0 if supine else 2.6
    base = build.apex + 3.0
    down = np.array([0, build.apex + 14.3])
    collar = curve([(1.9, base + 0.5), (5, base - 0.4 * rise), (9.5, base - 0.9 * rise), (13, base - 0.75 * rise), (16, base - rise)])
    collar_outline = ribbon(collar, np.interp(np.linspace(0, 1, len(collar)), [0, 0.15, 0.6, 1], [1.9, 1.25, 1.1, 1.5]))
    far, near = 14.6 + out / 2, 9 + out
    blade = curve([(near, -13), (far, -12.3), (far + 0.6, -9.5), (13.6 + out, -4), (11.8 + out, 2.2), (10 + out, -3)], closed=True) + down
    arm = curve([(17.2, -12), (18.5, -8), (20.5, 2), (22.5, 14)]) + down
    arm_outline = ribbon(arm, np.interp(np.arange(len(arm)), [0, 6, 12, 40], [4.2, 3.6, 2.3, 2.1]))
    solid, thin, rim = frame.blank(), frame.blank(), frame.blank()
    for side in ((-1, 1), (1, 1)):
        frame.fill(collar_outline * side, arm_outline * side, (ellipse(17.2, -11.8, 2.3, 2.3) + down) * side, into=solid)
        frame.fill(blade * side, into=thin)
        frame.stroke(rim, np.vstack([collar_outline, collar_outline[:1]]) * side, 0.18)
        frame.stroke(rim, blade[10:45] * side, 0.5, 0.8)
        frame.stroke(rim, (np.array([(9.5 + out, -9.8), (13, -11.6), (16.5, -13.8)]) + down) * side, 0.7, 0.6)
    return np.asarray((1.9 * solid.astype(np.float32) + 0.6 * thin + 1.0 * rim) / 255, np.float32)


def spine(build: Build, frame: Frame) -> Array:
    """Vertebral bodies with discs between them, pedicles and spinous processes, cm of water (H, W)."""
    rng = np.random.default_rng([build.seed, 2])
    tops, heights, y = [], [], -30.0 + rng.uniform(0, 1)
    while y < 26:
        tops.append(y)
        heights.append(float(np.interp(y, [-20, 0, 20], [1.35, 1.9, 2.7])))
        y += heights[-1] + float(np.interp(y, [-20, 0, 20], [0.32, 0.4, 0.8]))
    top, height = np.array(tops)[:, None], np.array(heights)[:, None]
    half = np.interp(top, [-20, 0, 20], [1.35, 1.55, 2.3])
    x = build.scoliosis * np.sin((top + 8) / 9)
    bodies, marks = frame.blank(), frame.blank()
    frame.fill(*_boxes(x, top, half, height), into=bodies)
    pedicle = ellipse(0, 0, 0.26, 0.42)
    for side in (-1, 1):
        middle = np.concatenate([x + side * 0.68 * half, top + 0.42 * height], 1)
        frame.strokes(marks, middle[:, None, :] + pedicle, 0.16, 0.8)
        frame.strokes(marks, _segments(x + side * half, top + 0.45 * height, x + side * (half + 1.1), top + 0.3 * height), 0.7, 0.35)
    frame.strokes(marks, _segments(x, top + 0.55 * height, x + 0.1, top + height), 0.5, 0.8)
    return np.asarray((1.0 * bodies.astype(np.float32) + 0.9 * marks) / 255, np.float32)


def _boxes(x: Points, top: Points, half: Points, height: Points) -> Points:
    """Outlines (N, 6, 2) of vertebral bodies, slightly waisted; all arguments (N, 1)."""
    across = x + half * np.array([-1, -0.88, -1, 1, 0.88, 1])
    down = top + height * np.array([0, 0.5, 1, 1, 0.5, 0])
    return np.stack([across, down], -1)


def _segments(x0: Points, y0: Points, x1: Points, y1: Points) -> Points:
    """(N, 2, 2) from four (N, 1)."""
    return np.stack([np.concatenate([x0, y0], 1), np.concatenate([x1, y1], 1)], 1)
