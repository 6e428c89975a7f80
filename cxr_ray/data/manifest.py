"""``dataset.json``: what a DATASET says of itself. It is written last, so that a directory without it is no DATASET.

It holds no timestamp, no path of a machine and no identifier of a patient: the same source, settings and program give
the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cxr_ray.imaging.preprocess import PreprocessSpec
from cxr_ray.labels import LabelSet, Task
from cxr_ray.settings import Settings

SCHEMA = "cxr-ray/dataset/1"
MANIFEST = "dataset.json"
INDEX = "index.parquet"
QUARANTINE = "quarantine.csv"


class ImageInfo(Settings):
    """Pixels of every image."""

    height: int = Field(ge=1)
    width: int = Field(ge=1)
    dtype: Literal["uint8"] = "uint8"


class PreprocessInfo(Settings):
    """The preprocessing that the pixels have been through: the fields of its specification, and their fingerprint."""

    height: int
    width: int
    equalize: str
    blur: int
    keep_aspect: bool
    version: int
    fingerprint: str

    @classmethod
    def of(cls, spec: PreprocessSpec) -> Self:
        """The record of a specification."""
        return cls(**spec.model_dump(), fingerprint=spec.fingerprint)

    def spec(self) -> PreprocessSpec:
        """The specification.

        Raises:
            ValueError: This version of the program does not know it, or would do something else by it.
        """
        spec = PreprocessSpec.model_validate(self.model_dump(exclude={"fingerprint"}))
        if spec.fingerprint != self.fingerprint:
            raise ValueError("the fingerprint of the preprocessing is not that of its fields")
        return spec


class Normalization(Settings):
    """Mean and standard deviation of pixels in 0..1 (uint8 / 255), over all pixels of all images."""

    mean: float = Field(ge=0.0, le=1.0)
    std: float = Field(ge=0.0, le=1.0)


class PartitionInfo(Settings):
    """One part of the split."""

    images: int = Field(ge=0)
    patients: int = Field(ge=0)
    per_label: dict[str, int]
    """Images that have the label."""
    pixels: Normalization
    """Of this part; :func:`pooled` gives that of several."""


class ShardInfo(Settings):
    """One Parquet file."""

    path: str
    """Relative to the DATASET, with ``/``."""
    rows: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if posixpath.normpath(path) != path or path.startswith(("/", "..")) or "\\" in path:
            raise ValueError("expected a path below the DATASET")
        return path


class SourceInfo(Settings):
    """One collection that images come from."""

    name: str
    images: int
    """Images of it in the DATASET."""


class CopyInfo(Settings):
    """Copies found among the images, before the split."""

    searched: bool = True
    """Whether near copies were looked for; exact ones always are."""
    exact: int = 0
    """Images whose bytes are those of another, each counted once beside the first."""
    near: int = 0
    """Pairs of near copies among images that differ in bytes."""
    mirrored: int = 0
    """Of these: one is the other's mirror image."""
    across_patients: int = 0
    """Pairs, exact or near, whose images are of two patients by the source's account."""
    across_parts: int = 0
    """Pairs whose images lie in two partitions: 0 unless the policy is ``image`` or ``official``."""
    label_conflicts: int = 0
    """Pairs of exact copies with different labels."""
    largest_group: int = 1
    """Images of the largest group (a patient, with all copies)."""


class OfficialSplit(Settings):
    """The split that came with the source, whether or not it was used."""

    images: dict[str, int]
    """Per part, among the images that could be read."""
    patients_crossing: int
    """Patients with images in more than one of its parts."""
    groups_crossing: int
    """The same, copies counted to the patient."""
    copies_crossing: int
    """Pairs of copies, exact or near, that it tears apart."""


class DatasetManifest(Settings):
    """``dataset.json``, schema ``cxr-ray/dataset/1``."""

    schema_: Literal["cxr-ray/dataset/1"] = Field(default="cxr-ray/dataset/1", alias="schema")
    name: str
    task: Task
    labels: tuple[str, ...]
    image: ImageInfo
    preprocess: PreprocessInfo
    normalization: Normalization
    """Of the training part (with folds: of all folds, never of the test part)."""
    partitions: dict[str, PartitionInfo]
    """In order: train, val, test or fold-0 …, test. Parts that hold nothing are absent."""
    seed: int
    """Of the split and of the order in the shards."""
    policy: Literal["grouped", "image", "official"]
    """``grouped``: no patient and no copy in two partitions. ``image``: ignored both; figures from it are too good."""
    sources: tuple[SourceInfo, ...]
    shards: tuple[ShardInfo, ...]
    """In the order of their rows within each partition."""
    index: ShardInfo
    quarantined: int = Field(ge=0)
    """Files that could not be used; ``quarantine.csv`` has the reasons."""
    copies: CopyInfo
    split: dict[str, Any]
    """``request`` (the settings of the split) and ``report`` (what came of them)."""
    synthesis: tuple[dict[str, Any], ...] = ()
    """How synthetic images of the training part were made: a record a label (docs/synthesis.md)."""
    official_split: OfficialSplit | None = None
    notes: tuple[str, ...] = ()
    """What the source's adapter and the split had to say."""
    request: str
    """SHA-256 of what was asked for: source rows, file sizes, preprocessing, split. Asked again, there is nothing to do."""
    fingerprint: str
    """Identity of the data: SHA-256 of the schema, task, labels, preprocessing, and path and checksum of every shard."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        LabelSet(self.labels, self.task)
        if self.fingerprint != fingerprint(self.task, self.labels, self.preprocess.fingerprint, self.shards):
            raise ValueError("the fingerprint is not that of what the manifest lists; it was edited or torn")
        unknown = {shard.path.split("/")[0] for shard in self.shards} - set(self.partitions)
        if unknown:
            raise ValueError(f"shards of partitions that are not listed: {', '.join(sorted(unknown))}")
        return self

    @property
    def preprocess_fingerprint(self) -> str:
        """Of the preprocessing that the pixels have been through."""
        return self.preprocess.fingerprint

    def as_json(self) -> dict[str, Any]:
        """Plain data, for ``dataset.json``."""
        return self.model_dump(mode="json", by_alias=True)


def fingerprint(task: str, labels: Sequence[str], preprocess: str, shards: Sequence[ShardInfo]) -> str:
    """Identity of the data: equal if and only if pixels, labels, partitions and their order are."""
    identity = [SCHEMA, task, list(labels), preprocess, [[shard.path, shard.sha256] for shard in shards]]
    return hashlib.sha256(json.dumps(identity, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


def pooled(parts: Sequence[PartitionInfo]) -> Normalization:
    """Mean and standard deviation over all pixels of several partitions (images are of one size, so each counts alike)."""
    images = sum(part.images for part in parts)
    if not images:
        return Normalization(mean=0.0, std=0.0)
    mean = sum(part.images * part.pixels.mean for part in parts) / images
    square = sum(part.images * (part.pixels.std**2 + part.pixels.mean**2) for part in parts) / images
    return Normalization(mean=mean, std=max(square - mean**2, 0.0) ** 0.5)
