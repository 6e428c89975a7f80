"""``audit`` looks at a DATASET itself and hands a BUNDLE on; a training takes what lies beside its data."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cxr_ray.audit.kept import kept_beside, read_kept
from cxr_ray.cli import run, run_inside
from cxr_ray.cli.audit import audited
from cxr_ray.labels import LabelSet


@pytest.fixture
def dataset(tmp_path: Path, write_noise: Any) -> Any:
    return write_noise(tmp_path / "dataset", LabelSet(("covid", "normal"), "multiclass"), {"train": 24, "test": 16}, size=32)


def test_an_audit_of_noise_is_kept_beside_it_and_read_again(dataset: Any) -> None:
    assert read_kept(dataset) is None
    told = run_inside(["audit", dataset.location])
    kept = read_kept(dataset)
    assert kept is not None
    assert (told["verdict"], told["out"]) == (kept.verdict, kept_beside(dataset))
    assert "<script" not in (Path(told["out"]) / "audit.html").read_text()


def test_a_training_takes_the_audit_or_says_that_it_was_skipped(dataset: Any, tmp_path: Path) -> None:
    assert audited(dataset.location, str(tmp_path / "run"), skip=True, overwrite=False).warnings[0].count("skipped by the user") == 1
    made = audited(dataset.location, str(tmp_path / "run"), skip=False, overwrite=False)
    kept = read_kept(dataset)
    assert kept is not None
    assert kept.quick
    assert made.verdict == kept.verdict


def test_a_bundle_is_handed_on(dataset: Any, bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run_inside(["audit", dataset.location])
    record = read_kept(dataset)
    monkeypatch.setitem(sys.modules, "cxr_ray.evidence.audit", SimpleNamespace(audit_bundle=lambda *given, **named: record))
    assert run_inside(["audit", bundle.location, "--data", dataset.location])["out"].endswith("-audit")
    assert run(["audit", bundle.location]) == 2
    assert run(["audit", dataset.location, "--data", dataset.location]) == 2
