"""Exit codes, one clear message, one JSON object."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from cxr_ray import cli

COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
LEAVES = [f"{name} {sub}" for name, group in COMMANDS.items() for sub in getattr(group, "commands", ())]
LEAVES += [name for name, command in COMMANDS.items() if not hasattr(command, "commands")]


def test_help_answers_in_a_second() -> None:
    """Of processor time: what a machine at rest takes, whatever else this one is doing."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        answer = subprocess.run([sys.executable, "-m", "cxr_ray", "--help"], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 1.0
    for command in COMMANDS:
        assert command in answer.stdout


@pytest.mark.parametrize("command", LEAVES)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*command.split(), "--help"]) == 0
    assert f"Example: cxr-ray {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "--recipe", "nosuch", "--data", "d", "--out", "o"], "cxr-ray recipes"),
        (["train", "--recipe", "demo", "--data", "d", "--out", "o", "training.epochs=0"], "training.epochs"),
        (["train", "--recipe", "demo", "--data", "d", "--out", "o", "--cv", "--fold", "1"], "--cv"),
        (["train", "--recipe", "demo", "--data", "d", "--out", "o", "--workers", "8-2"], "write 2-8"),
        (["train", "--recipe", "demo", "--data", "d", "--out", "o", "--workers", "0-3"], "at least 1 worker"),
        (["train", "--recipe", "demo", "--data", "d", "--out", "o", "--workers", "many"], "such as 2-8"),
        (["train", "--recipe", "demo", "--data", "d", "--out", "o", "--workers", "1-2", "--cv"], "--cv"),
        (["train", "--recipe", "demo", "--data", "d", "--out", "o", "--track", "paper"], "mlflow, wandb"),
        (["evaluate", "nowhere", "--data", "d", "--out", "o"], "neither a RUN nor a BUNDLE"),
        (["export", "nowhere", "--out", "o"], "not a RUN"),
        (["ingest", "nowhere", "--out", "o"], "nowhere"),
        (["ingest", ".", "--out", "o", "--size", "big"], "--size"),
        (["ingest", ".", "--out", "o", "--split", "1,2"], "--split"),
        (["ingest", ".", "--out", "o", "--split", "0.9,0.9,0.1"], "sum to 1"),
        (["ingest", ".", "--out", "o", "-o", "colour=red"], "colour: unknown key"),
        (["validate", "nowhere.yaml"], "cannot be read"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(arguments) == 2
    said = capsys.readouterr()
    assert "error:" in said.err
    assert expected in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


@pytest.mark.parametrize("arguments", [["nosuch"], ["train"], ["train", "--foo"], ["serve", "b", "--port", "99999"]])
def test_a_malformed_command_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_our_own_fault_is_exit_code_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[str]:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("cxr_ray.config.recipe_names", broken)
    assert cli.run(["recipes"]) == 1
    said = capsys.readouterr().err
    assert "fault of cxr-ray itself" in said
    assert "Traceback" not in said
    assert cli.run(["recipes", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_json_is_one_object_and_nothing_else(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # a folder without tune_configs
    assert cli.run(["validate", "--json"]) == 0
    said = capsys.readouterr()
    package = Path(cli.__file__).parents[1]
    files = [*package.glob("models/recipes/*.yaml"), *package.glob("reproduction/plans/*.yaml")]
    assert json.loads(said.out) == {"files": len(files), "valid": True}


def test_what_libraries_print_stays_out_of_the_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from cxr_ray import config

    real = config.load_recipe

    def chatty(name: str) -> object:
        print("(raylet) a line of somebody else's")
        return real(name)

    monkeypatch.setattr(config, "load_recipe", chatty)
    assert cli.run(["validate", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["valid"] is True
    assert "(raylet)" in said.err


def test_recipes_list_their_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipes", "--json"]) == 0
    listed = {item["name"]: item for item in json.loads(capsys.readouterr().out)["recipes"]}
    assert set(listed["cnn-lstm"]) == {"name", "paper", "parameters", "parts", "description"}
    assert listed["cnn-lstm"]["parameters"] > listed["demo"]["parameters"] > 10_000


def test_doctor_says_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["ok"] is True
    assert all(facts["packages"].values())
    assert facts["dicom_codecs"]
    assert facts["cluster"] is None


def test_every_fault_of_every_file_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text("name: a\ntraining: {epochs: 0}\n")
    (tmp_path / "b.yaml").write_text("name: b\naugment: nosuch\n")
    assert cli.run(["validate", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "a.yaml: training.epochs" in said
    assert "b.yaml" in said
    assert "nosuch" in said
