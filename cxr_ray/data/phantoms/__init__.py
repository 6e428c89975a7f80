"""Synthetic radiographs with anatomy: the embedded default data. Deterministic, and not solved by a trivial feature.

======== ====================================================================================
canvas   a frame in centimetres, and the shapes that anatomy is drawn with
anatomy  a patient's chest as numbers, and its layers: soft tissue, lungs, heart, gas
bones    ribs, collar bones, shoulder blades, spine
vessels  the branching vessels of the lungs
neck     a child's neck with its air column (croup)
findings what disease changes, and where
exposure water depth -> detector signal -> grey values; histogram specification
overlay  leads and lines, side marker, border
plan     which images there are; all follows from (task, seed, number)
render   one image from its plan
encode   PNG, JPEG and DICOM bytes
planted  near and exact copies, corrupt files
shortcuts what goes with the label on purpose: a marker, brightness, the hospital
write    the folder: images/, labels.csv, truth.json
======== ====================================================================================

Three tasks: ``covid`` (ground glass / lobar consolidation / normal chest), ``croup`` (steeple sign / normal neck) and
``multilabel`` (seven chest findings at once, some labels unknown). Each image carries the histogram of a decoy that is
independent of its label (:func:`render.render_phantom`); exposure, pose, view, format, size, source and marker are too.
What remains to be learned is the lesion.
"""

from __future__ import annotations

from cxr_ray.data.phantoms.findings import MULTILABEL
from cxr_ray.data.phantoms.plan import CLASSES, SOURCES, TASKS, PhantomTask, Shot, shots
from cxr_ray.data.phantoms.render import Lesion, Phantom, render_phantom
from cxr_ray.data.phantoms.shortcuts import Plant
from cxr_ray.data.phantoms.write import PhantomSummary, write_phantoms

__all__ = [
    "CLASSES",
    "MULTILABEL",
    "SOURCES",
    "TASKS",
    "Lesion",
    "Phantom",
    "PhantomSummary",
    "PhantomTask",
    "Plant",
    "Shot",
    "render_phantom",
    "shots",
    "write_phantoms",
]
