"""Settings: every fault at once with its key, overrides, and every YAML file of the repository valid."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cxr_ray.config import Recipe, load_recipe, recipe_names
from cxr_ray.errors import ConfigError
from cxr_ray.settings import apply_overrides, parse_settings, read_yaml

ROOT = Path(__file__).parents[2]


def test_every_recipe_is_valid_and_counted() -> None:
    files = list((ROOT / "cxr_ray" / "models" / "recipes").glob("*.yaml"))
    assert sorted(file.stem for file in files) == recipe_names()
    assert len(files) >= 7
    for file in files:
        recipe = load_recipe(file.stem)
        assert recipe.name == file.stem
        assert recipe.description, f"{file.name} does not say what it is"


def test_every_other_yaml_parses() -> None:
    skipped = {".venv", ".git", "recipes", "work"}
    files = [file for file in ROOT.rglob("*.yaml") if not skipped & set(file.relative_to(ROOT).parts)]
    assert len(files) >= 3
    for file in files:
        list(yaml.safe_load_all(file.read_text()))


def test_all_faults_come_at_once_with_their_keys() -> None:
    data = {
        "name": "x",
        "modle": {},
        "training": {"epochs": 0, "optimizer": {"lr": -1, "name": "adma"}, "batchsize": 3},
    }
    with pytest.raises(ConfigError) as caught:
        parse_settings(Recipe, data, where="x.yaml")
    text = "\n".join(caught.value.faults)
    assert len(caught.value.faults) == 5
    for key in (
        "modle: unknown key",
        "training.epochs",
        "training.optimizer.lr",
        "training.optimizer.name",
        "training.batchsize: unknown key",
    ):
        assert key in text
    assert "batch_size" in text  # the valid keys are listed
    assert "got -1" in text


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"monitor": "val_f1"}, "val_macro_f1"),
        ({"monitor": "last", "patience": 2}, "patience"),
        ({"schedule": {"name": "one_cycle", "warmup_epochs": 1}}, "warm-up"),
        ({"epochs": 2, "schedule": {"warmup_epochs": 2}}, "warmup_epochs"),
    ],
)
def test_rules_that_tie_fields_together(training: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        parse_settings(Recipe, {"name": "x", "training": training}, where="x")


def test_last_needs_an_rnn() -> None:
    with pytest.raises(ConfigError, match="needs an RNN"):
        parse_settings(Recipe, {"name": "x", "model": {"rnn": {"kind": "none", "readout": "last"}}}, where="x")


def test_overrides_reach_deep_and_read_numbers() -> None:
    recipe = load_recipe(
        "cnn-lstm", ["training.optimizer.lr=3e-4", "model.rnn.bidirectional=true", "training.epochs=2", "training.schedule.warmup_epochs=0"]
    )
    assert recipe.training.optimizer.lr == pytest.approx(3e-4)
    assert recipe.model.rnn.bidirectional is True
    assert recipe.training.epochs == 2


@pytest.mark.parametrize("override", ["epochs", "=3", "a..b=1", "name.first=3"])
def test_a_malformed_override_is_shown(override: str) -> None:
    with pytest.raises(ConfigError, match="overrides"):
        apply_overrides({"name": "x"}, [override])


def test_overrides_leave_the_original_alone() -> None:
    data = {"training": {"epochs": 3}}
    apply_overrides(data, ["training.epochs=5"])
    assert data == {"training": {"epochs": 3}}


def test_an_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="cnn-lstm") as caught:
        load_recipe("cnn-lstn")
    assert "cxr-ray recipes" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "expected"),
    [(b"- 1", "mapping"), (b"a: [", "not YAML"), (b"\xff\xfe", "UTF-8"), (None, "cannot be read")],
    ids=["list", "torn", "binary", "missing"],
)
def test_a_bad_file_says_what_is_wrong(tmp_path: Path, text: bytes | None, expected: str) -> None:
    file = tmp_path / "r.yaml"
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(ConfigError, match=expected):
        read_yaml(file)


def test_settings_are_frozen() -> None:
    recipe = load_recipe("cnn-lstm")
    with pytest.raises(ValueError, match="frozen"):
        recipe.training.epochs = 3  # type: ignore[misc]
