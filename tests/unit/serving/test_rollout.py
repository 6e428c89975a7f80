"""What a rollout decides: which requests a candidate sees, when it has to go, and what its next step is."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cxr_ray.serving.rollout import ModelVersion, Rollout, RolloutLimits, Tally, Window, judge, percentile_99, surely_above, total

IDS = [f"{number:032x}" for number in range(4000)]


def version(name: str) -> ModelVersion:
    return ModelVersion(bundle=f"/{name}", name="m", version=name, manifest_sha256=name * 8)


def a_rollout(**changes: Any) -> Rollout:
    given: dict[str, Any] = {"id": "0123abcd", "mode": "canary", "weight": 5.0, "state": "running", "since": 0.0}
    return Rollout(**{**given, "current": version("old"), "candidate": version("new"), **changes})


@pytest.mark.parametrize("weight", [0.0, 5.0, 50.0, 100.0])
def test_a_candidate_sees_its_share(weight: float) -> None:
    share = sum(a_rollout(weight=weight).picks(one) for one in IDS) / len(IDS)
    assert share == pytest.approx(weight / 100, abs=0.02 if 0 < weight < 100 else 0)


def test_a_larger_share_holds_the_smaller_one_and_another_rollout_draws_anew() -> None:
    five, half = ({one for one in IDS if a_rollout(weight=weight).picks(one)} for weight in (5.0, 50.0))
    assert five < half
    assert five != {one for one in IDS if a_rollout(id="4567cdef").picks(one)}


def test_a_record_survives_json_and_refuses_nonsense() -> None:
    assert Rollout(**a_rollout(weight=25).model_dump(mode="json")) == a_rollout(weight=25)
    with pytest.raises(ValidationError):
        a_rollout(weight=101)
    with pytest.raises(ValidationError):
        a_rollout(mode="blue")


def test_one_failure_ends_nothing_and_many_do() -> None:
    limits = RolloutLimits(error_rate=0.02, least_requests=20)
    assert judge(Tally(failed=(True,) * 19), limits) is None  # too few to say anything
    assert judge(Tally(failed=(True,) + (False,) * 49), limits) is None  # 2 %: as much as it may
    breach = judge(Tally(failed=(True,) * 6 + (False,) * 34), limits)
    assert breach is not None
    assert (breach.cause, breach.message) == ("error-rate", "6 of 40 requests failed; 2.00% may")


def test_a_slow_candidate_has_to_go_and_one_slow_answer_does_not() -> None:
    limits = RolloutLimits(latency_factor=3, least_requests=20)
    current = (0.1,) * 100
    assert judge(Tally(seconds=(0.29,) * 100, current_seconds=current), limits) is None
    assert judge(Tally(seconds=(0.1,) * 99 + (5.0,), current_seconds=current), limits) is None
    assert judge(Tally(seconds=(0.5,) * 100, current_seconds=current[:99]), limits) is None  # too little to compare with
    breach = judge(Tally(seconds=(0.1,) * 80 + (0.5,) * 20, current_seconds=current), limits)
    assert breach is not None
    assert breach.cause == "latency"
    assert "300 ms" in breach.message


@pytest.mark.parametrize(
    ("count", "of", "rate", "sure"),
    [(9, 9, 0.5, False), (10, 10, 0.5, True), (2, 30, 0.01, False), (30, 100, 0.2, False), (35, 100, 0.2, True)],
)
def test_certainty_grows_with_the_number_of_requests(count: int, of: int, rate: float, sure: bool) -> None:
    assert surely_above(count, of, rate) is sure


def test_the_chance_is_the_binomial_one() -> None:
    """By counting: 3 or more of 10 at 10 % has a chance of 7.02 %, and 7 or more one of 9e-6."""
    from itertools import product

    def at_least(count: int) -> float:
        return sum(0.1 ** sum(tries) * 0.9 ** (10 - sum(tries)) for tries in product((0, 1), repeat=10) if sum(tries) >= count)

    assert [surely_above(count, 10, 0.1) for count in range(11)] == [at_least(count) < 0.001 for count in range(11)]


def test_the_99th_percentile_is_a_value_that_was_seen() -> None:
    assert percentile_99([float(value) for value in range(1, 201)]) == 198
    assert percentile_99([7.0]) == 7


def test_what_is_old_leaves_the_window() -> None:
    window = Window(seconds=10)
    window.candidate(now=0, took=None)
    window.candidate(now=8, took=0.2)
    window.current(now=0, took=0.3)
    assert window.tally(now=9) == Tally(failed=(True, False), seconds=(0.2,), current_seconds=(0.3,))
    assert window.tally(now=12) == Tally(failed=(False,), seconds=(0.2,))


def test_what_replicas_saw_is_added_up() -> None:
    one, other = Window(seconds=10), Window(seconds=10)
    one.candidate(0, None)
    other.candidate(0, 0.5)
    other.current(0, 0.4)
    one.compared(True, 0.1)
    other.compared(False, 0.3)
    together = total([one.tally(1), other.tally(1)])
    assert together == Tally((True, False), (0.5,), (0.4,), compared=2, agreed=1, largest_difference=0.3)
    assert total([]) == Tally()
