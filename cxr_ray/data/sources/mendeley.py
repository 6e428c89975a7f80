"""COVID19, Pneumonia and Normal Chest X-ray PA (Asraf and Islam, Mendeley Data jctsfj2sfn; the set of paper 001).

``covid|normal|pneumonia/`` and ``metadata.csv`` with ``directory`` (the image's path) and ``class`` (0 normal, 1 covid,
2 pneumonia). A class that is a number is replaced by the folder's name. Patients are unknown, and 912 of the COVID
images are augmented copies of others: near-copy grouping matters here.
"""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict

from cxr_ray.data.sources import tables
from cxr_ray.data.sources.base import Collector, Folder, Source, SourceOptions
from cxr_ray.data.sources.tables import Table

NAME = "mendeley"
LAYOUT = "metadata.csv (`class`, `directory`) beside covid/, normal/, pneumonia/"

_COLUMNS = ("class", "directory")


def recognise(folder: Folder, options: SourceOptions) -> str | None:
    """Why the source looks like this layout, or None."""
    found = tables.tables_with(folder, *_COLUMNS)
    return f"{found[0]}: columns 'class' and 'directory'" if found else None


def read(folder: Folder, options: SourceOptions) -> Source:
    """Read the layout.

    Raises:
        SourceError: No table with ``class`` and ``directory``, several, or no image is left.
    """
    file = tables.chosen_table(folder, options, tables.tables_with(folder, *_COLUMNS), what="the columns 'class' and 'directory'")
    table = tables.read_table(folder, file)
    label, path = table.named("class"), table.named("directory")
    collector = Collector(folder, NAME, source="Mendeley jctsfj2sfn")
    names = _class_names(table, label, path)
    for number, row in enumerate(table.rows, start=2):
        said = row[path].strip() or f"({file} row {number})"
        try:
            said = found = folder.resolve(row[path], table.folder)
        except LookupError as error:
            collector.reject(said, str(error.args[0]))
            continue
        name = names.get(tables.cell(row, label) or "")
        if name is None:
            collector.reject(said, "no label")
        else:
            collector.add(found, label=name)
    collector.notes.append(f"{file}: classes {', '.join(f'{key} = {name}' for key, name in sorted(names.items()))}; patients are unknown")
    return collector.finish(where=file)


def _class_names(table: Table, label: int, path: int) -> dict[str, str]:
    """What each value of ``class`` is called: itself, or for a number the folder in which most of its files lie.

    A folder names one number only; where two numbers share a folder, they keep their numbers.
    """
    folders: dict[str, Counter[str]] = defaultdict(Counter)
    for row in table.rows:
        if (value := tables.cell(row, label)) is not None:
            folders[value][posixpath.basename(posixpath.dirname(row[path].strip().replace("\\", "/")))] += 1
    named = {value: counts.most_common(1)[0][0] if value.isdigit() else value for value, counts in folders.items()}
    unclear = len(set(named.values())) < len(named) or not all(named.values())
    return {value: value for value in named} if unclear else named
