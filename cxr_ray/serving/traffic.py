"""What a replica does about a rollout: which requests concern it, how the candidate is asked, and what it has shown. No Ray."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import parse_qs

from starlette.types import Scope

from cxr_ray.serving.audit import AuditLog
from cxr_ray.serving.metrics import Metrics
from cxr_ray.serving.rollout import Rollout, Tally, Window, judge
from cxr_ray.serving.schema import ModelInfo

logger = logging.getLogger(__name__)

_PREDICT: Final = "/v1/predict"
_EXPLAIN: Final = "/v1/explain"
_MOST_SHADOWS: Final = 8
"""Requests of one replica that a shadow is asked about at once; what comes beyond is not compared."""


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A request as a candidate gets it.

    Args:
        path: Of a route that takes POST.
        query: After the question mark.
        headers: Those that matter to a route.
        body: All of it.
        request_id: Given by the guard.
    """

    path: str
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    request_id: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What a candidate says, and what the guard writes down of it.

    Args:
        status: HTTP status.
        headers: Of the answer.
        body: All of it.
        route: Template of the route that answered.
        inputs: As of :class:`RequestFacts`.
    """

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    route: str
    inputs: tuple[tuple[str, str], ...]


Ask = Callable[[str, Forwarded], Awaitable[Reply]]
"""Asks the replicas of an application."""


class Traffic:
    """What one replica does about a rollout, and what it has seen of it.

    Args:
        info: The model of this replica, the current version.
        ask: How a candidate is reached.
        patience: Seconds until a candidate's answer is no longer waited for.
        metrics: Counters of the replica.
        audit: Where changes are written down.
    """

    def __init__(self, info: ModelInfo, ask: Ask, *, patience: float, metrics: Metrics, audit: AuditLog) -> None:
        self.info = info
        self.rollout: Rollout | None = None
        self._ask, self._patience, self._metrics, self._audit = ask, patience, metrics, audit
        self._stopped = False
        self._window = Window(seconds=0)
        self._shadows: set[asyncio.Task[None]] = set()

    def update(self, rollout: Rollout | None) -> None:
        """Follow a rollout from now on (None: there is none)."""
        if rollout == self.rollout:
            return
        if rollout is not None and (self.rollout is None or self.rollout.id != rollout.id):
            self._stopped, self._window = False, Window(rollout.limits.window_s)
        self.rollout = rollout
        self._metrics.rollout.clear()
        if rollout is None:
            return
        gauge = self._metrics.rollout.labels(rollout.id, rollout.mode, rollout.state, rollout.cause or "")
        gauge.set(rollout.weight if rollout.state == "running" else 0)
        told = rollout.model_dump(include={"id", "mode", "state", "weight", "cause"})
        self._audit.note("rollout", **told, candidate_sha256=rollout.candidate.manifest_sha256)
        logger.warning("rollout %s is %s %s", rollout.id, rollout.state, rollout.message)

    def tally(self) -> Tally:
        """What this replica has seen of the rollout."""
        return self._window.tally(time.monotonic())

    def concerns(self, scope: Scope) -> Rollout | None:
        """The rollout that a request may be part of, if any: it asks the model that the service is named for."""
        rollout = self.rollout
        if rollout is None or rollout.state != "running" or self._stopped or scope["method"] != "POST":
            return None
        if scope["path"] not in {_PREDICT, _EXPLAIN, self._infer(self.info.name)}:
            return None
        if rollout.mode == "shadow" and scope["path"] != _PREDICT:
            return None
        asked = parse_qs(scope["query_string"].decode("latin-1")).get("model")
        return rollout if asked is None or asked == [self.info.name] == [rollout.candidate.name] else None

    async def forward(self, rollout: Rollout, request: Forwarded) -> Reply | None:
        """The candidate's answer; None: it failed, and that is held against it."""
        if request.path == self._infer(self.info.name):
            request = replace(request, path=self._infer(rollout.candidate.name))
        start, reply = time.monotonic(), None
        try:
            async with asyncio.timeout(self._patience):
                reply = await self._ask(application(rollout), request)
        except Exception as error:  # of Ray's kinds there are many: no replica, no room, a dead one, too late
            logger.warning("request %s: the candidate gave no answer: %s", request.request_id, type(error).__name__)
        good = reply is not None and reply.status < 500
        self._seen(rollout, time.monotonic() - start if good else None)
        return reply if good else None

    @staticmethod
    def _infer(name: str) -> str:
        return f"/v2/models/{name}/infer"

    def _seen(self, rollout: Rollout, seconds: float | None) -> None:
        if self.rollout is None or self.rollout.id != rollout.id:
            return
        now = time.monotonic()
        self._window.candidate(now, seconds)
        self._metrics.candidate.labels("failed" if seconds is None else "answered").inc()
        if seconds is not None:
            self._metrics.versions.labels(rollout.candidate.version).observe(seconds)
        breach = None if self._stopped else judge(self._window.tally(now), rollout.limits)
        if breach is not None:
            self._stopped = True
            logger.warning("rollout %s: no more requests from this replica: %s", rollout.id, breach.message)

    def answered_here(self, seconds: float) -> None:
        """The current version took so long for a request that the rollout concerns."""
        self._window.current(time.monotonic(), seconds)
        self._metrics.versions.labels(self.info.version).observe(seconds)

    def show(self, rollout: Rollout, request: Forwarded, ours: bytes) -> None:
        """Ask the shadow in the background, and compare what it says with our answer."""
        if len(self._shadows) >= _MOST_SHADOWS:
            self._window.skipped += 1
            self._metrics.candidate.labels("skipped").inc()
            return
        task = asyncio.create_task(self._compare(rollout, request, ours))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _compare(self, rollout: Rollout, request: Forwarded, ours: bytes) -> None:
        reply = await self.forward(rollout, request)
        if reply is None:
            return
        agreed, difference = compare(ours, reply.body)
        self._window.compared(agreed, difference)
        self._metrics.compared.labels("agreed" if agreed else "differed").inc()
        self._metrics.difference.set(self.tally().largest_difference)


def application(rollout: Rollout) -> str:
    """Name of the candidate's application; of each rollout another, so that nothing of an earlier one is met there."""
    return f"cxr-ray--{rollout.id}"


def compare(ours: bytes, theirs: bytes) -> tuple[bool, float]:
    """Two answers of ``/v1/predict`` to one request.

    Returns:
        Whether both called the same labels of every image (or refused it for the same reason), and the largest difference between
        two probabilities of one label.
    """
    one, other = _images(ours), _images(theirs)
    agreed = [image.get("labels", image.get("reason")) for image in one] == [image.get("labels", image.get("reason")) for image in other]
    pairs = [(a["probabilities"], b["probabilities"]) for a, b in zip(one, other, strict=False) if "labels" in a and "labels" in b]
    return agreed, max((abs(a[label] - b[label]) for a, b in pairs for label in a), default=0.0)


def _images(body: bytes) -> Sequence[dict[str, Any]]:
    told: dict[str, Any] = json.loads(body)
    images: Sequence[dict[str, Any]] = told.get("answers", [told])
    return images
