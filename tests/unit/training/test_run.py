from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cxr_ray import storage
from cxr_ray.config import Recipe, TrainingConfig
from cxr_ray.errors import RunError
from cxr_ray.training.checkpoint import Best, EpochRecord, TrainState, save_checkpoint
from cxr_ray.training.progress import write_history
from cxr_ray.training.run import (
    BestRecord,
    Run,
    RunManifest,
    best_of_whole,
    claim,
    differences,
    hardware,
    open_run,
    refuse_foreign,
    run_fingerprint,
    versions,
    write_run,
)


def manifest(data_record: Any, **changes: Any) -> RunManifest:
    recipe = Recipe(name="test", training=TrainingConfig(**changes))
    return RunManifest(
        schema="cxr-ray/run/1",
        status="running",
        fingerprint=run_fingerprint(recipe, data_record),
        recipe=recipe,
        dataset=data_record,
        seed=0,
        workers=1,
        use_gpu=False,
        versions=versions(),
        hardware=hardware(),
        started="2024-01-01T00:00:00Z",
        launches=1,
    )


def records(losses: list[float]) -> list[EpochRecord]:
    return [EpochRecord(epoch, 1.0, 0.1, 1.0, 1.0, val_loss=loss, val_macro_f1=1 - loss) for epoch, loss in enumerate(losses)]


def save(folder: str, history: list[EpochRecord], epoch: int, model: torch.nn.Module | None = None) -> str:
    weights = {"w": torch.zeros(1)} if model is None else dict(model.state_dict())
    state = TrainState(weights, None, {}, tuple(history[: epoch + 1]), Best(epoch, "val_loss", 0.1), False)
    return save_checkpoint(folder, state, keep=99)


def test_a_run_is_written_and_read(tmp_path: Path, data_record: Any) -> None:
    written = manifest(data_record, seed=3)
    assert claim(str(tmp_path / "run"), written, overwrite=False) == written
    run = open_run(str(tmp_path / "run"))
    assert run.manifest == written
    assert run.labels.names == data_record.labels
    assert run.history() == []
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["training"]["seed"] == 3


def test_the_same_run_goes_on_and_another_is_refused(tmp_path: Path, data_record: Any) -> None:
    out, first = str(tmp_path), manifest(data_record, epochs=3)
    claim(out, first, overwrite=False)
    again = claim(out, first.model_copy(update={"started": "later", "workers": 2}), overwrite=False)
    assert (again.launches, again.started, again.workers) == (2, first.started, 2)
    save(f"{out}/checkpoints", records([0.5]), 0)
    with pytest.raises(RunError, match=r"recipe.training.epochs: 3 -> 4(?s:.)*--overwrite"):
        claim(out, manifest(data_record, epochs=4), overwrite=False)
    other_data = data_record.model_copy(update={"fingerprint": "f" * 64})
    with pytest.raises(RunError, match=r"data\.fingerprint"):
        claim(out, manifest(other_data, epochs=3), overwrite=False)
    moved = data_record.model_copy(update={"location": "elsewhere"})
    assert claim(out, manifest(moved, epochs=3), overwrite=False).launches == 3


def test_an_attempt_that_trained_nothing_stands_in_nobodys_way(tmp_path: Path, data_record: Any) -> None:
    claim(str(tmp_path), manifest(data_record, epochs=3), overwrite=False)
    other = manifest(data_record, epochs=4)
    assert claim(str(tmp_path), other, overwrite=False) == other


def test_overwrite_removes_a_run_and_nothing_else(tmp_path: Path, data_record: Any) -> None:
    out, history = str(tmp_path / "run"), records([0.5])
    claim(out, manifest(data_record, epochs=3), overwrite=False)
    save(f"{out}/checkpoints", history, 0)
    write_history(out, history)
    fresh = manifest(data_record, epochs=4)
    assert claim(out, fresh, overwrite=True) == fresh
    assert storage.list_files(out) == ["config.yaml", "run.json"]
    refuse_foreign(out)
    refuse_foreign(str(tmp_path / "absent"))
    (tmp_path / "precious" / "ray").mkdir(parents=True)
    (tmp_path / "precious" / "ray" / "thesis.txt").write_text("x")
    with pytest.raises(RunError, match="left alone"):
        refuse_foreign(str(tmp_path / "precious"))


def test_a_finished_run_stays_finished_while_it_has_a_checkpoint(tmp_path: Path, data_record: Any) -> None:
    out, wanted = str(tmp_path), manifest(data_record)
    location = save(f"{out}/checkpoints", records([0.5]), 0)
    best = BestRecord(epoch=0, metric="val_loss", value=0.5, checkpoint="checkpoints/epoch-0000")
    write_run(out, wanted.model_copy(update={"status": "finished", "best": best}))
    assert claim(out, wanted, overwrite=False).status == "finished"
    assert open_run(out).best_checkpoint() == location
    storage.remove(location)
    assert claim(out, wanted, overwrite=False).status == "running"


def test_best_falls_back_to_what_is_whole(tmp_path: Path, data_record: Any) -> None:
    out, history = str(tmp_path), records([0.5, 0.2, 0.3])
    folder = f"{out}/checkpoints"
    locations = [save(folder, history, epoch) for epoch in range(3)]
    write_history(out, history)
    best = BestRecord(epoch=1, metric="val_loss", value=0.2, checkpoint="checkpoints/epoch-0001")
    run = Run(out, manifest(data_record).model_copy(update={"best": best}))
    assert run.best_checkpoint() == locations[1]
    (Path(locations[1]) / "model.safetensors").write_bytes(b"torn")
    assert run.best() == Best(2, "val_loss", 0.3)
    assert best_of_whole(folder, history, "val_macro_f1") == Best(2, "val_macro_f1", 0.7)
    assert best_of_whole(folder, history, "last") == Best(2, "last", None)
    assert best_of_whole(folder, history, "val_accuracy") == Best(0, "val_accuracy", None)
    for location in locations:
        storage.remove(location)
    with pytest.raises(RunError, match="no whole checkpoint"):
        run.best()


def test_the_model_of_a_run(tmp_path: Path, data_record: Any, network: Any) -> None:
    model = network()
    recipe = Recipe(name="test", model=model.config)
    save(f"{tmp_path}/checkpoints", records([0.5]), 0, model)
    write_history(str(tmp_path), records([0.5]))
    write_run(str(tmp_path), manifest(data_record).model_copy(update={"recipe": recipe}))
    loaded = open_run(str(tmp_path)).load_model()
    assert not loaded.training
    images = torch.randint(0, 256, (2, 16, 16), dtype=torch.uint8)
    assert torch.equal(loaded(images), model.eval()(images))


def test_what_is_not_a_run(tmp_path: Path, data_record: Any) -> None:
    with pytest.raises(RunError, match=r"is not a RUN(?s:.)*cxr-ray train"):
        open_run(str(tmp_path))
    storage.write_json(f"{tmp_path}/run.json", {"schema": "other/9"})
    with pytest.raises(RunError, match="other/9"):
        open_run(str(tmp_path))
    storage.write_json(f"{tmp_path}/run.json", {"schema": "cxr-ray/run/1", "status": "lost"})
    with pytest.raises(RunError, match="status"):
        open_run(str(tmp_path))


def test_differences_name_every_key() -> None:
    was, now = {"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 1, "c": 3}, "d": [1, 2]}
    assert differences(was, now) == ["a.c: 2 -> 3", "d: [1] -> [1, 2]"]


def test_versions_and_hardware_are_there() -> None:
    assert {"cxr_ray", "python", "torch", "ray"} <= set(versions())
    assert hardware()["cores"] >= 1
