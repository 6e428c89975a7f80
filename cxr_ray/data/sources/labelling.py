"""Which columns of a general table hold the labels, and what they say of a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cxr_ray.data.sources import tables
from cxr_ray.data.sources.base import SourceOptions, shorten
from cxr_ray.data.sources.tables import Table
from cxr_ray.errors import SourceError
from cxr_ray.labels import Task

LABEL_COLUMNS = ("label", "class", "class_label", "class_name", "category", "diagnosis", "finding", "target")
LABELS_COLUMNS = ("labels", "finding_labels", "findings")

_NOT_LABELS = frozenset(
    (
        *tables.PATH_COLUMNS, *tables.PATIENT_COLUMNS, *tables.VIEW_COLUMNS, *tables.SEX_COLUMNS, *tables.AGE_COLUMNS,
        *tables.SOURCE_COLUMNS, *tables.SPLIT_COLUMNS, *tables.UID_COLUMNS, "", "index", "id", "unnamed_0", "synthetic", "fold",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Labelling:
    """How a table says what is on an image.

    Exactly one of the three forms: ``one`` (a class), ``many`` (``A|B``) or ``each`` (a column per finding).
    """

    task: Task
    names: tuple[str, ...] | None
    """The label set of a multilabel table. None: the classes found."""
    said: str
    """For the user: which columns, and why these."""
    one: int | None = None
    many: int | None = None
    each: tuple[int, ...] = ()
    uncertain: str = "ignore"
    blank: str = "unknown"

    def read(self, row: Sequence[str]) -> tuple[str | None, tuple[float, ...] | None]:
        """(class, None) or (None, vector).

        Raises:
            LookupError: The row has no label, or one that is not a number where one is due. The text is the reason.
        """
        if self.one is not None:
            label = tables.cell(row, self.one)
            if label is None:
                raise LookupError("no label")
            return label, None
        if self.many is not None:
            text = tables.cell(row, self.many)
            if text is None:
                raise LookupError("no label")
            there = set(tables.split_findings(text))
            return None, tuple(float(name in there) for name in self.names or ())
        values = [tables.finding(row[position], uncertain=self.uncertain, blank=self.blank) for position in self.each]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            raise LookupError("label is not 1, 0, -1 or blank")
        if all(math.isnan(value) for value in known):
            raise LookupError("no label")
        return None, tuple(known)


def find_labelling(table: Table, options: SourceOptions) -> Labelling | None:
    """How this table labels its rows; None where no column could be a label.

    What the user named comes first; then one class column; then an ``A|B`` column; then columns of 1, 0 and blank.

    Raises:
        SourceError: A column that the user named is missing, or two forms were named at once.
    """
    named = [name for name in ("label_column", "labels_column", "label_columns") if getattr(options, name)]
    if len(named) > 1:
        raise SourceError(f"{' and '.join(named)} were given; a table is read in one form", hint=f"only {named[0]}")
    blank = "zeros" if options.blank == "zeros" else "unknown"
    if options.label_columns:
        return _each(table, tuple(table.named(name) for name in options.label_columns), options.uncertain, blank, "as asked")
    if not options.labels_column and (one := table.pick(options.label_column, LABEL_COLUMNS)) is not None:
        also = table.find(LABELS_COLUMNS)
        more = (
            f"; column {table.header[also]!r} (several findings an image) is not used"
            if also is not None and not options.label_column
            else ""
        )
        return Labelling("multiclass", None, f"classes from column {table.header[one]!r}{more}", one=one)
    if not options.label_column and (many := table.pick(options.labels_column, LABELS_COLUMNS)) is not None:
        names = sorted({name for row in table.rows for name in tables.split_findings(tables.cell(row, many) or "")})
        if not names:
            raise SourceError(f"column {table.header[many]!r} of {table.file} names no finding", hint="text such as 'Edema|Effusion' in it")
        return Labelling("multilabel", tuple(names), f"findings from column {table.header[many]!r}", many=many)
    each = tuple(position for position in range(len(table.header)) if _holds_findings(table, position))
    return _each(table, each, options.uncertain, blank, "they hold 1, 0 and blank only") if each else None


def _each(table: Table, each: tuple[int, ...], uncertain: str, blank: str, why: str) -> Labelling:
    names = tuple(table.header[position] for position in each)
    said = f"findings from the columns {shorten(names)} ({why}; -1: {uncertain}, blank: {blank})"
    return Labelling("multilabel", names, said, each=each, uncertain=uncertain, blank=blank)


def _holds_findings(table: Table, position: int) -> bool:
    """Whether a column holds 1, 0, -1 and blank only, a 1 among them, and no name that says it is something else."""
    if tables.plain(table.header[position]) in _NOT_LABELS:
        return False
    values = {row[position].strip().lower().removesuffix(".0") for row in table.rows}
    return "1" in values and values <= {"1", "0", "-1", "", "nan"}
