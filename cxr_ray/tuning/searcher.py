"""Ray Tune's :class:`OptunaSearch` over a study that is kept: it goes on with open trials and says how each trial ended."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search.optuna import OptunaSearch

from cxr_ray import storage
from cxr_ray.training.progress import read_history
from cxr_ray.training.trainer import PLACEMENT_GROUP
from cxr_ray.tuning.study import sampler
from cxr_ray.tuning.sweep import Sweep
from cxr_ray.tuning.trial import EPOCHS, FINAL, REASON, epoch_values, folder, free, location

EPOCH_LOG = "epochs.jsonl"
"""A line an epoch of any trial, in the order they came: ``{"trial", "epochs", "value", "time"}``. Calls after a kill append to it."""


@dataclass(frozen=True)
class EpochTold:
    """Told after each epoch of a trial."""

    trial: int
    epochs: int
    of: int
    value: float
    """Of the first objective."""


@dataclass(frozen=True)
class TrialTold:
    """Told when a trial has ended."""

    trial: int
    state: str
    """``complete``, ``pruned`` (stopped early) or ``fail``."""
    values: tuple[float, ...]
    reason: str
    """Why it failed."""


Told = Callable[[EpochTold | TrialTold], None]


class StudySearch(OptunaSearch):
    """Proposes trials from the study, and writes into it what becomes of them.

    It differs from its base in that trials which an earlier call left open come first, epochs are counted by the RUN and not by Ray
    Tune (which starts again at 1), a stopped trial is ``PRUNED`` and a failed one keeps its reason.

    Args:
        sweep: What to search.
        study: Where its trials are.
        kept_in: Storage of the study.
        left: Open trials of an earlier call.
        out: The sweep's directory.
        told: Called after each epoch and each trial.
    """

    def __init__(
        self,
        sweep: Sweep,
        study: optuna.Study,
        kept_in: optuna.storages.BaseStorage,
        left: Sequence[FrozenTrial],
        out: str,
        told: Told | None = None,
    ) -> None:
        self._metrics: list[str] = [objective.metric for objective in sweep.objectives]
        several = len(self._metrics) > 1
        modes: list[str] = [objective.mode for objective in sweep.objectives]
        super().__init__(
            space=sweep.space.suggest,
            metric=self._metrics if several else self._metrics[0],
            mode=modes if several else modes[0],
            storage=kept_in,
            study_name=study.study_name,
            sampler=sampler(sweep, 0),
        )
        self._sweep, self._study, self._out, self._told, self._several = sweep, study, out, told, several
        self._left = list(left)
        self._trials: dict[str, optuna.Trial] = {}
        self._known: dict[int, dict[int, float]] = {trial.number: history_of(trial) for trial in left}
        self._began: dict[int, float] = {}
        self._epochs: dict[int, int] = {}
        self._groups: dict[int, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The next trial as ``{"number", "values"}``."""
        study = self._study
        if self._left:
            trial = optuna.trial.Trial(study, self._left.pop(0)._trial_id)  # the values it was given stay
        else:
            study.sampler = sampler(self._sweep, len(study.get_trials(deepcopy=False)))
            trial = study.ask()
        values = self._sweep.space.suggest(trial)
        self._trials[trial_id] = trial
        self._began[trial.number] = time.monotonic()
        self._epochs[trial.number] = self._sweep.resolve(values).training.epochs
        run = location(self._out, trial.number)
        trial.set_user_attr("run", folder(trial.number))
        self._keep(trial, dict(enumerate(epoch_values(self._sweep, read_history(run)))))  # what a killed driver did not hear of
        return {"number": trial.number, "values": values}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An epoch has ended."""
        trial = self._trials.get(trial_id)
        if trial is None or FINAL in result or EPOCHS not in result:
            return
        self._groups[trial.number] = result.get(PLACEMENT_GROUP, "")
        epochs, value = int(result[EPOCHS]), float(result[self._metrics[0]])
        self._keep(trial, {epochs - 1: value})
        self._log({"trial": trial.number, "epochs": epochs, "value": _or_none(value), "time": time.time()})
        if self._told is not None:
            self._told(EpochTold(trial.number, epochs, self._epochs[trial.number], value))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial has ended, been stopped or failed."""
        self.on_trial_result(trial_id, result or {})  # Ray Tune hands an epoch that ends a trial to this method alone
        trial = self._trials.pop(trial_id, None)
        if trial is None:
            return
        if error:  # its process died without freeing its workers
            free(self._groups.get(trial.number, ""))
        state, values, reason = _ended(result, error, self._metrics)
        trial.set_user_attr("epochs", max(int((result or {}).get(EPOCHS, 0)), len(self._known.get(trial.number, {}))))
        trial.set_user_attr("seconds", round(time.monotonic() - self._began[trial.number], 1))
        if reason:
            trial.set_user_attr("reason", reason)
        self._study.tell(trial, values if state == TrialState.COMPLETE else None, state=state)
        if self._told is not None:
            self._told(TrialTold(trial.number, state.name.lower(), tuple(values), reason))

    def _keep(self, trial: optuna.Trial, values: Mapping[int, float]) -> None:
        """Epochs (from 0) of the first objective into the study, each once."""
        known = self._known.setdefault(trial.number, {})
        new = {epoch: value for epoch, value in sorted(values.items()) if epoch not in known}
        known.update(new)
        if self._several:  # Optuna keeps no intermediate values of several objectives
            if new:
                trial.set_user_attr("history", [_or_none(known.get(epoch, math.nan)) for epoch in range(max(known) + 1)])
            return
        for epoch, value in new.items():
            trial.report(value, epoch)

    def _log(self, line: dict[str, Any]) -> None:
        if not storage.is_uri(self._out):  # object stores do not append; the trials' own histories hold the same
            with open(storage.join(self._out, EPOCH_LOG), "a") as file:
                file.write(json.dumps(line) + "\n")

    def save(self, checkpoint_path: str) -> None:
        """Nothing to write: the study is the state."""
        with open(checkpoint_path, "wb"):
            pass


def history_of(trial: FrozenTrial) -> dict[int, float]:
    """The first objective of a trial by epoch (from 0), as the study has it."""
    if "history" in trial.user_attrs:
        return {epoch: math.nan if value is None else value for epoch, value in enumerate(trial.user_attrs["history"])}
    return dict(trial.intermediate_values)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _ended(result: dict[str, Any] | None, error: bool, metrics: Sequence[str]) -> tuple[TrialState, list[float], str]:
    """How a trial ended, in Optuna's words: state, values, reason."""
    if error or result is None:
        return TrialState.FAIL, [], "its process died: out of memory, or its node was lost"
    if result.get(REASON):
        return TrialState.FAIL, [], str(result[REASON])
    values = [float(result.get(metric, math.nan)) for metric in metrics]
    if FINAL not in result:
        return TrialState.PRUNED, values, ""
    undefined = [metric for metric, value in zip(metrics, values, strict=True) if math.isnan(value)]
    if undefined:
        return TrialState.FAIL, [], f"undefined on the validation part: {', '.join(undefined)}"
    return TrialState.COMPLETE, values, ""
