"""One image from one :class:`~cxr_ray.data.phantoms.plan.Shot`: anatomy, findings, exposure, then what lies over the picture."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_ray.data.phantoms.anatomy import Chest, Layers, draw_chest, heart, sample_chest
from cxr_ray.data.phantoms.canvas import Array, Frame
from cxr_ray.data.phantoms.exposure import develop, expose, give_histogram, sample_exposure
from cxr_ray.data.phantoms.findings import DRAW, Changes, covid, lobar
from cxr_ray.data.phantoms.neck import NeckLayers, air_column, draw_neck, sample_neck
from cxr_ray.data.phantoms.overlay import draw_devices, lay_over
from cxr_ray.data.phantoms.plan import Shot

_LUNG_CONTRAST = 0.76
"""Water that a centimetre of healthy lung lacks: a quarter of it is tissue and blood."""


@dataclass(frozen=True)
class Lesion:
    """One focus, in pixels of the stored image."""

    finding: str
    box: tuple[int, int, int, int]
    """left, top, right, bottom; right and bottom are the first column and row outside."""
    polygons: tuple[tuple[tuple[int, int], ...], ...]
    """Outlines as (x, y)."""


@dataclass(frozen=True)
class Phantom:
    """A rendered image and what is true of it."""

    image: NDArray[np.uint8]
    """(height, width), dense tissue bright."""
    lesions: tuple[Lesion, ...]
    lungs: NDArray[np.bool_] | None
    """(height, width): where air-filled lung lies, heart and domes excluded; None: the picture shows no chest."""


def render_phantom(shot: Shot) -> Phantom:
    """Render one radiograph. Pure: the same ``shot`` gives the same pixels.

    The picture is given the histogram of a decoy: the same patient, pose and exposure with the findings ``shot.decoy``, which
    are independent of ``shot.findings``. No function of the histogram (mean, spread, percentiles …) can then tell the label.
    """
    pose = shot.rng("pose")
    exposure = sample_exposure(shot.rng("exposure"), portable=shot.view == "AP" and shot.task != "croup")
    if shot.task == "croup":
        exposure = dataclasses.replace(exposure, attenuation=exposure.attenuation * 1.5)  # a child's neck: softer radiation
    scene = _neck_scene(shot, pose) if shot.task == "croup" else _chest_scene(shot, pose)
    frame = scene.frame
    devices = draw_devices(frame, shot.rng("devices"), portable=shot.view == "AP", neck=shot.task == "croup")
    water, regions = _water(scene, shot.findings, shot.rng("findings", visit=False), shot.rng("visit findings"))
    decoy, _ = _water(scene, shot.decoy, shot.rng("decoy"), shot.rng("visit decoy"))
    signal = expose(water + devices, exposure, frame, shot.rng("noise"))
    other = expose(decoy + devices, exposure, frame, shot.rng("decoy noise"))
    grey = give_histogram(signal, develop(other, exposure))
    image = lay_over(np.rint(grey * 255).astype(np.uint8), shot.rng("overlay"), source=shot.source, view=shot.view)
    lesions = tuple(lesion for region in regions if (lesion := _lesion(*region)) is not None)
    return Phantom(image, lesions, _lungs(scene) if isinstance(scene, Layers) else None)


def _chest_scene(shot: Shot, pose: np.random.Generator) -> Layers:
    chest = sample_chest(shot.rng("anatomy", visit=False), shot.sex, shot.age)
    breath = float(pose.normal(-0.9 if shot.view == "AP" else 0.0, 0.6))  # portable pictures catch a shallower breath
    right, left = chest.domes
    chest = dataclasses.replace(chest, domes=(right + breath, left + breath))
    field = pose.uniform(33.5, 41.5) * chest.size
    center = (float(pose.normal(0, 1.1)), float(pose.normal(-1.0, 1.2)))
    frame = _frame(shot, float(field), center, float(pose.normal(0, 3.0)))
    return draw_chest(chest, frame, supine=shot.view == "AP")


def _neck_scene(shot: Shot, pose: np.random.Generator) -> NeckLayers:
    neck = sample_neck(shot.rng("anatomy", visit=False), shot.sex, shot.age)
    center = (float(pose.normal(0, 0.6)), float(pose.normal(0.8, 0.6)))
    return draw_neck(neck, _frame(shot, float(pose.uniform(12.0, 14.5)) * neck.size, center, float(pose.normal(0, 3.0))))


def _frame(shot: Shot, field: float, center: tuple[float, float], rotation: float) -> Frame:
    """``field``: cm across the geometric mean of height and width."""
    return Frame(shot.height, shot.width, float(np.sqrt(shot.height * shot.width)) / field, center, rotation)


_Regions = list[tuple[str, NDArray[np.bool_]]]


def _water(
    scene: Layers | NeckLayers, findings: tuple[str, ...], lasting: np.random.Generator, visit: np.random.Generator
) -> tuple[Array, _Regions]:
    """Centimetres of water along each ray. ``lasting`` places findings, the same at each visit; ``visit`` varies their strength."""
    if isinstance(scene, NeckLayers):
        air, region = air_column(scene, lasting, croup="croup" in findings)
        return scene.solid - air, [("croup", region)] if "croup" in findings else []
    changes = Changes.none(scene)
    for finding in findings:
        if finding == "covid":
            covid(scene, lasting, changes, float(visit.uniform(0.48, 0.75)))
        elif finding == "pneumonia":
            lobar(scene, lasting, changes, float(visit.uniform(0.6, 0.9)))
        else:
            DRAW[finding](scene, lasting, changes)
    enlarged = heart(scene.chest, scene.frame, enlarged=changes.heart)
    if changes.heart > 1:
        changes.regions.append(("cardiomegaly", _heart_region(scene, enlarged)))
    return _chest_water(scene, changes, enlarged), changes.regions


def _chest_water(scene: Layers, changes: Changes, solid: Array) -> Array:
    air = scene.lung * (1 - solid)
    aerated = (1 - 0.75 * changes.filled) * (1 - changes.free_air) * (1 - 0.5 * solid) * np.clip(scene.lung / 3, 0, 1)
    replaced = _LUNG_CONTRAST * (1 - changes.filled) + (1 - _LUNG_CONTRAST) * changes.free_air
    water = scene.tissue - air * replaced + scene.vessels * aerated + scene.bones + changes.added - scene.gas
    return np.asarray(water, np.float32)


def _lungs(scene: Layers) -> NDArray[np.bool_]:
    right, left = scene.lungs
    return (np.maximum(right, left) > 127) & (heart(scene.chest, scene.frame) < 0.5)


def _heart_region(scene: Layers, solid: Array) -> NDArray[np.bool_]:
    chest: Chest = scene.chest
    _, y = scene.frame.grid
    return (solid > 0.4) & (y > -3) & (y < max(chest.domes) + 1)


def _lesion(finding: str, region: NDArray[np.bool_]) -> Lesion | None:
    """Box and outlines of a region; None where nothing of it is in the field. Specks under a two-thousandth of the image are left out."""
    mask = region.astype(np.uint8)
    least = region.size / 2000
    found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outlines = [outline for outline in found if cv2.contourArea(outline) >= min(least, 30)]
    if not outlines:
        return None
    points = np.concatenate(outlines).reshape(-1, 2)
    (left, top), (right, bottom) = points.min(0), points.max(0)
    simple = [cv2.approxPolyDP(outline, 1.0, True).reshape(-1, 2) for outline in outlines]
    polygons = tuple(tuple((int(x), int(y)) for x, y in outline) for outline in simple)
    return Lesion(finding, (int(left), int(top), int(right) + 1, int(bottom) + 1), polygons)
