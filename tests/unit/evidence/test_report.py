"""The whole REPORT: one page, figures as files, checklists whose blanks can be seen."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cxr_ray.evaluation.evaluate import subject_of_bundle
from cxr_ray.evidence import embedding
from cxr_ray.evidence.checklist import BLANK, FILES, read_checklist
from cxr_ray.evidence.facts import Known, facts
from cxr_ray.evidence.report import write_report
from cxr_ray.labels import LabelSet


@pytest.fixture
def written(tmp_path: Path, bundle: Any, write_noise: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A REPORT on noise, without UMAP, which takes half a minute to compile."""
    monkeypatch.setattr(embedding, "find_spec", lambda name: None)
    dataset = write_noise(tmp_path / "data", LabelSet(("covid", "normal"), "multiclass"), {"test": 24}, size=32)
    out = tmp_path / "report"
    known = Known("tiny", dataset.manifest, "test", bundle.manifest)
    write_report(subject_of_bundle(bundle), dataset, str(out), known, resamples=100, method="gradcam")
    return out


def test_page_figures_and_checklists(written: Path) -> None:
    page = (written / "report.html").read_text()
    assert "In plain words" in page
    assert "The same under its heat map" in page
    assert 'src="http' not in page
    assert len(page) < 10_000_000
    names = {path.stem for path in (written / "figures").iterdir()}
    assert {"roc", "precision-recall", "tsne"} <= names
    assert all((written / "figures" / f"{name}.{kind}").stat().st_size for name in names for kind in ("svg", "png", "csv"))
    rows = list(csv.DictReader(io.StringIO((written / "figures" / "tsne.csv").read_text())))
    assert len(rows) == 24
    assert {"image_id", "x", "y", "label", "source", "patient_id"} == set(rows[0])
    for name in FILES:
        text = (written / "checklists" / f"{name}.html").read_text()
        assert BLANK in text
        assert "tiny" in text
        assert (written / "checklists" / f"{name}.md").read_text().count(BLANK) == text.count(BLANK)


@pytest.mark.parametrize(("name", "count", "last"), [("claim", 44, "44"), ("tripod-ai", 52, "27c")])
def test_the_lists_are_whole_and_ask_for_known_facts(
    name: str, count: int, last: str, bundle: Any, write_noise: Any, tmp_path: Path
) -> None:
    items = read_checklist(name).items
    assert len(items) == count
    assert items[-1].number == last
    assert len({item.number for item in items}) == count
    dataset = write_noise(tmp_path / "data", LabelSet(("covid", "normal"), "multiclass"), {"test": 4}, size=32)
    nothing = {"value": None, "ci95": None}
    metrics = {
        "n": 4,
        "patients": 4,
        "labels": ["covid"],
        "bootstrap": {"resamples": 1, "seed": 0},
        "per_label": {"covid": dict.fromkeys(("sensitivity", "specificity", "auroc"), nothing)},
        **dict.fromkeys(("accuracy", "macro_f1", "macro_auroc"), nothing),
    }
    told = facts(Known("tiny", dataset.manifest, "test", bundle.manifest), metrics, [])
    assert {item.known for item in items if item.known} <= set(told)
    assert told["training"] is None  # no RUN at hand: nothing is guessed
