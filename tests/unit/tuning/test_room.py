"""How many trials fit a cluster at once."""

from __future__ import annotations

import pytest

from cxr_ray import cluster
from cxr_ray.errors import ClusterError
from cxr_ray.tuning import room as room_module
from cxr_ray.tuning.room import room


@pytest.mark.parametrize(
    ("there", "workers", "use_gpu", "expected"),
    [
        ({"CPU": 4.0}, 1, False, 2),  # a laptop: a CPU each, a tenth to launch, one left for reading
        ({"CPU": 4.0}, 2, False, 1),
        ({"CPU": 4.0}, 8, False, 1),  # workers share CPUs rather than wait for ever
        ({"CPU": 64.0, "GPU": 8.0}, 1, True, 8),
        ({"CPU": 64.0, "GPU": 8.0}, 4, True, 2),
        ({"CPU": 6.0, "GPU": 8.0}, 1, True, 4),
        ({"CPU": 64.0}, 1, False, 20),  # never more than there are trials
    ],
)
def test_room(there: dict[str, float], workers: int, use_gpu: bool, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room_module, "resources", lambda: there)
    monkeypatch.setattr(cluster, "resources", lambda: there)
    assert room(20, workers=workers, use_gpu=use_gpu) == expected


def test_what_never_fits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"CPU": 4.0, "GPU": 1.0}
    monkeypatch.setattr(room_module, "resources", lambda: there)
    monkeypatch.setattr(cluster, "resources", lambda: there)
    with pytest.raises(ClusterError, match=r"3 trial\(s\) at a time of 1 worker\(s\) needs 3 GPU \(there are 1\)"):
        room(20, workers=1, use_gpu=True, wanted=3)
    with pytest.raises(ClusterError, match=r"a trial of 2 worker\(s\) needs 2 GPU \(there are 1\)"):
        room(20, workers=2, use_gpu=True)


def test_trainings_side_by_side_share_the_cores_of_their_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room_module, "nodes", lambda: 4)
    assert [room_module.sharing(at_a_time) for at_a_time in (1, 4, 5, 8)] == [1, 1, 2, 2]
