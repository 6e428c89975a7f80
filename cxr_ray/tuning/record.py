"""``sweep.json``: what a sweep's directory is of. Another sweep never goes on in it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cxr_ray import storage
from cxr_ray.data.shards import open_dataset
from cxr_ray.errors import RunError
from cxr_ray.training import lease
from cxr_ray.training.run import RUN, differences, versions
from cxr_ray.tuning.sweep import Sweep

SCHEMA = "cxr-ray/sweep/1"
SWEEP = "sweep.json"


@dataclass(frozen=True)
class SweepRecord:
    """What was searched, and on which images."""

    sweep: dict[str, Any]
    """:meth:`cxr_ray.tuning.sweep.Sweep.identity`; a later call may ask for more trials."""
    data: dict[str, str]
    """Name -> fingerprint of the DATASET."""
    fold: int | None

    def identity(self) -> dict[str, Any]:
        """What a later call must share."""
        return {"sweep": self.sweep, "data": self.data, "fold": self.fold}


def describe(sweep: Sweep, data: Mapping[str, str], fold: int | None) -> SweepRecord:
    """The record of a sweep over DATASETs, each opened."""
    fingerprints = {name: open_dataset(location).manifest.fingerprint for name, location in data.items()}
    return SweepRecord(json.loads(json.dumps(sweep.identity())), fingerprints, fold)


def claim(out: str, name: str, record: SweepRecord, *, resume: bool) -> str:
    """Take the directory for this sweep; the caller holds its lease.

    Args:
        out: The sweep's directory.
        name: Of the sweep.
        record: Of this call.
        resume: Whether to go on with a sweep that is there.

    Returns:
        Name of its study, the same in every call: a database may hold those of many sweeps.

    Raises:
        RunError: Another sweep is there, or this one and ``resume`` was not asked for, or something else is.
    """
    location = storage.join(out, SWEEP)
    if storage.exists(storage.join(out, RUN)):
        raise RunError(f"{out} is a RUN, not a sweep", hint="another --out")
    study = f"{name}-{uuid.uuid4().hex[:8]}"
    there = storage.exists(location)
    if not there and set(storage.list_files(out, recursive=False)) - {lease.LEASE, lease.LOCK}:
        raise RunError(f"{out} holds other files than a sweep's; it is left alone", hint="another --out")
    if there:
        if not resume:
            raise RunError(f"{out} holds a sweep already", hint="--resume to go on with it, or another --out")
        written = storage.read_json(location)
        if written.get("schema") != SCHEMA:
            raise RunError(f"{location} has schema {written.get('schema')!r}, expected {SCHEMA!r}")
        study = written["study"]
        was = SweepRecord(written["sweep"], written["data"], written["fold"])
        changed = differences(was.identity(), record.identity())
        if changed:
            raise RunError(f"{out} holds another sweep:" + "".join(f"\n  - {line}" for line in changed), hint="another --out")
    facts = {"schema": SCHEMA, "study": study, **record.identity(), "versions": versions()}
    storage.write_json(location, facts)
    return study
