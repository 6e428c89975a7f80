"""CSV tables of labels: reading them, finding their columns, and the words they use for sex, age, view and split."""

from __future__ import annotations

import csv
import gzip
import io
import math
import posixpath
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from cxr_ray import storage
from cxr_ray.data.sources.base import Folder, SourceOptions, shorten
from cxr_ray.errors import SourceError

OLDEST = 120.0
"""Ages above are slips of the pen (NIH has 155 and 414) and are taken as unknown."""

PATH_COLUMNS = (
    "path", "file", "filename", "file_name", "filepath", "file_path",
    "image", "image_path", "image_file", "image_name", "image_index", "img",
)  # fmt: skip
PATIENT_COLUMNS = ("patient_id", "patientid", "patient", "subject_id", "subject")
VIEW_COLUMNS = ("view", "view_position", "viewposition", "projection")
SEX_COLUMNS = ("sex", "gender", "patient_sex", "patient_gender", "patientsex")
AGE_COLUMNS = ("age", "patient_age", "age_years", "patientage")
SOURCE_COLUMNS = ("source", "dataset", "collection")
SPLIT_COLUMNS = ("split", "partition", "subset", "set")
UID_COLUMNS = ("sop_instance_uid", "sopinstanceuid")

_BLANK = frozenset({"", "nan", "n/a", "na", "null", "unknown", "todo", "?", "-"})
_SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
    "train_val": "train_val", "trainval": "train_val", "train-val": "train_val",
}  # fmt: skip
_YEARS_OF = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV: header and rows of text, each row as long as the header."""

    file: str
    """Where it stands, relative to the source."""
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def folder(self) -> str:
        """The folder it stands in, relative to the source."""
        return posixpath.dirname(self.file)

    def find(self, names: Sequence[str]) -> int | None:
        """Position of the first of ``names`` that is a column; case, spaces and punctuation do not matter. None: there is none."""
        have = [plain(name) for name in self.header]
        return next((have.index(name) for name in names if name in have), None)

    def named(self, column: str) -> int:
        """Position of a column that the user named.

        Raises:
            SourceError: There is no such column; the message lists those there are.
        """
        position = self.find((plain(column),))
        if position is None:
            raise SourceError(f"{self.file} has no column {column!r}; it has: {shorten(self.header)}", hint="one of these columns")
        return position

    def pick(self, wanted: str | None, names: Sequence[str]) -> int | None:
        """The column that the user named, else the first of ``names``, else None."""
        return self.named(wanted) if wanted is not None else self.find(names)


def plain(name: str) -> str:
    """A column's name in lower case with ``_`` for all that is no letter or digit: ``View Position`` -> ``view_position``."""
    return re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")


def read_table(folder: Folder, file: str) -> Table:
    """Read a CSV (gzip too), separated by comma, semicolon or tab, in UTF-8 or, failing that, Windows-1252.

    Raises:
        SourceError: It is no CSV, or has no row.
    """
    if file not in folder.cache:
        folder.cache[file] = _parse(folder, file)
    table: Table = folder.cache[file]
    return table


def _parse(folder: Folder, file: str) -> Table:
    try:
        data = storage.read_bytes(folder.where(file))
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        text = _text(data)
        first = text[: text.find("\n")] if "\n" in text else text
        delimiter = max(",;\t", key=first.count)
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(cell.strip() for cell in line)]
    except (csv.Error, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise SourceError(f"{file} cannot be read as a CSV table: {error}") from None
    if len(lines) < 2:
        raise SourceError(f"{file} has no rows below its header", hint="a header line, then one line an image")
    header = tuple(cell.strip() for cell in lines[0])
    width = len(header)
    rows = tuple(tuple(line[:width]) + ("",) * (width - len(line)) for line in lines[1:])
    return Table(file, header, rows)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def column_names(folder: Folder, file: str) -> tuple[str, ...]:
    """The plain names of a table's columns; empty where it cannot be read as one."""
    try:
        return tuple(plain(name) for name in read_table(folder, file).header)
    except SourceError:
        return ()


def tables_with(folder: Folder, *columns: str) -> tuple[str, ...]:
    """Tables of the source that have all these columns (plain names)."""
    return tuple(file for file in folder.tables if set(columns) <= set(column_names(folder, file)))


def describe(folder: Folder) -> str:
    """The source's tables with their columns, for a message."""
    return "; ".join(f"{file} has {shorten(column_names(folder, file))}" for file in folder.tables[:4]) or "none"


def chosen_table(folder: Folder, options: SourceOptions, found: Sequence[str], *, what: str) -> str:
    """The table to read: the one the user named, else the only one of ``found``.

    Raises:
        SourceError: The named one is missing, or there is none, or several fit.
    """
    if options.label_csv is not None:
        name = posixpath.normpath(options.label_csv.replace("\\", "/"))
        if name not in folder.files:
            raise SourceError(
                f"{folder.location} has no table {options.label_csv!r}; it has: {shorten(folder.tables)}", hint="one of these"
            )
        return name
    if not found:
        raise SourceError(
            f"{folder.location} has no table with {what}. Seen: {folder.describe()}",
            hint="another --format, or --option path_column=NAME, label_column=NAME",
        )
    if len(found) > 1:
        raise SourceError(f"{folder.location} has several tables with {what}: {shorten(list(found))}", hint="--option label_csv=NAME")
    return found[0]


# --- words ----------------------------------------------------------------------------------------------------------------


def cell(row: Sequence[str], position: int | None) -> str | None:
    """The stripped text, or None where it is blank, says that it is unknown, or there is no such column."""
    if position is None:
        return None
    text = row[position].strip()
    return None if text.lower() in _BLANK else text


def sex(text: str | None) -> str | None:
    """``M`` or ``F``; None for anything else."""
    return {"m": "M", "male": "M", "f": "F", "female": "F"}.get((text or "").strip().lower())


def age(text: str | None) -> float | None:
    """Years. Takes ``58``, ``55.0`` and DICOM's ``058Y``, ``006M``, ``002W``, ``010D``; None for anything else (``50+``) and above 120."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([YMWD]?)\s*", (text or "").upper())
    if match is None:
        return None
    years = float(match[1]) * _YEARS_OF[match[2]]
    return years if math.isfinite(years) and years <= OLDEST else None


def split_of(text: str | None) -> str | None:
    """``train``, ``val``, ``test`` or ``train_val`` from the words in use; None for anything else."""
    return _SPLITS.get((text or "").strip().lower().replace(" ", "_"))


def finding(text: str, *, uncertain: str, blank: str) -> float | None:
    """1, 0 or NaN from a cell of a column per finding; None where the cell holds something else.

    Args:
        text: ``1``, ``0``, ``-1`` (uncertain), blank; with or without ``.0``.
        uncertain: ``ignore`` (NaN), ``zeros`` or ``ones``.
        blank: ``unknown`` (NaN) or ``zeros``.
    """
    text = text.strip().lower().removesuffix(".0")
    if text == "1":
        return 1.0
    if text == "0":
        return 0.0
    if text == "-1":
        return {"ignore": math.nan, "zeros": 0.0, "ones": 1.0}[uncertain]
    if text in {"", "nan"}:
        return 0.0 if blank == "zeros" else math.nan
    return None


def split_findings(text: str) -> tuple[str, ...]:
    """``A|B`` -> (A, B), stripped, without repetition; ``No Finding`` (and the like) -> nothing."""
    names = dict.fromkeys(name.strip() for name in text.split("|"))
    return tuple(name for name in names if name and plain(name) not in {"no_finding", "no_findings"})
