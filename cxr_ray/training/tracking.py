"""Epochs told to MLflow and Weights & Biases, beside TensorBoard; each is an extra that is imported only when it is asked for.

The driver tells them what ``history.jsonl`` holds, so that no epoch is told that a resumed run would not find, and none twice:
``tracking.json`` keeps the tracked run and how many epochs it knows. What is told is the recipe, the metrics, fingerprints and versions:
no image, no label of an image, no location of the data.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from cxr_ray import storage
from cxr_ray.errors import ConfigError, RunError
from cxr_ray.training.checkpoint import EpochRecord
from cxr_ray.training.progress import TrainProgress, read_history
from cxr_ray.training.run import CONFIG, TRACKING, Run

logger = logging.getLogger(__name__)

PROJECT = "cxr-ray"
"""Experiment of MLflow or project of Weights & Biases, where the environment names no other."""
_PARAMS_A_CALL = 100  # MLflow's limit


@dataclass(frozen=True)
class Description:
    """What a tracker is told of a run before its epochs."""

    name: str
    params: dict[str, Any]
    """The resolved recipe, flat: ``training.epochs`` and so on."""
    tags: dict[str, str]
    """Fingerprints of the data and the run, versions."""
    config: str
    """``config.yaml``."""


class Tracker(Protocol):
    """A tracked run that is open."""

    id: str

    def log(self, record: EpochRecord) -> None:
        """Tell of an epoch."""

    def close(self, *, finished: bool) -> None:
        """End it; ``finished`` or not, it can be gone on with."""


class MlflowTracker:
    """A run of MLflow at ``MLFLOW_TRACKING_URI`` (default: ``mlflow.db`` here), in the experiment ``MLFLOW_EXPERIMENT_NAME``."""

    def __init__(self, told: Description, known: str | None) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read on import
        from mlflow.entities import Param, RunTag
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        if known is not None:
            self.id: str = self._client.get_run(known).info.run_id
            self._client.update_run(self.id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        there = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if there is None else there.experiment_id
        self.id = self._client.create_run(experiment, run_name=told.name).info.run_id
        params = [Param(key, str(value)) for key, value in told.params.items()]
        for start in range(0, len(params), _PARAMS_A_CALL):
            self._client.log_batch(self.id, params=params[start : start + _PARAMS_A_CALL])
        self._client.log_batch(self.id, tags=[RunTag(key, value) for key, value in told.tags.items()])
        self._client.log_text(self.id, told.config, CONFIG)

    def log(self, record: EpochRecord) -> None:
        """Tell of an epoch."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        self._client.log_batch(self.id, metrics=[Metric(name, value, now, record.epoch) for name, value in metrics_of(record).items()])

    def close(self, *, finished: bool) -> None:
        """End it."""
        self._client.set_terminated(self.id, "FINISHED" if finished else "KILLED")


class WandbTracker:
    """A run of Weights & Biases in the project ``WANDB_PROJECT``; ``WANDB_MODE=offline`` keeps it below ``./wandb``."""

    def __init__(self, told: Description, known: str | None) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        private: dict[str, Any] = {"console": "off", "disable_git": True, "disable_code": True}
        private |= {"x_disable_meta": True, "x_save_requirements": False}  # command line, paths, host
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=known,
            resume=None if known is None else "allow",
            name=told.name,
            config={**told.params, **told.tags},
            reinit="create_new",  # folds of one driver side by side
            settings=wandb.Settings(silent=True, **private),
        )
        self.id: str = self._run.id
        if known is None:
            artifact = wandb.Artifact(f"config-{self.id}", type="config")
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / CONFIG).write_text(told.config)
                artifact.add_file(str(Path(folder) / CONFIG))
                self._run.log_artifact(artifact)

    def log(self, record: EpochRecord) -> None:
        """Tell of an epoch."""
        self._run.log(metrics_of(record), step=record.epoch)

    def close(self, *, finished: bool) -> None:
        """End it."""
        self._run.finish(exit_code=0 if finished else 1)


TRACKERS: dict[str, Callable[[Description, str | None], Tracker]] = {"mlflow": MlflowTracker, "wandb": WandbTracker}
"""Name, which is that of the module too -> what opens a run: a new one, or the one that is known by its id."""


def check_trackers(names: Sequence[str]) -> None:
    """Find before anything starts what cannot be tracked with.

    Raises:
        ConfigError: A name is unknown, or its package is missing.
    """
    from importlib.util import find_spec

    unknown = [f"{name!r} is unknown; valid: {', '.join(TRACKERS)}" for name in names if name not in TRACKERS]
    if unknown:
        raise ConfigError(unknown, where="--track")
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        faults = [f"{name}: its package is not installed" for name in missing]
        raise ConfigError(faults, where="--track", hint=f"pip install 'cxr-ray[{','.join(missing)}]'")


def metrics_of(record: EpochRecord) -> dict[str, float]:
    """The figures of an epoch by their names in the history; those that are undefined are left out."""
    return {name: value for name, value in asdict(record).items() if value is not None and name != "epoch"}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, of dotted keys; lists as JSON."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = json.dumps(value) if isinstance(value, list) else value
    return found


def describe(run: Run) -> Description:
    """What trackers are told of ``run``."""
    manifest = run.manifest
    recipe, fold = manifest.recipe, manifest.dataset.fold
    tags = {"data": manifest.dataset.name, "data_fingerprint": manifest.dataset.fingerprint, "run_fingerprint": manifest.fingerprint}
    tags |= {f"version.{name}": version for name, version in manifest.versions.items()}
    return Description(
        name=recipe.name if fold is None else f"{recipe.name} fold {fold}",
        params=flat(recipe.model_dump(mode="json", exclude=recipe.prose)),
        tags=tags if fold is None else {**tags, "fold": str(fold)},
        config=storage.read_bytes(storage.join(run.location, CONFIG)).decode(),
    )


@contextmanager
def tracked(run: Run, names: Sequence[str]) -> Iterator[list[Callable[[TrainProgress], None]]]:
    """Tell trackers of the epochs of ``run`` for the length of a block; what they do not know of its past is told first.

    A tracker that fails within the block is named once in the log and left alone: the training goes on.

    Yields:
        What is to be called with each epoch; nothing where there are no trackers.

    Raises:
        RunError: A tracker cannot be opened.
    """
    tracking = _Tracking(run, names)
    try:
        tracking.catch_up()
        yield [lambda _: tracking.catch_up()] if names else []
    except BaseException:
        tracking.close(finished=False)
        raise
    tracking.close(finished=True)


class _Tracking:
    def __init__(self, run: Run, names: Sequence[str]) -> None:
        self._out = run.location
        self._file = storage.join(run.location, TRACKING)
        self._known: dict[str, dict[str, Any]] = storage.read_json(self._file) if names and storage.exists(self._file) else {}
        self._open: dict[str, Tracker] = {}
        told = describe(run) if names else None
        for name in dict.fromkeys(names):
            assert told is not None
            there = self._known.get(name)
            try:
                self._open[name] = TRACKERS[name](told, there["run"] if there else None)
            except Exception as error:  # each library raises its own kinds
                self.close(finished=False)
                raise RunError(f"{name} cannot be opened: {error}", hint=f"train without --track {name}, or mend its settings") from error
            if there is None:
                self._known[name] = {"run": self._open[name].id, "epochs": 0}
        if names:
            storage.write_json(self._file, self._known)

    def catch_up(self) -> None:
        """Tell each tracker of what the history has and it has not."""
        if not self._open:
            return
        history = read_history(self._out)
        for name in list(self._open):
            facts = self._known[name]
            new = history[facts["epochs"] :]
            if new and self._try(name, lambda tracker, new=new: [tracker.log(record) for record in new]):  # type: ignore[misc]
                facts["epochs"] = len(history)
                storage.write_json(self._file, self._known)

    def close(self, *, finished: bool) -> None:
        for name in list(self._open):
            self._try(name, lambda tracker: tracker.close(finished=finished))

    def _try(self, name: str, act: Callable[[Tracker], Any]) -> bool:
        try:
            act(self._open[name])
        except Exception as error:
            del self._open[name]
            logger.warning("%s failed and is told nothing more: %s", name, error)
            return False
        return True
