"""A patient's chest as numbers, and its layers on a canvas: soft tissue, air, bone, vessels, in centimetres of water.

The chest is simplified but built as the real one is: ribs are tilted loops seen from the front, lungs are air between them,
heart and vessels displace that air. Sizes are round figures from anatomy, not measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxr_ray.data.phantoms.bones import chest_bones
from cxr_ray.data.phantoms.canvas import Array, Frame, Points, curve, ellipse, smoothstep
from cxr_ray.data.phantoms.vessels import draw_vessels

MEAN_APEX = -14.3
"""y (cm) of the lungs' tops in the average chest; shoulders and arms rise and fall with them."""

SIDES = (-1, 1)
"""-1: the patient's right (left in the image); 1: the patient's left."""


@dataclass(frozen=True)
class Chest:
    """One patient. Lengths in cm, y downwards from the middle of the chest."""

    sex: str
    age: float
    size: float
    """Everything's scale; 1 is a man of middle height."""
    half_width: float
    """Of the lungs at their widest."""
    depth: float
    """Front to back, of the soft tissue."""
    fat: float
    """Under the skin, at the sides."""
    apex: float
    """y of the lungs' tops."""
    domes: tuple[float, float]
    """y of the right and the left diaphragm."""
    heart_width: float
    """1 is normal."""
    heart_tilt: float
    aorta: float
    """Radius of the aortic knob."""
    breast: float
    """Radius; 0: none to be seen."""
    clavicle_rise: float
    scoliosis: float
    rib_density: float
    rib_drop: float
    rib_spacing: float
    stomach: tuple[float, float, float]
    """x, height under the dome, and radius of its gas; radius 0: none."""
    markings: float
    """Strength of the lung vessels."""
    seed: int
    """Of the vessel trees, and of all that is drawn at random but stays the same at every visit."""

    def wall(self, y: Points) -> Points:
        """Half-width (cm) of the lungs at heights ``y``."""
        t = np.clip((y - self.apex) / (0.8 * (12 - self.apex)), 0, 1)
        width: Points = 4.2 + (self.half_width - 4.2) * (1 - (1 - t) ** 2.3) ** 0.56
        return width

    def dome(self, side: int, x: Points, drop: float = 0.0) -> Points:
        """y of the diaphragm at ``x`` (signed); steeper towards the side wall."""
        offset = side * x - 6.5
        bend = np.where(offset > 0, 3.6 * (offset / (self.half_width - 6.5)) ** 2, 1.3 * (offset / 5.0) ** 2)
        y: Points = self.domes[0 if side < 0 else 1] + drop + bend
        return y


def sample_chest(rng: np.random.Generator, sex: str, age: float) -> Chest:
    """A patient of this sex and age (years); body habitus varies independently of everything else."""
    female, old = sex == "F", np.clip((age - 45) / 40, 0, 1)
    habitus = rng.normal()
    size = rng.normal(0.93 if female else 1.0, 0.045)
    right_dome = rng.normal(8.6, 1.3)
    return Chest(
        sex=sex,
        age=age,
        size=float(np.clip(size, 0.82, 1.12)),
        half_width=float(np.clip(rng.normal(13.4, 1.1), 11.2, 16)),
        depth=float(np.clip(20 + 2.6 * habitus + rng.normal(0, 1), 15, 30)),
        fat=float(np.clip(1.7 + 1.1 * habitus + rng.normal(0, 0.4), 0.6, 5)),
        apex=float(rng.normal(MEAN_APEX, 0.9)),
        domes=(float(right_dome), float(right_dome + rng.normal(1.1, 0.7))),
        heart_width=float(rng.normal(1.0 + 0.05 * old, 0.07)),
        heart_tilt=float(rng.normal(0, 0.5)),
        aorta=float(np.clip(rng.normal(1.7 + 0.7 * old, 0.25), 1.2, 3)),
        breast=float(rng.uniform(4.2, 7.2)) if female and rng.random() < 0.85 else 0.0,
        clavicle_rise=float(np.clip(rng.normal(1.9, 0.7), 0.6, 2.8)),
        scoliosis=float(rng.normal(0, 0.45)),
        rib_density=float(rng.uniform(0.75, 1.3) * (1 - 0.25 * old)),
        rib_drop=float(rng.normal(1.0, 0.1)),
        rib_spacing=float(rng.normal(2.25, 0.1)),
        stomach=(float(rng.uniform(5, 8.5)), float(rng.uniform(1.0, 2.4)), float(rng.uniform(1.4, 3.2)) if rng.random() < 0.7 else 0.0),
        markings=float(rng.uniform(0.8, 1.25) + 0.2 * old),
        seed=int(rng.integers(2**31)),
    )


@dataclass(frozen=True)
class Layers:
    """What a ray meets, (H, W) float32, in centimetres of water unless said otherwise."""

    chest: Chest
    frame: Frame
    tissue: Array
    """Body without lungs, bones or gas."""
    lung: Array
    """Depth of the lungs without the heart in them, cm."""
    lungs: tuple[NDArray[np.uint8], NDArray[np.uint8]]
    """Masks of the right and the left lung above the domes, 0..255."""
    vessels: Array
    bones: Array
    """What the bones add over the same depth of water."""
    gas: Array
    """Trachea, stomach, bowel."""


def lung_outline(chest: Chest, side: int, recess: float = 0.0) -> Points:
    """Closed outline (N, 2) of one lung; ``recess`` lowers its floor (cm), as behind the dome."""
    y = chest.apex + np.linspace(0, 1, 40) ** 1.6 * (chest.domes[0 if side < 0 else 1] + 3.6 + recess - chest.apex)
    top = smoothstep(y, chest.apex, chest.apex + 3.5)
    lateral = np.stack([side * chest.wall(y), y], 1)
    inner = 2.3 + 2.0 * (1 - top)
    medial = np.stack([side * inner, y], 1)
    x = np.linspace(lateral[-1, 0], side * 2.3, 24)
    floor = np.stack([x, np.minimum(chest.dome(side, x, recess), y[-1])], 1)
    keep = medial[:, 1] < floor[-1, 1]
    return np.vstack([lateral, floor, medial[keep][::-1]])


def draw_chest(chest: Chest, frame: Frame, *, supine: bool) -> Layers:
    """All layers of a healthy chest but the heart (:func:`heart`). ``supine``: an AP view, with the shoulder blades over the lungs."""
    lungs = tuple(frame.fill(lung_outline(chest, side)) for side in SIDES)
    recesses = [frame.fill(lung_outline(chest, side, recess=3.2)) for side in SIDES]
    y = frame.grid[1]
    front = sum(frame.dome(mask, 5.2) for mask in lungs)
    behind = sum(frame.blur(frame.dome(mask, 3.0), 0.8) for mask in recesses)
    depth = chest.depth * (0.52 + 0.26 * smoothstep(y, chest.apex, chest.apex + 14))
    lung = np.asarray(depth * (0.92 * front + 0.08 * behind), np.float32)
    return Layers(
        chest=chest,
        frame=frame,
        tissue=_soft_tissue(chest, frame),
        lung=frame.blur(lung, 0.1),
        lungs=(lungs[0], lungs[1]),
        vessels=draw_vessels(frame, chest.seed, chest.apex, chest.domes, chest.half_width, chest.markings),
        bones=chest_bones(chest, frame, supine=supine),
        gas=_gas(chest, frame),
    )


def heart(chest: Chest, frame: Frame, *, enlarged: float = 1.0) -> Array:
    """Fraction 0..1 of the depth that heart, great vessels and mediastinum fill. ``enlarged`` 1.4 is a cardiothoracic ratio near 0.6."""
    w, tilt = chest.heart_width * enlarged, chest.heart_tilt
    floor = max(chest.domes) + 1.5
    knob = chest.aorta
    right = [(-2.7, -20), (-2.8, -11), (-3.0, -6), (-3.3, -2), (-4.2 * w, 2), (-4.4 * w, 5.0), (-3.4 * w, floor - 1.5), (-3, floor + 6)]
    ventricle = [(5, floor + 6), (8.0 * w, floor + 0.5 + tilt), (8.8 * w, floor - 2.2 + tilt), (8.0 * w, 4.6 + tilt), (6.0 * w, 1.2)]
    trunk = [(4.3 * w, -1.6), (3.7, -3.4), (2.0 + 0.8 * knob, -5.2), (1.8 + knob, -7.0), (2.0 + 0.7 * knob, -8.8), (2.6, -10.5), (2.7, -20)]
    middle = curve([*right, *ventricle, *trunk], closed=True)
    mask = frame.fill(middle)
    low = smoothstep(frame.grid[1], -3, 3)
    solid = frame.dome(mask, 2.2) * (0.80 - 0.15 * low)
    return frame.blur(np.asarray(solid + 0.12 * low * frame.dome(mask, 5.0), np.float32), 0.12)


def _soft_tissue(chest: Chest, frame: Frame) -> Array:
    side = chest.half_width + 1.3 + chest.fat
    up = chest.apex - MEAN_APEX
    half = [(0, -34), (5.2, -34), (5.4, up - 19), (7.2, up - 16.8), (11, up - 15.2), (16, up - 14), (19.5, up - 12.2), (20.5, up - 8)]
    half += [(17.8, up - 3.5), (side, 2), (side + 0.3 * chest.fat, 9), (side + 0.5 * chest.fat, 16), (side + chest.fat, 34), (0, 34)]
    right = np.array(half[1:-1], float) * (-1, 1)
    body = frame.fill(curve(np.vstack([half[1:-1], right[::-1]]), closed=True))
    arms = frame.fill(*(_arm(chest, side) for side in SIDES))
    x, y = frame.grid
    depth = chest.depth * (0.52 + 0.48 * smoothstep(y, -19, -8)) * (1 + 0.10 * smoothstep(y, 6, 14))
    trunk = depth * frame.dome(body, 8.0)
    tissue = np.maximum(trunk, 9.5 * frame.dome(arms, 4.2))
    if chest.breast:
        tissue = tissue + _breasts(chest, x, y)
    return frame.blur(np.asarray(tissue, np.float32), 0.15)


def _arm(chest: Chest, side: int) -> Points:
    lean, up = 3.0 + 0.4 * chest.fat, chest.apex - MEAN_APEX
    outer = [(17.5, up - 14.2), (21.5, up - 11), (22.5 + lean / 2, 0), (22.5 + lean, 12), (23 + lean, 30)]
    inner = [(15.5 + lean, 30), (15.2 + lean, 12), (15.4 + lean / 2, 2), (15.5, up - 6), (14, up - 11)]
    return curve([(side * x, y) for x, y in outer + inner], closed=True)


def _breasts(chest: Chest, x: Array, y: Array) -> Array:
    total = np.zeros_like(x)
    for side in SIDES:
        dx = (x - side * 8.2) / (chest.breast * 1.15)
        dy = (y - (5.2 + 0.3 * chest.breast)) / chest.breast
        # The lower fold is a sharp line, the upper slope fades into the chest wall.
        radius = np.sqrt(dx * dx + np.where(dy > 0, dy * dy, 0.45 * dy * dy))
        total += 0.55 * chest.breast * np.sqrt(np.clip(1 - radius * radius, 0, 1))
    return np.asarray(total, np.float32)


def _gas(chest: Chest, frame: Frame) -> Array:
    rng = np.random.default_rng([chest.seed, 1])
    shift = chest.scoliosis * 0.5
    trachea = [(shift + 0.1, -30), (shift + 0.1, -14), (shift - 0.3, -8.5), (shift - 0.2, -5.8)]
    right = [(shift - 0.2, -6.2), (shift - 1.6, -4.4), (shift - 3.6, -2.2)]
    left = [(shift - 0.2, -6.2), (shift + 1.8, -4.6), (shift + 4.0, -3.2)]
    canvas = frame.blank()
    for line, width in ((trachea, 1.8), (right, 1.3), (left, 1.1)):
        frame.stroke(canvas, curve(line), width)
    air = frame.blur(canvas.astype(np.float32) / 255, 0.16) * 1.5
    x0, under, radius = chest.stomach
    if radius:
        top = chest.dome(1, np.array([x0]))[0] + under
        bubble = frame.fill(ellipse(x0, top + radius * 0.8, radius * 1.5, radius * 0.9))
        _, y = frame.grid
        level = smoothstep(y, top + radius * 1.3, top + radius * 1.1) if rng.random() < 0.6 else 1.0
        air = air + frame.blur(np.asarray(frame.dome(bubble, radius) * level, np.float32), 0.12) * radius * 2.2
    for _ in range(int(rng.integers(0, 6))):
        bowel = ellipse(rng.uniform(-9, 10), rng.uniform(15, 20), rng.uniform(0.8, 2), rng.uniform(0.7, 1.4))
        air = air + frame.dome(frame.fill(bowel), 1.0) * rng.uniform(1, 2.5)
    return np.asarray(air, np.float32)
