"""NIH ChestX-ray14 (Wang et al., CVPR 2017): ``Finding Labels`` of the form ``A|B``, patients, official lists.

Images lie in ``images/``, ``images_001/images/`` … or anywhere else below; the table names them by file name alone.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

from cxr_ray import storage
from cxr_ray.data.sources import tables
from cxr_ray.data.sources.base import Collector, Folder, Source, SourceOptions, shorten
from cxr_ray.data.sources.tables import Table
from cxr_ray.errors import SourceError

NAME = "nih"
LAYOUT = "Data_Entry_2017*.csv or labels.csv (`Image Index`, `Finding Labels`, `Patient ID`) beside images/"

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
"""The 14 findings in the order of the literature (Wang et al.; CheXNet)."""

LISTS = {"train_val_list.txt": "train_val", "test_list.txt": "test"}
"""The official split: a file name a line."""

_COLUMNS = ("image_index", "finding_labels")


def recognise(folder: Folder, options: SourceOptions) -> str | None:
    """Why the source looks like this layout, or None."""
    found = tables.tables_with(folder, *_COLUMNS)
    return f"{shorten(list(found))}: columns 'Image Index' and 'Finding Labels'" if found and folder.images else None


def read(folder: Folder, options: SourceOptions) -> Source:
    """Read the layout: 14 findings, and any other that the table names after them, or those of ``options.findings``.

    Raises:
        SourceError: A finding that the table does not name; no table of NIH's columns, several that none of NIH's names tells apart,
            or no image is left.
    """
    file = tables.chosen_table(folder, options, _preferred(folder), what="the columns 'Image Index' and 'Finding Labels'")
    table = tables.read_table(folder, file)
    image, found = table.named("Image Index"), table.named("Finding Labels")
    names = _chosen(label_names({row[found] for row in table.rows}), options.findings)
    collector = Collector(folder, NAME, source="NIH ChestX-ray14")
    splits, listed_twice = official_split(folder)
    _collect(collector, table, image, found, names, splits)
    collector.notes.append(f"{file}: {len(names)} findings; 'No Finding' is all zero")
    if splits:
        collector.notes.append(f"official split from {' and '.join(LISTS)}; {listed_twice:,} image(s) stand in both and are taken as test")
    return collector.finish(names, task="multilabel", where=file)


def _chosen(names: tuple[str, ...], wanted: tuple[str, ...]) -> tuple[str, ...]:
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise SourceError(
            f"no finding called {', '.join(unknown)}; there are: {', '.join(names)}", hint="-o findings=[Atelectasis,Effusion]"
        )
    return tuple(dict.fromkeys(wanted)) or names


def label_names(texts: Iterable[str]) -> tuple[str, ...]:
    """The 14 findings, then any other that occurs in these ``A|B`` texts, sorted."""
    there = {name for text in texts for name in tables.split_findings(text) if tables.cell([name], 0) is not None}
    return FINDINGS + tuple(sorted(there - set(FINDINGS)))


def official_split(folder: Folder) -> tuple[dict[str, str], int]:
    """Part by file name from the official lists (``test`` wins), and how many files stand in both."""
    splits: dict[str, str] = {}
    twice = 0
    for name, part in LISTS.items():
        for file in folder.files:
            if posixpath.basename(file) == name:
                listed = {
                    posixpath.basename(line.strip())
                    for line in storage.read_bytes(folder.where(file)).decode("utf-8", "replace").split("\n")
                }
                twice += len(listed & set(splits) - {""})
                splits |= dict.fromkeys(listed - {""}, part)
    return splits, twice


def _preferred(folder: Folder) -> tuple[str, ...]:
    """Of several tables with NIH's columns, NIH's own main table (the newest); else all."""
    found = tables.tables_with(folder, *_COLUMNS)
    for prefix in ("data_entry_2017_v2020", "data_entry", "labels", "sample_labels"):
        best = [file for file in found if posixpath.basename(file).lower().startswith(prefix)]
        if best:
            return tuple(best)
    return found


def _collect(collector: Collector, table: Table, image: int, found: int, names: tuple[str, ...], splits: dict[str, str]) -> None:
    columns = {
        key: table.find(aliases)
        for key, aliases in (
            ("patient", tables.PATIENT_COLUMNS),
            ("age", tables.AGE_COLUMNS),
            ("sex", tables.SEX_COLUMNS),
            ("view", tables.VIEW_COLUMNS),
        )
    }
    vectors: dict[str, tuple[float, ...]] = {}  # a few hundred combinations stand for 112,120 rows
    for number, row in enumerate(table.rows, start=2):
        said = row[image].strip() or f"({table.file} row {number})"
        text = tables.cell(row, found)
        try:
            file = collector.folder.resolve(row[image], table.folder)
        except LookupError as error:
            collector.reject(said, str(error.args[0]))
            continue
        if text is None:
            collector.reject(file, "no label")
            continue
        if text not in vectors:
            there = set(tables.split_findings(text))
            vectors[text] = tuple(float(name in there) for name in names)
        collector.add(
            file,
            labels=vectors[text],
            patient=tables.cell(row, columns["patient"]),
            view=tables.cell(row, columns["view"]),
            sex=tables.sex(tables.cell(row, columns["sex"])),
            age=tables.age(tables.cell(row, columns["age"])),
            split=splits.get(posixpath.basename(file)) if splits else None,
        )
