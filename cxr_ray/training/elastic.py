"""How many processes train: one number, or from the least to the most that the cluster has room for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cxr_ray.errors import ConfigError

RESIZE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Workers:
    """Training processes.

    Args:
        least: Training begins as soon as the cluster has room for so many, and waits where it has not.
        most: Never more than these. Above ``least`` the training is elastic: it takes what room there is.
        resize_seconds: An elastic training looks so often whether the cluster has more room, and grows no sooner after its last
            start; growing starts the epoch in progress again. A lost worker is noticed at once.

    Raises:
        ConfigError: Fewer than one, or the most before the least.
    """

    least: int
    most: int
    resize_seconds: float = RESIZE_SECONDS

    def __post_init__(self) -> None:
        if self.least < 1:
            raise ConfigError([f"expected at least 1 worker, got {self.least}"], where="--workers")
        if self.most < self.least:
            raise ConfigError(
                [f"{self.least}-{self.most}: the least number stands first; write {self.most}-{self.least}"], where="--workers"
            )
        if self.resize_seconds <= 0:
            raise ConfigError([f"expected seconds above 0, got {self.resize_seconds:g}"], where="--resize-seconds")

    @classmethod
    def of(cls, workers: int | Workers) -> Workers:
        """A plain number is the least and the most."""
        return workers if isinstance(workers, Workers) else cls(workers, workers)

    @classmethod
    def parse(cls, text: str, resize_seconds: float = RESIZE_SECONDS) -> Workers:
        """``4``, or ``2-8``.

        Raises:
            ConfigError: It is neither.
        """
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
        if found is None:
            raise ConfigError([f"{text!r}: expected a number, such as 4, or the least and the most, such as 2-8"], where="--workers")
        return cls(int(found[1]), int(found[2] or found[1]), resize_seconds)

    @property
    def elastic(self) -> bool:
        """Whether their number may change while they train."""
        return self.most > self.least

    def __str__(self) -> str:
        return f"{self.least}-{self.most}" if self.elastic else str(self.least)
