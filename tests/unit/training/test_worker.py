from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cxr_ray import storage
from cxr_ray.config import BackboneConfig, HeadConfig, ModelConfig, OptimizerConfig, Recipe, RnnConfig, TrainingConfig
from cxr_ray.data.batches import MemoryFeed
from cxr_ray.errors import RunError
from cxr_ray.training import lease
from cxr_ray.training.checkpoint import list_epochs
from cxr_ray.training.distributed import World
from cxr_ray.training.loss import LabelCounts
from cxr_ray.training.progress import read_history
from cxr_ray.training.worker import Job, build_model, work


@dataclass(frozen=True)
class MemoryPlan:
    """Opens what ``FeedPlan`` opens, without Ray."""

    images: Any
    targets: Any

    def open(self, rank: int, world_size: int, batch_size: int, **options: Any) -> MemoryFeed:
        return MemoryFeed(self.images, self.targets, batch_size, rank=rank, world_size=world_size, **options)


class Killed(BaseException):
    """Stands in for the death of a process."""


@pytest.fixture
def job(tmp_path: Path, problem: Any, data_record: Any) -> Iterator[Job]:
    model = ModelConfig(backbone=BackboneConfig(name="small_cnn"), rnn=RnnConfig(kind="none", readout="mean"), head=HeadConfig(dropout=0.3))
    training = TrainingConfig(epochs=4, batch_size=8, optimizer=OptimizerConfig(lr=0.01), ema_decay=0.5)
    plan: Any = MemoryPlan(problem.images, problem.targets)
    counts = LabelCounts.of(problem.targets, 3)
    with lease.hold(str(tmp_path / "run")) as launch:
        yield Job(
            str(tmp_path / "run"),
            launch,
            Recipe(name="t", model=model, training=training, augment="light"),
            data_record,
            counts,
            plan,
            plan,
        )


def run(job: Job, *, die_after: int | None = None) -> dict[str, Any]:
    told: list[tuple[int, str | None]] = []

    def announce(record: Any, checkpoint: str | None) -> None:
        told.append((record.epoch, checkpoint))
        if record.epoch == die_after:
            raise Killed

    answer = work(job, World(), workers_here=2, announce=announce)
    assert all(checkpoint is not None for _, checkpoint in told)
    return answer


def exported(job: Job, epoch: int) -> dict[str, torch.Tensor]:
    return load_file(f"{job.out}/checkpoints/epoch-{epoch:04d}/model.safetensors")


def test_trains_to_the_end(job: Job) -> None:
    answer = run(job)
    assert answer["epochs"] == 4
    assert [record.epoch for record in read_history(job.out)] == [0, 1, 2, 3]
    assert set(list_epochs(f"{job.out}/checkpoints")) == {2, 3, answer["best"]["epoch"]}
    assert storage.list_files(f"{job.out}/tensorboard")
    assert run(job) == answer  # nothing left to do


@pytest.mark.parametrize("torn", [False, True])
def test_after_a_death_it_ends_where_an_undisturbed_run_ends(job: Job, tmp_path: Path, torn: bool) -> None:
    with pytest.raises(Killed):
        run(job, die_after=2)
    if torn:
        weights = Path(job.out) / "checkpoints/epoch-0002/model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
    assert run(job)["epochs"] == 4
    assert [record.epoch for record in read_history(job.out)] == [0, 1, 2, 3]
    with lease.hold(str(tmp_path / "other")) as launch:
        undisturbed = replace(job, out=str(tmp_path / "other"), launch=launch)
        run(undisturbed)
    for name, value in exported(undisturbed, 3).items():
        assert torch.equal(exported(job, 3)[name], value), name


def test_errors_of_the_user_come_back_as_a_value(job: Job) -> None:
    bad = job.recipe.training.model_copy(update={"optimizer": OptimizerConfig(name="sgd", lr=1e30)})
    answer = run(replace(job, recipe=job.recipe.model_copy(update={"training": bad})))
    assert isinstance(answer["error"], RunError)
    assert "not finite" in answer["error"].message
    absent = BackboneConfig(name="small_cnn", weights="/absent.safetensors")
    model = job.recipe.model.model_copy(update={"backbone": absent})
    answer = run(replace(job, recipe=job.recipe.model_copy(update={"model": model})))
    assert "absent.safetensors" in answer["error"].message


def test_a_worker_of_a_launch_that_is_over_writes_nothing(job: Job) -> None:
    answer = run(replace(job, launch="earlier"))
    assert "taken over" in answer["error"].message
    assert list_epochs(f"{job.out}/checkpoints") == []


def test_the_network_at_its_start_follows_from_the_seed(job: Job) -> None:
    def start(seed: int) -> torch.Tensor:
        training = job.recipe.training.model_copy(update={"seed": seed})
        model = build_model(job.recipe.model_copy(update={"training": training}), job.data, load_weights=True)
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    before = torch.random.get_rng_state()
    assert torch.equal(start(0), start(0))
    assert not torch.equal(start(0), start(1))
    assert torch.equal(before, torch.random.get_rng_state())
