"""Verification: a whole chain holds; each artefact that is changed or foreign breaks it at its own link, and nothing later is believed."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cxr_ray import cli
from cxr_ray.bundle import Bundle, NewMember, read_bundle, write_members
from cxr_ray.config import BackboneConfig, ModelConfig, RnnConfig
from cxr_ray.data.shards import Dataset
from cxr_ray.evaluation.evaluate import evaluate, subject_of_bundle
from cxr_ray.imaging.preprocess import PreprocessSpec
from cxr_ray.labels import LabelSet
from cxr_ray.models.calibration import Calibration
from cxr_ray.models.classifier import build_classifier
from cxr_ray.models.record import Provenance
from cxr_ray.provenance import Chain, Link
from cxr_ray.serving.predictor import Predictor
from cxr_ray.storage import sha256

NETWORK = ModelConfig(backbone=BackboneConfig(name="small_cnn"), rnn=RnnConfig(hidden_size=8))  # of the fixture ``classifier``
LABELS = LabelSet(("covid", "normal"), "multiclass")
SCORES = {"ece": 0.1, "brier": 0.1, "log_loss": 0.1}
CALIBRATION = Calibration(
    method="temperature",
    temperatures=(0.2,),
    fitted_on="val",
    n=9,
    patients=9,
    before=SCORES,  # type: ignore[arg-type]
    after=SCORES,  # type: ignore[arg-type]
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, write_noise: Callable[..., Dataset]) -> Path:
    """A DATASET, a BUNDLE trained on it, a REPORT, five pictures and what ``predict`` would say of them."""
    folder = tmp_path_factory.mktemp("whole")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = build_classifier(NETWORK, 2, mean=0.5, std=0.25, image_size=(32, 32))
    dataset = write_noise(folder / "data", LABELS, {"train": 8, "test": 12}, size=32)
    provenance = Provenance(
        cxr_ray="0",
        recipe="tiny",
        seed=0,
        epoch=0,
        dataset="noise",
        dataset_fingerprint=dataset.manifest.fingerprint,
        run_fingerprint="r" * 64,
        versions={},
    )
    bundle = write_members(
        str(folder / "bundle"),
        [NewMember(lambda: classifier, NETWORK, 0.5, 0.25, provenance)],
        name="tiny",
        labels=LABELS,
        preprocess=PreprocessSpec(height=32, width=32),
        card="# tiny\n",
        calibration=CALIBRATION,
    )
    evaluate(subject_of_bundle(bundle), dataset, str(folder / "report"), resamples=20)
    (folder / "images").mkdir()
    for number in range(5):
        noise = np.random.default_rng(number).integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"{number}.png")
    write_table(bundle, folder)
    return folder


@pytest.fixture
def chain(tmp_path: Path, whole: Path) -> Chain:
    """A copy of :func:`whole`, to be tampered with."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return Chain(
        str(tmp_path / "bundle"),
        data=str(tmp_path / "data"),
        report=str(tmp_path / "report"),
        prediction=str(tmp_path / "predictions.csv"),
        images=str(tmp_path / "images"),
    )


def write_table(bundle: Bundle, folder: Path) -> None:
    files = sorted((folder / "images").iterdir())
    answers = Predictor(bundle).predict_bytes([file.read_bytes() for file in files])
    with (folder / "predictions.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["file", "labels", "error", "gate", "model_version", "p_covid", "p_normal"])
        for file, answer in zip(files, answers, strict=True):
            rows.writerow([file.name, "|".join(answer.labels), "", "", bundle.version, *answer.probabilities.values()])  # type: ignore[union-attr]
        rows.writerow(["broken.png", "", "truncated", "", bundle.version, "", ""])


def broken(links: tuple[Link, ...]) -> str:
    """Name of the one broken link; nothing after it was checked."""
    states = [link.holds for link in links]
    place = states.index(False)
    assert all(states[:place])
    assert states[place + 1 :] == [None] * (len(states) - place - 1)
    return links[place].name


def test_a_whole_chain_holds(chain: Chain) -> None:
    links = chain.verify()
    assert [link.holds for link in links] == [True] * 8
    assert "8 images" in links[-3].detail
    assert links[-2].detail.startswith("5 answers, version ")


def edit(location: str, **changes: Any) -> None:
    path = Path(location)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_changed_pixels_of_the_data(chain: Chain) -> None:
    (file,) = Path(f"{chain.data}/test").iterdir()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert broken(chain.verify()).startswith("data: ")


def test_changed_weights(chain: Chain) -> None:
    file = Path(chain.bundle) / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert broken(chain.verify()).startswith("bundle: ")


def test_data_that_it_was_not_trained_on(chain: Chain, tmp_path: Path, write_noise: Callable[..., Dataset]) -> None:
    write_noise(tmp_path / "other", LABELS, {"train": 8, "test": 12}, size=32, seed=5)
    assert broken(replace(chain, data=str(tmp_path / "other")).verify()).startswith("data → bundle")


def test_an_embellished_figure(chain: Chain) -> None:
    metrics = json.loads(Path(f"{chain.report}/metrics.json").read_text())
    edit(f"{chain.report}/metrics.json", accuracy={**metrics["accuracy"], "value": 0.99})
    assert broken(chain.verify()).startswith("report: its figures")


def test_a_report_of_another_model(chain: Chain) -> None:
    edit(f"{chain.report}/metrics.json", model={"name": "tiny", "bundle": "0" * 12})
    assert broken(chain.verify()).startswith("bundle → report")
    edit(f"{chain.report}/metrics.json", model={})
    assert "does not name" in next(link.detail for link in replace(chain).verify() if link.holds is False)


def test_predictions_of_a_report_that_the_model_does_not_make(chain: Chain, tmp_path: Path) -> None:
    """The calibration is another: version, files and figures agree, the probabilities do not."""
    opened = read_bundle(chain.bundle)
    model = opened.load_member(0)
    shutil.rmtree(chain.bundle)
    write_members(
        chain.bundle,
        [NewMember(lambda: model, opened.manifest.members[0].model, 0.5, 0.25, opened.manifest.members[0].provenance)],
        name="tiny",
        labels=LABELS,
        preprocess=opened.preprocess,
        card="# tiny\n",
        calibration=CALIBRATION.model_copy(update={"temperatures": (9.0,)}),
    )
    edit(f"{chain.report}/metrics.json", model={"bundle": read_bundle(chain.bundle).version})
    assert broken(chain.verify()).startswith("data → report")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda row: {**row, "model_version": "123456789012"}, "bundle → prediction"),
        (lambda row: {**row, "labels": "normal" if row["labels"] == "covid" else "covid"}, "bundle → prediction"),
        (lambda row: {**row, "p_covid": float(row["p_covid"]) + 0.001}, "images → prediction"),
    ],
    ids=["version", "label", "probability"],
)
def test_a_prediction_that_was_changed(chain: Chain, change: Callable[[dict[str, Any]], dict[str, Any]], expected: str) -> None:
    path = Path(str(chain.prediction))
    rows = list(csv.DictReader(path.read_text().splitlines()))
    rows[0] = change(rows[0])
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert broken(chain.verify()).startswith(expected)


def test_an_answer_of_the_service(chain: Chain, tmp_path: Path) -> None:
    bundle = read_bundle(chain.bundle)
    data = (tmp_path / "images" / "3.png").read_bytes()
    (said,) = Predictor(bundle).predict_bytes([data])
    answer = {
        "model_version": bundle.version,
        "image_sha256": sha256(data),
        "labels": list(said.labels),  # type: ignore[union-attr]
        "probabilities": said.probabilities,  # type: ignore[union-attr]
    }
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    asked = Chain(chain.bundle, prediction=str(tmp_path / "answer.json"), images=chain.images)
    assert [link.holds for link in asked.verify()] == [True] * 3
    (tmp_path / "images" / "3.png").unlink()
    assert broken(replace(asked).verify()).startswith("images → prediction")
    (tmp_path / "answer.json").write_text('{"reason": "truncated"}')
    assert broken(replace(asked).verify()).startswith("bundle → prediction")


def test_the_command(chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["verify", chain.bundle, "--report", str(chain.report), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["holds"] is True
    assert [link["holds"] for link in found["links"]] == [True] * 3
    edit(f"{chain.report}/metrics.json", model={})
    assert cli.run(["verify", chain.bundle, "--report", str(chain.report), "--json"]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["holds"] is False
    assert "bundle → report" in said.err
    assert cli.run(["verify", chain.bundle, "--images", "x"]) == 2
    assert "--prediction" in capsys.readouterr().err
