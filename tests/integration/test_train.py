"""Ray Train around the loop: any number of workers, deaths of workers and of the driver, folds. Few launches: each costs seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from ray.train import UserCallback
from safetensors.torch import load_file

from cxr_ray.config import (
    BackboneConfig,
    CrossValidationConfig,
    FeedConfig,
    ModelConfig,
    OptimizerConfig,
    Recipe,
    RnnConfig,
    TrainingConfig,
)
from cxr_ray.data import columns, manifest, shards
from cxr_ray.errors import ClusterError, RunError
from cxr_ray.imaging.preprocess import PreprocessSpec
from cxr_ray.labels import LabelSet
from cxr_ray.training.checkpoint import epoch_of
from cxr_ray.training.crossval import cross_validate
from cxr_ray.training.progress import TrainProgress
from cxr_ray.training.run import open_run
from cxr_ray.training.select import Candidate, select
from cxr_ray.training.trainer import train

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]

SIZE = 48
BARS = LabelSet(("left", "middle", "right"), "multiclass")
LAMPS = LabelSet(("upper", "lower"), "multilabel")


def write_dataset(location: Path, labels: LabelSet, parts: dict[str, int]) -> str:
    """A DATASET of noise in which the labels can be seen: bright thirds, or bright halves."""
    generator = np.random.default_rng(5)
    schema = columns.shard_schema(labels, SIZE, SIZE)
    found, facts, tables = [], {}, []
    for part, count in parts.items():
        images = generator.integers(0, 140, (count, SIZE, SIZE))
        targets: Any = np.arange(count) % 3
        if labels.task == "multiclass":
            for image, target in zip(images, targets, strict=True):
                image[:, 16 * target : 16 * target + 16] += 100
        else:
            targets = generator.integers(0, 2, (count, 2)).astype(np.float32)
            images[:, : SIZE // 2] += (100 * targets[:, :1, None]).astype(np.int64)
            images[:, SIZE // 2 :] += (100 * targets[:, 1:, None]).astype(np.int64)
            targets[0, 0] = np.nan
        images = images.astype(np.uint8)
        names = pa.array([f"{part}-{row}" for row in range(count)])
        known: dict[str, Any] = dict.fromkeys(("image_id", "patient_id", "group_id"), names)
        known |= {"source": pa.array(["noise"] * count), "synthetic": pa.array([True] * count)}
        known |= {"image": pa.array([image.tobytes() for image in images], pa.binary(SIZE * SIZE))}
        known[columns.target_field(labels).name] = columns.targets_column(targets, labels)
        table = pa.table([known.get(field.name, pa.nulls(count, field.type)) for field in schema], schema=schema)
        found.append(shards.write_shard(str(location), f"{part}/part-00000.parquet", table))
        tables.append(table.drop_columns(["image"]))
        pixels = manifest.Normalization(mean=float(images.mean() / 255), std=float(images.std() / 255))
        facts[part] = manifest.PartitionInfo(images=count, patients=count, per_label={}, pixels=pixels)
    preprocess = manifest.PreprocessInfo.of(PreprocessSpec(height=SIZE, width=SIZE))
    described = manifest.DatasetManifest(
        name="noise",
        task=labels.task,
        labels=labels.names,
        image=manifest.ImageInfo(height=SIZE, width=SIZE),
        preprocess=preprocess,
        normalization=manifest.pooled(list(facts.values())),
        partitions=facts,
        seed=0,
        policy="grouped",
        sources=(),
        shards=tuple(found),
        index=shards.write_shard(str(location), manifest.INDEX, pa.concat_tables(tables)),
        quarantined=0,
        copies=manifest.CopyInfo(searched=False),
        split={},
        request="0" * 64,
        fingerprint=manifest.fingerprint(labels.task, labels.names, preprocess.fingerprint, found),
    )
    return str(shards.seal(str(location), described).location)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("bars"), BARS, {"train": 200, "val": 41})


def recipe(**changes: Any) -> Recipe:
    """Batches of 25: two workers get 12 and 13 of them. Learns slowly: with larger steps rounding grows to what a fault would do."""
    optimizer = OptimizerConfig(name="sgd", lr=0.001, momentum=0.0)
    training = {"epochs": 4, "batch_size": 25, "optimizer": optimizer, "class_weights": "balanced", "keep_checkpoints": 2}
    return Recipe(
        name="test",
        model=ModelConfig(backbone=BackboneConfig(name="small_cnn"), rnn=RnnConfig(hidden_size=8)),
        augment="light",
        training=TrainingConfig(**{**training, **changes}),
    )


def weights(run: str, epoch: int = 3) -> dict[str, torch.Tensor]:
    return load_file(f"{run}/checkpoints/epoch-{epoch:04d}/model.safetensors")


class Diary(UserCallback):
    """Writes what Ray Train is told, from its controller's process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({**metrics[0], "has_pointer": checkpoint is not None}) + "\n")


@pytest.fixture(scope="module")
def undisturbed(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One worker, from start to end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    told: list[TrainProgress] = []
    out = str(folder / "run")
    result = train(recipe(), dataset, out, report=told.append, callbacks=[Diary(folder / "diary")])
    assert not result.already_finished
    assert result.resumed_after is None
    assert [news.record.epoch for news in told] == [0, 1, 2, 3]
    diary = [json.loads(line) for line in (folder / "diary").read_text().splitlines()]
    assert [line["epoch"] for line in diary] == [0, 1, 2, 3]
    assert all(line["has_pointer"] for line in diary)
    assert diary[-1]["checkpoint"] == f"{out}/checkpoints/epoch-0003"
    return out


def test_a_finished_run(undisturbed: str, dataset: str) -> None:
    run = open_run(undisturbed)
    assert run.manifest.status == "finished"
    assert run.manifest.epochs == 4
    history = run.history()
    assert history[-1].train_loss < history[0].train_loss
    assert run.best_checkpoint() == f"{undisturbed}/checkpoints/epoch-{run.manifest.best.epoch:04d}"
    assert run.load_model()(torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)).shape == (1, 3)
    again = train(recipe(), dataset, undisturbed)
    assert again.already_finished
    with pytest.raises(RunError, match="another recipe"):
        train(recipe(epochs=5), dataset, undisturbed)


def test_two_workers_do_as_one(undisturbed: str, dataset: str, tmp_path: Path) -> None:
    """On the same batches, with batch normalisation, unequal parts of a batch, class weights and augmentation.

    Measured: right, the loss differs by 6e-6 and weights by 2e-5; with a mean of the workers' means 1e-4 and 2e-4; with batch
    statistics of each worker's own 4e-3 and 3e-2.
    """
    out = str(tmp_path / "run")
    train(recipe(), dataset, out, workers=2)
    for one, two in zip(open_run(undisturbed).history(), open_run(out).history(), strict=True):
        for name in ("train_loss", "val_loss", "lr"):
            assert getattr(one, name) == pytest.approx(getattr(two, name), abs=2e-5), (one.epoch, name)
        for name in ("val_accuracy", "val_macro_f1", "val_macro_auroc"):  # they jump where rounding turns an order about
            assert getattr(one, name) == pytest.approx(getattr(two, name), abs=0.05), (one.epoch, name)
    for name, value in weights(undisturbed).items():
        assert torch.allclose(value.double(), weights(out)[name].double(), atol=5e-4 if "running" in name else 1e-4), name


# --- deaths -----------------------------------------------------------------------------------------------------------


def train_workers() -> list[int]:
    """Process numbers of the training workers of this session's cluster."""
    from process_tree import processes  # Ray's workers, to which this module is sent, have no such module

    return processes("ray::RayTrainWorker", os.getpid())


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)


def assert_ended_as_undisturbed(out: str, undisturbed: str) -> None:
    run = open_run(out)
    assert run.manifest.status == "finished"
    assert [record.epoch for record in run.history()] == [0, 1, 2, 3]
    for name, value in weights(undisturbed).items():
        assert torch.equal(weights(out)[name], value), name


def test_kill_9_of_a_worker(undisturbed: str, dataset: str, tmp_path: Path) -> None:
    out, killed = str(tmp_path / "run"), []

    def kill(news: TrainProgress) -> None:
        if not killed:
            killed.extend(train_workers())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    result = train(recipe(), dataset, out, report=kill)
    assert len(killed) == 1
    assert result.run.manifest.launches == 1
    assert_ended_as_undisturbed(out, undisturbed)


DRIVER = """
import json, sys
from cxr_ray.config import Recipe
from cxr_ray.training.trainer import train
train(Recipe.model_validate_json(sys.argv[1]), sys.argv[2], sys.argv[3], address=sys.argv[4])
"""


def test_kill_9_of_the_driver_and_the_same_command_again(undisturbed: str, dataset: str, tmp_path: Path) -> None:
    import ray

    out = str(tmp_path / "run")
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", DRIVER, recipe().model_dump_json(), dataset, out, address]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment) as driver:
        wait_for(lambda: Path(out, "history.jsonl").exists() and Path(out, "history.jsonl").stat().st_size > 0, "the first epoch")
        with pytest.raises(RunError, match=f"in use by process {driver.pid}"):
            train(recipe(), dataset, out)
        driver.kill()
        driver.wait()
    wait_for(lambda: not train_workers(), "the dead driver's worker to end")  # it may have written one checkpoint more
    left = max(Path(out, "checkpoints").iterdir())
    assert open_run(out).manifest.status == "running"
    weights_file = left / "model.safetensors"
    if weights_file.exists():  # and one more misfortune: the newest checkpoint is torn
        weights_file.write_bytes(weights_file.read_bytes()[:1000])
    result = train(recipe(), dataset, out)
    assert result.run.manifest.launches == 2
    assert result.resumed_after is None or result.resumed_after < epoch_of(str(left))
    assert_ended_as_undisturbed(out, undisturbed)


# --- what cannot be done ----------------------------------------------------------------------------------------------


def test_requests_that_the_cluster_can_never_meet(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"needs 1 GPU \(there are 0\)"):
        train(recipe(), dataset, str(tmp_path / "gpu"), use_gpu=True)
    with pytest.raises(ClusterError, match="100 workers needs 10 CPU"):
        train(recipe(batch_size=100), dataset, str(tmp_path / "many"), workers=100)


def test_a_mistake_of_the_user_is_told_once(dataset: str, tmp_path: Path) -> None:
    """Both workers agree on it, and Ray does not try again."""
    started = threading.active_count()
    with pytest.raises(RunError, match="not finite at epoch 0"):
        train(recipe(optimizer=OptimizerConfig(name="sgd", lr=1e30)), dataset, str(tmp_path / "run"), workers=2)
    wait_for(lambda: threading.active_count() <= started + 2, "the watch to end")
    assert open_run(str(tmp_path / "run")).manifest.status == "running"


def test_cross_validation_over_many_labels(tmp_path: Path) -> None:
    """With ``file://`` as the object store: no lock of the kernel, no TensorBoard; and images streamed from the shards."""
    folds = write_dataset(tmp_path / "lamps", LAMPS, {"fold-0": 21, "fold-1": 30, "test": 5})
    out, settings = f"file://{tmp_path}/cv", recipe(epochs=2, batch_size=10, monitor="last")
    settings = settings.model_copy(update={"feed": FeedConfig(mode="streamed")})
    found = cross_validate(settings, folds, out)
    table = found.predictions()
    assert sorted(table["image_id"].to_pylist()) == sorted([f"fold-0-{row}" for row in range(21)] + [f"fold-1-{row}" for row in range(30)])
    assert table["fold"].to_pylist() == [0] * 21 + [1] * 30
    assert len(table["probabilities"][0]) == 2
    assert [fold["n"] for fold in found.summary["folds"]] == [21, 30]
    assert found.summary["pooled"]["n"] == 51
    assert not found.summary["held_out_folds_chose_the_epoch"]
    first = open_run(found.runs()[0])
    assert first.manifest.dataset.train == ("fold-1",)
    assert first.manifest.dataset.validation == ("fold-0",)
    assert cross_validate(settings, folds, out).summary == found.summary
    with pytest.raises(RunError, match="another recipe"):
        cross_validate(recipe(epochs=3, batch_size=10, monitor="last"), folds, out)


def test_folds_side_by_side_are_the_folds_one_by_one(tmp_path: Path) -> None:
    folds = write_dataset(tmp_path / "folds", BARS, {"fold-0": 24, "fold-1": 27})
    settings = recipe(epochs=1, batch_size=10, monitor="last")
    alone = cross_validate(settings, folds, str(tmp_path / "alone"), parallel=1)
    together = cross_validate(settings, folds, str(tmp_path / "together"), parallel=2)
    first, second = (np.stack(found.predictions()["probabilities"].to_numpy()) for found in (alone, together))
    assert np.abs(first - second).max() < 1e-5
    assert together.summary["fingerprint"] == alone.summary["fingerprint"]


def test_a_fold_that_goes_on_from_another_starts_with_its_weights(tmp_path: Path) -> None:
    folds = write_dataset(tmp_path / "folds", BARS, {"fold-0": 24, "fold-1": 27})
    standing = OptimizerConfig(name="sgd", lr=1e-12, momentum=0.0)  # the weights stay where they are, so the start can be seen
    settings = recipe(epochs=1, batch_size=10, monitor="last")
    unsound = settings.model_copy(update={"cross_validation": CrossValidationConfig(start="previous")})
    done = cross_validate(unsound, folds, str(tmp_path / "cv"))
    first, second = (open_run(location) for location in done.runs())
    assert done.summary["folds_go_on_from_the_fold_before"]
    assert first.manifest.initial is None
    assert second.manifest.initial == first.manifest.fingerprint
    still = recipe(epochs=1, batch_size=10, monitor="last", optimizer=standing)
    run = train(still, folds, str(tmp_path / "still"), fold=1, initial=done.runs()[0]).run
    before, after = weights(done.runs()[0], 0), weights(run.location, 0)
    assert torch.allclose(before["head.1.weight"], after["head.1.weight"], atol=1e-6)
    assert not torch.equal(before["mean"], after["mean"])  # the normalisation is that of its own training part


def test_select_shares_the_images_and_keeps_the_best(dataset: str, tmp_path: Path) -> None:
    slow, quick = recipe(epochs=2), recipe(epochs=2, optimizer=OptimizerConfig(name="adam", lr=0.01))
    listed = [Candidate("slow", slow), Candidate("quick", quick), Candidate("wrong", recipe(epochs=1, monitor="last", mixup_alpha=0.0))]
    found = select(listed, dataset, str(tmp_path), metric="val_loss")
    assert found["best"] == "quick"
    assert all(fact["error"] is None for fact in found["candidates"])
    assert select(listed, dataset, str(tmp_path), metric="val_loss")["best"] == "quick"
