"""Ray Tune's early stopping, told of what earlier calls have seen. It never stops a trial in its last epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from cxr_ray.tuning.searcher import history_of
from cxr_ray.tuning.sweep import Sweep
from cxr_ray.tuning.trial import EPOCHS, FINAL


class _Informed:
    """Over a scheduler of Ray Tune: replays what the study holds, and lets last reports pass."""

    def __init__(self, sweep: Sweep, past: Sequence[FrozenTrial], **limits: Any) -> None:
        first = sweep.objectives[0]
        options: dict[str, Any] = {"metric": first.metric, "mode": first.mode, "time_attr": EPOCHS, **limits}
        super().__init__(**options)
        self._sweep = sweep
        self._past: dict[int, Mapping[int, float]] = {trial.number: history_of(trial) for trial in past}
        for trial in past:
            if trial.state.is_finished():
                self.on_trial_add(None, _Ended(trial.number))

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial begins, or goes on after an earlier call."""
        scheduler: Any = super()
        scheduler.on_trial_add(tune_controller, trial)
        for epoch, value in sorted(self._past.get(trial.config["number"], {}).items()):
            scheduler.on_trial_result(tune_controller, trial, {EPOCHS: epoch + 1, self._sweep.objectives[0].metric: value})

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """An epoch has ended: may the trial go on?"""
        if FINAL in result:
            return str(TrialScheduler.CONTINUE)
        scheduler: Any = super()
        verdict = scheduler.on_trial_result(tune_controller, trial, result)
        last = result[EPOCHS] >= self._sweep.resolve(trial.config["values"]).training.epochs
        return str(TrialScheduler.CONTINUE if last else verdict)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Its last report is of an epoch that was counted already."""


class InformedASHA(_Informed, ASHAScheduler):
    """Asynchronous successive halving (Li et al. 2020) as Ray Tune has it."""


class InformedMedian(_Informed, MedianStoppingRule):
    """Stop what is worse than the median of the others' running means (Golovin et al. 2017) as Ray Tune has it."""


class _Ended:
    """Stands for a trial that ended in an earlier call."""

    def __init__(self, number: int) -> None:
        self.trial_id = f"ended-{number}"
        self.config = {"number": number}


def scheduler(sweep: Sweep, past: Sequence[FrozenTrial]) -> TrialScheduler:
    """The scheduler that the sweep asks for.

    Args:
        sweep: What to search.
        past: Trials of earlier calls.
    """
    stopping = sweep.stopping
    if stopping.kind == "asha":
        return InformedASHA(
            sweep,
            past,
            max_t=max(sweep.resolve(values).training.epochs for values in sweep.space.endpoints()),
            grace_period=stopping.grace_epochs,
            reduction_factor=stopping.reduction_factor,
            brackets=stopping.brackets,
        )
    if stopping.kind == "median":
        # an endless time slice: Ray's rule would otherwise pause trials, which ends their processes
        return InformedMedian(
            sweep, past, grace_period=stopping.grace_epochs, min_samples_required=stopping.min_samples, min_time_slice=float("inf")
        )
    return FIFOScheduler()  # type: ignore[no-untyped-call]
