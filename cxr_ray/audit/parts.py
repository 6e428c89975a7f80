"""Do the parts share patients, or copies of one image?"""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cxr_ray.audit.record import Check
from cxr_ray.data.columns import pixels
from cxr_ray.data.grouping import CopyPairs, find_copies, thumbnail
from cxr_ray.data.shards import Dataset

MOST_SEARCHED: Final = 20_000
"""Images that one machine searches for copies in an audit; the work grows with their square, and ingest has searched more on a cluster."""
_ADVICE: Final = "ingest again with --policy grouped; figures of the test part are too good"


def check_patients(index: pa.Table) -> Check:
    """Patients with images in more than one part."""
    parts_of: dict[str, set[str]] = {}
    for patient, part in zip(index.column("patient_id").to_pylist(), index.column("partition").to_pylist(), strict=True):
        parts_of.setdefault(patient, set()).add(part)
    crossing = [parts for parts in parts_of.values() if len(parts) > 1]
    shared = Counter("/".join(pair) for parts in crossing for pair in combinations(sorted(parts), 2))
    return Check(
        name="patients-across-parts",
        title="Patients in more than one part",
        verdict="fail" if crossing else "ok",
        value=float(len(crossing)),
        unit="patients",
        threshold=1.0,
        advice=_ADVICE if crossing else "nothing to do; where a source does not name patients, every image counts as one",
        details={"patients": len(parts_of), "by_parts": dict(shared)},
    )


def check_copies(dataset: Dataset, index: pa.Table, *, search: bool) -> Check:
    """Pairs of copies in two parts: searched anew, or what ingest found.

    Args:
        dataset: The DATASET.
        index: Its index.
        search: Search now, where it has at most :data:`MOST_SEARCHED` images.
    """
    if search and len(index) <= MOST_SEARCHED:
        exact, near = find_copies(index.column("image_id").to_pylist(), thumbnails(dataset))
        parts = np.asarray(index.column("partition").to_pylist(), dtype=str)
        across = sum(_across(pairs, parts) for pairs in (exact, near))
        details: dict[str, Any] = {"searched": "now", "exact": len(exact), "near": len(near), "mirrored": int(near.mirrored.sum())}
    elif dataset.manifest.copies.searched:
        known = dataset.manifest.copies
        across = known.across_parts
        details = {"searched": "at ingest", "exact": known.exact, "near": known.near, "mirrored": known.mirrored}
    else:
        return _copies(None, "near copies were not looked for; the same audit without --quick does, or ingest without --no-near-copies", {})
    return _copies(across, _ADVICE if across else "nothing to do", details)


def thumbnails(dataset: Dataset) -> NDArray[np.uint8]:
    """(N, 64, 64) of every image, in the order of the index; one shard's pixels in memory at a time."""
    height, width = dataset.preprocess.height, dataset.preprocess.width
    found = [
        thumbnail(image)
        for partition in dataset.partitions
        for table in dataset.tables(partition, ["image"])
        for image in pixels(table, height, width)
    ]
    return np.stack(found)


def _across(pairs: CopyPairs, parts: NDArray[np.str_]) -> int:
    return int((parts[pairs.first] != parts[pairs.second]).sum())


def _copies(across: int | None, advice: str, details: dict[str, Any]) -> Check:
    return Check(
        name="copies-across-parts",
        title="Copies of one image in two parts",
        verdict="warn" if across is None else "fail" if across else "ok",
        value=None if across is None else float(across),
        unit="pairs",
        threshold=None if across is None else 1.0,
        advice=advice,
        details=details,
    )
