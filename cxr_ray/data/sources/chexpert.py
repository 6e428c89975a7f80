"""CheXpert (Irvin et al., AAAI 2019): ``train.csv`` and ``valid.csv`` with 14 columns of 1, 0, -1 and blank.

-1 ("uncertain") follows ``SourceOptions.uncertain``. Blank means "not mentioned in the report"; as in the paper's
models it is taken as negative unless ``SourceOptions.blank`` says ``unknown``: hardly any report states a 0, and
``No Finding`` has none at all.
"""

from __future__ import annotations

import posixpath
import re

from cxr_ray.data.sources import tables
from cxr_ray.data.sources.base import Collector, Folder, Source, SourceOptions, shorten
from cxr_ray.data.sources.labelling import Labelling
from cxr_ray.data.sources.tables import Table
from cxr_ray.errors import SourceError

NAME = "chexpert"
LAYOUT = "train.csv and valid.csv (`Path`, `Frontal/Lateral`, 14 findings) beside train/ and valid/"

_COLUMNS = ("path", "frontal_lateral")
_ABOUT = frozenset({"path", "sex", "age", "frontal_lateral", "ap_pa", ""})
_PATIENT = re.compile(r"(?:^|/)(patient\d+)(?:/|$)")


def recognise(folder: Folder, options: SourceOptions) -> str | None:
    """Why the source looks like this layout, or None."""
    found = tables.tables_with(folder, *_COLUMNS)
    return f"{shorten(list(found))}: columns 'Path' and 'Frontal/Lateral'" if found else None


def read(folder: Folder, options: SourceOptions) -> Source:
    """Read all tables of the layout (or the one of ``options.label_csv``); a table's name is its official part.

    Raises:
        SourceError: No such table, tables with different findings, or no image is left.
    """
    what = "the columns 'Path' and 'Frontal/Lateral'"
    found = tables.tables_with(folder, *_COLUMNS)
    files = found if found and options.label_csv is None else (tables.chosen_table(folder, options, found, what=what),)
    collector = Collector(folder, NAME, source="CheXpert")
    names: tuple[str, ...] = ()
    for file in files:
        table = tables.read_table(folder, file)
        each = tuple(position for position, name in enumerate(table.header) if tables.plain(name) not in _ABOUT)
        here = tuple(table.header[position] for position in each)
        if not here or (names and here != names):
            raise SourceError(f"{file} has other findings than {files[0]}: {shorten(here)}", hint="--option label_csv=NAME")
        names = here
        blank = "unknown" if options.blank == "unknown" else "zeros"
        _collect(collector, table, Labelling("multilabel", names, "", each=each, uncertain=options.uncertain, blank=blank))
        collector.notes.append(f"{file}: {len(names)} findings; -1 (uncertain): {options.uncertain}; blank (not mentioned): {blank}")
    return collector.finish(names, task="multilabel", where=shorten(list(files)))


def _collect(collector: Collector, table: Table, labelling: Labelling) -> None:
    path, frontal = table.named("Path"), table.named("Frontal/Lateral")
    position, sex, age = table.find(("ap_pa",)), table.find(tables.SEX_COLUMNS), table.find(tables.AGE_COLUMNS)
    split = tables.split_of(posixpath.basename(table.file).split(".")[0])
    for number, row in enumerate(table.rows, start=2):
        said = row[path].strip() or f"({table.file} row {number})"
        try:
            said = file = collector.folder.resolve(row[path], table.folder)
            _, labels = labelling.read(row)
        except LookupError as error:
            collector.reject(said, str(error.args[0]))
            continue
        side = row[frontal].strip().lower()
        match = _PATIENT.search(row[path].replace("\\", "/"))
        collector.add(
            file,
            labels=labels,
            patient=match[1] if match else None,
            view=(tables.cell(row, position) if side == "frontal" else None) or side or None,
            sex=tables.sex(tables.cell(row, sex)),
            age=tables.age(tables.cell(row, age)),
            split=split,
        )
