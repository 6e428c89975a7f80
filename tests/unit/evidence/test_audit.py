"""``audit_bundle`` writes the record and a page that opens offline; images it may not be judged by are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape

from cxr_ray.audit.record import AuditRecord
from cxr_ray.errors import DatasetError
from cxr_ray.evidence.audit import CHECKS, audit_bundle
from cxr_ray.labels import LabelSet


def test_record_and_page(tmp_path: Path, bundle: Any, write_noise: Callable[..., Any]) -> None:
    dataset = write_noise(tmp_path / "data", LabelSet(("covid", "normal"), "multiclass"), {"val": 24}, size=32)
    seen: list[int] = []
    record = audit_bundle(bundle, dataset, str(tmp_path / "audit"), report=lambda done, total, name: seen.append(done))
    told = AuditRecord.model_validate_json((tmp_path / "audit" / "audit.json").read_text())
    assert told.model_dump(mode="json") == record.model_dump(mode="json")
    assert record.subject == "bundle"
    assert record.dataset_fingerprint == dataset.manifest.fingerprint
    assert len(record.checks) == len(CHECKS) == seen[-1]
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert all(escape(check.title) in page for check in record.checks)
    assert "http" not in page
    with pytest.raises(DatasetError, match="no part"):
        audit_bundle(bundle, dataset, str(tmp_path / "other"), split="test")
