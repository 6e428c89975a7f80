"""Which images there are: patients, visits, labels, sources, formats. All follow from (task, seed, number) alone.

Image ``i`` is the same whatever the count: patients are numbered, each has its own random stream, and a longer plan goes on
where a shorter one ends. Nothing here but the label depends on the label.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from cxr_ray.data.phantoms.findings import MULTILABEL

PhantomTask = Literal["covid", "croup", "multilabel"]
TASKS: tuple[str, ...] = get_args(PhantomTask)
CLASSES: dict[str, tuple[str, ...]] = {"covid": ("normal", "pneumonia", "covid"), "croup": ("normal", "croup")}
"""Labels of the multiclass tasks; those of ``multilabel`` are :data:`~cxr_ray.data.phantoms.findings.MULTILABEL`."""

SOURCES = ("northgate", "easthill", "harbour")
"""Hospitals. Each has its own markers, borders, sizes and file formats, and sends the same mix of labels."""
SOURCE_FORMATS = {"northgate": (0.8, 0.2), "easthill": (0.15, 0.85), "harbour": (0.5, 0.5)}
"""Shares of PNG and JPEG."""
SOURCE_SCALES = {"northgate": 1.0, "easthill": 0.94, "harbour": 1.08}
"""Of heights and widths."""
_PREVALENCE = (0.22, 0.24, 0.22, 0.28, 0.24, 0.22, 0.22)  # of MULTILABEL, in its order
_UNKNOWN = 0.08
_DICOM_VISITS = 2

Format = Literal["png", "jpeg", "dicom"]


@dataclass(frozen=True)
class Shot:
    """All that decides one image."""

    task: str
    seed: int
    index: int
    """Number of the image."""
    patient: int
    visit: int
    findings: tuple[str, ...]
    """What it shows; empty: healthy."""
    decoy: tuple[str, ...]
    """Findings of the picture that lends its histogram; drawn as ``findings`` are, independently of them."""
    unknown: tuple[str, ...]
    """Findings whose label is left blank (multilabel)."""
    sex: str
    age: float
    view: str
    source: str
    format: Format
    monochrome: Literal[1, 2]
    """DICOM only: MONOCHROME1 (stored inverted) or MONOCHROME2."""
    height: int
    width: int

    @property
    def label(self) -> str:
        """Class name of a multiclass task; ``"A|B"`` of a multilabel one."""
        return "|".join(self.findings) or "normal"

    @property
    def patient_id(self) -> str:
        """The source's own identifier."""
        return f"P{100001 + self.patient}"

    @property
    def name(self) -> str:
        """File name without folder or ending; says nothing about what is in the file."""
        return file_name(self.task, self.seed, "image", self.index)

    def rng(self, purpose: str, *, visit: bool = True) -> np.random.Generator:
        """Random stream of this patient, or of this visit, for one purpose."""
        return stream(self.task, self.seed, self.patient, self.visit if visit else -1, purpose)


def stream(*key: str | int) -> np.random.Generator:
    """Random numbers that follow from ``key`` alone."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


def file_name(task: str, seed: int, kind: str, index: int) -> str:
    """A name that orders files at random: neighbours in a listing share neither patient nor label."""
    return "xr-" + hashlib.sha256(repr((task, seed, kind, index)).encode()).hexdigest()[:16]


def shots(task: str, count: int, seed: int, size: int) -> Iterator[Shot]:
    """The first ``count`` images of a task; ``size`` is the middle of their heights and widths, pixels."""
    return itertools.islice(_all_shots(task, seed, size), count)


def _all_shots(task: str, seed: int, size: int) -> Iterator[Shot]:
    index = 0
    for patient in itertools.count():
        rng = stream(task, seed, patient, "patient")
        dicom = patient < len(CLASSES.get(task, "abc"))  # one patient a class, so that the format tells nothing
        visits = _DICOM_VISITS if dicom else int(rng.choice((1, 1, 1, 2, 2, 3)))
        sex, source = str(rng.choice(("M", "F"))), str(rng.choice(SOURCES))
        age = float(round(rng.uniform(0.5, 6.0), 1)) if task == "croup" else float(rng.integers(18, 90))
        first, again = _findings(task, seed, patient, rng), _findings(task, seed, patient, rng)
        for visit in range(visits):
            findings = first if visit % 2 == 0 else again
            yield _shot(task, seed, size, index, patient, visit, findings, sex, age, source, dicom)
            index += 1


def _findings(task: str, seed: int, patient: int, rng: np.random.Generator) -> tuple[str, ...]:
    """A patient's class, in blocks that hold each class once; or findings drawn one by one."""
    if task == "multilabel":
        return tuple(name for name, part in zip(MULTILABEL, _PREVALENCE, strict=True) if rng.random() < part)
    classes = CLASSES[task]
    block, place = divmod(patient, len(classes))
    name = classes[stream(task, seed, block, "block").permutation(len(classes))[place]]
    return () if name == "normal" else (name,)


def _decoy(task: str, rng: np.random.Generator) -> tuple[str, ...]:
    if task == "multilabel":
        return _findings(task, 0, 0, rng)
    name = str(rng.choice(CLASSES[task]))
    return () if name == "normal" else (name,)


def _shot(
    task: str,
    seed: int,
    size: int,
    index: int,
    patient: int,
    visit: int,
    findings: tuple[str, ...],
    sex: str,
    age: float,
    source: str,
    dicom: bool,
) -> Shot:
    rng = stream(task, seed, patient, visit, "visit")
    scale = SOURCE_SCALES[source] * rng.uniform(0.92, 1.08)
    aspect = math.exp(rng.uniform(-0.1, 0.14))
    png_or_jpeg: Format = "png" if rng.random() < SOURCE_FORMATS[source][0] else "jpeg"
    return Shot(
        task=task,
        seed=seed,
        index=index,
        patient=patient,
        visit=visit,
        findings=findings,
        decoy=_decoy(task, rng),
        unknown=tuple(name for name in MULTILABEL if rng.random() < _UNKNOWN) if task == "multilabel" else (),
        sex=sex,
        age=age,
        view="AP" if task == "croup" or rng.random() < 0.4 else "PA",
        source=source,
        format="dicom" if dicom else png_or_jpeg,
        monochrome=1 if (patient + visit) % 2 else 2,
        height=round(size * scale * math.sqrt(aspect)),
        width=round(size * scale / math.sqrt(aspect)),
    )
