"""Pictures of a search: Optuna's figures as data that plotly.js draws in the page, each with what it shows in words."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cxr_ray.tuning.rows import TrialRow
from cxr_ray.tuning.sweep import Objective

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial
    from plotly.graph_objects import Figure

LEAST_TRIALS = 2
"""Complete trials without which nothing can be said of parameters."""


@dataclass(frozen=True)
class Picture:
    """A figure, or why there is none.

    Args:
        title: Heading.
        caption: How to read it.
        figure: ``{"data", "layout"}`` of plotly.js as JSON in which no HTML can stand; None: it cannot be made.
        reason: Why not, else empty.
    """

    title: str
    caption: str
    figure: str | None
    reason: str = ""


def pictures(study: optuna.Study, rows: Sequence[TrialRow], objectives: Sequence[Objective]) -> list[Picture]:
    """All figures of a search; with several objectives those of parameters for each of them."""
    found = [_front(study, objectives)] if len(objectives) > 1 else []
    for index, objective in enumerate(objectives):
        view = _view(study, rows, index, objective) if len(objectives) > 1 else study
        found += [_draw(view, kind, objective) for kind in _KINDS if kind.of_costs or index == 0]
    return found


def _progress(study: optuna.Study, metric: str) -> Figure:
    from optuna.visualization import plot_optimization_history

    return plot_optimization_history(study, target_name=metric)


def _importances(study: optuna.Study, metric: str) -> Figure:
    from optuna.visualization import plot_param_importances

    return plot_param_importances(study, target_name=metric).update_yaxes(title_text=None)


def _parallel(study: optuna.Study, metric: str) -> Figure:
    from optuna.visualization import plot_parallel_coordinate

    return plot_parallel_coordinate(study, target_name=metric)


def _slices(study: optuna.Study, metric: str) -> Figure:
    from optuna.visualization import plot_slice

    return plot_slice(study, target_name=metric)


def _curves(study: optuna.Study, metric: str) -> Figure:
    from optuna.visualization import plot_intermediate_values

    return plot_intermediate_values(study).update_yaxes(title_text=metric).update_xaxes(title_text="epoch")


def _none_complete(trials: list[FrozenTrial]) -> str:
    return "" if any(trial.state.name == "COMPLETE" for trial in trials) else "No trial is complete yet."


def _too_few(trials: list[FrozenTrial]) -> str:
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    if len(complete) < LEAST_TRIALS:
        return f"It needs {LEAST_TRIALS} complete trials, there are {len(complete)}."
    if len({trial.value for trial in complete}) < LEAST_TRIALS:
        return "All complete trials have the same value."
    return "" if any(trial.params != complete[0].params for trial in complete) else "All complete trials have the same parameters."


def _no_epoch(trials: list[FrozenTrial]) -> str:
    return "" if any(trial.intermediate_values for trial in trials) else "No trial has ended an epoch yet."


@dataclass(frozen=True)
class _Kind:
    title: str
    caption: str
    plot: Callable[[optuna.Study, str], Figure]
    lacks: Callable[[list[FrozenTrial]], str]
    """Trials -> why it cannot be drawn, or nothing."""
    of_costs: bool = True


_KINDS = (
    _Kind("Progress", "A dot a complete trial, in the order of asking; the line is the best so far.", _progress, _none_complete),
    _Kind(
        "Importance of each parameter",
        "How much it tells good trials from the others. Of few trials it says little.",
        _importances,
        _too_few,
    ),
    _Kind("Parallel coordinates", "A line a complete trial, through its value and its parameters.", _parallel, _too_few),
    _Kind("Each parameter alone", "A dot a complete trial, shaded by its number.", _slices, _too_few),
    _Kind("Learning curves", "A line a trial, epoch by epoch from 0. A short one was stopped early.", _curves, _no_epoch, of_costs=False),
)


def _draw(study: optuna.Study, kind: _Kind, objective: Objective) -> Picture:
    title = f"{kind.title}: {objective.metric}"
    if reason := kind.lacks(study.get_trials(deepcopy=False)):
        return Picture(title, kind.caption, None, reason)
    with warnings.catch_warnings(record=True) as said:  # what Optuna doubts, such as importances of few trials, belongs under the picture
        warnings.simplefilter("always")
        figure = kind.plot(study, objective.metric)
    doubts = dict.fromkeys(str(warning.message) for warning in said)
    return Picture(title, " ".join([kind.caption, *doubts]), _json(figure))


def _front(study: optuna.Study, objectives: Sequence[Objective]) -> Picture:
    from optuna.visualization import plot_pareto_front

    names: list[str] = [objective.metric for objective in objectives]
    title, caption = f"Pareto front: {', '.join(names)}", "Trials in red are beaten by none in all objectives at once."
    if reason := _none_complete(study.get_trials(deepcopy=False)):
        return Picture(title, caption, None, reason)
    return Picture(title, caption, _json(plot_pareto_front(study, target_names=names)))


def _view(study: optuna.Study, rows: Sequence[TrialRow], index: int, objective: Objective) -> optuna.Study:
    """The same trials, by the same numbers, as of one objective: Optuna draws, and weighs parameters by, one alone."""
    import optuna

    view = optuna.create_study(direction="minimize" if objective.mode == "min" else "maximize")
    known = {row.number: row for row in rows if row.state == "complete" and row.values[index] is not None}
    for trial in study.get_trials(deepcopy=False):
        row = known.get(trial.number)
        if row is None:
            view.add_trial(optuna.create_trial(state=optuna.trial.TrialState.FAIL))
            continue
        history = {epoch: figure for epoch, figure in enumerate(row.history) if figure is not None}
        copy = optuna.create_trial(
            params=trial.params, distributions=trial.distributions, value=row.values[index], intermediate_values=history
        )
        view.add_trial(copy)
    return view


def _json(figure: Figure) -> str:
    """As plotly writes it: what is not finite is null, and ``<``, ``>`` and ``/`` are escaped."""
    return str(figure.update_layout(template="plotly_white", title=None).to_json())
