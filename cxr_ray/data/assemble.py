"""Second pass of an ingest: staged facts -> groups, split, and what the manifest says. No Ray, no pixels.

All of it follows from the source's rows, their staged facts and the request, never from the order in which work was done.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cxr_ray import storage
from cxr_ray.data.columns import index_schema, pixels, targets_column
from cxr_ray.data.grouping import CopyPairs, group_ids
from cxr_ray.data.likeness import SIZE
from cxr_ray.data.manifest import CopyInfo, Normalization, OfficialSplit, PartitionInfo, SourceInfo
from cxr_ray.data.sources.base import Source
from cxr_ray.data.split import DROPPED, Split, SplitSpec, make_split
from cxr_ray.data.staging import patient_hash
from cxr_ray.errors import DatasetError

Index = npt.NDArray[np.int64]


# --- what was asked for ---------------------------------------------------------------------------------------------------


def relative_files(source: Source) -> list[str]:
    """Each row's file relative to the source; names as they are, also where the location is a URI that quotes them.

    Raises:
        ValueError: A row lies outside the source's location.
    """
    uri = storage.is_uri(source.location)
    root = (source.location.partition("?")[0] if uri else source.location).rstrip("/") + "/"
    outside = [row for row in source.rows if not row.location.startswith(root)]
    if outside:
        raise ValueError(f"{len(outside):,} rows of {source.name} lie outside {source.location!r}")
    files = [row.location.removeprefix(root) for row in source.rows]
    return [unquote(file.partition("?")[0]) for file in files] if uri else files


def canonical_rows(source: Source, files: Sequence[str], sizes: Mapping[str, int]) -> bytes:
    """The source as text: the same files with the same sizes, labels and patients give the same bytes, wherever they lie."""
    rows = (
        [file, sizes.get(file), row.label, row.labels, row.patient, row.source, row.view, row.sex, row.age, row.split]
        for file, row in zip(files, source.rows, strict=True)
    )
    head = [source.labels.task, source.labels.names, source.rejected]
    return "\n".join(json.dumps(line, ensure_ascii=False) for line in (head, *rows)).encode("utf-8", "surrogatepass")


# --- the rows that could be read --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The N images that could be read, in the order of the source."""

    about: pa.Table
    """The index's columns but ``partition``; ``group_id`` is filled by :func:`arrange`."""
    targets: npt.NDArray[Any]
    """(N,) int64 or (N, K) float32."""
    known_patient: npt.NDArray[np.bool_]
    official: list[str | None]
    thumbnails: npt.NDArray[np.uint8]
    """(N, 64, 64)."""
    part: Index
    """(N,) staged part of each row."""
    offset: Index
    """(N,) row in that part."""
    totals: Index
    """(N,) sum of an image's pixels."""
    squares: Index
    """(N,) sum of their squares."""
    image_bytes: int
    """Pixels of one image."""
    rejected: list[tuple[str, str]]
    """(file, reason) of the others."""


def catalogue(source: Source, files: Sequence[str], staged: pa.Table, *, key: bytes, image_bytes: int) -> Catalogue:
    """Join the source's rows with what their files turned out to be.

    What the source says of a patient, view, sex or age goes before what a DICOM header says.

    Raises:
        DatasetError: No file could be used; the message counts the reasons.
    """
    errors = staged["error"].to_pylist()
    rejected = [(file, reason) for file, reason in zip(files, errors, strict=True) if reason is not None]
    if len(rejected) == len(files):
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in Counter(reason for _, reason in rejected).most_common(5))
        raise DatasetError(
            f"none of the {len(files):,} files could be used: {reasons}", hint="check that these are PNG, JPEG or DICOM radiographs"
        )
    good = np.array([row for row, reason in enumerate(errors) if reason is None], dtype=np.int64)
    staged, rows = staged.take(good), [source.rows[row] for row in good]
    patients = [
        patient_hash(key, "patient", row.patient) if row.patient else tag
        for row, tag in zip(rows, _list(staged, "patient_id"), strict=True)
    ]
    filled = {
        "image_id": _list(staged, "image_id"),
        "patient_id": [patient or patient_hash(key, "file", files[row]) for row, patient in zip(good, patients, strict=True)],
        "source": [row.source for row in rows],
        "view": [row.view or tag for row, tag in zip(rows, _list(staged, "view"), strict=True)],
        "sex": [row.sex or tag for row, tag in zip(rows, _list(staged, "sex"), strict=True)],
        "age": [tag if row.age is None else row.age for row, tag in zip(rows, _list(staged, "age"), strict=True)],
        "synthetic": [False] * len(rows),
        "group_id": [""] * len(rows),
        "partition": [""] * len(rows),
    }
    schema = index_schema(source.labels)
    targets = _targets(source, good)
    columns = {name: targets_column(targets, source.labels) for name in ("label", "labels") if name in schema.names}
    columns |= {
        field.name: pa.array(filled[field.name], field.type) if field.name in filled else staged[field.name]
        for field in schema
        if field.name not in columns
    }
    return Catalogue(
        about=pa.table([columns[name] for name in schema.names], schema=schema),
        targets=targets,
        known_patient=np.array([patient is not None for patient in patients], dtype=bool),
        official=[row.split for row in rows],
        thumbnails=pixels(staged, SIZE, SIZE, column="thumbnail"),
        part=staged["part"].to_numpy(),
        offset=staged["offset"].to_numpy(),
        totals=staged["total"].to_numpy(),
        squares=staged["squares"].to_numpy(),
        image_bytes=image_bytes,
        rejected=rejected,
    )


def _list(table: pa.Table, name: str) -> list[Any]:
    return list(table[name].to_pylist())


def _targets(source: Source, rows: Index) -> npt.NDArray[Any]:
    if source.labels.task == "multiclass":
        position = {name: place for place, name in enumerate(source.labels.names)}
        return np.array([position[source.rows[row].label or ""] for row in rows], dtype=np.int64)
    return np.array([source.rows[row].labels for row in rows], dtype=np.float32)


# --- groups and split -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arranged:
    """A catalogue with groups and partitions."""

    catalogue: Catalogue
    split: Split
    copies: CopyInfo
    official: OfficialSplit | None


def arrange(found: Catalogue, source: Source, exact: CopyPairs, near: CopyPairs, spec: SplitSpec, *, searched: bool) -> Arranged:
    """Group by patient and copy, then split.

    Raises:
        DatasetError: The split cannot be made; see :func:`~cxr_ray.data.split.make_split`.
    """
    patients = np.array(_list(found.about, "patient_id"))
    groups = group_ids(patients.tolist(), exact, near)
    split = make_split(found.targets, groups, spec, names=source.labels.names, official=found.official, keys=_list(found.about, "image_id"))
    columns = {"group_id": groups.tolist(), "partition": split.partitions.tolist()}
    about = found.about
    for name, values in columns.items():
        place = about.schema.get_field_index(name)
        about = about.set_column(place, about.schema.field(place), pa.array(values, pa.string()))
    settled = Catalogue(**{name: getattr(found, name) for name in Catalogue.__slots__} | {"about": about})
    copies = CopyInfo(
        searched=searched,
        exact=len(exact),
        near=len(near),
        mirrored=int(near.mirrored.sum()),
        across_patients=sum(_torn(pairs, patients, found.known_patient) for pairs in (exact, near)),
        across_parts=sum(_torn(pairs, split.partitions, split.partitions != DROPPED) for pairs in (exact, near)),
        label_conflicts=_conflicts(exact, found.targets),
        largest_group=int(np.unique(groups, return_counts=True)[1].max()),
    )
    return Arranged(settled, split, copies, _official(settled, patients, groups, (exact, near)))


def copy_notes(copies: CopyInfo) -> tuple[str, ...]:
    """What a person should hear about the copies."""
    notes = []
    if copies.across_patients:
        notes.append(f"{copies.across_patients:,} pair(s) of copies are of two patients by the source's account; each pair is one group")
    if copies.label_conflicts:
        notes.append(f"{copies.label_conflicts:,} pair(s) of exact copies have different labels; they are kept, in one group")
    return tuple(notes)


def _torn(pairs: CopyPairs, names: npt.NDArray[Any], among: npt.NDArray[np.bool_]) -> int:
    """Pairs whose rows have two names, both of them ``among`` those that count."""
    both = among[pairs.first] & among[pairs.second]
    return int((both & (names[pairs.first] != names[pairs.second])).sum())


def _conflicts(exact: CopyPairs, targets: npt.NDArray[Any]) -> int:
    one, other = targets[exact.first], targets[exact.second]
    differ = (one != other) & ~((one != one) & (other != other))  # two unknowns do not differ
    return int((differ.any(axis=1) if differ.ndim == 2 else differ).sum())


def _official(found: Catalogue, patients: npt.NDArray[Any], groups: npt.NDArray[Any], copies: Sequence[CopyPairs]) -> OfficialSplit | None:
    if not any(found.official):
        return None
    parts = np.array([part or "" for part in found.official])
    given = parts != ""

    def crossing(names: npt.NDArray[Any]) -> int:
        both = np.unique(np.stack([names[given], parts[given]]), axis=1)
        return int((np.unique(both[0], return_counts=True)[1] > 1).sum())

    counts = Counter(parts[given].tolist())
    return OfficialSplit(
        images=dict(sorted(counts.items())),
        patients_crossing=crossing(patients),
        groups_crossing=crossing(groups),
        copies_crossing=sum(_torn(pairs, parts, given) for pairs in copies),
    )


# --- what goes into the manifest ------------------------------------------------------------------------------------------------


def describe_partitions(arranged: Arranged) -> dict[str, PartitionInfo]:
    """Images, patients, labels and grey values of each partition, in order."""
    found, report = arranged.catalogue, arranged.split.report
    partitions, patients = np.array(_list(found.about, "partition")), np.array(_list(found.about, "patient_id"))
    described = {}
    for name, images in report.images.items():
        rows = partitions == name
        described[name] = PartitionInfo(
            images=images,
            patients=len(np.unique(patients[rows])),
            per_label=dict(report.per_label[name]),
            pixels=_normalization(int(found.totals[rows].sum()), int(found.squares[rows].sum()), images * found.image_bytes),
        )
    return described


def describe_sources(about: pa.Table) -> tuple[SourceInfo, ...]:
    """The collections that images come from."""
    return tuple(SourceInfo(name=name, images=count) for name, count in sorted(Counter(_list(about, "source")).items()))


def _normalization(total: int, squares: int, count: int) -> Normalization:
    """Exact sums of uint8 pixels -> mean and standard deviation of pixels in 0..1."""
    variance = (squares * count - total * total) / (count * count)  # of integers of any length: nothing cancels
    return Normalization(mean=total / count / 255, std=max(variance, 0.0) ** 0.5 / 255)


def request_hash(rows: bytes, **asked: Any) -> str:
    """SHA-256 of the source's canonical rows and of everything else that was asked for."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode() + b"\n" + rows).hexdigest()
