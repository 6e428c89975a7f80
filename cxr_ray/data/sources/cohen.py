"""covid-chestxray-dataset (Cohen et al., 2020) and sets with its ``metadata.csv`` (Figure 1 COVID-19).

``metadata.csv`` with ``patientid``, ``finding``, ``view``, ``modality``, ``filename`` and ``folder``. Where there is no
column of file names (Figure 1), the file is the one named after ``patientid``, and a letter after the number (``COVID-00003b``)
counts the images of one patient.

``finding`` is taken as it stands (``Pneumonia/Viral/COVID-19`` in the newest release); rows without one, or with
``todo`` or ``Unknown``, are rejected, and so is what is no X-ray (CT).
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Sequence

from cxr_ray.data.sources import tables
from cxr_ray.data.sources.base import Collector, Folder, Source, SourceOptions
from cxr_ray.data.sources.csv_file import About
from cxr_ray.data.sources.tables import Table

NAME = "cohen"
LAYOUT = "metadata.csv (`patientid`, `finding`, `view`, and mostly `filename`, `folder`) beside images/"

_COLUMNS = ("patientid", "finding", "view")
_XRAYS = frozenset({"x_ray", "xray", "cr", "dx", "dr", "rg", ""})
_CT_VIEWS = frozenset({"ct", "axial", "coronal"})


def recognise(folder: Folder, options: SourceOptions) -> str | None:
    """Why the source looks like this layout, or None."""
    found = tables.tables_with(folder, *_COLUMNS)
    return f"{found[0]}: columns 'patientid', 'finding' and 'view'" if found else None


def read(folder: Folder, options: SourceOptions) -> Source:
    """Read the layout.

    Raises:
        SourceError: No table of these columns, several, or no image is left.
    """
    what = "the columns 'patientid', 'finding' and 'view'"
    file = tables.chosen_table(folder, options, tables.tables_with(folder, *_COLUMNS), what=what)
    table = tables.read_table(folder, file)
    finding = table.named(options.label_column or "finding")
    view, modality = table.find(tables.VIEW_COLUMNS), table.find(("modality",))
    locate, said_of, patient_of = _files(folder, table)
    collector = Collector(folder, NAME, source=folder.name)
    about = About(table, options)
    about.patient = None  # the letter that counts a patient's images is cut off below
    for row in table.rows:
        said = said_of(row)
        try:
            said = found = locate(row)
        except LookupError as error:
            collector.reject(said, str(error.args[0]))
            continue
        label = tables.cell(row, finding)
        if (kind := _not_an_xray(tables.cell(row, modality), tables.cell(row, view))) is not None:
            collector.reject(said, f"not an X-ray ({kind})")
        elif label is None:
            collector.reject(said, "no label")
        else:
            about.add(collector, found, row, label=label, labels=None, patient=patient_of(row))
    collector.notes.append(f"{file}: classes from column {table.header[finding]!r}")
    return collector.finish(where=file)


def _not_an_xray(modality: str | None, view: str | None) -> str | None:
    """What it is instead; None for an X-ray."""
    if tables.plain(modality or "") not in _XRAYS:
        return modality
    return view if tables.plain(view or "") in _CT_VIEWS else None


Row = Sequence[str]


def _files(folder: Folder, table: Table) -> tuple[Callable[[Row], str], Callable[[Row], str], Callable[[Row], str | None]]:
    """How a row's file is found, how the row is called where it is not, and how its patient is called."""
    patient = table.named("patientid")
    filename, below = table.find(("filename", *tables.PATH_COLUMNS)), table.find(("folder",))
    if filename is not None:

        def path(row: Row) -> str:
            return posixpath.join(tables.cell(row, below) or "", row[filename].strip()) if row[filename].strip() else ""

        def by_path(row: Row) -> str:
            try:
                return folder.resolve(path(row), table.folder)
            except LookupError as error:
                if error.args[0] != "missing file":
                    raise
                return folder.resolve(row[filename], table.folder)  # copies of the set often move the images

        return by_path, lambda row: path(row) or f"({table.file} patient {row[patient].strip()})", lambda row: tables.cell(row, patient)

    stems: dict[str, list[str]] = defaultdict(list)
    for file in folder.images:
        stems[posixpath.splitext(posixpath.basename(file))[0]].append(file)

    def by_stem(row: Row) -> str:
        found = stems.get(row[patient].strip(), [])
        if len(found) != 1:
            raise LookupError("file name is ambiguous" if found else "missing file")
        return found[0]

    def without_letter(row: Row) -> str | None:
        name = tables.cell(row, patient)
        return re.sub(r"(?<=\d)[a-z]$", "", name) if name else None

    return by_stem, lambda row: row[patient].strip() or f"({table.file}, a row without patientid)", without_letter
