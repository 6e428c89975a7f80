"""Which partition an image belongs to: disjoint by group (patient and near copies), stratified by label.

A split is made once, here, from labels and groups alone, and stored. It follows from the seed and from the names of the
groups (and of the rows, for image-level splits and undersampling), not from the order of the rows. How groups are
spread evenly is :mod:`cxr_ray.data.stratify`'s matter; here are the policies, and the report on what came of them.

Shape letters: N images, K labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from cxr_ray.data.stratify import hashes, stratify
from cxr_ray.errors import DatasetError
from cxr_ray.settings import Settings

DROPPED = ""
"""The partition of a row that undersampling left out."""

Names = npt.NDArray[np.str_]
Index = npt.NDArray[np.int64]


class SplitSpec(Settings):
    """How a data set is divided."""

    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15)
    """Shares of train, val and test; they sum to 1, train is not 0. ``(1, 0, 0)``: all in one part. Without meaning with ``folds``."""
    folds: int | None = Field(default=None, ge=2)
    """So many folds (``fold-0`` …) beside a test part, for cross-validation. None: train, val, test."""
    test: float = Field(default=0.2, ge=0.0, lt=1.0)
    """Share of the test part beside the folds. Without meaning without ``folds``."""
    seed: int = Field(default=0, ge=0)
    policy: Literal["grouped", "image", "official"] = "grouped"
    """``grouped``: no group in two partitions. ``image``: image by image, groups ignored, as many papers do; a patient's
    images then stand on both sides, and figures from it are too good. ``official``: the source's own test part; its train
    and val too where it has both, else what is not test is divided by group."""
    undersample: bool = False
    """Cut the larger classes of the training part, at random. Multiclass only, and not with folds, which validate too."""
    undersample_ratio: float = Field(default=1.0, ge=1.0)
    """A class keeps at most so many times the images of the rarest one."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(fraction < 0 for fraction in self.fractions) or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"fractions must be 0 or more and sum to 1, got {', '.join(f'{value:g}' for value in self.fractions)}")
        if self.fractions[0] == 0:
            raise ValueError("the share of train is 0; to put all in one part use 1,0,0")
        if self.undersample and self.folds is not None:
            raise ValueError("undersample needs a training part; folds are trained and validated on in turn")
        return self

    @property
    def shares(self) -> dict[str, float]:
        """The partitions that get images, in order, with their shares."""
        if self.folds is None:
            named = zip(("train", "val", "test"), self.fractions, strict=True)
            return {name: share for name, share in named if share > 0}
        each = (1 - self.test) / self.folds
        shares = {f"fold-{index}": each for index in range(self.folds)}
        return shares | ({"test": self.test} if self.test else {})


@dataclass(frozen=True, slots=True)
class SplitReport:
    """What a split came to."""

    policy: str
    images: Mapping[str, int]
    """Per partition."""
    groups: Mapping[str, int]
    """Per partition: distinct groups in it."""
    per_label: Mapping[str, Mapping[str, int]]
    """Per partition and label: images that have it."""
    groups_crossing: int
    """Groups with images in more than one partition; 0 where the policy is ``grouped``."""
    images_crossing: int
    """Images of those groups."""
    crossings: Mapping[str, int] = field(default_factory=dict)
    """Groups that two partitions share, by ``train/test`` and the like; pairs that share none are left out."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Images that undersampling left out, per label."""
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Split:
    """Partitions of the rows, and the report on them."""

    partitions: Names
    """(N,) partition names; :data:`DROPPED` for rows that undersampling left out."""
    report: SplitReport

    @property
    def dropped(self) -> Index:
        """Positions of the rows that undersampling left out."""
        return np.flatnonzero(self.partitions == DROPPED)


def assign(targets: npt.ArrayLike, groups: Sequence[Any] | npt.NDArray[Any], spec: SplitSpec, **more: Any) -> Names:
    """Only the partition names of :func:`make_split`, which says what ``more`` may be."""
    return make_split(targets, groups, spec, **more).partitions


def make_split(
    targets: npt.ArrayLike,
    groups: Sequence[Any] | npt.NDArray[Any],
    spec: SplitSpec,
    *,
    names: Sequence[str] | None = None,
    official: Sequence[str | None] | None = None,
    keys: Sequence[str] | None = None,
) -> Split:
    """Divide a data set.

    Args:
        targets: (N,) class indices, or (N, K) of 1, 0 and NaN (unknown).
        groups: (N,) names or numbers; rows that share one stay together.
        spec: How.
        names: Of the K labels, for messages and the report. None: their numbers.
        official: (N,) ``train``, ``val``, ``test``, ``train_val``; needed with the policy ``official``.
        keys: (N,) a name a row, such as the hash of the image. None: the row's position, so that image-level splits and
            undersampling depend on the order of the rows.

    Returns:
        The split.

    Raises:
        DatasetError: A class has fewer groups than there are partitions (the message counts them); the policy is
            ``official`` and the source has no such split, or not for all rows; undersampling of a multilabel task; or
            lengths differ.
    """
    data = _Data.check(targets, groups, names, keys)
    if spec.undersample and data.multilabel:
        raise DatasetError(
            "undersampling is for one class an image; here an image has several labels", hint="leave it out; class_weights: balanced"
        )
    notes: list[str] = []
    if spec.policy == "official":
        partitions = _official(data, spec, official, notes)
    else:
        units = data.distinct_keys() if spec.policy == "image" else data.groups
        partitions = _stratify(data, np.arange(len(data.groups)), units, spec.shares, spec.seed, notes)
    if spec.policy == "image":
        notes.append("split image by image, as many papers do: figures from it are too good where a patient has several images")
    crossing = _crossings(partitions, data.groups)
    if spec.policy == "official" and crossing:
        notes.append(f"{sum(map(len, crossing.values())):,} group(s) stand on both sides of the source's own split; it is left as it is")
    dropped = _undersample(data, partitions, spec) if spec.undersample else np.empty(0, np.int64)
    partitions[dropped] = DROPPED
    return Split(partitions, _report(data, partitions, spec, crossing, notes, dropped_targets=data.targets[dropped]))


# --- the rows ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Data:
    targets: npt.NDArray[Any]
    groups: Names
    names: tuple[str, ...]
    keys: Names

    @classmethod
    def check(cls, targets: npt.ArrayLike, groups: Any, names: Sequence[str] | None, keys: Sequence[str] | None) -> _Data:
        array = np.asarray(targets)
        nameless = sum(group is None or group == "" for group in groups)
        if nameless:
            raise DatasetError(f"{nameless:,} images have no group; an image of an unknown patient is a group of its own")
        group_names = np.asarray(groups).astype(str)
        if array.ndim not in (1, 2) or len(array) == 0:
            raise DatasetError(f"a split needs targets of (images,) or (images, labels), got {array.shape}")
        if array.ndim == 1 and (not np.issubdtype(array.dtype, np.integer) or array.min() < 0):
            raise DatasetError(f"class indices are integers from 0 on, got {array.dtype} from {array.min()}")
        count = int(array.max()) + 1 if array.ndim == 1 else array.shape[1]
        labels = tuple(names) if names is not None else tuple(str(index) for index in range(count))
        if len(labels) < count or (array.ndim == 2 and len(labels) != count):
            raise DatasetError(f"targets have {count} labels, but there are {len(labels)} names")
        row_names = np.asarray(keys if keys is not None else np.arange(len(array))).astype(str)
        for what, length in (("groups", len(group_names)), ("keys", len(row_names))):
            if length != len(array):
                raise DatasetError(f"{len(array):,} targets, but {length:,} {what}")
        return cls(array, group_names, labels, row_names)

    @property
    def multilabel(self) -> bool:
        return self.targets.ndim == 2

    def has_label(self) -> npt.NDArray[np.bool_]:
        """(N, K) which labels an image has."""
        if self.multilabel:
            return np.asarray(self.targets == 1)  # NaN is not 1
        return np.asarray(self.targets[:, None] == np.arange(len(self.names)))

    def distinct_keys(self) -> Names:
        """(N,) keys, the second row of a key told from the first: exact copies are images of their own."""
        order = np.argsort(self.keys, kind="stable")
        _, start = np.unique(self.keys[order], return_index=True)
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order)) - np.repeat(start, np.diff([*start, len(order)]))
        return np.asarray(np.char.add(np.char.add(self.keys, "#"), rank.astype(str)))

    def counts(self) -> npt.NDArray[np.float64]:
        """(N, C) what each image adds: images with each label, images without it where some are unknown, images."""
        columns = [self.has_label()]
        if self.multilabel:
            columns.append((self.targets == 0)[:, np.isnan(self.targets).any(axis=0)])
        return np.concatenate([*columns, np.ones((len(self.targets), 1))], axis=1).astype(np.float64)


# --- policies ---------------------------------------------------------------------------------------------------------------


def _official(data: _Data, spec: SplitSpec, official: Sequence[str | None] | None, notes: list[str]) -> Names:
    """The source's own parts; what it leaves to the user is divided by group."""
    parts = np.array([part or "" for part in official], dtype=object) if official is not None else np.array([], dtype=object)
    known = np.isin(parts, ["train", "val", "test", "train_val"])
    if len(parts) != len(data.groups) or not known.all():
        missing = len(data.groups) - int(known.sum())
        raise DatasetError(
            f"{missing:,} of {len(data.groups):,} images have no official part (train, val, test or train_val)",
            hint="the policy grouped, or a source that comes with its split",
        )
    if not (parts == "test").any():
        notes.append("the source's split has no test part")
    keep_val = spec.folds is None and (parts == "val").any()
    open_ = parts == "train_val" if keep_val else parts != "test"
    rows = np.flatnonzero(open_)
    partitions = parts.astype("U16")
    if len(rows):
        shares = {name: share for name, share in spec.shares.items() if name != "test"}
        total = sum(shares.values())
        shares = {name: share / total for name, share in shares.items()}
        partitions[rows] = _stratify(data, rows, data.groups, shares, spec.seed, notes)
        named = ", ".join(sorted(set(parts[rows])))
        notes.append(f"{len(rows):,} images of the source's {named} are divided by group into {', '.join(shares)}")
    return np.asarray(partitions)


def _undersample(data: _Data, partitions: Names, spec: SplitSpec) -> Index:
    """Rows of the training part to leave out, sorted."""
    rows = np.flatnonzero(partitions == "train")
    rows = rows[np.argsort(hashes(data.keys[rows], spec.seed, "undersample"), kind="stable")]
    classes = data.targets[rows]
    sizes = np.bincount(classes)
    most = int(np.floor(sizes[sizes > 0].min() * spec.undersample_ratio))
    return np.sort(np.concatenate([rows[classes == index][most:] for index in range(len(sizes))]))


def _crossings(partitions: Names, groups: Names) -> Mapping[tuple[str, ...], Index]:
    """Which partitions groups of more than one partition stand in -> images of each such group."""
    _, group = np.unique(groups, return_inverse=True)
    names, part = np.unique(partitions, return_inverse=True)
    table = np.zeros((group.max() + 1, len(names)), np.int64)
    np.add.at(table, (group, part), 1)
    found: dict[tuple[str, ...], list[int]] = {}
    for row in table[(table > 0).sum(axis=1) > 1]:
        found.setdefault(tuple(names[row > 0]), []).append(int(row.sum()))
    return {combination: np.array(images) for combination, images in found.items()}


def _report(
    data: _Data,
    partitions: Names,
    spec: SplitSpec,
    crossing: Mapping[tuple[str, ...], Index],
    notes: list[str],
    *,
    dropped_targets: npt.NDArray[Any],
) -> SplitReport:
    has = data.has_label()
    there = set(partitions.tolist()) - {DROPPED}
    order = [name for name in spec.shares if name in there] + sorted(there - set(spec.shares))
    inside = {name: partitions == name for name in order}
    per_label = {name: dict(zip(data.names, has[rows].sum(axis=0).tolist(), strict=True)) for name, rows in inside.items()}
    for label in data.names:
        absent = [name for name in order if per_label[name][label] == 0]
        if absent:
            notes.append(f"no image of {label!r} in {', '.join(absent)}")
    pairs: dict[str, int] = {}
    for first, one in enumerate(order):
        for two in order[first + 1 :]:
            shared = sum(len(images) for combination, images in crossing.items() if {one, two} <= set(combination))
            pairs |= {f"{one}/{two}": shared} if shared else {}
    sizes = np.bincount(dropped_targets, minlength=len(data.names)) if len(dropped_targets) else np.zeros(0, np.int64)
    return SplitReport(
        policy=spec.policy,
        images={name: int(rows.sum()) for name, rows in inside.items()},
        groups={name: len(np.unique(data.groups[rows])) for name, rows in inside.items()},
        per_label=per_label,
        groups_crossing=sum(len(images) for images in crossing.values()),
        images_crossing=int(sum(images.sum() for images in crossing.values())),
        crossings=pairs,
        dropped={name: int(size) for name, size in zip(data.names, sizes, strict=False) if size},
        notes=tuple(notes),
    )


def _stratify(data: _Data, rows: Index, units: Names, shares: Mapping[str, float], seed: int, notes: list[str]) -> Names:
    """Partition names of ``rows``, the images of one unit together."""
    names, unit = np.unique(units[rows], return_inverse=True)
    columns = [np.bincount(unit, weights=column, minlength=len(names)) for column in data.counts()[rows].T]
    counts = np.stack(columns, axis=1).astype(np.float64)
    labels = len(data.names)
    _require_units(data, (counts[:, :labels] > 0).sum(axis=0), list(shares), notes)
    place = stratify(counts, np.array(list(shares.values())), names, labels=labels, seed=seed)
    return np.asarray(np.array(list(shares))[place])[unit]


def _require_units(data: _Data, available: Index, partitions: list[str], notes: list[str]) -> None:
    """Every label that occurs needs a group for each partition: an error for a class, a note for one of many findings."""
    scarce = {name: int(count) for name, count in zip(data.names, available, strict=True) if 0 < count < len(partitions)}
    if not scarce:
        return
    listed = ", ".join(f"{name!r} has {count}" for name, count in scarce.items())
    if not data.multilabel:
        raise DatasetError(
            f"each of {len(partitions)} partitions ({', '.join(partitions)}) needs a group (a patient, with all copies) of every class, "
            f"but {listed}",
            hint="fewer folds, a share of 0 (--split 0.8,0,0.2), or leave that class out",
        )
    notes.append(f"too few groups for {len(partitions)} partitions: {listed}")
