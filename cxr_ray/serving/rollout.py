"""A rollout: two versions of a model side by side, which requests the new one sees, and when it has to go. No Ray.

The record stands in Ray Serve's own configuration (``user_config`` of the serving application), so it outlives every process of ours.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from pydantic import Field

from cxr_ray.settings import Settings

Mode = Literal["canary", "shadow"]
State = Literal["starting", "running", "promoting", "promoted", "ended"]
Cause = Literal["by-hand", "start-failed", "error-rate", "latency", "unhealthy", "promotion-failed"]

_DOUBT: Final = 0.001
"""Chance of the figures, or worse ones, from a candidate that keeps its limits: the question is asked anew with every request."""
_SLOW_SHARE: Final = 0.01
"""What a 99th percentile leaves above it."""
_LEAST_TIMES: Final = 100
"""The 99th percentile of fewer values is the largest of them."""
_WINDOW_REQUESTS: Final = 500


class ModelVersion(Settings):
    """One bundle, as answers name it."""

    bundle: str
    """BUNDLE, a path or URI that every replica can read."""
    name: str
    version: str
    manifest_sha256: str


class RolloutLimits(Settings):
    """When a candidate is taken back without being asked. Each rule wants to be 99.9 % sure, so that one bad request ends nothing."""

    error_rate: float = Field(default=0.02, gt=0, lt=1)
    """Share of its requests that it may fail: an exception, a 5xx, no answer in time, or no room."""
    latency_factor: float = Field(default=3.0, gt=1)
    """Its 99th percentile over that of the current version, measured where requests arrive."""
    least_requests: int = Field(default=20, ge=1)
    """Before so many of its requests are in the window, it is not judged; its times not before 100 of either version."""
    window_s: float = Field(default=600.0, gt=0)
    """Age at which a request leaves the window; it holds 500 a replica at most."""
    start_s: float = Field(default=300.0, gt=0)
    """Time for the candidate to come up, and for a promotion."""


class Rollout(Settings):
    """A candidate beside the current version, and how it stands."""

    id: str = Field(pattern="[0-9a-f]{8}")
    mode: Mode
    """``canary``: the candidate answers a share of the requests. ``shadow``: it is asked as well, and what it says is only compared."""
    weight: float = Field(ge=0, le=100)
    """Percent of the requests that the candidate sees."""
    state: State = "starting"
    current: ModelVersion
    candidate: ModelVersion
    limits: RolloutLimits = RolloutLimits()
    since: float
    """Seconds since the epoch at which ``state`` began."""
    cause: Cause | None = None
    """Why it ended; None: it did not, or was promoted."""
    message: str = ""
    """The same in words, with figures."""

    @property
    def over(self) -> bool:
        """Whether nothing is left to decide."""
        return self.state in {"promoted", "ended"}

    def picks(self, request_id: str) -> bool:
        """Whether the candidate sees this request: a matter of its id alone, and another draw in every rollout."""
        digest = hashlib.sha256(f"{self.id}:{request_id}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.weight / 100 * 2**64


@dataclass(frozen=True)
class Tally:
    """What a replica, or all of them, saw of a rollout.

    Args:
        failed: Of each of the candidate's requests in the window, whether it failed.
        seconds: Of those that did not.
        current_seconds: Of the current version's requests in the window.
        compared: Answers of both versions that were compared (shadow).
        agreed: Of those, where both called the same labels, or refused for the same reason.
        largest_difference: Between two probabilities of one label; 0 where none were compared.
        skipped: Requests that the candidate was not asked about for too many were under way (shadow).
    """

    failed: tuple[bool, ...] = ()
    seconds: tuple[float, ...] = ()
    current_seconds: tuple[float, ...] = ()
    compared: int = 0
    agreed: int = 0
    largest_difference: float = 0.0
    skipped: int = 0


@dataclass(frozen=True)
class Report:
    """How one replica of the serving application stands.

    Args:
        version: Of the bundle that it answers with.
        rollout: That it follows.
        tally: What it has seen of it.
    """

    version: str
    rollout: Rollout | None
    tally: Tally


def total(tallies: Iterable[Tally]) -> Tally:
    """All replicas' together."""
    each = list(tallies)
    return Tally(
        failed=tuple(value for one in each for value in one.failed),
        seconds=tuple(value for one in each for value in one.seconds),
        current_seconds=tuple(value for one in each for value in one.current_seconds),
        compared=sum(one.compared for one in each),
        agreed=sum(one.agreed for one in each),
        largest_difference=max((one.largest_difference for one in each), default=0.0),
        skipped=sum(one.skipped for one in each),
    )


@dataclass(frozen=True, slots=True)
class Breach:
    """A limit that the candidate does not keep."""

    cause: Cause
    message: str


def judge(tally: Tally, limits: RolloutLimits) -> Breach | None:
    """Whether the candidate has to go."""
    asked, failures = len(tally.failed), sum(tally.failed)
    if asked >= limits.least_requests and surely_above(failures, asked, limits.error_rate):
        return Breach("error-rate", f"{failures} of {asked} requests failed; {limits.error_rate:.2%} may")
    if min(len(tally.seconds), len(tally.current_seconds)) < _LEAST_TIMES:
        return None
    most = limits.latency_factor * percentile_99(tally.current_seconds)
    slow = sum(seconds > most for seconds in tally.seconds)
    if surely_above(slow, len(tally.seconds), _SLOW_SHARE):
        times = f"{limits.latency_factor:g} x the current version's 99th percentile ({1000 * most:.0f} ms)"
        return Breach("latency", f"{slow} of {len(tally.seconds)} requests took longer than {times}; {_SLOW_SHARE:.0%} may")
    return None


def surely_above(count: int, of: int, rate: float) -> bool:
    """Whether ``count`` of ``of`` is more than ``rate`` allows: an exact binomial test, one-sided."""
    chance, fewer = (1 - rate) ** of, 0.0  # of exactly ``number``; of fewer than ``count``
    for number in range(count):
        fewer += chance
        chance *= (of - number) / (number + 1) * rate / (1 - rate)
    return 1 - fewer < _DOUBT


def percentile_99(values: Sequence[float]) -> float:
    """The smallest value that 99 % of ``values`` do not exceed."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


@dataclass
class Window:
    """The last requests of one replica, as they come in.

    Args:
        seconds: Age at which one leaves.
    """

    seconds: float
    _candidate: deque[tuple[float, float | None]] = field(default_factory=lambda: deque(maxlen=_WINDOW_REQUESTS))
    _current: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_WINDOW_REQUESTS))
    _compared: int = 0
    _agreed: int = 0
    _difference: float = 0.0
    skipped: int = 0

    def candidate(self, now: float, took: float | None) -> None:
        """The candidate took so many seconds for a request; None: it failed."""
        self._candidate.append((now, took))

    def current(self, now: float, took: float) -> None:
        """The current version took so many seconds."""
        self._current.append((now, took))

    def compared(self, agreed: bool, difference: float) -> None:
        """Two answers to one request were compared; ``difference``: between two probabilities of one label."""
        self._compared += 1
        self._agreed += agreed
        self._difference = max(self._difference, difference)

    def tally(self, now: float) -> Tally:
        """What is in it at ``now``."""
        for requests in (self._candidate, self._current):
            while requests and now - requests[0][0] > self.seconds:
                requests.popleft()
        return Tally(
            failed=tuple(took is None for _, took in self._candidate),
            seconds=tuple(took for _, took in self._candidate if took is not None),
            current_seconds=tuple(took for _, took in self._current),
            compared=self._compared,
            agreed=self._agreed,
            largest_difference=self._difference,
            skipped=self.skipped,
        )
