"""Trials as rows: what a search knows of each, which is best, and the table as a file."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cxr_ray.tuning.sweep import Objective

if TYPE_CHECKING:
    import optuna

_STATES: dict[str, Literal["complete", "pruned", "failed", "running"]] = {
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
}


@dataclass(frozen=True)
class TrialRow:
    """One trial.

    Args:
        number: From 0, in the order of asking.
        state: ``pruned``: stopped early by comparison with others.
        params: Dotted key -> number or label; those that existed.
        values: An objective each; None: not known.
        epochs: Trained.
        history: The first objective, epoch by epoch; None: undefined.
        seconds: Of training.
        reason: Why it failed, else empty.
        run: Its RUN.
        start: ISO 8601, local time.
        end: The same.
    """

    number: int
    state: Literal["complete", "pruned", "failed", "running"]
    params: dict[str, Any]
    values: tuple[float | None, ...]
    epochs: int
    history: tuple[float | None, ...]
    seconds: float | None
    reason: str = ""
    run: str | None = None
    start: str | None = None
    end: str | None = None


def rows_of(study: optuna.Study) -> list[TrialRow]:
    """A row a trial that has begun, by number.

    Of the user attributes ``run``, ``reason``, ``epochs`` and ``seconds`` are read. The history is in the intermediate values (step 0 is
    the first epoch), or, for several objectives, for which Optuna keeps none, in the attribute ``history``.
    """
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in _STATES]
    return [_row(trial, len(study.directions)) for trial in trials]


def _row(trial: optuna.trial.FrozenTrial, objectives: int) -> TrialRow:
    known, steps = trial.user_attrs, trial.intermediate_values
    history = [steps.get(step) for step in range(max(steps, default=-1) + 1)] or known.get("history", ())
    return TrialRow(
        number=trial.number,
        state=_STATES[trial.state.name],
        params=dict(trial.params),
        values=tuple(map(_finite, trial.values or (None,) * objectives)),
        epochs=known.get("epochs", len(history)),
        history=tuple(map(_finite, history)),
        seconds=known.get("seconds", trial.duration.total_seconds() if trial.duration is not None else None),
        reason=known.get("reason", ""),
        run=known.get("run"),
        start=trial.datetime_start.isoformat(timespec="seconds") if trial.datetime_start else None,
        end=trial.datetime_complete.isoformat(timespec="seconds") if trial.datetime_complete else None,
    )


def best_row(rows: Sequence[TrialRow], objectives: Sequence[Objective]) -> TrialRow | None:
    """The complete trial that is best by the first objective, the earliest of equals; None: none is complete.

    A trial that was stopped early never wins: its figure is of fewer epochs, with a learning rate that had not yet fallen.
    """
    done = [row for row in rows if row.state == "complete" and row.values[0] is not None]
    return min(done, key=lambda row: _costs(row, objectives)[0], default=None)


def pareto_front(rows: Sequence[TrialRow], objectives: Sequence[Objective]) -> list[TrialRow]:
    """The complete trials that no other beats: none is as good in every objective and better in one. By the first objective, best first."""
    done = [(row, _costs(row, objectives)) for row in rows if row.state == "complete" and None not in row.values]
    front = [(costs, row) for row, costs in done if not any(_beats(other, costs) for _, other in done)]
    return [row for _, row in sorted(front, key=lambda pair: pair[0])]


def table_csv(rows: Sequence[TrialRow], objectives: Sequence[Objective]) -> bytes:
    """A line a trial: its figures, a column a parameter, and the history as JSON. Empty: not known, or the parameter did not exist."""
    keys = list(dict.fromkeys(key for row in rows for key in row.params))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    plain = ("epochs", "seconds", "run", "start", "end", "reason")
    writer.writerow(["number", "state", *(objective.metric for objective in objectives), *keys, *plain, "history"])
    for row in rows:
        chosen = [row.params.get(key, "") for key in keys]
        writer.writerow([row.number, row.state, *row.values, *chosen, *(getattr(row, name) for name in plain), json.dumps(row.history)])
    return stream.getvalue().encode()


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _costs(row: TrialRow, objectives: Sequence[Objective]) -> list[float]:
    """Its values, signed so that less is better."""
    signs = [1 if objective.mode == "min" else -1 for objective in objectives]
    return [sign * value for sign, value in zip(signs, row.values, strict=True) if value is not None]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))
