"""An external test: images of another place, in any layout that ``ingest`` reads, against the labels that a model answers.

Labels are matched by name, whatever their capitals; what is called otherwise is said in a mapping. Nothing is guessed: a label without a
counterpart is left out and counted.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from cxr_ray.data.ingest import ingest
from cxr_ray.data.progress import Report
from cxr_ray.data.shards import Dataset
from cxr_ray.data.sources.base import Source, SourceRow
from cxr_ray.data.split import SplitSpec
from cxr_ray.errors import ConfigError, SourceError
from cxr_ray.imaging.preprocess import PreprocessSpec
from cxr_ray.labels import LabelSet

PART = "train"
"""Name that the one part of such a DATASET has; the model was not trained on it."""


@dataclass(frozen=True, slots=True)
class External:
    """A source in a model's labels.

    Args:
        source: Its rows, with the model's labels.
        notes: What was matched and what was left out, in sentences.
    """

    source: Source
    notes: tuple[str, ...]


def parse_mapping(text: str | None) -> dict[str, str]:
    """``THEIRS=OURS,THEIRS=OURS`` as a mapping.

    Raises:
        ConfigError: Something else, or a label of theirs twice.
    """
    if text is None:
        return {}
    faults, found = [], {}
    for part in text.split(","):
        theirs, equals, ours = (piece.strip() for piece in part.partition("="))
        if not (theirs and equals and ours):
            faults.append(f"{part!r}: expected THEIRS=OURS, such as COVID=COVID-19")
        elif theirs in found:
            faults.append(f"{theirs!r} is mapped twice")
        found[theirs] = ours
    if faults:
        raise ConfigError(faults, where="--map")
    return found


def in_our_labels(source: Source, labels: LabelSet, mapping: Mapping[str, str]) -> External:
    """A source's rows with the labels of a model.

    Args:
        source: As an adapter read it.
        labels: The model's.
        mapping: Their name -> ours; names that agree need none. Several of theirs may be one of ours.

    Raises:
        ConfigError: The mapping names a label that is not there.
        SourceError: No label has a counterpart, no image is left, or one side has one label an image and the other many.
    """
    ours_of = _counterparts(source.labels, labels, mapping)
    if source.labels.task != labels.task:
        raise SourceError(
            f"{source.location} is a {source.labels.task} source, the model a {labels.task} one",
            hint="a table with one label an image for a multiclass model, with a column or a list of findings for a multilabel one",
        )
    told = ", ".join(f"{theirs} as {ours}" for theirs, ours in ours_of.items())
    unknown = [name for name in source.labels.names if name not in ours_of]
    rows = [_relabelled(row, source.labels, labels, ours_of) for row in source.rows]
    kept = tuple(row for row in rows if row is not None)
    notes = [f"External data {source.name}: labels read as {told}."]
    if unknown:
        notes.append(f"Left out, for the model has no such label: {_counts(source, unknown)}.")
    absent = [name for name in labels.names if name not in ours_of.values()]
    if absent:
        notes.append(f"No image there is labelled {', '.join(absent)}: figures that need them are undefined.")
    if not kept:
        raise SourceError(f"{source.location} has no image with a label of the model", hint="--map THEIRS=OURS,…")
    return External(replace(source, labels=labels, rows=kept), tuple(notes))


@contextmanager
def ingested(external: External, preprocess: PreprocessSpec, report: Report | None = None) -> Generator[Dataset, None, None]:
    """A temporary DATASET of all images in one part, preprocessed as the model's; gone after the block. Joins, or starts, Ray."""
    with tempfile.TemporaryDirectory(prefix="cxr-ray-external-") as folder:
        split = SplitSpec(fractions=(1.0, 0.0, 0.0))
        yield ingest(external.source, f"{folder}/dataset", preprocess=preprocess, split=split, report=report)


def _counterparts(theirs: LabelSet, ours: LabelSet, mapping: Mapping[str, str]) -> dict[str, str]:
    faults = [f"{name!r} is no label of the source; it has {', '.join(theirs.names)}" for name in mapping if name not in theirs.names]
    faults += [f"{name!r} is no label of the model; it has {', '.join(ours.names)}" for name in mapping.values() if name not in ours.names]
    if faults:
        raise ConfigError(faults, where="--map")
    plain = {name.casefold(): name for name in ours.names}
    found = {name: plain[name.casefold()] for name in theirs.names if name.casefold() in plain} | dict(mapping)
    if not found:
        raise SourceError(
            f"no label of the source ({', '.join(theirs.names)}) is one of the model's ({', '.join(ours.names)})",
            hint="--map THEIRS=OURS,…",
        )
    return {name: found[name] for name in theirs.names if name in found}


def _relabelled(row: SourceRow, theirs: LabelSet, ours: LabelSet, ours_of: Mapping[str, str]) -> SourceRow | None:
    """The row in our labels; None where it has none of them."""
    if row.labels is None:
        ours_name = ours_of.get(row.label or "")
        return replace(row, label=ours_name) if ours_name is not None else None
    answers = np.full(len(ours), np.nan)
    for name, answer in zip(theirs.names, row.labels, strict=True):
        if name in ours_of:
            place = ours.index(ours_of[name])
            answers[place] = np.fmax(answers[place], answer)  # present if any of theirs is
    return replace(row, labels=tuple(answers.tolist()))


def _counts(source: Source, names: list[str]) -> str:
    if source.labels.task == "multilabel":
        return ", ".join(names)
    images = Counter(row.label for row in source.rows)
    return ", ".join(f"{name} ({images[name]} images)" for name in names)
