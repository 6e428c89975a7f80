"""Pictures of a search: Optuna's figures as data that plotly.js draws in the page, each with what it shows in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cxr_ray.tuning.rows import TrialRow
from cxr_ray.tuning.sweep import Objective

if TYPE_CHECKING:
    import optuna
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
    found = [*_front(study, objectives)] if len(objectives) > 1 else []
    for index, objective in enumerate(objectives):
        view = _view(study, rows, index, objective) if len(objectives) > 1 else study
        found += [_draw(view, kind, objective) for kind in _KINDS if kind.every_objective or index == 0]
    return found


@dataclass(frozen=True)
class _Kind:
    title: str
    caption: str
    plot: str
    """Of ``optuna.visualization``."""
    lacks: Callable[[list[Any]], str]
    """Complete trials -> why it cannot be drawn, or nothing."""
    every_objective: bool = True


def _no_trial(complete: list[Any]) -> str:
    return "" if complete else "No trial is complete yet."


def _too_few(complete: list[Any]) -> str:
    if len(complete) < LEAST_TRIALS:
        return f"It needs {LEAST_TRIALS} complete trials, there are {len(complete)}."
    if len({trial.value for trial in complete}) < LEAST_TRIALS:
        return "All complete trials have the same value."
    if not any(len({trial.params.get(key) for trial in complete}) > 1 for key in complete[0].params):
        return "The complete trials do not differ in any parameter."
    return ""


_KINDS = (
    _Kind("Progress", "A dot a complete trial, in the order of asking; the line is the best so far.", "plot_optimization_history", _no_trial),
    _Kind(
        "Importance of each parameter",
        "How much the parameter tells good trials from the others. Of few trials it says little.",
        "plot_param_importances",
        _too_few,
    ),
    _Kind("Parallel coordinates", "A line a complete trial, through its value and its parameters.", "plot_parallel_coordinate", _too_few),
    _Kind("Each parameter alone", "A dot a complete trial, shaded by its number.", "plot_slice", _too_few),
    _Kind(
        "Learning curves",
        "A line a trial, epoch by epoch (from 0); those that end early were stopped.",
        "plot_intermediate_values",
        lambda _: "",
        every_objective=False,
    ),
)


def _draw(study: optuna.Study, kind: _Kind, objective: Objective) -> Picture:
    import optuna

    title = f"{kind.title}: {objective.metric}"
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    reason = kind.lacks(complete)
    if not reason and kind.plot == "plot_intermediate_values" and not any(t.intermediate_values for t in study.get_trials(deepcopy=False)):
        reason = "No trial has ended an epoch yet."
    if reason:
        return Picture(title, kind.caption, None, reason)
    plot = getattr(optuna.visualization, kind.plot)
    named = {} if kind.plot == "plot_intermediate_values" else {"target_name": objective.metric}
    figure = plot(study, **named)
    if kind.plot == "plot_intermediate_values":
        figure.update_yaxes(title_text=objective.metric).update_xaxes(title_text="epoch")
    return Picture(title, kind.caption, _json(figure))


def _front(study: optuna.Study, objectives: Sequence[Objective]) -> Iterator[Picture]:
    import optuna

    names = [objective.metric for objective in objectives]
    title, caption = f"Pareto front: {', '.join(names)}", "Marked trials are beaten by none in all objectives at once."
    if any(trial.state.name == "COMPLETE" for trial in study.get_trials(deepcopy=False)):
        yield Picture(title, caption, _json(optuna.visualization.plot_pareto_front(study, target_names=names)))
    else:
        yield Picture(title, caption, None, "No trial is complete yet.")


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
    """Data and layout, without plotly's own colours of page and text, which the page sets for light and dark."""
    facts = figure.update_layout(template="none", title=None).to_plotly_json()
    text = json.dumps(facts, default=_plain)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
