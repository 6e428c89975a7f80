"""A CSV with a row an image: path, label(s), and as far as known patient, view, sex, age, source, official split."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from cxr_ray.data.sources import tables
from cxr_ray.data.sources.base import Collector, Folder, Source, SourceOptions, shorten
from cxr_ray.data.sources.labelling import Labelling, find_labelling
from cxr_ray.data.sources.tables import Table
from cxr_ray.errors import SourceError

NAME = "csv"
LAYOUT = "a CSV with a column of paths and a column of labels (or `A|B`, or one column of 1/0/blank a finding)"

LEAST_NAMED = 0.5
"""A table is taken for the labels of a folder if at least this part of its rows names a file in it."""
_LOOKED_AT = 2000
"""So many rows decide that; the rest is checked when it is read."""


def recognise(folder: Folder, options: SourceOptions) -> str | None:
    """Why the source looks like this layout, or None."""
    files = find_tables(folder, options)
    return f"{shorten(list(files))}: rows name the files" if files else None


def find_tables(folder: Folder, options: SourceOptions) -> tuple[str, ...]:
    """Tables that have a label and whose rows name files of the source."""
    return tuple(file for file in _candidates(folder, options) if _fits(folder, file, options))


def _candidates(folder: Folder, options: SourceOptions) -> Sequence[str]:
    return folder.tables if options.label_csv is None else [tables.chosen_table(folder, options, (), what="labels")]


def _fits(folder: Folder, file: str, options: SourceOptions) -> bool:
    try:
        table = tables.read_table(folder, file)
        path = table.pick(options.path_column, tables.PATH_COLUMNS)
        if path is None or find_labelling(table, options) is None:
            return False
    except SourceError:  # some other table of the folder; the one the user named is read again, and heard, in `read`
        return False
    rows = table.rows[:: max(1, len(table.rows) // _LOOKED_AT)]
    return sum(_names_a_file(folder, row[path], table.folder) for row in rows) >= LEAST_NAMED * len(rows)


def _names_a_file(folder: Folder, text: str, base: str) -> bool:
    try:
        folder.resolve(text, base)
    except LookupError:
        return False
    return True


def read(folder: Folder, options: SourceOptions) -> Source:
    """Read the table, or several that are named by their part (``train.csv``, ``val.csv``, ``test.csv``).

    Raises:
        SourceError: No table fits, several do, a column is missing, or no image is left.
    """
    files = find_tables(folder, options) if options.label_csv is None else ()
    if len(files) > 1 and all(_part(file) for file in files):
        chosen = list(files)
    else:
        chosen = [tables.chosen_table(folder, options, files, what="a column of paths that name the files and a column of labels")]
    read_tables = [tables.read_table(folder, file) for file in chosen]
    labellings = [_labelling(table, options) for table in read_tables]
    if len({labelling.names for labelling in labellings}) > 1:
        raise SourceError(f"{shorten(chosen)} do not have the same labels", hint="--option label_csv=NAME")
    collector = Collector(folder, NAME, source=folder.name)
    for table, labelling in zip(read_tables, labellings, strict=True):
        collector.notes.append(f"{table.file}: {labelling.said}")
        collect(collector, table, labelling, options, part=_part(table.file) if len(chosen) > 1 else None)
    return collector.finish(labellings[0].names, task=labellings[0].task, where=shorten(chosen))


def _part(file: str) -> str | None:
    return tables.split_of(posixpath.basename(file).split(".")[0])


def _labelling(table: Table, options: SourceOptions) -> Labelling:
    labelling = find_labelling(table, options)
    if labelling is None:
        raise SourceError(
            f"{table.file} has no column of labels; it has: {shorten(table.header)}",
            hint="a column `label`, a column `labels` with 'A|B', or columns of 1, 0 and blank; or --option label_column=NAME",
        )
    return labelling


def collect(collector: Collector, table: Table, labelling: Labelling, options: SourceOptions, *, part: str | None = None) -> None:
    """Add every row of ``table`` whose file and label are there; reject the others with the reason.

    Args:
        collector: Where they go.
        table: The table.
        labelling: How it labels.
        options: Column names.
        part: Official part of all rows, where the table's own name says it.

    Raises:
        SourceError: The table has no column of paths.
    """
    path = table.pick(options.path_column, tables.PATH_COLUMNS)
    if path is None:
        raise SourceError(
            f"{table.file} has no column of paths; it has: {shorten(table.header)}", hint="a column `path`, or --option path_column=NAME"
        )
    about = About(table, options)
    for number, row in enumerate(table.rows, start=2):
        said = row[path].strip() or f"({table.file} row {number})"
        try:
            file = collector.folder.resolve(row[path], table.folder)
            said = file
            label, labels = labelling.read(row)
        except LookupError as error:
            collector.reject(said, str(error.args[0]))
            continue
        about.add(collector, file, row, label=label, labels=labels, part=part)


class About:
    """The columns of a table beside path and label: patient, view, sex, age, source, split."""

    def __init__(self, table: Table, options: SourceOptions) -> None:
        self.patient = table.pick(options.patient_column, tables.PATIENT_COLUMNS)
        self.view = table.find(tables.VIEW_COLUMNS)
        self.sex = table.find(tables.SEX_COLUMNS)
        self.age = table.find(tables.AGE_COLUMNS)
        self.source = table.find(tables.SOURCE_COLUMNS)
        self.split = table.find(tables.SPLIT_COLUMNS)

    def add(
        self,
        collector: Collector,
        file: str,
        row: Sequence[str],
        *,
        label: str | None,
        labels: tuple[float, ...] | None,
        patient: str | None = None,
        part: str | None = None,
    ) -> None:
        """Add a row. ``patient`` is used where the table does not name one; ``part`` likewise for the split."""
        collector.add(
            file,
            label=label,
            labels=labels,
            patient=tables.cell(row, self.patient) or patient,
            source=tables.cell(row, self.source),
            view=tables.cell(row, self.view),
            sex=tables.sex(tables.cell(row, self.sex)),
            age=tables.age(tables.cell(row, self.age)),
            split=tables.split_of(tables.cell(row, self.split)) or part,
        )
