"""Many reports against the first: Holm's adjustment, p values of resamples, the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cxr_ray import cli
from cxr_ray.errors import DatasetError
from cxr_ray.evaluation.comparison import compare_many, holm, write_comparison
from cxr_ray.evaluation.evaluate import write_predictions
from cxr_ray.evaluation.metrics import compute_metrics
from cxr_ray.evaluation.paired import bootstrap_p, compare
from cxr_ray.labels import LabelSet

LABELS = LabelSet(("covid", "normal"), "multiclass")


@pytest.fixture
def reports(tmp_path: Path) -> list[str]:
    """A middling model, a better one, and the middling one again."""
    generator = np.random.default_rng(0)
    targets, noise = generator.integers(0, 2, 200), generator.normal(size=200)
    patients = [f"p{row // 2}" for row in range(200)]
    table = pa.table({"image_id": [f"i{row}" for row in range(200)], "patient_id": patients})
    found = []
    for name, strength in (("middling", 0.5), ("better", 2.0), ("again", 0.5)):
        present = 1 / (1 + np.exp(-(strength * (1 - 2 * targets) + noise)))
        said = np.column_stack([present, 1 - present]).astype(np.float32)
        metrics = compute_metrics(said, targets, patients, LABELS, split="test", resamples=10)
        out = tmp_path / name
        write_predictions(str(out / "predictions.parquet"), table, said, targets, LABELS)
        (out / "metrics.json").write_text(json.dumps(metrics))
        found.append(str(out))
    return found


def test_holm_as_published() -> None:
    """Holm's step-down by hand, and the order kept."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, None, 0.9]) == [1.0, None, 1.0]
    assert holm([]) == []


def test_p_of_resamples() -> None:
    assert bootstrap_p(np.arange(1.0, 1000.0)) == pytest.approx(2 / 1000)
    assert bootstrap_p(np.tile([-1.0, 1.0], 500)) == 1.0
    assert bootstrap_p(np.full(9, np.nan)) is None


def test_each_is_compared_with_the_first(reports: list[str], tmp_path: Path) -> None:
    found = compare_many(reports, resamples=200)
    pair = compare(reports[1], reports[0], resamples=200)
    middling, better, again = found["models"]
    assert "difference" not in middling
    assert better["figures"]["accuracy"] == pair["figures"]["accuracy"]["a"]
    assert better["difference"]["macro_auroc"]["value"] == pair["figures"]["macro_auroc"]["difference"]["value"] > 0
    assert better["difference"]["macro_auroc"]["p_holm"] == pytest.approx(2 * better["difference"]["macro_auroc"]["p"])
    assert better["mcnemar"]["accuracy"]["p_holm"] < 0.05
    assert again["difference"]["accuracy"] == {"value": 0.0, "ci95": [0.0, 0.0], "p": 1.0, "p_holm": 1.0}
    assert better["delong"]["covid"]["p"] < 0.001
    write_comparison(found, str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == found
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "Comparison of 3 models" in page
    assert f"{better['difference']['accuracy']['value']:.4f} [" in page
    assert "http" not in page


def test_the_command(reports: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def ran(*arguments: str) -> dict[str, Any]:
        assert cli.run(["compare", *arguments, "--json", "--resamples", "100"]) == 0
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    assert len(ran(*reports, "--out", str(tmp_path / "o"))["models"]) == 3
    assert (tmp_path / "o" / "comparison.html").exists()
    assert ran(*reports[:2])["figures"]["accuracy"]["difference"]["p"] < 0.05
    for arguments, expected in (([reports[0]], "two or more"), ([*reports[:2], "--out", "x"], "three REPORTs")):
        assert cli.run(["compare", *arguments]) == 2
        assert expected in capsys.readouterr().err
    with pytest.raises(DatasetError, match="named twice"):
        compare_many([reports[0], reports[0]])
