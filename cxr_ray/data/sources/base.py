"""What an adapter gives (:class:`Source`) and the two things all adapters are built from.

:class:`Folder` is the listing of a source, taken once; :class:`Collector` takes the adapter's rows and keeps the
promises that hold for every layout: no row without its file, no file without a label or with two of them, and every
file that is left out is counted. Nothing here opens an image: whether a file is one is decided at ingest, by content.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal
from urllib.parse import quote

from pydantic import Field

from cxr_ray import storage
from cxr_ray.errors import SourceError
from cxr_ray.labels import LabelSet, Task
from cxr_ray.settings import Settings

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".dcm", ".dicom", ""})
"""Suffixes, in lower case, of files that may be images; DICOM files often have none."""

TABLE_SUFFIXES = (".csv", ".csv.gz")

_NOT_IMAGES = frozenset({"readme", "license", "licence", "copying", "changelog", "makefile", "dicomdir", "md5sums", "sha256sums"})
_LISTED = 12
"""So many names of folders, columns or files an error message lists."""

# --- what an adapter gives ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One image and what its source says of it."""

    location: str
    """Path or URI of the file."""
    label: str | None
    """The class, for a multiclass source; else None."""
    labels: tuple[float, ...] | None
    """1, 0 or NaN (unknown) for each name of the source's label set, for a multilabel source; else None."""
    patient: str | None
    """The source's own identifier; None where it gives none. Hashed at ingest, never stored."""
    source: str
    """Which collection the image comes from; one source folder may hold several."""
    view: str | None
    """View position in the source's own words (``PA``, ``AP``, ``AP Supine``, ``lateral`` …)."""
    sex: str | None
    """``M`` or ``F``."""
    age: float | None
    """Years."""
    split: str | None
    """The source's official part: ``train``, ``val``, ``test``, or ``train_val`` (to be divided by the user)."""


@dataclass(frozen=True, slots=True)
class Source:
    """A whole source: every file is either in ``rows``, in ``rejected``, or counted in ``notes``."""

    name: str
    labels: LabelSet
    rows: tuple[SourceRow, ...]
    """Sorted by location; no location twice."""
    rejected: tuple[tuple[str, str], ...]
    """(file, reason); the file relative to ``location``, or as the table wrote it where there is none."""
    notes: tuple[str, ...]
    """Sentences for the user: the format, why it was chosen, and what was left out."""
    location: str = ""
    format: str = ""


class SourceOptions(Settings):
    """How a source is read where its layout leaves a choice. An adapter looks only at what concerns it."""

    labels: Literal[2, 3] | None = None
    """Kermany: normal and pneumonia, or normal, bacteria and virus. None: 3."""
    findings: tuple[str, ...] = ()
    """NIH: the findings to keep as labels, in this order (paper 004 kept the seven commonest). Empty: all of them."""
    uncertain: Literal["ignore", "zeros", "ones"] = "ignore"
    """What -1 in a column per finding becomes: unknown (NaN), 0 or 1 (CheXpert paper: U-Ignore, U-Zeros, U-Ones)."""
    blank: Literal["auto", "unknown", "zeros"] = "auto"
    """What a blank in a column per finding becomes. ``auto``: 0 for CheXpert, where it means "not mentioned in the
    report" and the paper takes it as negative; unknown (NaN) in any other table."""
    path_column: str | None = None
    """Column that names the file. None: ``path``, ``file``, ``filename``, ``image`` and the like."""
    label_column: str | None = None
    """Column with one class (multiclass). None: ``label``, ``class``, ``class_label``, ``finding`` and the like."""
    labels_column: str | None = None
    """Column with all findings, ``A|B`` (multilabel). None: ``labels``, ``finding_labels`` and the like, where no ``label`` stands."""
    label_columns: tuple[str, ...] = ()
    """Columns of 1, 0 and blank, one a finding (multilabel). Empty: those that hold nothing else, where no other label column stands."""
    patient_column: str | None = None
    """None: ``patient_id``, ``patient``, ``subject_id`` and the like."""
    label_csv: str | None = Field(default=None, min_length=1)
    """The table to read, relative to the source. None: the one that fits."""


# --- the listing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folder:
    """The files below a source, listed once. Hidden files and folders (``.name``, ``__MACOSX``) are not among them."""

    location: str
    files: tuple[str, ...]
    """Relative to ``location``, with ``/``, sorted."""
    hidden: int = 0
    cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """Tables already read: several adapters look at the same ones."""

    @classmethod
    def scan(cls, location: str) -> Folder:
        """List a source.

        Raises:
            SourceError: Nothing stands there, or no file is in it.
            StorageError: The object store cannot be opened.
        """
        if not storage.exists(location):
            raise SourceError(f"there is no folder at {location}", hint="check the path; a URI such as s3://bucket/folder works too")
        listed = storage.list_files(location)
        files = tuple(file for file in listed if not any(part.startswith(".") or part == "__MACOSX" for part in file.split("/")))
        if not files:
            raise SourceError(f"{location} holds no files", hint="the folder that holds the images, or their labels")
        return cls(location, files, len(listed) - len(files))

    @property
    def name(self) -> str:
        """The last part of the location."""
        return posixpath.basename(self.location.partition("?")[0].replace("\\", "/").rstrip("/")) or "source"

    @cached_property
    def images(self) -> tuple[str, ...]:
        """Files whose name may be that of an image."""
        return tuple(file for file in self.files if is_image_name(file))

    @cached_property
    def tables(self) -> tuple[str, ...]:
        """CSV files in the folder itself or one folder below."""
        return tuple(file for file in self.files if file.lower().endswith(TABLE_SUFFIXES) and file.count("/") <= 1)

    @cached_property
    def by_name(self) -> Mapping[str, list[str]]:
        """Image files by their last part."""
        found: dict[str, list[str]] = defaultdict(list)
        for file in self.images:
            found[posixpath.basename(file)].append(file)
        return found

    @cached_property
    def _is_uri(self) -> bool:
        return storage.is_uri(self.location)

    @cached_property
    def _prefix(self) -> str:
        return storage.join(self.location, "")

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.files)

    def where(self, file: str) -> str:
        """The full path or URI of a listed file."""
        return storage.join(self.location, quote(file)) if self._is_uri else f"{self._prefix}{file}"

    def resolve(self, text: str, base: str = "") -> str:
        """The listed file that a table means.

        Tried in this order: relative to ``base`` (the table's folder), relative to the source, the same without its
        leading folders (tables often begin with the name of the source folder), and, for a bare file name, the one
        file of that name anywhere below.

        Raises:
            LookupError: There is none. The text is the reason to give: ``no file name``, ``path leaves the source
                folder``, ``missing file`` or ``file name is ambiguous``.
        """
        text = text.strip().replace("\\", "/")
        if not text:
            raise LookupError("no file name")
        if not base and "/" not in text:  # most rows of most tables: a bare name needs none of the checks below
            if text in self._known:
                return text
            if len(self.by_name.get(text, ())) == 1:
                return self.by_name[text][0]
        path = posixpath.normpath(text)
        beside_table = posixpath.normpath(posixpath.join(base, text))
        if text.startswith(("/", "~")) or "://" in text or re.match(r"[A-Za-z]:", text) or beside_table.split("/")[0] == "..":
            raise LookupError("path leaves the source folder")
        for candidate in (beside_table, path):
            if candidate in self._known:
                return candidate
        parts = path.split("/")
        for start in range(1, len(parts) - 1):
            if (candidate := "/".join(parts[start:])) in self._known:
                return candidate
        same = self.by_name.get(path, ())
        if len(same) > 1:
            raise LookupError("file name is ambiguous")
        if not same:
            raise LookupError("missing file")
        return same[0]

    def describe(self) -> str:
        """What is there, in one line, for a message."""
        suffixes = Counter(suffix(file) or "no suffix" for file in self.files)
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in suffixes.most_common(6))
        folders = shorten(sorted({file.split("/")[0] for file in self.files if "/" in file}))
        return f"{len(self.files):,} files ({kinds}); folders: {folders}; tables: {shorten(self.tables)}"


def suffix(file: str) -> str:
    """Suffix in lower case; that of ``1.2.840.10008.5`` is none, since DICOM files are often named by such numbers."""
    ending = posixpath.splitext(file)[1].lower()
    return "" if ending[1:].isdigit() else ending


def is_image_name(file: str) -> bool:
    """Whether a file of this name may be an image."""
    return suffix(file) in IMAGE_SUFFIXES and posixpath.basename(file).lower() not in _NOT_IMAGES


def shorten(names: tuple[str, ...] | list[str]) -> str:
    """Names for a message: all, or the first of them and how many more there are."""
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) + more) or "none"


# --- what adapters fill ---------------------------------------------------------------------------------------------------


@dataclass
class Collector:
    """Takes an adapter's rows and settles what is kept, rejected and counted.

    Args:
        folder: The listing.
        format: The adapter's name.
        source: The collection's name for rows that do not give one.
    """

    folder: Folder
    format: str
    source: str
    notes: list[str] = field(default_factory=list)
    _rows: dict[str, SourceRow] = field(default_factory=dict)
    _rejected: list[tuple[str, str]] = field(default_factory=list)
    _spoilt: dict[str, str] = field(default_factory=dict)
    _repeated: int = 0

    def add(
        self,
        file: str,
        *,
        label: str | None = None,
        labels: tuple[float, ...] | None = None,
        patient: str | None = None,
        source: str | None = None,
        view: str | None = None,
        sex: str | None = None,
        age: float | None = None,
        split: str | None = None,
    ) -> None:
        """Take a row for a listed file. A row that repeats an earlier one is counted, one that contradicts it spoils both."""
        row = SourceRow(self.folder.where(file), label, labels, patient, source or self.source, view, sex, age, split)
        before = self._rows.get(file)
        if before is None:
            self._rows[file] = row
        elif _answer(before) != _answer(row):
            self._spoilt.setdefault(file, "conflicting labels")
        elif before.patient != row.patient:
            self._spoilt.setdefault(file, "conflicting patients")
        elif file not in self._spoilt:
            self._repeated += 1

    def reject(self, file: str, reason: str) -> None:
        """Set a row aside."""
        self._rejected.append((file, reason))

    def without_patient(self) -> list[str]:
        """Files added so far whose patient is unknown."""
        return [file for file, row in self._rows.items() if row.patient is None]

    def set_patients(self, patients: Mapping[str, str]) -> None:
        """Name the patients of files added before."""
        for file, patient in patients.items():
            self._rows[file] = replace(self._rows[file], patient=patient)

    def finish(self, labels: tuple[str, ...] | None = None, *, task: Task = "multiclass", where: str = "") -> Source:
        """The source.

        Args:
            labels: The label set in order. None: the classes of the rows, sorted.
            task: The kind of the label set.
            where: What should have named every file (a table), for the note on files that it does not name.

        Raises:
            SourceError: No image is left, or only one class.
        """
        for file, reason in self._spoilt.items():
            del self._rows[file]
            self.reject(file, reason)
        self._count_leftovers(where)
        names = labels or tuple(sorted({row.label for row in self._rows.values() if row.label}))
        self._require_rows(names, task)
        rows = tuple(sorted(self._rows.values(), key=lambda row: row.location))
        rejected = tuple(sorted(self._rejected))
        return Source(
            self.folder.name, LabelSet(names, task), rows, rejected, tuple(self.notes), location=self.folder.location, format=self.format
        )

    def _count_leftovers(self, where: str) -> None:
        named = set(self._rows) | {file for file, _ in self._rejected}
        left = sum(file not in named for file in self.folder.images)
        if left:
            self.notes.append(
                f"{left:,} image file(s) have no row in {where} and are left out" if where else f"{left:,} image file(s) are left out"
            )
        if self._repeated:
            self.notes.append(f"{self._repeated:,} row(s) repeat an earlier row for the same file and are counted once")
        if self.folder.hidden:
            self.notes.append(f"{self.folder.hidden:,} hidden file(s) are ignored")
        if self._rejected:
            self.notes.append(f"{len(self._rejected):,} row(s) rejected: {self._reasons()}")

    def _reasons(self) -> str:
        return ", ".join(f"{reason} ({count:,})" for reason, count in Counter(reason for _, reason in self._rejected).most_common())

    def _require_rows(self, names: tuple[str, ...], task: Task) -> None:
        if not self._rows:
            why = f"; rejected: {self._reasons()}" if self._rejected else ""
            raise SourceError(
                f"{self.folder.location} has no usable image when read as {self.format!r}{why}. Seen: {self.folder.describe()}",
                hint="check that the images lie below this folder, or give another --format",
            )
        if task == "multiclass" and len(names) < 2:
            raise SourceError(
                f"{self.folder.location} has only one class, {names[0]!r}, when read as {self.format!r}. Seen: {self.folder.describe()}",
                hint="the folder above the class folders, or a table with at least two labels",
            )


def _answer(row: SourceRow) -> tuple[object, ...]:
    """What two rows for one file must agree on; NaN equals NaN here."""
    return (row.label, None if row.labels is None else tuple(None if value != value else value for value in row.labels))


def with_notes(source: Source, *first: str) -> Source:
    """``source`` with sentences put before its own."""
    return replace(source, notes=(*first, *source.notes))
