from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable

import optuna
from hypothesis import given
from hypothesis import strategies as st

from cxr_ray.tuning.rows import TrialRow, best_row, pareto_front, rows_of, table_csv
from cxr_ray.tuning.sweep import Objective, Sweep

F1, LOSS, FLOPS = (Objective.model_validate(name) for name in ("val_macro_f1", "val_loss", "flops"))
TEXT = "recipe: demo\nspace:\n  training.optimizer.lr: {type: float, low: 1.0e-3, high: 1.0e-2}\ntrials: 20\n"


def row(number: int, *values: float | None, state: str = "complete") -> TrialRow:
    return TrialRow(number=number, state=state, params={}, values=values, epochs=1, history=(), seconds=None)  # type: ignore[arg-type]


def test_rows_say_what_happened(load: Callable[..., Sweep], made_up: Callable[..., optuna.Study]) -> None:
    study = made_up(load(), 8)
    study.enqueue_trial({"model.rnn.kind": "gru"})
    rows = rows_of(study)
    assert [row.state for row in rows] == ["complete"] * 3 + ["pruned", "complete", "failed", "complete", "pruned"], (
        "what waits has not begun"
    )
    assert [row.epochs for row in rows] == [4, 4, 4, 1, 4, 0, 4, 1]
    assert rows[0].history[-1] == rows[0].values[0] == study.trials[0].value
    assert rows[0].run == "trials/0000"
    assert rows[0].seconds == 10.0
    assert rows[5].reason.startswith("its loss is")
    assert rows[5].values == (None,)
    assert all(row.params == trial.params for row, trial in zip(rows, study.trials, strict=False))
    assert rows[0].start is not None
    assert rows[0].end is not None
    assert rows[0].start <= rows[0].end


def test_a_history_with_holes_and_what_is_not_finite() -> None:
    study = optuna.create_study()
    trial = study.ask()
    trial.report(0.5, 0)
    trial.report(float("nan"), 2)
    found = rows_of(study)[0]
    assert (found.state, found.history, found.epochs, found.values, found.end) == ("running", (0.5, None, None), 3, (None,), None)


def test_the_history_of_several_objectives_is_an_attribute(
    load: Callable[..., Sweep], made_up: Callable[..., optuna.Study], tmp_path: object
) -> None:
    study = made_up(load(TEXT, "objectives=[val_loss, flops]"), 2)
    found = rows_of(study)
    assert [len(row.values) for row in found] == [2, 2]
    assert found[0].history[-1] == found[0].values[0]
    assert found[0].epochs == 4


def test_the_best_is_complete() -> None:
    rows = [row(0, 0.7), row(1, 0.9, state="pruned"), row(2, 0.8), row(3, 0.8), row(4, None), row(5, 0.95, state="failed")]
    assert best_row(rows, [F1]) is rows[2]
    assert best_row(rows, [LOSS]) is rows[0]
    assert best_row(rows[4:], [F1]) is None


def test_of_several_objectives_the_first_decides() -> None:
    rows = [row(0, 0.7, 10.0), row(1, 0.9, 90.0), row(2, 0.9, None)]
    assert best_row(rows, [F1, FLOPS]) is rows[1]


numbers = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.sampled_from(["complete", "pruned"])), max_size=8)


@given(found=numbers)
def test_the_front_is_what_nobody_beats(found: list[tuple[int, int, str]]) -> None:
    rows = [row(number, float(f1), float(flops), state=state) for number, (f1, flops, state) in enumerate(found)]
    front = pareto_front(rows, [F1, FLOPS])
    study = optuna.create_study(directions=["maximize", "minimize"])
    for f1, flops, state in found:
        if state == "complete":
            study.add_trial(optuna.create_trial(values=[float(f1), float(flops)]))
    assert sorted(row.values for row in front) == sorted(tuple(trial.values) for trial in study.best_trials)
    assert [row.values[0] for row in front] == sorted((row.values[0] for row in front), key=lambda value: -(value or 0))
    assert {row.state for row in front} <= {"complete"}


def test_the_table_can_be_read_back(load: Callable[..., Sweep], made_up: Callable[..., optuna.Study]) -> None:
    sweep = load()
    rows = rows_of(made_up(sweep, 8))
    lines = list(csv.DictReader(io.StringIO(table_csv(rows, sweep.objectives).decode())))
    assert len(lines) == 8
    for line, row in zip(lines, rows, strict=True):
        assert (int(line["number"]), line["state"], line["reason"], line["run"]) == (row.number, row.state, row.reason, row.run)
        assert float(line["training.optimizer.lr"]) == row.params["training.optimizer.lr"]
        assert line["model.rnn.hidden_size"] == str(row.params.get("model.rnn.hidden_size", ""))
        assert json.loads(line["history"]) == list(row.history)
        assert (float(line["val_loss"]) if line["val_loss"] else None) == row.values[0]


def test_the_table_of_nothing_has_a_header() -> None:
    header = "number,state,val_macro_f1,epochs,seconds,run,start,end,reason,history"
    assert table_csv([], [F1]).decode().splitlines() == [header]
