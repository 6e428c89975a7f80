"""A small problem that a small network solves, and two ranks without processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cxr_ray.config import BackboneConfig, HeadConfig, ModelConfig, RnnConfig
from cxr_ray.data.batches import MemoryFeed
from cxr_ray.labels import LabelSet
from cxr_ray.models.classifier import Classifier, build_classifier


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """The networks are tiny: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Problem:
    images: np.ndarray
    targets: np.ndarray
    labels: LabelSet

    def train(self, batch_size: int = 8, seed: int = 0) -> MemoryFeed:
        return MemoryFeed(self.images, self.targets, batch_size, seed=seed)

    def validation(self) -> MemoryFeed:
        return MemoryFeed(self.images, self.targets, 16, shuffle=False)


@pytest.fixture(scope="session")
def problem() -> Problem:
    """24 images of 16 x 16 in three classes that differ in where they are bright."""
    generator = np.random.default_rng(7)
    targets = np.arange(24) % 3
    images = generator.integers(0, 120, (24, 16, 16))
    for index, target in enumerate(targets):
        images[index, 5 * target : 5 * target + 5] += 100
    return Problem(images.astype(np.uint8), targets, LabelSet(("low", "middle", "high"), "multiclass"))


@pytest.fixture(scope="session")
def multilabel_problem() -> Problem:
    """20 images with two labels that follow from bright rows; some labels are unknown."""
    generator = np.random.default_rng(8)
    targets = generator.integers(0, 2, (20, 2)).astype(np.float32)
    images = generator.integers(0, 120, (20, 16, 16))
    images[:, :8] += (targets[:, 0, None, None] * 100).astype(np.int64)
    images[:, 8:] += (targets[:, 1, None, None] * 100).astype(np.int64)
    targets[3, 0] = targets[5, 1] = targets[6] = np.nan
    return Problem(images.astype(np.uint8), targets, LabelSet(("upper", "lower"), "multilabel"))


def _network(
    outputs: int = 3, *, dropout: float = 0.0, freeze_stages: int = 0, unfreeze_epoch: int | None = None, seed: int = 0
) -> Classifier:
    config = ModelConfig(
        backbone=BackboneConfig(name="small_cnn", freeze_stages=freeze_stages, unfreeze_epoch=unfreeze_epoch),
        rnn=RnnConfig(kind="none", readout="mean"),
        head=HeadConfig(dropout=dropout),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_classifier(config, outputs, mean=0.4, std=0.2, image_size=(16, 16))


@pytest.fixture(scope="session")
def network() -> Callable[..., Classifier]:
    """Maker of a small CNN with a linear head; the same weights for the same seed."""
    return _network


class ThreadGroup:
    """Stands in for ``torch.distributed``: each thread is a rank."""

    ReduceOp = SimpleNamespace(MIN="min")

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=20)
        self.slots: list[Any] = [None] * size
        self.local = threading.local()

    def _exchange(self, value: Any) -> list[Any]:
        self.slots[self.local.rank] = value
        self.barrier.wait()
        everything = list(self.slots)
        self.barrier.wait()
        return everything

    def get_world_size(self) -> int:
        return self.size

    def all_gather(self, parts: list[torch.Tensor], own: torch.Tensor) -> None:
        for part, value in zip(parts, self._exchange(own.clone()), strict=True):
            part.copy_(value)

    def all_reduce(self, values: torch.Tensor, op: str = "sum") -> None:
        every = torch.stack(self._exchange(values.clone()))
        values.copy_(every.min(0).values if op == "min" else every.sum(0))

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """``work(rank)`` of all ranks at once."""
        answers: list[Any] = [None] * self.size

        def rank(number: int) -> None:
            self.local.rank = number
            answers[number] = work(number)

        threads = [threading.Thread(target=rank, args=(number,)) for number in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> ThreadGroup:
    """Two ranks as threads of this process, for all of ``cxr_ray.training.distributed``."""
    group = ThreadGroup(2)
    monkeypatch.setattr("cxr_ray.training.distributed.dist", group)
    return group


@pytest.fixture(scope="session")
def data_record() -> Any:
    """The ``dataset`` part of ``run.json`` for :func:`problem`."""
    from cxr_ray.imaging.preprocess import PreprocessSpec
    from cxr_ray.training.run import DataRecord

    return DataRecord(
        location="data",
        name="bars",
        fingerprint="0" * 64,
        task="multiclass",
        labels=("low", "middle", "high"),
        train=("train",),
        validation=("val",),
        fold=None,
        height=16,
        width=16,
        mean=0.4,
        std=0.2,
        preprocess=PreprocessSpec(height=16, width=16),
    )
