from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from cxr_ray import storage
from cxr_ray.errors import RunError
from cxr_ray.training.checkpoint import (
    Best,
    EpochRecord,
    TrainState,
    checkpoint_location,
    epoch_of,
    list_epochs,
    load_exported,
    load_state,
    newest_valid,
    save_checkpoint,
)


def state(epoch: int, *, best: int = 0, average: bool = False) -> TrainState:
    torch.manual_seed(epoch)
    weights = {"conv": torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last), "count": torch.tensor(epoch)}
    return TrainState(
        model=weights,
        average={name: value + 1 for name, value in weights.items()} if average else None,
        optimizer={
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2)}},
            "param_groups": [{"lr": 0.1, "name": "rest", "betas": (0.9, 0.9)}],
        },
        history=tuple(EpochRecord(index, 0.5, 0.1, 1.0, 2.0, val_loss=0.25) for index in range(epoch + 1)),
        best=Best(best, "val_loss", 0.25),
        finished=False,
    )


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("average", [False, True])
def test_what_is_saved_is_loaded(tmp_path: Path, average: bool) -> None:
    written = state(2, average=average)
    location = save_checkpoint(str(tmp_path), written, keep=1)
    assert newest_valid(str(tmp_path)) == location
    loaded = load_state(location)
    assert same(loaded.model, written.model)
    assert same(loaded.average, written.average)
    assert same(loaded.optimizer, written.optimizer)
    assert (loaded.history, loaded.best, loaded.epoch) == (written.history, written.best, 2)
    assert same(load_exported(location), written.average if average else written.model)


def test_newest_and_best_are_kept(tmp_path: Path) -> None:
    for epoch in range(7):
        save_checkpoint(str(tmp_path), state(epoch, best=min(epoch, 1)), keep=2)
    assert list_epochs(str(tmp_path)) == [1, 5, 6]
    save_checkpoint(str(tmp_path), state(7, best=7), keep=1)
    assert list_epochs(str(tmp_path)) == [7]


@pytest.mark.parametrize("damage", ["cut", "changed", "no manifest", "cut manifest", "no file"])
def test_a_torn_checkpoint_is_passed_over(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = str(tmp_path)
    good = save_checkpoint(folder, state(0), keep=3)
    torn = Path(save_checkpoint(folder, state(1), keep=3))
    weights, manifest = torn / "model.safetensors", torn / "manifest.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-5])
    elif damage == "changed":
        weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "cut manifest":
        manifest.write_text(manifest.read_text()[:20])
    else:
        (torn / "state.pt").unlink()
    with pytest.raises(RunError):
        load_state(str(torn))
    with caplog.at_level(logging.WARNING):
        assert newest_valid(folder) == good
    assert str(torn) in caplog.text
    save_checkpoint(folder, state(1), keep=3)
    assert newest_valid(folder) == str(torn)


def test_nothing_there(tmp_path: Path) -> None:
    assert newest_valid(str(tmp_path / "absent")) is None
    (tmp_path / "epoch-old").mkdir()
    (tmp_path / "epoch-old" / "x").write_text("")
    assert list_epochs(str(tmp_path)) == []


def test_a_foreign_pickle_is_not_executed(tmp_path: Path) -> None:
    location = save_checkpoint(str(tmp_path), state(0), keep=1)
    torch.save({"raw": Path("x")}, Path(location) / "state.pt")
    data = (Path(location) / "state.pt").read_bytes()
    manifest = storage.read_json(f"{location}/manifest.json")
    manifest["files"]["state.pt"] = {"sha256": storage.sha256(data), "bytes": len(data)}
    storage.write_json(f"{location}/manifest.json", manifest)
    with pytest.raises(RunError, match="not one of ours"):
        load_state(location)


def test_names_sort_as_epochs() -> None:
    assert checkpoint_location("run/checkpoints", 7) == "run/checkpoints/epoch-0007"
    assert epoch_of("s3://epoch-9/checkpoints/epoch-0012?region=x") == 12
