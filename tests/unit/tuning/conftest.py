"""Sweep files written in the test, and studies made up without a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from cxr_ray.tuning.sweep import Sweep, load_sweep

SMALL = """
recipe: demo
set: {training.epochs: 4}
space:
  training.optimizer.lr: {type: float, low: 1.0e-3, high: 1.0e-2, log: true}
  model.rnn.kind: {type: choice, options: [lstm, gru, none]}
  model.rnn.hidden_size: {type: int, low: 16, high: 48, step: 16, when: {model.rnn.kind: [lstm, gru]}}
trials: 20
"""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Sweep]:
    """``load(text, *overrides)``: the sweep of a file ``search.yaml`` with this text."""

    def read(text: str = SMALL, *overrides: str) -> Sweep:
        (tmp_path / "search.yaml").write_text(text)
        return load_sweep(tmp_path / "search.yaml", overrides)

    return read


@pytest.fixture
def made_up() -> Callable[..., optuna.Study]:
    """``made_up(sweep, 9)``: so many trials of a known function; every fourth is stopped after an epoch, the sixth fails."""

    def make(sweep: Sweep, count: int) -> optuna.Study:
        directions = ["minimize" if objective.mode == "min" else "maximize" for objective in sweep.objectives]
        study = optuna.create_study(directions=directions, sampler=optuna.samplers.RandomSampler(seed=1))
        for number in range(count):
            _run(study, sweep, number)
        return study

    return make


def _run(study: optuna.Study, sweep: Sweep, number: int) -> None:
    trial = study.ask()
    point = sweep.space.suggest(trial)
    value = point["training.optimizer.lr"] * 50 + point.get("model.rnn.hidden_size", 0) / 100
    history = [value + 1 / (epoch + 1) for epoch in range(4)]
    attributes: dict[str, Any] = {"run": f"trials/{number:04d}", "seconds": 10.0 + number}
    several = len(sweep.objectives) > 1
    if several:
        attributes["history"] = history
    for name, attribute in attributes.items():
        trial.set_user_attr(name, attribute)
    if number == 5:
        trial.set_user_attr("reason", "its loss is <not> finite\nat all")
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    elif several:
        study.tell(trial, [history[-1], 1000.0 * point.get("model.rnn.hidden_size", 8)][: len(sweep.objectives)])
    else:
        stopped = number % 4 == 3
        for epoch, figure in enumerate(history[: 1 if stopped else None]):
            trial.report(figure, epoch)
        study.tell(trial, **({"state": optuna.trial.TrialState.PRUNED} if stopped else {"values": history[-1]}))
