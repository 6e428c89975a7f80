"""``evaluate``: what its tables hold, raw folders as an external test, an assumed prevalence; and what the service says of a calibrated bundle."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cxr_ray import cli, storage
from cxr_ray.bundle import MANIFEST, Bundle, read_bundle
from cxr_ray.data.shards import Dataset
from cxr_ray.evaluation import external
from cxr_ray.imaging.preprocess import PreprocessSpec
from cxr_ray.labels import LabelSet
from cxr_ray.models.calibration import Calibration

LABELS = LabelSet(("covid", "normal"), "multiclass")
SCORES = {"ece": 0.1, "brier": 0.1, "log_loss": 0.1}
CALIBRATION = {"method": "temperature", "temperatures": [0.3], "fitted_on": "val", "n": 9, "patients": 9, "before": SCORES, "after": SCORES}


@pytest.fixture
def calibrated(bundle: Bundle) -> Bundle:
    """The bundle with a calibration, written into its manifest."""
    where = storage.join(bundle.location, MANIFEST)
    storage.write_json(where, storage.read_json(where) | {"calibration": CALIBRATION})
    return read_bundle(bundle.location)


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.run(["evaluate", *arguments, "--resamples", "100", "--json"]) == 0, capsys.readouterr().err
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_raw_and_calibrated_stand_side_by_side(
    tmp_path: Path, bundle: Bundle, write_noise: Callable[..., Dataset], capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    data = write_noise(tmp_path / "data", LABELS, {"train": 4, "test": 60}, size=32).location
    plain = ran(capsys, bundle.location, "--data", data, "--out", str(tmp_path / "a"))
    assert plain["calibration"] is None
    calibrated: Bundle = request.getfixturevalue("calibrated")
    assert calibrated.version != bundle.version, "answers follow from the calibration, too"
    found = ran(capsys, calibrated.location, "--data", data, "--out", str(tmp_path / "b"))
    assert found["calibration"]["raw"]["ece"]["value"] == pytest.approx(plain["ece"]["value"])
    assert found["calibration"]["calibrated"]["ece"] == found["ece"]
    assert found["ece"]["value"] != plain["ece"]["value"]
    assert found["accuracy"] == plain["accuracy"], "a temperature changes no decision"
    for name in LABELS.names:
        assert found["per_label"][name]["auroc"]["value"] == pytest.approx(plain["per_label"][name]["auroc"]["value"]), (
            "nor, of two classes, AUROC"
        )
    assert found["model"] == {"name": "tiny", "bundle": calibrated.version}
    tables = [pq.read_table(tmp_path / report / "predictions.parquet") for report in ("a", "b")]
    raw, answered = (np.column_stack([table[f"p_{name}"] for name in LABELS.names]) for table in tables)
    np.testing.assert_allclose(answered, Calibration.model_validate(CALIBRATION).apply(raw, "multiclass"), atol=1e-6)
    assert "temperature 0.300, fitted on val (9 images of 9 patients)" in (tmp_path / "b" / "report.html").read_text()


def test_an_old_bundle_has_no_calibration(bundle: Bundle) -> None:
    where = storage.join(bundle.location, MANIFEST)
    old = {name: value for name, value in storage.read_json(where).items() if name != "calibration"}
    storage.write_json(where, old)
    opened = read_bundle(bundle.location)
    assert opened.manifest.calibration is None
    assert opened.version == bundle.version
    said = np.array([[0.2, 0.8]], dtype=np.float32)
    assert opened.answers(said) is said


def test_the_service_says_that_it_is_calibrated(calibrated: Bundle) -> None:
    from cxr_ray.serving.app import model_info

    assert model_info(calibrated).calibrated is True


def test_predictive_values_elsewhere_are_an_assumption(
    tmp_path: Path, bundle: Bundle, write_noise: Callable[..., Dataset], capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_noise(tmp_path / "data", LABELS, {"train": 4, "test": 60}, size=32).location
    found = ran(capsys, bundle.location, "--data", data, "--out", str(tmp_path / "r"), "--prevalence", "covid=0.02")
    assert found["prevalence"]["per_label"]["covid"]["assumed"] == 0.02
    assert found["prevalence"]["per_label"]["normal"]["assumed"] == pytest.approx(0.98)
    assert "assumed" in found["prevalence"]["assumption"]
    table = pq.read_table(tmp_path / "r" / "predictions.parquet")
    assert np.mean(table["adjusted_covid"].to_numpy()) < np.mean(table["p_covid"].to_numpy())
    assert cli.run(["evaluate", bundle.location, "--data", data, "--out", str(tmp_path / "r"), "--prevalence", "flu=1"]) == 2
    assert "label of covid, normal" in capsys.readouterr().err


def test_a_folder_of_another_place_is_an_external_test(
    tmp_path: Path, bundle: Bundle, write_noise: Callable[..., Dataset], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the ingest, which needs Ray: that has tests of its own."""
    for label, count in (("SARS", 3), ("Normal", 3), ("flu", 2)):
        (tmp_path / "there" / label).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (40, 40), 20 * number).save(tmp_path / "there" / label / f"{number}.png")
    asked = []

    @contextmanager
    def ingested(found: external.External, preprocess: PreprocessSpec, report: Any) -> Generator[Dataset, None, None]:
        asked.append((found, preprocess))
        yield write_noise(tmp_path / "made", found.source.labels, {external.PART: len(found.source.rows)}, size=32)

    @contextmanager
    def connected(address: str | None) -> Generator[None, None, None]:
        yield

    monkeypatch.setattr(external, "ingested", ingested)
    monkeypatch.setattr("cxr_ray.cluster.connected", connected)
    metrics = ran(capsys, bundle.location, "--data", str(tmp_path / "there"), "--map", "SARS=covid", "--out", str(tmp_path / "r"))
    ((found, preprocess),) = asked
    assert preprocess == bundle.preprocess
    assert [row.label for row in found.source.rows] == ["normal"] * 3 + ["covid"] * 3
    assert metrics["split"] == "external: all of there"
    assert any("external test" in warning for warning in metrics["warnings"])
    assert any("flu (2 images)" in warning for warning in metrics["warnings"])
    assert cli.run(["evaluate", bundle.location, "--data", str(tmp_path / "there"), "--map", "SARS", "--out", str(tmp_path / "r")]) == 2
    assert "THEIRS=OURS" in capsys.readouterr().err
    assert cli.run(["evaluate", bundle.location, "--data", str(tmp_path / "made"), "--map", "a=b", "--out", str(tmp_path / "r")]) == 2
    assert "are for folders of images" in capsys.readouterr().err
