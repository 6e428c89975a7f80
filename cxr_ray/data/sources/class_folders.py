"""Class folders: the folder's name is the class; ``train/``, ``val/``, ``test/`` above them are an official split.

Patients are unknown here: only near copies will keep images together. A table that names the files (``--format csv``)
knows more, and is taken instead where there is one.
"""

from __future__ import annotations

from collections import Counter

from cxr_ray.data.sources import tables
from cxr_ray.data.sources.base import Collector, Folder, Source, SourceOptions, shorten
from cxr_ray.errors import SourceError

NAME = "folder"
LAYOUT = "CLASS/image.png, or train|val|test/CLASS/image.png"


def recognise(folder: Folder, options: SourceOptions) -> str | None:
    """Why the source looks like this layout, or None."""
    classes = sorted({file.split("/")[depth(folder)] for file in _inside(folder)})
    return f"folders with images: {shorten(classes)}" if len(classes) > 1 else None


def depth(folder: Folder) -> int:
    """Which part of a path is the class: 1 where all top folders with images are named as parts of a split, else 0."""
    tops = {file.split("/")[0] for file in folder.images if "/" in file}
    deep = any(file.count("/") >= 2 for file in folder.images)
    return 1 if tops and deep and all(tables.split_of(top) for top in tops) else 0


def _inside(folder: Folder) -> list[str]:
    return [file for file in folder.images if file.count("/") > depth(folder)]


def read(folder: Folder, options: SourceOptions) -> Source:
    """Read class folders. Options do not matter.

    Raises:
        SourceError: No image lies in a class folder, or there is one class only.
    """
    level = depth(folder)
    collector = Collector(folder, NAME, source=folder.name)
    for file in _inside(folder):
        parts = file.split("/")
        collector.add(file, label=parts[level].strip(), split=tables.split_of(parts[0]) if level else None)
    if not _inside(folder):
        raise SourceError(f"{folder.location} has no class folders with images. Seen: {folder.describe()}", hint=f"a layout of {LAYOUT}")
    counts = Counter(file.split("/")[level] for file in _inside(folder))
    collector.notes.append("classes from the folders: " + shorten([f"{name} ({count:,})" for name, count in sorted(counts.items())]))
    collector.notes.append("patients are unknown: only near copies keep images together; a CSV with patient_id would")
    outside = [file for file in folder.images if file.count("/") <= level]
    for file in outside:
        collector.reject(file, "not in a class folder")
    return collector.finish()
