from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cxr_ray import storage
from cxr_ray.config import Recipe, TrainingConfig
from cxr_ray.errors import ConfigError, RunError
from cxr_ray.training import tracking
from cxr_ray.training.checkpoint import EpochRecord
from cxr_ray.training.progress import TrainProgress, write_history
from cxr_ray.training.run import Run, RunManifest, run_fingerprint, write_run
from cxr_ray.training.tracking import Description, check_trackers, describe, flat, metrics_of, tracked


@pytest.fixture
def run(tmp_path: Path, data_record: Any) -> Run:
    recipe = Recipe(name="test", description="prose", training=TrainingConfig(epochs=4))
    manifest = RunManifest(
        schema="cxr-ray/run/1",
        status="running",
        fingerprint=run_fingerprint(recipe, data_record),
        recipe=recipe,
        dataset=data_record,
        seed=0,
        workers=1,
        use_gpu=False,
        versions={"torch": "2"},
        hardware={},
        started="2024-01-01T00:00:00Z",
        launches=1,
    )
    write_run(str(tmp_path / "run"), manifest)
    return Run(str(tmp_path / "run"), manifest)


def history(epochs: int) -> list[EpochRecord]:
    return [EpochRecord(epoch, 1.0 / (epoch + 1), 0.1, 1.0, 10.0, val_loss=0.5, workers=2) for epoch in range(epochs)]


def train(run: Run, names: list[str], first: int, last: int) -> None:
    """Epochs ``first`` to ``last - 1``, as the watch tells of them; what was before stands in the history already."""
    with tracked(run, names) as told:
        for epoch in range(first, last):
            write_history(run.location, history(epoch + 1))
            for report in told:
                report(TrainProgress(history(epoch + 1)[-1], 4, 0.0))


class Diary:
    """A tracker that writes down what it is told."""

    told: list[Any]

    def __init__(self, description: Description, known: str | None) -> None:
        self.id = known or "new"
        self.told.append(("open", known))

    def log(self, record: EpochRecord) -> None:
        self.told.append(record.epoch)

    def close(self, *, finished: bool) -> None:
        self.told.append("finished" if finished else "interrupted")


@pytest.fixture
def diary(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    Diary.told = []
    monkeypatch.setitem(tracking.TRACKERS, "diary", Diary)
    return Diary.told


def test_a_resumed_run_goes_on_and_no_epoch_is_told_twice(run: Run, diary: list[Any]) -> None:
    def interrupted() -> None:
        with tracked(run, ["diary"]) as told:
            write_history(run.location, history(1))
            told[0](TrainProgress(history(1)[0], 4, 0.0))
            write_history(run.location, history(2))  # durable, and the driver ends before it could tell of it
            raise KeyError("interrupted")

    with pytest.raises(KeyError):
        interrupted()
    assert diary == [("open", None), 0, "interrupted"]
    assert json.loads(Path(run.location, "tracking.json").read_text()) == {"diary": {"run": "new", "epochs": 1}}
    diary.clear()
    train(run, ["diary"], 2, 4)
    assert diary == [("open", "new"), 1, 2, 3, "finished"]


def test_a_tracker_that_fails_is_named_once_and_the_others_go_on(
    run: Run, diary: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Diary):
        def log(self, record: EpochRecord) -> None:
            if record.epoch > 0:
                raise ConnectionError("the server is gone")

    monkeypatch.setitem(tracking.TRACKERS, "broken", Broken)
    train(run, ["broken", "diary"], 0, 4)
    assert caplog.text.count("the server is gone") == 1
    assert diary == [("open", None), ("open", None), 0, 1, 2, 3, "finished"]
    assert storage.read_json(storage.join(run.location, "tracking.json"))["broken"]["epochs"] == 1


def test_a_tracker_that_cannot_be_opened_stops_the_command(run: Run, diary: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(description: Description, known: str | None) -> Diary:
        raise PermissionError("no key")

    monkeypatch.setitem(tracking.TRACKERS, "closed", refuse)
    with pytest.raises(RunError, match="closed cannot be opened: no key"), tracked(run, ["diary", "closed"]):
        raise AssertionError("not reached")
    assert diary == [("open", None), "interrupted"]


def test_without_trackers_nothing_is_written(run: Run) -> None:
    train(run, [], 0, 2)
    assert not Path(run.location, "tracking.json").exists()


def test_what_is_told(run: Run) -> None:
    told = describe(run)
    assert told.params["training.epochs"] == 4
    assert told.params["model.backbone.name"]
    assert "description" not in told.params
    assert told.tags["data_fingerprint"] == "0" * 64
    assert told.tags["run_fingerprint"] == run.manifest.fingerprint
    assert told.tags["version.torch"] == "2"
    assert metrics_of(history(1)[0]) == {
        "train_loss": 1.0, "lr": 0.1, "seconds": 1.0, "images_per_second": 10.0, "val_loss": 0.5, "workers": 2,
    }  # fmt: skip
    assert flat({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None}) == {"a.b": 1, "a.c.d": "[1, 2]", "e": None}


def test_names_and_packages_are_checked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="'excel' is unknown; valid: mlflow, wandb"):
        check_trackers(["excel"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="not installed") as caught:
        check_trackers(["mlflow"])
    assert caught.value.hint == "pip install 'cxr-ray[mlflow]'"


@pytest.mark.filterwarnings("ignore")  # of SQLAlchemy, within MLflow
def test_mlflow(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    train(run, ["mlflow"], 0, 2)
    train(run, ["mlflow"], 2, 4)
    client = MlflowClient()
    experiment = client.get_experiment_by_name("cxr-ray")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["training.epochs"] == "4"
    assert found.data.tags["data_fingerprint"] == "0" * 64
    losses = client.get_metric_history(found.info.run_id, "train_loss")
    assert [(point.step, point.value) for point in losses] == [(epoch, 1.0 / (epoch + 1)) for epoch in range(4)]
    assert Path(client.download_artifacts(found.info.run_id, "config.yaml")).read_text() == Path(run.location, "config.yaml").read_text()


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(run, ["wandb"], 0, 2)
    train(run, ["wandb"], 2, 4)
    known = storage.read_json(storage.join(run.location, "tracking.json"))["wandb"]
    assert known["epochs"] == 4
    written = list(tmp_path.glob(f"wandb/offline-run-*-{known['run']}/run-{known['run']}.wandb"))
    assert written
    assert any(b"train_loss" in file.read_bytes() for file in written)
