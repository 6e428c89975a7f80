"""Where the audit of a DATASET is kept: in its folder ``audit``, beside its manifest, which does not list it."""

from __future__ import annotations

from typing import Final

from cxr_ray import storage
from cxr_ray.audit.record import AuditRecord
from cxr_ray.audit.report import RECORD
from cxr_ray.data.shards import Dataset
from cxr_ray.errors import ConfigError, StorageError
from cxr_ray.settings import parse_settings

FOLDER: Final = "audit"


def kept_beside(dataset: Dataset) -> str:
    """The folder."""
    return storage.join(dataset.location, FOLDER)


def read_kept(dataset: Dataset) -> AuditRecord | None:
    """The audit that lies there; None where there is none, it is of other data, or of a version that this one cannot read."""
    where = storage.join(kept_beside(dataset), RECORD)
    if not storage.exists(where):
        return None
    try:
        record = parse_settings(AuditRecord, storage.read_json(where), where=where)
    except (ConfigError, StorageError):
        return None
    return record if record.dataset_fingerprint == dataset.manifest.fingerprint and record.subject == "dataset" else None
