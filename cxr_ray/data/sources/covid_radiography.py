"""COVID-19 Radiography Database (Chowdhury et al., IEEE Access 2020; Rahman et al. 2021).

``COVID|Lung_Opacity|Normal|Viral Pneumonia/images/*.png``. The lung masks in ``masks/`` beside them are not images of
the set and are left out. The ``*.metadata.xlsx`` files are not read: they repeat the file names and say from where an
image was collected, not which patient it shows, so patients are unknown.
"""

from __future__ import annotations

from cxr_ray.data.sources.base import Collector, Folder, Source, SourceOptions

NAME = "covid-radiography"
LAYOUT = "COVID, Lung_Opacity, Normal, Viral Pneumonia, each with images/"

CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
_PLAIN = {name.lower().replace(" ", "_"): name for name in CLASSES}


def recognise(folder: Folder, options: SourceOptions) -> str | None:
    """Why the source looks like this layout, or None."""
    found = sorted({name for file in folder.images if (name := _class_of(file))})
    return f"folders {', '.join(found)}, each with images/" if len(found) > 1 else None


def _class_of(file: str) -> str | None:
    parts = file.split("/")
    return _PLAIN.get(parts[0].lower().replace(" ", "_")) if len(parts) == 3 and parts[1].lower() == "images" else None


def read(folder: Folder, options: SourceOptions) -> Source:
    """Read the layout. Options do not matter.

    Raises:
        SourceError: No image lies in ``CLASS/images/``.
    """
    collector = Collector(folder, NAME, source="COVID-19 Radiography Database")
    masks = 0
    for file in folder.images:
        label = _class_of(file)
        if label:
            collector.add(file, label=label)
        masks += "masks" in file.lower().split("/")[:-1]
    collector.notes.append(f"{masks:,} lung mask(s) and the *.metadata.xlsx files are not read; patients are unknown")
    return collector.finish()
