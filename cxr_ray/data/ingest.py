"""SOURCE -> DATASET: decode and preprocess, group by patient and copy, split, write shards. Parallel, resumable, repeatable.

Three passes:

1. **read** Ray Data tasks turn files into staged parts of pixels, thumbnails and facts (:mod:`cxr_ray.data.staging`).
2. **copies** Copies are searched among the thumbnails, then groups and split follow from facts alone
   (:mod:`cxr_ray.data.assemble`). No pixels come to this process.
3. **write** Ray tasks gather the rows of a batch of parts into shards (:mod:`cxr_ray.data.gather`); ``dataset.json`` is
   written last.

Parts lie in ``OUT/.staging`` until the end. Killed at any moment, the same command goes on with the parts that stand; what
it writes does not depend on where it was killed, nor on the number of CPUs. On a cluster, source and OUT must be on storage
that every node reaches.

**Patients' names** never reach a DATASET: ``patient_id`` is a keyed hash (HMAC-SHA256). The key is ``CXR_RAY_PATIENT_KEY``
where it is set; the same key gives a patient the same id in several data sets. Else it is derived from the whole listing of
the source: all file names, sizes, labels and patients. That needs no secret to be kept and gives the same bytes when run
again, but whoever holds the source's complete listing can compute the key and so link an id to a name. Nobody else can try
names one by one, as with a plain hash. Where not even the holder of the source may link them, set the variable to a secret
and then lose it. ``image_id``, the SHA-256 of a file, links a row to its file for whoever holds the file, by design.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import hmac
import io
import json
import logging
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

import cxr_ray
from cxr_ray import storage
from cxr_ray.cluster import connected, quiet_data_log, require
from cxr_ray.data import assemble, gather, staging
from cxr_ray.data.columns import shard_schema
from cxr_ray.data.grouping import CopyPairs, exact_copies, find_copies, in_threads
from cxr_ray.data.likeness import Candidates, Search
from cxr_ray.data.manifest import INDEX, MANIFEST, QUARANTINE, DatasetManifest, ImageInfo, PreprocessInfo, ShardInfo, fingerprint, pooled
from cxr_ray.data.progress import IngestProgress, Meter, Report, silent
from cxr_ray.data.shards import Dataset, file_sizes, open_dataset, seal, write_shard
from cxr_ray.data.sources.base import Source
from cxr_ray.data.split import SplitSpec
from cxr_ray.errors import CxrRayError, DatasetError, StorageError
from cxr_ray.imaging.picture import Limits
from cxr_ray.imaging.preprocess import PreprocessSpec

logger = logging.getLogger(__name__)

__all__ = ["IngestProgress", "ingest"]

KEY_VARIABLE = "CXR_RAY_PATIENT_KEY"
STAGING = ".staging"
SHARD_BYTES = 128 << 20
BATCH_BYTES = 512 << 20
SEARCH_ON_CLUSTER = 20_000
"""From so many images on, the search for copies is shared out to the cluster: it grows with their square."""
_VERSION = 1
"""Raised with any change of what an ingest writes: what was staged or asked for before is then not taken for the same."""


def ingest(
    source: Source,
    out: str,
    *,
    preprocess: PreprocessSpec | None = None,
    split: SplitSpec | None = None,
    name: str | None = None,
    near_copies: bool = True,
    overwrite: bool = False,
    limits: Limits | None = None,
    shard_bytes: int = SHARD_BYTES,
    report: Report | None = None,
) -> Dataset:
    """Make a DATASET of a source. Joins, or starts, Ray.

    Args:
        source: Rows of :func:`~cxr_ray.data.sources.read_source`.
        out: Where to; a folder that is empty, absent, or holds what a killed ingest left.
        preprocess: None: 224x224, nothing else.
        split: None: 70:15:15 by group, seed 0.
        name: Of the DATASET. None: the source's.
        near_copies: Look for near copies, beside exact ones.
        overwrite: Replace a DATASET that stands there and came of another request.
        limits: On each file. None: 20 MiB, 64 megapixels.
        shard_bytes: Pixels in a shard at most.
        report: Called as work is done, in this process.

    Returns:
        The DATASET; the one that stands there, untouched, where the same was asked for before.

    Raises:
        DatasetError: Something else stands at ``out``, no file could be used, or the split cannot be made.
        StorageError: Something cannot be written.
        ClusterError: Ray cannot be joined.
    """
    work = _prepare(source, out, preprocess or PreprocessSpec(), split or SplitSpec(), name, near_copies, limits or Limits(), shard_bytes)
    standing = _standing(work, overwrite=overwrite)
    if standing is not None:
        logger.info("%s is there already; the same was asked for before", work.out)
        storage.remove(work.staging)
        return standing
    report = report or silent
    with connected(), _causes():
        require(1, 0, what="ingest")
        parts = _read(work, report)
        found = assemble.catalogue(
            source, work.files, staging.read_staged(work.job.location, parts), key=work.job.key, image_bytes=work.image_bytes
        )
        exact, near = _find_copies(found, near_copies, report)
        arranged = assemble.arrange(found, source, exact, near, work.split, searched=near_copies)
        plans = gather.plan_shards(arranged, seed=work.split.seed, shard_bytes=shard_bytes, batch_bytes=BATCH_BYTES)
        _clear(work.out)
        shards = _write(work, plans, report)
    return _finish(work, arranged, plans, shards)


# --- what is to be done -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Work:
    source: Source
    out: str
    name: str
    files: list[str]
    job: staging.StagingJob
    split: SplitSpec
    request: str
    """Hash of all that was asked for."""
    staged: str
    """Hash of what staged parts depend on; the name of their folder."""

    @property
    def staging(self) -> str:
        return storage.join(self.out, STAGING)

    @property
    def image_bytes(self) -> int:
        return self.job.spec.height * self.job.spec.width


def _prepare(
    source: Source, out: str, spec: PreprocessSpec, split: SplitSpec, name: str | None, near: bool, limits: Limits, shard_bytes: int
) -> _Work:
    out, root = storage.absolute(out), storage.absolute(source.location)
    if (out.rstrip("/") + "/").startswith(root.rstrip("/") + "/"):
        raise DatasetError(f"{out} lies in the source; what is written there would be read as part of it", hint="--out beside the source")
    files = assemble.relative_files(source)
    rows = assemble.canonical_rows(source, files, file_sizes(root))
    secret = os.environ.get(KEY_VARIABLE, "").encode() or hmac.new(b"cxr-ray patient key", rows, hashlib.sha256).digest()
    check = staging.patient_hash(secret, "check", "")
    read = {
        "version": [_VERSION, cxr_ray.__version__],
        "preprocess": spec.fingerprint,
        "limits": [limits.max_bytes, limits.max_pixels],
        "key": check,
    }
    staged = assemble.request_hash(rows, **read)[:32]
    job = staging.StagingJob(root, storage.join(out, STAGING, staged), spec, limits, secret)
    name = name or source.name
    asked = {"name": name, "split": split.model_dump(mode="json"), "near_copies": near, "shard_bytes": shard_bytes}
    return _Work(source, out, name, files, job, split, assemble.request_hash(rows, **read, **asked), staged)


def _standing(work: _Work, *, overwrite: bool) -> Dataset | None:
    """The DATASET at ``out`` where it is the one asked for; else make sure that nothing foreign would be lost."""
    entries = _entries(work.out)
    if MANIFEST in entries:
        try:
            there = open_dataset(work.out)
        except DatasetError:
            if not overwrite:
                raise
            return None
        if there.manifest.request == work.request:
            return there
        if not overwrite:
            raise DatasetError(
                f"{work.out} is a DATASET already, of another source, preprocessing or split ({there.manifest.name})",
                hint="another --out, or --overwrite",
            )
    elif entries and STAGING not in entries:
        raise DatasetError(f"{work.out} holds other files, such as {min(entries)}", hint="--out of a folder that is new or empty")
    return None


def _clear(out: str) -> None:
    """Remove what an earlier ingest wrote, the manifest first."""
    entries = _entries(out)
    for name in sorted(entries, key=lambda name: name != MANIFEST):
        if name in {MANIFEST, INDEX, QUARANTINE, "train", "val", "test", "audit"} or name.startswith("fold-"):
            storage.remove(storage.join(out, name))


def _entries(location: str) -> set[str]:
    """Names of the files and folders right below; empty where nothing stands."""
    filesystem, path = storage.open_location(location)
    try:
        return {info.base_name for info in filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))}
    except OSError as error:
        raise StorageError(
            f"cannot list {location}: {error.strerror or type(error).__name__}", hint="a folder that can be written"
        ) from None


# --- the passes -----------------------------------------------------------------------------------------------------------


def _read(work: _Work, report: Report) -> int:
    """Stage all parts that do not stand yet; how many parts there are."""
    import ray.data

    dealt = staging.deal(len(work.files))
    for name in _entries(work.staging) - {work.staged}:
        storage.remove(storage.join(work.staging, name))  # of another request
    standing = _entries(work.job.location)
    missing = [number for number in range(len(dealt)) if staging.part_name(number) not in standing]
    meter = Meter(report, "read", len(work.files), done=len(work.files) - sum(len(dealt[number]) for number in missing))
    if missing:
        quiet_data_log()
        items = [
            {"part": number, "rows": dealt[number].tolist(), "files": [work.files[row] for row in dealt[number]]} for number in missing
        ]
        parts = ray.data.from_items(items, override_num_blocks=len(items)).map(partial(_stage_item, job=work.job), num_cpus=1)
        parts.context.enable_progress_bars = False
        for answer in parts.iter_rows():
            if answer["error"]:
                raise StorageError(answer["error"], hint="check the space and the rights there; the same command goes on from here")
            meter.advance(int(answer["rows"]))
    return len(dealt)


def _stage_item(item: dict[str, Any], job: staging.StagingJob) -> dict[str, Any]:
    """Runs in a Ray Data task."""
    rows = [int(row) for row in item["rows"]]
    try:
        staging.stage_part(job, int(item["part"]), rows, [str(file) for file in item["files"]])
    except StorageError as error:  # Ray Data would keep its text only
        return {"rows": 0, "error": error.message}
    return {"rows": len(rows), "error": ""}


def _find_copies(found: assemble.Catalogue, near: bool, report: Report) -> tuple[CopyPairs, CopyPairs]:
    digests = found.about["image_id"].to_pylist()
    if not near:
        return exact_copies(digests), exact_copies([])
    meter = Meter(report, "copies", len(digests))

    def apply(search: Search, blocks: Sequence[range]) -> Iterator[Candidates]:
        mapped = _on_cluster(search, blocks) if len(digests) >= SEARCH_ON_CLUSTER else in_threads(search, blocks)
        for block, candidates in zip(blocks, mapped, strict=True):
            meter.advance(len(block))
            yield candidates

    copies = find_copies(digests, found.thumbnails, apply=apply)
    meter.finish()
    return copies


def _on_cluster(search: Search, blocks: Sequence[range]) -> Iterator[Candidates]:
    import ray

    shared = ray.put(search)
    task = ray.remote(num_cpus=1)(_search)
    for pending in [task.remote(shared, block) for block in blocks]:
        yield ray.get(pending)


def _search(search: Search, block: range) -> Candidates:
    """Runs in a Ray task."""
    return search(block)


def _write(work: _Work, plans: list[list[gather.ShardPlan]], report: Report) -> dict[str, ShardInfo]:
    """Write all shards; what was written, by path."""
    import ray

    columns = shard_schema(work.source.labels, work.job.spec.height, work.job.spec.width).names
    meter = Meter(report, "write", sum(len(plan.part) for batch in plans for plan in batch))
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    largest = max(node["Resources"].get("memory", 0.0) for node in nodes if node["Alive"])  # what one machine could give
    pending = []
    for batch in filter(None, plans):
        size = sum(len(plan.part) for plan in batch) * work.image_bytes
        memory = min(5 * size // 2, int(largest))  # the batch, and one shard of it in Arrow and in Parquet
        task = ray.remote(num_cpus=1, memory=memory)(gather.write_batch)
        pending.append(task.remote(work.job.location, work.out, batch, columns))
    written: dict[str, ShardInfo] = {}
    while pending:
        done, pending = ray.wait(pending)
        for shard in ray.get(done[0]):
            written[shard.path] = shard
            meter.advance(shard.rows)
    return written


def _finish(work: _Work, arranged: assemble.Arranged, plans: list[list[gather.ShardPlan]], shards: Mapping[str, ShardInfo]) -> Dataset:
    """Write the index and the quarantine, then the manifest, then remove what was staged."""
    partitions = assemble.describe_partitions(arranged)
    ordered = gather.in_order(plans, list(partitions))
    index = pa.concat_tables([plan.about for plan in ordered])
    rejected = sorted([*arranged.catalogue.rejected, *work.source.rejected])
    listed, spec, labels = tuple(shards[plan.path] for plan in ordered), work.job.spec, work.source.labels
    info = write_shard(work.out, INDEX, index, row_group_rows=1 << 16)
    storage.write_bytes(storage.join(work.out, QUARANTINE), _as_csv([("file", "reason"), *rejected]))
    training = [part for name, part in partitions.items() if name == "train" or name.startswith("fold-")]
    manifest = DatasetManifest(
        name=work.name,
        task=labels.task,
        labels=labels.names,
        image=ImageInfo(height=spec.height, width=spec.width),
        preprocess=PreprocessInfo.of(spec),
        normalization=pooled(training),
        partitions=partitions,
        seed=work.split.seed,
        policy=work.split.policy,
        sources=assemble.describe_sources(index),
        shards=listed,
        index=info,
        quarantined=len(rejected),
        copies=arranged.copies,
        split={"request": work.split.model_dump(mode="json"), "report": json.loads(json.dumps(arranged.split.report.as_dict()))},
        official_split=arranged.official,
        notes=(*work.source.notes, *assemble.copy_notes(arranged.copies), *arranged.split.report.notes),
        request=work.request,
        fingerprint=fingerprint(labels.task, labels.names, spec.fingerprint, listed),
    )
    dataset = seal(work.out, manifest)
    storage.remove(work.staging)
    return dataset


def _as_csv(rows: Iterable[tuple[str, str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


@contextlib.contextmanager
def _causes() -> Generator[None, None, None]:
    """Let our own errors out of the wrapping that Ray puts around what a task raises."""
    import ray

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CxrRayError):
            raise error.cause from None
        raise
