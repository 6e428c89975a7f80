"""What a search leaves for people: ``sweep.html`` (opens without a network), ``trials.csv``, and the winner as a recipe, ``best.yaml``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import yaml
from markupsafe import Markup

from cxr_ray import storage
from cxr_ray.page import template
from cxr_ray.tuning.figures import pictures
from cxr_ray.tuning.rows import TrialRow, best_row, pareto_front, table_csv
from cxr_ray.tuning.space import DATA
from cxr_ray.tuning.sweep import Sweep, in_words

if TYPE_CHECKING:
    import optuna

PAGE, TABLE, BEST = "sweep.html", "trials.csv", "best.yaml"
_STOPPING = {
    "none": {"kind"},
    "asha": {"kind", "grace_epochs", "reduction_factor", "brackets"},
    "median": {"kind", "grace_epochs", "min_samples"},
}
"""The settings that each kind looks at."""


def write_report(out: str, sweep: Sweep, study: optuna.Study, rows: Sequence[TrialRow], notes: Sequence[str] = ()) -> None:
    """Write page, table and, once a trial is complete, the winner's recipe below ``out``; each replaces the one before.

    Args:
        out: A folder, a local path or a URI.
        sweep: What was asked for.
        study: For Optuna's figures.
        rows: Of the study; see :func:`cxr_ray.tuning.rows.rows_of`.
        notes: Sentences that a reader must see before the numbers.

    Raises:
        StorageError: Something cannot be written.
    """
    best = best_row(rows, sweep.objectives)
    if best is not None:
        storage.write_bytes(storage.join(out, BEST), best_recipe(sweep, best, len(rows)).encode())
    storage.write_bytes(storage.join(out, TABLE), table_csv(rows, sweep.objectives))
    storage.write_bytes(storage.join(out, PAGE), render_page(sweep, study, rows, notes).encode())


def best_recipe(sweep: Sweep, best: TrialRow, trials: int) -> str:
    """The recipe of a trial as a file for ``train --recipe``, every setting written out."""
    figures = ", ".join(f"{objective.metric} {_number(value)}" for objective, value in zip(sweep.objectives, best.values, strict=True))
    found = f"Trial {best.number} of {trials} of the search {sweep.name}: {figures} on the validation part, which the search has chosen by."
    recipe = sweep.resolve(best.params).model_copy(update={"name": f"{sweep.name}-best", "description": found})
    data = best.params.get(DATA, "DATASET")
    head = f"# Written by cxr-ray tune. To train it again:\n#   cxr-ray train --recipe {BEST} --data {data} --out RUN\n"
    return head + yaml.safe_dump(recipe.model_dump(mode="json", exclude={"claims"}), sort_keys=False, allow_unicode=True, width=120)


def render_page(sweep: Sweep, study: optuna.Study, rows: Sequence[TrialRow], notes: Sequence[str] = ()) -> str:
    """The whole page: HTML without any external reference, plotly.js in it once."""
    from plotly.offline import get_plotlyjs

    return template(__file__, "sweep.html", number=_number, duration=_duration, words=in_words).render(
        sweep=sweep,
        settings=_settings(sweep),
        rows=rows,
        keys=list(dict.fromkeys(key for row in rows for key in row.params)),
        best=best_row(rows, sweep.objectives),
        front=pareto_front(rows, sweep.objectives),
        states=Counter(row.state for row in rows),
        epochs=sum(row.epochs for row in rows),
        seconds=sum(row.seconds or 0.0 for row in rows),
        notes=notes,
        pictures=[(picture, Markup(picture.figure or "")) for picture in pictures(study, rows, sweep.objectives)],
        plotly=Markup(get_plotlyjs()),
    )


def _settings(sweep: Sweep) -> dict[str, str]:
    """Name -> what the search was asked to do."""
    space = {key: _range(sweep, key) for key in sweep.space.parameters}
    return {
        "recipe": sweep.recipe.name,
        "fixed for all trials": in_words(sweep.set) or "nothing",
        **space,
        "objectives": ", ".join(f"{objective.metric} ({objective.mode})" for objective in sweep.objectives),
        "search": in_words(sweep.search.model_dump()),
        "stopping": in_words(sweep.stopping.model_dump(include=_STOPPING[sweep.stopping.kind])),
        "fingerprint": sweep.fingerprint(),
    }


def _range(sweep: Sweep, key: str) -> str:
    """A parameter's values in words."""
    parameter = sweep.space.parameters[key]
    if parameter.type == "choice":
        text = " | ".join(str(label) for label in parameter.labels)
    else:
        step = "" if parameter.step in (None, 1) else f" in steps of {parameter.step:g}"
        text = f"{parameter.low:g} … {parameter.high:g}{step}{', logarithmic' if parameter.log else ''}"
    conditions = [f"{other} is {' or '.join(map(str, values))}" for other, values in parameter.when.items()]
    return f"{text} (where {' and '.join(conditions)})" if conditions else text


def _number(value: Any) -> str:
    """Numbers to four figures, whole ones in full; what is not known as a dash."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{int(value):,}" if value.is_integer() and abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def _duration(seconds: float | None) -> str:
    """``1 h 02 min``, ``3 min 20 s`` or ``12 s``."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"
