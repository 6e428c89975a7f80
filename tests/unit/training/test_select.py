from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cxr_ray import storage
from cxr_ray.errors import ConfigError, ModelError, RunError
from cxr_ray.training import select as module
from cxr_ray.training.checkpoint import Best, EpochRecord
from cxr_ray.training.select import candidates, parse_vary, select


def test_every_recipe_with_every_combination_of_values() -> None:
    varied = parse_vary(["training.optimizer.lr=0.001,1e-2", "model.rnn.hidden_size=32, 64"])
    found = candidates(["demo", "cnn"], ["training.epochs=2"], varied)
    assert [item.name for item in found[:4]] == [
        "demo-lr-0.001-hidden_size-32",
        "demo-lr-0.001-hidden_size-64",
        "demo-lr-1e-2-hidden_size-32",
        "demo-lr-1e-2-hidden_size-64",
    ]
    assert len(found) == 8
    assert found[2].recipe.training.optimizer.lr == 0.01
    assert {item.recipe.training.epochs for item in found} == {2}


def test_a_pattern_stands_for_all_recipes_that_fit_each_once() -> None:
    assert [item.name for item in candidates(["cnn-lstm*", "cnn-lstm"])] == ["cnn-lstm", "cnn-lstm-transfer"]


@pytest.mark.parametrize(
    ("recipes", "vary", "said"),
    [
        (["nothing-*"], [], "no recipe fits 'nothing-"),
        (["demo"], ["lr"], "expected key=value,value"),
        (["demo"], ["lr= ,"], "expected key"),
    ],
)
def test_mistakes_are_told(recipes: list[str], vary: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        candidates(recipes, [], parse_vary(vary))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """``train`` that answers at once: name of the candidate -> macro F1 by epoch, or an error."""
    outcomes: dict[str, Any] = {}

    def train(recipe: Any, dataset: str, out: str, **_: Any) -> Any:
        outcome = outcomes[Path(out).name]
        if isinstance(outcome, Exception):
            raise outcome
        history = [EpochRecord(epoch, 1.0, 0.1, 2.0, 50.0, val_loss=1 - value, val_macro_f1=value) for epoch, value in enumerate(outcome)]
        best = max(history, key=lambda record: record.val_macro_f1)
        run = SimpleNamespace(history=lambda: history, best=lambda: Best(best.epoch, "val_macro_f1", best.val_macro_f1))
        return SimpleNamespace(run=run)

    import contextlib

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "plan_feeds", lambda *_: (None, None))
    monkeypatch.setattr(module, "connected", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(module, "open_dataset", lambda _: SimpleNamespace(manifest=SimpleNamespace(fingerprint="f" * 64)))
    return outcomes


def test_the_best_by_validation_is_kept_and_a_failure_ends_nothing(trained: dict[str, Any], tmp_path: Path) -> None:
    trained |= {"demo": [0.5, 0.7, 0.6], "cnn": ModelError("no weights"), "cnn-lstm": [0.2, 0.9]}
    found = select(candidates(["demo", "cnn", "cnn-lstm"]), "data", str(tmp_path))
    assert found["best"] == "cnn-lstm"
    assert [(fact["name"], fact["value"]) for fact in found["candidates"]] == [("cnn-lstm", 0.9), ("demo", 0.7), ("cnn", None)]
    assert found["candidates"][1]["epoch"] == 1
    assert "no weights" in found["candidates"][2]["error"]
    assert storage.read_json(str(tmp_path / "select.json")) == found


def test_a_small_loss_is_better(trained: dict[str, Any], tmp_path: Path) -> None:
    trained |= {"demo": [0.5], "cnn": [0.8]}
    assert select(candidates(["demo", "cnn"]), "data", str(tmp_path), metric="val_loss")["best"] == "cnn"


def test_nothing_trained_is_an_error_with_every_reason(trained: dict[str, Any], tmp_path: Path) -> None:
    trained |= {"demo": RunError("diverged"), "cnn": ModelError("no weights")}
    with pytest.raises(RunError, match=r"demo: diverged(?s:.)*cnn: no weights"):
        select(candidates(["demo", "cnn"]), "data", str(tmp_path))
    with pytest.raises(ConfigError, match="unknown metric 'f1'"):
        select(candidates(["demo"]), "data", str(tmp_path), metric="f1")
