from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import optuna
import pytest

from cxr_ray.config import load_recipe
from cxr_ray.tuning.figures import pictures
from cxr_ray.tuning.report import render_page, write_report
from cxr_ray.tuning.rows import best_row, rows_of
from cxr_ray.tuning.sweep import Sweep

Load, MadeUp = Callable[..., Sweep], Callable[..., optuna.Study]
TWO = """
recipe: demo
description: One <b>&amp;</b> two.
space:
  training.optimizer.lr: {type: float, low: 1.0e-3, high: 1.0e-2, log: true}
  model.rnn.hidden_size: {type: int, low: 16, high: 48, step: 16}
objectives: [val_macro_f1, flops]
trials: 20
"""
VOID = {"meta", "br", "img", "link", "input"}


class Reader(HTMLParser):
    """Elements that are left open, attributes that point elsewhere, headings and table cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in {"src", "href", "data", "action"}]
        if tag not in VOID:
            self.open.append(tag)
            self.text.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text[self.open[-1]][-1] += data


@pytest.fixture
def done(load: Load, made_up: MadeUp) -> tuple[Sweep, optuna.Study]:
    sweep = load()
    return sweep, made_up(sweep, 10)


def test_the_page_is_whole_and_alone(done: tuple[Sweep, optuna.Study]) -> None:
    sweep, study = done
    page = render_page(sweep, study, rows_of(study), ["Two <trials> at a time."])
    reader = Reader(page)
    assert reader.open == []
    assert reader.references == []
    assert "default-src 'none'" in page
    assert page.count("Plotly.newPlot(place") == 1
    assert reader.tags.count("script") == 2 + reader.tags.count("figure")
    assert "Two <trials> at a time." in reader.text["p"]
    assert "its loss is <not> finite\nat all" in reader.text["td"]
    assert reader.text["h3"] == [
        f"{title}: val_loss"
        for title in ("Progress", "Importance of each parameter", "Parallel coordinates", "Each parameter alone", "Learning curves")
    ]
    assert "Not drawn" not in page


def test_the_figures_hold_the_trials(done: tuple[Sweep, optuna.Study]) -> None:
    sweep, study = done
    found = {picture.title.split(":")[0]: picture for picture in pictures(study, rows_of(study), sweep.objectives)}
    figures = {title: json.loads(picture.figure or "") for title, picture in found.items()}
    complete = [trial for trial in study.trials if trial.value is not None and trial.state.name == "COMPLETE"]
    assert figures["Progress"]["data"][0]["y"] == [trial.value for trial in complete]
    assert figures["Progress"]["data"][0]["x"] == [trial.number for trial in complete]
    assert sum(figures["Importance of each parameter"]["data"][0]["x"]) == pytest.approx(1)
    curves = [curve["y"] for curve in figures["Learning curves"]["data"]]
    assert sorted(map(len, curves)) == sorted(len(trial.intermediate_values) for trial in study.trials if trial.intermediate_values)


def test_several_objectives(load: Load, made_up: MadeUp) -> None:
    sweep = load(TWO)
    study = made_up(sweep, 10)
    titles = [picture.title for picture in pictures(study, rows_of(study), sweep.objectives)]
    assert titles[0] == "Pareto front: val_macro_f1, flops"
    assert sum(title.endswith(": flops") for title in titles) == 4
    assert titles.count("Learning curves: val_macro_f1") == 1
    found = {picture.title: picture for picture in pictures(study, rows_of(study), sweep.objectives)}
    progress = json.loads(found["Progress: flops"].figure or "")["data"][0]
    assert progress["x"] == [trial.number for trial in study.trials if trial.values]
    assert progress["y"] == [trial.values[1] for trial in study.trials if trial.values]
    page = render_page(sweep, study, rows_of(study))
    assert "One &lt;b&gt;&amp;amp;&lt;/b&gt; two." in page
    assert "Pareto front" in page


@pytest.mark.parametrize("text", [None, TWO])
@pytest.mark.parametrize("count", [0, 1])
def test_what_cannot_be_drawn_says_why(load: Load, made_up: MadeUp, text: str | None, count: int) -> None:
    sweep = load() if text is None else load(text)
    study = made_up(sweep, count)
    for picture in pictures(study, rows_of(study), sweep.objectives):
        assert (picture.figure is None) == bool(picture.reason)
        if count == 0:
            assert picture.reason in {
                "No trial is complete yet.",
                "No trial has ended an epoch yet.",
                "It needs 2 complete trials, there are 0.",
            }
        else:
            assert bool(picture.reason) == (picture.title.split(":")[0] not in {"Progress", "Learning curves", "Pareto front"})
    page = render_page(sweep, study, rows_of(study))
    assert Reader(page).open == []
    assert ("No trial is complete yet." in page) == (count == 0)


def test_trials_that_are_all_alike(load: Load) -> None:
    sweep = load()
    study = optuna.create_study()
    point = {"training.optimizer.lr": 0.002, "model.rnn.kind": "none"}
    for value in (0.5, 0.5, 0.6):
        study.enqueue_trial(point)
        trial = study.ask()
        sweep.space.suggest(trial)
        study.tell(trial, value)
        reasons = {picture.reason for picture in pictures(study, rows_of(study), sweep.objectives)}
    assert "All complete trials have the same parameters." in reasons
    study = optuna.create_study()
    for lr in (0.002, 0.003):
        study.enqueue_trial({**point, "training.optimizer.lr": lr})
        trial = study.ask()
        sweep.space.suggest(trial)
        study.tell(trial, 0.5)
    assert "All complete trials have the same value." in {p.reason for p in pictures(study, rows_of(study), sweep.objectives)}


def test_what_is_written(done: tuple[Sweep, optuna.Study], tmp_path: Path) -> None:
    sweep, study = done
    rows, out = rows_of(study), tmp_path / "out"
    write_report(str(out), sweep, study, [])
    assert {path.name for path in out.iterdir()} == {"sweep.html", "trials.csv"}, "nobody has won yet"
    write_report(str(out), sweep, study, rows)
    assert {path.name for path in out.iterdir()} == {"sweep.html", "trials.csv", "best.yaml"}
    best = best_row(rows, sweep.objectives)
    assert best is not None
    recipe, resolved = load_recipe(str(out / "best.yaml")), sweep.resolve(best.params)
    assert recipe.name == "search-best"
    assert recipe.model_copy(update={"name": resolved.name, "description": resolved.description}) == resolved
    assert re.search(rf"Trial {best.number} of 10 of the search search: val_loss \d", recipe.description)


def test_what_is_not_finite_and_what_optuna_doubts(load: Load) -> None:
    sweep = load()
    study = optuna.create_study()
    for lr, kind, value in ((0.002, "lstm", 0.4), (0.003, "none", 0.5), (0.004, "none", 0.6)):
        study.enqueue_trial({"training.optimizer.lr": lr, "model.rnn.kind": kind, "model.rnn.hidden_size": 16})
        trial = study.ask()
        sweep.space.suggest(trial)
        trial.report(float("nan"), 0)
        trial.report(value, 1)
        study.tell(trial, value)
    found = {picture.title.split(":")[0]: picture for picture in pictures(study, rows_of(study), sweep.objectives)}
    curves = json.loads(found["Learning curves"].figure or "", parse_constant=pytest.fail)  # NaN is no JSON
    assert curves["data"][0]["y"] == [None, 0.4]
    doubted = "Some regimes for parameter `model.rnn.hidden_size` have less than 2 trials"
    assert doubted in found["Importance of each parameter"].caption
    assert doubted in render_page(sweep, study, rows_of(study))


def test_the_recipe_of_the_winner_names_its_data(load: Load, tmp_path: Path) -> None:
    sweep = load("recipe: demo\nspace:\n  data: {type: choice, options: [small, large]}\nsearch: {algorithm: grid}\n")
    study = optuna.create_study()
    for name, value in (("small", 0.5), ("large", 0.4)):
        study.enqueue_trial({"data": name})
        trial = study.ask()
        assert sweep.space.suggest(trial) == {"data": name}
        study.tell(trial, value)
    write_report(str(tmp_path), sweep, study, rows_of(study))
    assert "cxr-ray train --recipe best.yaml --data large --out RUN" in (tmp_path / "best.yaml").read_text()
