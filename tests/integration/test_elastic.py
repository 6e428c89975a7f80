"""Workers come and go with the nodes of a cluster; each epoch is trained once, by as many as there was room for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cxr_ray.config import BackboneConfig, ModelConfig, Recipe, RnnConfig, TrainingConfig
from cxr_ray.labels import LabelSet
from cxr_ray.training.progress import read_history
from cxr_ray.training.run import open_run

SIZES = (1, 2, 2, 1)
"""Workers of each epoch: one node, a second one comes, it is lost."""

DRIVER = """
import sys, time
from dataclasses import dataclass
from cxr_ray.cluster import connected
from cxr_ray.config import Recipe
from cxr_ray.data.shards import open_dataset
from cxr_ray.training.elastic import Workers
from cxr_ray.training.trainer import plan_feeds, train

@dataclass
class Patient:
    '''A feed that begins an epoch when the group has the size that the test waits for.'''
    feed: object
    here: int
    sizes: tuple

    def __getattr__(self, name):
        return getattr(self.feed, name)

    def epoch(self, epoch):
        while self.here != self.sizes[epoch]:
            time.sleep(0.1)
        yield from self.feed.epoch(epoch)

@dataclass
class Plan:
    plan: object
    sizes: tuple

    @property
    def rows(self):
        return self.plan.rows

    def open(self, rank, world_size, batch_size, **options):
        return Patient(self.plan.open(rank, world_size, batch_size, **options), world_size, self.sizes)

recipe, sizes = Recipe.model_validate_json(sys.argv[1]), tuple(map(int, sys.argv[5].split(",")))
with connected(sys.argv[4]):
    planned, validation = plan_feeds(open_dataset(sys.argv[2]), recipe, None)
    train(recipe, sys.argv[2], sys.argv[3], workers=Workers(1, 2, resize_seconds=1.0), plans=(Plan(planned, sizes), validation))
"""


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A cluster of one node with one CPU, of which this process is no part."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 150 << 20})
        yield made
        made.shutdown()


def wait_for(condition: Callable[[], bool], driver: subprocess.Popen[str], what: str, seconds: float = 100) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, driver.communicate()[1]
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_a_node_comes_and_goes(cluster: Any, tmp_path: Path, write_noise: Any) -> None:
    recipe = Recipe(
        name="elastic",
        model=ModelConfig(backbone=BackboneConfig(name="small_cnn"), rnn=RnnConfig(hidden_size=8)),
        training=TrainingConfig(epochs=len(SIZES), batch_size=8),
    )
    data, out = str(tmp_path / "data"), str(tmp_path / "run")
    write_noise(Path(data), LabelSet(("a", "b"), "multiclass"), {"train": 24, "val": 9})
    command = [sys.executable, "-c", DRIVER, recipe.model_dump_json(), data, out, cluster.address, ",".join(map(str, SIZES))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def epochs() -> int:
        return len(read_history(out))

    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as driver:
        try:
            wait_for(lambda: epochs() == 1, driver, "an epoch of one worker")
            node = cluster.add_node(num_cpus=1, object_store_memory=150 << 20)
            wait_for(lambda: epochs() == 3, driver, "two epochs of two workers")
            cluster.remove_node(node, allow_graceful=False)
            said = driver.communicate(timeout=120)[1]
            assert driver.returncode == 0, said
        finally:
            driver.kill()
    history = read_history(out)
    assert [record.epoch for record in history] == list(range(len(SIZES)))
    assert [record.workers for record in history] == list(SIZES)
    manifest = open_run(out).manifest
    assert (manifest.status, manifest.launches, manifest.least_workers, manifest.workers) == ("finished", 1, 1, 2)
