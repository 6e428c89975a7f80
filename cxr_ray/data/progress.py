"""How far an ingest is: counted per stage, with a rate and an estimate."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Stage = Literal["read", "copies", "write"]


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """How far an ingest is."""

    stage: Stage
    done: int
    """Images of this stage."""
    total: int
    rate: float
    """Images a second since the stage began; those staged by an earlier, killed ingest do not count."""
    eta: float | None
    """Seconds that this stage will still take. None: nothing to estimate from yet."""


Report = Callable[[IngestProgress], None]


class Meter:
    """Counts what is done of a stage and reports it, from the first moment on.

    Args:
        report: Is told of every step.
        stage: Its name.
        total: Images of the stage.
        done: Images that an earlier, killed ingest has done.
    """

    def __init__(self, report: Report, stage: Stage, total: int, *, done: int = 0) -> None:
        self._report, self._stage, self._total = report, stage, total
        self._before = self._done = done
        self._start = time.monotonic()
        self.advance(0)

    def advance(self, count: int) -> None:
        """So many images more are done."""
        self._done += count
        rate = (self._done - self._before) / max(time.monotonic() - self._start, 1e-3)
        eta = (self._total - self._done) / rate if rate else None
        self._report(IngestProgress(self._stage, self._done, self._total, rate, eta))

    def finish(self) -> None:
        """What is left needs no work."""
        self.advance(self._total - self._done)


def silent(_: IngestProgress) -> None:
    """The report of an ingest that nobody watches."""
