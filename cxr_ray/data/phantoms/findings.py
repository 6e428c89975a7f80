"""What disease does to a chest: lung air replaced, fluid, free air, a larger heart; with the region of each as truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cxr_ray.data.phantoms.anatomy import Layers
from cxr_ray.data.phantoms.canvas import Array, smoothstep

MULTILABEL = ("atelectasis", "cardiomegaly", "consolidation", "effusion", "infiltration", "nodule", "pneumothorax")
"""The findings of the multilabel task, in the order of their columns."""


@dataclass
class Changes:
    """How a chest differs from the healthy one; (H, W) float32."""

    filled: Array
    """Part 0..1 of the lung's air that something denser has replaced."""
    free_air: Array
    """Part 0..1 of the lung's depth that is air outside the lung: no vessels, no lung tissue."""
    added: Array
    """Depth of water added, cm."""
    heart: float = 1.0
    """Enlargement of the heart."""
    regions: list[tuple[str, NDArray[np.bool_]]] = field(default_factory=list)
    """(finding, mask) of every focus."""

    @classmethod
    def none(cls, layers: Layers) -> Changes:
        """A healthy chest."""
        zero = np.zeros_like(layers.lung)
        return cls(zero, zero, zero)

    def fill(self, finding: str, part: Array, *, seen: float = 0.5) -> None:
        """Replace ``part`` of the air that is left; the region is where more than ``seen`` of its greatest value is."""
        self.filled = np.asarray(1 - (1 - self.filled) * (1 - part), np.float32)
        self.regions.append((finding, part > seen * max(float(part.max()), 1e-3)))


def _lung(layers: Layers, side: int) -> Array:
    return np.asarray(layers.lungs[0 if side < 0 else 1].astype(np.float32) / 255, np.float32)


def covid(layers: Layers, rng: np.random.Generator, changes: Changes, severity: float) -> None:
    """Ground glass in both lungs, in patches along the chest wall, mostly low; vessels stay visible through it."""
    chest, frame = layers.chest, layers.frame
    x, y = frame.grid
    mottle = 1 + 0.10 * frame.texture(rng, 0.9) + 0.14 * frame.texture(rng, 2.2)
    rim = chest.wall(np.array([0.0, 8.0])).mean()
    for side in (-1, 1):
        haze = np.zeros_like(x)
        low, high = chest.apex + 5.5, chest.domes[0 if side < 0 else 1] + 1.0
        count = int(rng.integers(2, 5))
        heights = low + (high - low) * np.clip((np.arange(count) + rng.uniform(0.1, 0.9, count)) / count + 0.06, 0, 1)
        for height in heights:
            wall = float(chest.wall(np.array([height]))[0])
            cx = side * (wall - rng.uniform(0.4, 2.4))
            rx, ry = rng.uniform(2.2, 3.6), rng.uniform(2.6, 4.4)
            distance = np.sqrt(((x - cx) / rx) ** 2 + ((y - height) / ry) ** 2) + 0.13 * frame.texture(rng, 2.2)
            haze = np.maximum(haze, rng.uniform(0.7, 1.0) * smoothstep(distance, 1.5, 0.1))
        outer = smoothstep(np.abs(x), 0.30 * rim, 0.62 * rim)
        part = np.clip(severity * haze * outer * np.clip(mottle, 0.3, 1.7), 0, 0.9) * _lung(layers, side)
        changes.fill("covid", np.asarray(part, np.float32))


_LOBES = ("right upper", "right middle", "right lower", "left upper", "left lower")


def lobar(layers: Layers, rng: np.random.Generator, changes: Changes, severity: float, *, finding: str = "pneumonia") -> None:
    """Consolidation of one lobe, or most of it: dense, even, ending sharply at a fissure, with air-filled bronchi in it."""
    lobe = _LOBES[int(rng.integers(len(_LOBES)))]
    side = -1 if lobe.startswith("right") else 1
    solid = _lobe(layers, rng, lobe, side) * _lung(layers, side)
    bronchi = np.clip(layers.frame.blur(layers.vessels, 0.08), 0, 1)
    solid = solid * (1 - 0.25 * bronchi) * np.clip(1 + 0.07 * layers.frame.texture(rng, 1.5), 0, 1.2)
    changes.fill(finding, np.asarray(np.clip(severity * solid, 0, 0.97), np.float32))


def _lobe(layers: Layers, rng: np.random.Generator, lobe: str, side: int) -> Array:
    """Part 0..1 of each pixel's lung that lies in ``lobe``, as far from its fissure as the disease reaches."""
    x, y = layers.frame.grid
    chest, outward = layers.chest, side * x
    middle = chest.apex + 0.55 * (chest.domes[0 if side < 0 else 1] - chest.apex) + rng.normal(0, 0.7)
    level = middle + rng.normal(0.0, 0.08) * (outward - 7)  # the right lung's horizontal fissure, sharp from the front
    reach = rng.uniform(7.0, 10.0)
    if lobe == "right upper":
        return smoothstep(y, level + 0.15, level - 0.15) * smoothstep(y, level - reach - 1.5, level - reach + 1.5)
    if lobe == "right middle":
        medial = smoothstep(outward, 11.5, 8.5)
        return smoothstep(y, level - 0.15, level + 0.15) * medial * smoothstep(y, level + reach + 1, level + reach - 2)
    # The other borders are the oblique fissures, which run slantwise to the ray and so are softer.
    if lobe == "left upper":
        oblique = middle + 1.0 + 0.2 * (outward - 7)
        return smoothstep(y, oblique + 0.4, oblique - 0.4) * smoothstep(y, oblique - reach - 1.5, oblique - reach + 1.5)
    oblique = middle + 1.7 - 0.3 * (outward - 6.5)
    return smoothstep(y, oblique - 0.7, oblique + 0.7)


def patch(layers: Layers, rng: np.random.Generator, changes: Changes) -> None:
    """Consolidation that stops short of a lobe: one dense patch with a ragged rim."""
    if rng.random() < 0.5:
        lobar(layers, rng, changes, rng.uniform(0.6, 0.85), finding="consolidation")
        return
    side, x, y, cx, cy = _place(layers, rng)
    radius = rng.uniform(2.2, 3.6)
    distance = np.hypot(x - cx, (y - cy) * rng.uniform(0.8, 1.2)) / radius + 0.15 * layers.frame.texture(rng, 1.2)
    changes.fill("consolidation", np.asarray(rng.uniform(0.6, 0.85) * smoothstep(distance, 1.3, 0.65) * _lung(layers, side), np.float32))


def _place(layers: Layers, rng: np.random.Generator, *, low: float = 0.25, high: float = 0.9) -> tuple[int, Array, Array, float, float]:
    """A side and a point well inside that lung."""
    side, chest = int(rng.choice((-1, 1))), layers.chest
    floor = chest.domes[0 if side < 0 else 1]
    cy = float(chest.apex + (floor - chest.apex) * rng.uniform(low, high))
    cx = float(side * rng.uniform(5.5, chest.wall(np.array([cy]))[0] - 2.2))
    x, y = layers.frame.grid
    return side, x, y, cx, cy


def infiltration(layers: Layers, rng: np.random.Generator, changes: Changes) -> None:
    """Ill-defined patchy and streaky haze around the hila and at the bases, of one lung or both."""
    sides = (-1, 1) if rng.random() < 0.5 else (int(rng.choice((-1, 1))),)
    x, y = layers.frame.grid
    grain = np.clip(0.8 + 0.25 * layers.frame.texture(rng, 0.9) + 0.30 * layers.frame.texture(rng, 1.8), 0.1, 1.6)
    for side in sides:
        cx, cy = side * rng.uniform(5.5, 7.5), rng.uniform(0.5, 5)
        near = smoothstep(np.hypot((x - cx) / rng.uniform(3.5, 5), (y - cy) / rng.uniform(4, 6)), 1.25, 0.4)
        changes.fill(
            "infiltration", np.asarray(np.clip(rng.uniform(0.34, 0.5) * near * grain * _lung(layers, side), 0, 0.8), np.float32), seen=0.3
        )


def nodule(layers: Layers, rng: np.random.Generator, changes: Changes) -> None:
    """One to three round, well-defined spots of 1.6 to 3 cm."""
    for _ in range(int(rng.integers(1, 4))):
        side, x, y, cx, cy = _place(layers, rng, low=0.2)
        radius = rng.uniform(0.8, 1.5)
        ball = np.sqrt(np.clip(1 - ((x - cx) ** 2 + (y - cy) ** 2) / radius**2, 0, 1)) * _lung(layers, side)
        changes.added = np.asarray(changes.added + ball * (1.5 + 1.5 * radius), np.float32)
        changes.regions.append(("nodule", ball > 0.05))


def effusion(layers: Layers, rng: np.random.Generator, changes: Changes) -> None:
    """Fluid at the base of one lung: even, the side angle lost, its upper edge rising towards the wall (meniscus)."""
    side, chest = int(rng.choice((-1, 1))), layers.chest
    x, y = layers.frame.grid
    height = rng.uniform(2.6, 6.5)
    outward = np.clip((side * x - 3) / (chest.half_width - 3), 0, 1)
    level = chest.domes[0 if side < 0 else 1] + 2.2 - height - (1.2 + 0.35 * height) * outward**3
    below = smoothstep(y, level - 0.35, level + 0.35) * (side * x > 0)
    changes.fill("effusion", np.asarray(0.95 * below * smoothstep(layers.lung, 0.2, 1.5), np.float32))


def pneumothorax(layers: Layers, rng: np.random.Generator, changes: Changes) -> None:
    """Air between wall and lung, widest at the top: darker, without vessels, bounded by a fine bright line; the lung a little denser."""
    side, chest = int(rng.choice((-1, 1))), layers.chest
    x, y = layers.frame.grid
    down = np.clip((y - chest.apex) / (chest.domes[0 if side < 0 else 1] - chest.apex), 0, 1)
    gap = rng.uniform(2.0, 4.2) * (1.1 - 0.75 * down)
    wall = chest.wall(y.astype(np.float64)).astype(np.float32)
    inside = np.minimum(wall - side * x - gap, (y - chest.apex - 0.9 * gap) * 1.2)  # cm inside the lung's new edge
    lung = _lung(layers, side)
    free = smoothstep(inside, 0.1, -0.1) * lung
    line = np.exp(-((inside / 0.13) ** 2)) * lung
    changes.free_air = np.maximum(changes.free_air, free)
    changes.added = np.asarray(changes.added + 0.55 * line, np.float32)
    changes.filled = np.asarray(1 - (1 - changes.filled) * (1 - 0.12 * smoothstep(inside, 0, 0.2) * lung), np.float32)
    changes.regions.append(("pneumothorax", free > 0.5))


def atelectasis(layers: Layers, rng: np.random.Generator, changes: Changes) -> None:
    """Two to four plates of collapsed lung: dense bands of about 1 cm, nearly level, above a diaphragm."""
    side, x, y, cx, cy = _place(layers, rng, low=0.72, high=0.86)
    total, slope = np.zeros_like(x), rng.normal(0, 0.25)
    for plate in range(int(rng.integers(2, 5))):
        cy_plate, cx_plate = cy + 1.8 * plate - 2.0, cx + rng.normal(0, 1.0)
        across = y - cy_plate - slope * (x - cx_plate) * side - 0.03 * (x - cx_plate) ** 2
        length = rng.uniform(3.0, 4.6)
        band = np.exp(-((across / rng.uniform(0.34, 0.52)) ** 2)) * smoothstep(np.abs(x - cx_plate), length, 0.6 * length)
        total = np.maximum(total, band)
    changes.fill("atelectasis", np.asarray(rng.uniform(0.55, 0.75) * total * _lung(layers, side), np.float32), seen=0.35)


def cardiomegaly(layers: Layers, rng: np.random.Generator, changes: Changes) -> None:
    """The heart wider than half the chest."""
    changes.heart = float(rng.uniform(1.34, 1.55) / max(layers.chest.heart_width, 0.9))


DRAW: dict[str, Callable[[Layers, np.random.Generator, Changes], None]] = {
    "atelectasis": atelectasis,
    "cardiomegaly": cardiomegaly,
    "consolidation": patch,
    "effusion": effusion,
    "infiltration": infiltration,
    "nodule": nodule,
    "pneumothorax": pneumothorax,
}
"""One function for each of :data:`MULTILABEL`."""
