"""Paediatric pneumonia of Kermany et al. (Cell 2018; Mendeley Data rscbjbr9sj, and Kaggle's copy).

``[train|val|test/]NORMAL|PNEUMONIA/FILE``. The kind of pneumonia and the patient stand in the file name:
``person12_bacteria_46``, ``person12_virus_47``, ``IM-0115-0001``, ``NORMAL2-IM-0383-0001-0002``, and in Mendeley's own
release ``BACTERIA-1008087-0001``, ``VIRUS-…``, ``NORMAL-…``.

A person number can carry both kinds (808 do), so it is only indicative: the patient is ``personN`` whatever the kind,
which keeps more together than may be needed, never less. ``IM-N`` and ``NORMAL2-IM-N`` number two deliveries and are
not taken for one patient. Person numbers begin anew in the official test part, so they cannot show overlaps with it.
"""

from __future__ import annotations

import posixpath
import re

from cxr_ray.data.sources import tables
from cxr_ray.data.sources.base import Collector, Folder, Source, SourceOptions

NAME = "kermany"
LAYOUT = "[train|val|test/]NORMAL|PNEUMONIA/personN_bacteria_M.jpeg"

THREE = ("normal", "bacteria", "virus")
TWO = ("normal", "pneumonia")

_PERSON = re.compile(r"(person\d+)_(bacteria|virus)_", re.IGNORECASE)
_NORMAL = re.compile(r"((?:NORMAL2-)?IM-\d+)-", re.IGNORECASE)
_MENDELEY = re.compile(r"(BACTERIA|VIRUS|NORMAL)-(\d+)-\d+", re.IGNORECASE)


def patient_and_kind(file: str) -> tuple[str | None, str | None]:
    """What a file name says: the patient, and ``bacteria``, ``virus`` or ``normal``; None for what it does not say."""
    name = posixpath.basename(file)
    if match := _PERSON.match(name):
        return match[1].lower(), match[2].lower()
    if match := _NORMAL.match(name):
        return match[1].upper(), "normal"
    if match := _MENDELEY.match(name):
        return match[2], match[1].lower()
    return None, None


def recognise(folder: Folder, options: SourceOptions) -> str | None:
    """Why the source looks like this layout, or None."""
    inside = _pneumonia(folder)
    telling = sum(patient_and_kind(file)[1] in {"bacteria", "virus"} for file in inside)
    both = inside and any(_class_of(file) == "normal" for file in folder.images)
    return "folders NORMAL and PNEUMONIA, and file names that say bacteria or virus" if both and telling * 2 >= len(inside) else None


def _pneumonia(folder: Folder) -> list[str]:
    return [file for file in folder.images if _class_of(file) == "pneumonia"]


def _class_of(file: str) -> str | None:
    """The class by folder: ``normal``, ``pneumonia``, or None outside both."""
    parent = posixpath.basename(posixpath.dirname(file)).lower()
    return parent if parent in TWO else None


def read(folder: Folder, options: SourceOptions) -> Source:
    """Read the layout with two or three labels (``options.labels``).

    Raises:
        SourceError: No image lies in ``NORMAL`` or ``PNEUMONIA``.
    """
    names = TWO if options.labels == 2 else THREE
    collector = Collector(folder, NAME, source="Kermany")
    for file in folder.images:
        by_folder = _class_of(file)
        patient, kind = patient_and_kind(file)
        if by_folder is None:
            collector.reject(file, "not in NORMAL or PNEUMONIA")
            continue
        label = "normal" if by_folder == "normal" else "pneumonia" if names == TWO else kind
        if label not in names:
            collector.reject(file, "no label")
        elif kind is not None and (kind == "normal") != (by_folder == "normal"):
            collector.reject(file, "conflicting labels")
        else:
            collector.add(file, label=label, patient=patient, split=_split(file))
    collector.notes.append(f"labels {', '.join(names)}; patients from the file names, which are only indicative")
    return collector.finish(names)


def _split(file: str) -> str | None:
    parts = file.split("/")
    return tables.split_of(parts[-3]) if len(parts) >= 3 else None
