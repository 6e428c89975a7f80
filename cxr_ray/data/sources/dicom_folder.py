"""DICOM files, in folders of any depth, and a CSV with their labels.

A row of the CSV means a file by its path, by its ``SOPInstanceUID``, or, where it has neither column, all files of a
``PatientID``. Where the CSV names no patient, the file's own ``PatientID`` does. Only a few header elements are read;
nothing past them, and no deflated file (306 KB of it can become 650 MB).
"""

from __future__ import annotations

import io
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from cxr_ray import storage
from cxr_ray.data.sources import tables
from cxr_ray.data.sources.base import Collector, Folder, Source, SourceOptions, shorten, suffix
from cxr_ray.data.sources.csv_file import About, collect
from cxr_ray.data.sources.labelling import Labelling, find_labelling
from cxr_ray.data.sources.tables import Table
from cxr_ray.errors import SourceError

NAME = "dicom"
LAYOUT = "*.dcm at any depth and a CSV with a label and a path, SOPInstanceUID or PatientID"

HEADER_BYTES = 1 << 20
"""The elements wanted stand in the first kilobytes; a header longer than this is read as far as it goes."""
_READERS = 8
_WANTED = ("PatientID", "SOPInstanceUID")
_DEFLATED = (b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.4.95", b"1.2.840.10008.1.2.4.205")
"""Transfer syntaxes that pydicom would inflate whole (DICOM PS3.5 A.5; JPIP ... Deflate). Found anywhere in the head: not read."""

logger = logging.getLogger(__name__)


def recognise(folder: Folder, options: SourceOptions) -> str | None:
    """Why the source looks like this layout, or None."""
    count = sum(suffix(file) in {".dcm", ".dicom"} for file in folder.images)
    found = _find_tables(folder, options)
    return f"{count:,} DICOM files and {shorten(list(found))}" if count * 2 > len(folder.images) and found else None


def _find_tables(folder: Folder, options: SourceOptions) -> tuple[str, ...]:
    found = []
    for file in folder.tables:
        try:
            table = tables.read_table(folder, file)
            if find_labelling(table, options) is not None and _key(table, options) is not None:
                found.append(file)
        except SourceError:  # another table of the folder, or one without the column that the user named
            continue
    return tuple(found)


def _key(table: Table, options: SourceOptions) -> tuple[str, int] | None:
    """By what a row means its file: ``path``, ``uid`` or ``patient``, and the column."""
    choices = (
        ("path", table.pick(options.path_column, tables.PATH_COLUMNS)),
        ("uid", table.find(tables.UID_COLUMNS)),
        ("patient", table.pick(options.patient_column, tables.PATIENT_COLUMNS)),
    )
    return next(((kind, column) for kind, column in choices if column is not None), None)


def read(folder: Folder, options: SourceOptions) -> Source:
    """Read the layout.

    Raises:
        SourceError: No table fits, several do, it has no label or no key column, or no image is left.
    """
    what = "a label and a path, SOPInstanceUID or PatientID"
    file = tables.chosen_table(folder, options, _find_tables(folder, options), what=what)
    table = tables.read_table(folder, file)
    labelling, key = find_labelling(table, options), _key(table, options)
    if labelling is None or key is None:
        raise SourceError(
            f"{file} lacks {what}; it has: {shorten(table.header)}", hint="such columns, or --option path_column=NAME, label_column=NAME"
        )
    collector = Collector(folder, NAME, source=folder.name)
    collector.notes.append(f"{file}: {labelling.said}; rows mean files by column {table.header[key[1]]!r}")
    if key[0] == "path":
        _by_path(collector, table, labelling, options)
    else:
        _by_element(collector, table, labelling, options, *key)
    return collector.finish(labelling.names, task=labelling.task, where=file)


def _by_path(collector: Collector, table: Table, labelling: Labelling, options: SourceOptions) -> None:
    collect(collector, table, labelling, options)
    nameless = collector.without_patient()
    patients = {file: header.get("PatientID") for file, header in read_headers(collector.folder, nameless).items()}
    collector.set_patients({file: patient for file, patient in patients.items() if patient})
    if nameless:
        collector.notes.append(
            f"{len(nameless):,} file(s) whose patient the table does not name: taken from their PatientID where they have one"
        )


def _by_element(collector: Collector, table: Table, labelling: Labelling, options: SourceOptions, kind: str, column: int) -> None:
    element = "SOPInstanceUID" if kind == "uid" else "PatientID"
    headers = read_headers(collector.folder, collector.folder.images)
    files: dict[str, list[str]] = defaultdict(list)
    for file, header in headers.items():
        if header.get(element):
            files[header[element]].append(file)
    about = About(table, options)
    for number, row in enumerate(table.rows, start=2):
        value = row[column].strip()
        if not files.get(value):
            collector.reject(value or f"({table.file} row {number})", "missing file")
            continue
        for file in files[value]:
            try:
                label, labels = labelling.read(row)
            except LookupError as error:
                collector.reject(file, str(error.args[0]))
            else:
                about.add(collector, file, row, label=label, labels=labels, patient=headers[file].get("PatientID"))


def read_headers(folder: Folder, files: Iterable[str]) -> dict[str, Mapping[str, str]]:
    """The identifying elements of each file; empty for a file that is no DICOM or cannot be read (ingest will say why)."""
    listed = list(files)
    if not listed:
        return {}
    from pydicom import config

    with config.disable_value_validation(), ThreadPoolExecutor(_READERS) as pool:  # invalid values of real files are not our concern
        return dict(zip(listed, pool.map(lambda file: read_header(folder.where(file)), listed), strict=True))


def read_header(location: str) -> Mapping[str, str]:
    """``PatientID`` and ``SOPInstanceUID`` of one file, as far as it has them."""
    from pydicom import dcmread

    try:
        data = _head(location)
        if any(uid in data for uid in _DEFLATED):
            return {}
        dataset = dcmread(io.BytesIO(data), stop_before_pixels=True, force=True, specific_tags=list(_WANTED))
        return {name: text for name in _WANTED if (text := str(dataset.get(name) or "").strip())}
    except Exception as error:  # untrusted bytes: pydicom raises nearly anything on them, RecursionError too
        logger.debug("a DICOM header cannot be read: %s", type(error).__name__)
        return {}


def _head(location: str) -> bytes:
    filesystem, path = storage.open_location(location)
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read(HEADER_BYTES))
