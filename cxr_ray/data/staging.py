"""First pass of an ingest: source files -> staged parts of pixels and facts, a part at a time. No Ray.

A part is written whole or not at all, so that an ingest that was killed goes on with the parts it lacks. The source's rows
are dealt to parts at random (always in the same way): every part, and what is later made of a few of them, holds all
classes. One bad file costs its own row, which carries the reason instead of pixels (DESIGN, trap 5).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import fs as pafs

from cxr_ray import storage
from cxr_ray.data.columns import IMAGE
from cxr_ray.data.likeness import SIZE, thumbnail
from cxr_ray.data.shards import open_parquet, write_shard
from cxr_ray.data.sources import tables
from cxr_ray.errors import ImageError
from cxr_ray.imaging.picture import Limits
from cxr_ray.imaging.preprocess import PreprocessSpec, load_image

logger = logging.getLogger(__name__)

_LEAST_PART, _MOST_PART = 32, 1024  # rows
_PARTS = 128  # wanted, where the sizes allow: enough for an even load and a smooth estimate
_REMOTE_READERS = 16
_NOBODY = frozenset({"anon", "anonymous", "anonymized", "anonymised", "deidentified", "de-identified", "removed"})
"""What stands in ``PatientID`` where a file was made anonymous: it names no patient, and would join all of them."""


@dataclass(frozen=True, slots=True)
class StagingJob:
    """What every part needs.

    Args:
        source: The folder that files are relative to.
        location: Where the parts go.
        spec: Preprocessing.
        limits: On each file.
        key: Of the patients' hashes.
    """

    source: str
    location: str
    spec: PreprocessSpec
    limits: Limits
    key: bytes = field(repr=False)


def deal(rows: int) -> list[npt.NDArray[np.int64]]:
    """The row numbers of each part; follows from the number of rows alone."""
    size = min(_MOST_PART, max(_LEAST_PART, -(-rows // _PARTS)))
    order = np.random.default_rng(rows).permutation(rows)
    return [np.sort(order[start : start + size]) for start in range(0, rows, size)]


def part_name(number: int) -> str:
    """File name of a part."""
    return f"part-{number:06d}.parquet"


def stage_part(job: StagingJob, number: int, rows: Sequence[int], files: Sequence[str]) -> int:
    """Decode and preprocess files and write them as one part.

    Args:
        job: Settings.
        number: Of the part.
        rows: Row numbers of the files in the source.
        files: Paths relative to the source.

    Returns:
        How many could not be used.

    Raises:
        StorageError: The part cannot be written. A file that cannot be read is no error here.
    """
    cv2.setNumThreads(1)  # parts are staged side by side
    records = [{"row": row, **_stage(job, data)} for row, data in zip(rows, _contents(job, files), strict=True)]
    table = pa.Table.from_pylist(records, schema=_schema(job.spec))
    write_shard(job.location, part_name(number), table)
    return sum(record.get("error") is not None for record in records)


def read_staged(location: str, parts: int) -> pa.Table:
    """All staged rows without their pixels, in the order of the source, with the columns ``part`` and ``offset`` (where they lie)."""

    def read(number: int) -> pa.Table:
        with open_parquet(storage.join(location, part_name(number))) as file:
            table = file.read(columns=[name for name in file.schema_arrow.names if name != IMAGE])
        where = {"part": np.full(len(table), number), "offset": np.arange(len(table))}
        for name, values in where.items():
            table = table.append_column(name, pa.array(values, pa.int64()))
        return table

    with ThreadPoolExecutor(8) as pool:
        return pa.concat_tables(pool.map(read, range(parts))).sort_by("row")


def patient_hash(key: bytes, kind: str, name: str) -> str:
    """Keyed hash (HMAC-SHA256, 32 hex digits) of a patient's name; ``kind`` keeps ``file`` and ``patient`` apart."""
    return hmac.new(key, f"{kind}\0{name}".encode(), hashlib.sha256).hexdigest()[:32]


# --- one file -----------------------------------------------------------------------------------------------------------


def _stage(job: StagingJob, data: bytes | ImageError) -> dict[str, Any]:
    """The columns of a file: pixels and facts, or ``error``."""
    try:
        if isinstance(data, ImageError):
            raise data
        pixels, image = load_image(data, job.spec, job.limits)
    except ImageError as error:
        return {"error": f"{error.reason}: {error.message}"}
    except Exception as error:  # a fault of ours: one image may cost itself, never the ingest
        logger.error("unexpected %s while preparing an image", type(error).__name__)
        return {"error": f"internal: {type(error).__name__} while preparing the image"}
    histogram = np.bincount(pixels.ravel(), minlength=256)
    levels = np.arange(256)
    patient = tables.cell([image.tags.get("PatientID", "")], 0)
    known = patient is not None and patient.lower() not in _NOBODY
    return {
        IMAGE: pixels.tobytes(),
        "thumbnail": thumbnail(image.pixels).tobytes(),
        "total": int(histogram @ levels),
        "squares": int(histogram @ levels**2),
        "image_id": storage.sha256(data),
        "patient_id": patient_hash(job.key, "patient", patient) if known and patient else None,
        "view": tables.cell([image.tags.get("ViewPosition", "")], 0),
        "sex": tables.sex(image.tags.get("PatientSex")),
        "age": tables.age(image.tags.get("PatientAge")),
        "file_format": image.format,
        "file_mode": image.mode,
        "file_bits": image.bits,
        "file_height": image.height,
        "file_width": image.width,
        "file_bytes": len(data),
        "file_remarks": " ".join(image.remarks),
    }


def _schema(spec: PreprocessSpec) -> pa.Schema:
    numbers = {"total": pa.int64(), "squares": pa.int64()}
    about = dict.fromkeys(("image_id", "patient_id", "view", "sex"), pa.string()) | {"age": pa.float32()}
    file = {"file_format": pa.string(), "file_mode": pa.string(), "file_bits": pa.int16(), "file_height": pa.int32()}
    file |= {"file_width": pa.int32(), "file_bytes": pa.int64(), "file_remarks": pa.string()}
    images = {IMAGE: pa.binary(spec.height * spec.width), "thumbnail": pa.binary(SIZE * SIZE)}
    return pa.schema(list(({"row": pa.int64(), "error": pa.string()} | images | numbers | about | file).items()))


def _contents(job: StagingJob, files: Sequence[str]) -> Iterator[bytes | ImageError]:
    """Each file's bytes, at most one more than the limit allows; files on an object store are fetched side by side."""
    filesystem, root = storage.open_location(job.source)

    def read(file: str) -> bytes | ImageError:
        path = f"{root.rstrip('/')}/{file}"
        try:
            if filesystem.get_file_info(path).type != pafs.FileType.File:  # a pipe would be waited for
                return ImageError("missing", "there is no such file")
            with filesystem.open_input_stream(path) as stream:
                return bytes(stream.read(job.limits.max_bytes + 1))
        except OSError as error:
            return ImageError("unreadable", f"the file cannot be read ({error.strerror or type(error).__name__})")

    if isinstance(filesystem, pafs.LocalFileSystem):
        yield from map(read, files)
        return
    with ThreadPoolExecutor(_REMOTE_READERS) as pool:
        for start in range(0, len(files), _REMOTE_READERS):  # not all at once: memory stays bounded
            yield from pool.map(read, files[start : start + _REMOTE_READERS])
