from __future__ import annotations

import pytest

from cxr_ray.errors import ClusterError, ConfigError
from cxr_ray.training import launch
from cxr_ray.training.elastic import Workers


@pytest.mark.parametrize(
    ("text", "least", "most"), [("4", 4, 4), ("2-8", 2, 8), (" 3-3 ", 3, 3)], ids=["a number", "a range", "a range of one"]
)
def test_what_is_typed(text: str, least: int, most: int) -> None:
    workers = Workers.parse(text)
    assert (workers.least, workers.most) == (least, most)
    assert workers.elastic == (most > least)
    assert Workers.parse(str(workers)) == workers


@pytest.mark.parametrize(
    ("text", "said"),
    [("8-2", "write 2-8"), ("0-3", "at least 1 worker, got 0"), ("0", "at least 1"), ("two", "such as 4"), ("-1", "such as 2-8")],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Workers.parse(text)


def test_growing_at_once_is_refused() -> None:
    with pytest.raises(ConfigError, match="seconds above 0"):
        Workers.parse("1-2", 0)


def test_a_number_is_the_least_and_the_most() -> None:
    assert Workers.of(3) == Workers(3, 3)
    assert Workers.of(Workers(1, 2)) == Workers(1, 2)


@pytest.mark.parametrize(
    ("there", "workers", "each"),
    [
        (4.0, Workers(2, 2), 1.0),
        (4.0, Workers(4, 4), 0.75),
        (1.0, Workers(1, 1), 0.1),
        (1.0, Workers(1, 8), 1.0),  # what is there now says nothing of what may come
        (16.0, Workers(2, 8), 1.0),
    ],
)
def test_cpus_of_a_worker(there: float, workers: Workers, each: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "resources", lambda: {"CPU": there})
    monkeypatch.setattr("cxr_ray.cluster.resources", lambda: {"CPU": there})
    assert launch.cpus_a_worker(workers, use_gpu=False) == each


def test_what_can_never_be_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    monkeypatch.setattr("cxr_ray.cluster.resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    for workers in (Workers.of(2), Workers(2, 4)):
        with pytest.raises(ClusterError, match=r"needs 2 GPU \(there are 1\)"):
            launch.cpus_a_worker(workers, use_gpu=True)
    assert launch.cpus_a_worker(Workers(1, 4), use_gpu=True) == 1.0
