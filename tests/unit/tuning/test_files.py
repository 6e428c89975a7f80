"""The sweeps in ``tune_configs``: all of them, and what the papers' must hold."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from cxr_ray import cli
from cxr_ray.config import load_recipe
from cxr_ray.tuning.sweep import check_networks, load_sweep

FOLDER = Path(__file__).parents[3] / "tune_configs"
FILES = sorted(FOLDER.glob("*.yaml"))


def test_there_are_seven() -> None:
    names = {"smoke", "cnn_lstm", "backbones", "lr_ablation", "croup", "multilabel", "latency"}
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.yaml" for name in names}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_is_valid_and_says_what_it_wants(file: Path) -> None:
    sweep = load_sweep(file)
    assert sweep.name == file.stem
    assert re.fullmatch(r"[A-Z].{20,160}\.", sweep.description)
    comments = "\n".join(line for line in file.read_text().splitlines() if line.startswith("#"))
    assert f"cxr-ray tune tune_configs/{file.name} --data dataset --out " in comments
    assert "cxr-ray ingest " in comments
    size = sweep.recipe.expects.size if sweep.recipe.expects else 64
    check_networks(sweep, 3, (size, size))


def test_validate_reads_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    small = FOLDER / "smoke.yaml"
    assert cli.run(["validate", str(small), "--json"]) == 0
    (tmp_path / "torn.yaml").write_text(small.read_text().replace("hidden_size", "hidden_sise"))
    (tmp_path / "frozen.yaml").write_text(small.read_text().replace("training.epochs: 3", "model.backbone.freeze_stages: 9"))
    capsys.readouterr()
    assert cli.run(["validate", str(tmp_path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "torn.yaml: space.model.rnn.hidden_sise: unknown key" in said
    assert "frozen.yaml: freeze_stages is 9" in said


def test_backbones_are_the_networks_of_paper_003() -> None:
    sweep = load_sweep(FOLDER / "backbones.yaml")
    points = sweep.space.combinations()
    assert {point["model"] for point in points} == {"vgg19-rnn", "densenet121-rnn", "inceptionv3-rnn", "inceptionresnetv2-rnn"}
    for point in points:
        ours, theirs = sweep.resolve(point), load_recipe(point["model"])
        assert ours.model == theirs.model
        assert ours.training.model_copy(update={"monitor": theirs.training.monitor}) == theirs.training


def test_learning_rates_are_those_of_paper_004() -> None:
    sweep = load_sweep(FOLDER / "lr_ablation.yaml")
    assert [point["training.optimizer.lr"] for point in sweep.space.combinations()] == [0.001, 0.005, 0.01, 0.05, 0.1]
    assert sweep.resolve({"training.optimizer.lr": 0.01}).training.epochs == load_recipe("efficientnetb1").training.epochs == 100


def test_croup_searches_a_setting_only_with_its_optimiser() -> None:
    sweep = load_sweep(FOLDER / "croup.yaml")
    for point in sweep.space.corners(100):
        assert ("training.optimizer.rms_decay" in point) == (point["training.optimizer.name"] == "rmsprop")


def test_the_documentation_names_each_and_its_examples_are_valid(tmp_path: Path) -> None:
    text = (FOLDER.parent / "docs" / "tuning.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`tune_configs/(\w+)\.yaml`", text)) == {file.stem for file in FILES}
    whole, *entries = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "whole.yaml").write_text(whole)
    load_sweep(tmp_path / "whole.yaml")
    assert len(entries) == 2
    for number, entry in enumerate([*entries, *re.findall(r"`(data: \{.*?\})`", text)]):
        file = tmp_path / f"{number}.yaml"
        file.write_text(f"recipe: croup-cnn-lstm\ntrials: 20\nspace:\n{textwrap.indent(entry, '  ')}\n")
        assert load_sweep(file).planned == 20
