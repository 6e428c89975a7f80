"""The study of a sweep: where it is kept, what proposes trials, what Ray Tune's searcher writes into it and a resumed call reads."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState

from cxr_ray.errors import ConfigError
from cxr_ray.training.checkpoint import EpochRecord
from cxr_ray.training.progress import write_history
from cxr_ray.tuning.journal import WHOLE
from cxr_ray.tuning.rows import rows_of
from cxr_ray.tuning.searcher import EpochTold, StudySearch, TrialTold
from cxr_ray.tuning.stopping import scheduler
from cxr_ray.tuning.study import open_study, study_storage
from cxr_ray.tuning.sweep import Sweep, load_sweep
from cxr_ray.tuning.trial import EPOCHS, FINAL, REASON, location

SWEEP = """
recipe: demo
set: {training.epochs: 9}
space:
  training.optimizer.lr: {type: float, low: 1.0e-4, high: 1.0e-1, log: true}
  model.rnn.kind: {type: choice, options: [lstm, none]}
  model.rnn.hidden_size: {type: int, low: 8, high: 64, when: {model.rnn.kind: lstm}}
objectives: [val_macro_f1]
search: {algorithm: tpe, startup_trials: 4}
stopping: {kind: asha, grace_epochs: 1, reduction_factor: 3}
trials: 8
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP)
    return load_sweep(path)


class Search:
    """A searcher over a study in ``out``, as a call of the command has it."""

    def __init__(self, sweep: Sweep, out: str) -> None:
        self.heard: list[Any] = []
        kept_in = study_storage(out)
        self.study = open_study(sweep, kept_in, "sweep")
        left = [trial for trial in self.study.get_trials() if trial.state == TrialState.RUNNING]
        self.searcher = StudySearch(sweep, self.study, kept_in, left, out, self.heard.append)


@pytest.fixture(params=["local", "object store"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    folder = tmp_path / "out"
    folder.mkdir()
    return str(folder) if request.param == "local" else folder.as_uri()


def epoch(number: int, value: float) -> dict[str, Any]:
    return {EPOCHS: number, "val_macro_f1": value}


def test_a_study_is_what_the_next_call_reads(sweep: Sweep, out: str) -> None:
    first = Search(sweep, out)
    points = [first.searcher.suggest(name) for name in ("a", "b", "c", "d")]
    assert [point["number"] for point in points] == [0, 1, 2, 3]
    first.searcher.on_trial_result("a", epoch(1, 0.5))
    first.searcher.on_trial_complete("a", {"val_macro_f1": 0.6, EPOCHS: 9, FINAL: True, REASON: ""})
    first.searcher.on_trial_complete("b", epoch(1, 0.3))  # stopped by what it reported
    first.searcher.on_trial_complete("c", {"val_macro_f1": math.nan, EPOCHS: 0, FINAL: True, REASON: "the loss is not finite"})
    first.searcher.on_trial_result("d", epoch(1, 0.4))
    assert first.heard == [
        EpochTold(0, 1, 9, 0.5),
        TrialTold(0, "complete", (0.6,), ""),
        EpochTold(1, 1, 9, 0.3),
        TrialTold(1, "pruned", (0.3,), ""),
        TrialTold(2, "fail", (), "the loss is not finite"),
        EpochTold(3, 1, 9, 0.4),
    ]

    record = EpochRecord(epoch=0, train_loss=1.0, lr=0.1, seconds=1.0, images_per_second=1.0, val_macro_f1=0.4)
    write_history(location(out, 3), [record, EpochRecord(**{**record_fields(record), "epoch": 1, "val_macro_f1": 0.7})])
    second = Search(sweep, out)
    assert second.searcher.suggest("again") == points[3], "the open trial comes first, with the values it had"
    rows = rows_of(second.study)
    assert [row.state for row in rows] == ["complete", "pruned", "failed", "running"]
    assert [row.history for row in rows] == [(0.5,), (0.3,), (), (0.4, 0.7)], "an epoch that the killed driver had not heard of"
    assert rows[2].reason == "the loss is not finite"
    assert rows[3].run == "trials/0003"
    new = second.searcher.suggest("new")
    assert new["number"] == 4
    assert new["values"] not in [point["values"] for point in points]


def record_fields(record: EpochRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in EpochRecord.__slots__}


def test_an_object_store_journal_becomes_the_file_that_optuna_reads(sweep: Sweep, tmp_path: Path) -> None:
    uri = tmp_path.as_uri()
    Search(sweep, uri).searcher.suggest("a")
    study_storage(uri)  # whoever opens it next puts the parts together
    kept_in = JournalStorage(JournalFileBackend(str(tmp_path / WHOLE)))
    assert len(optuna.load_study(study_name=None, storage=kept_in).get_trials()) == 1


def test_the_same_seed_proposes_the_same_trials_resumed_or_not(sweep: Sweep, tmp_path: Path) -> None:
    at_once, in_two = tmp_path / "at once", tmp_path / "in two"
    for folder in (at_once, in_two):
        folder.mkdir()

    def propose(out: Path, names: str) -> list[Any]:
        search = Search(sweep, str(out))
        points = []
        for name in names:
            points.append(search.searcher.suggest(name)["values"])
            search.searcher.on_trial_complete(name, {"val_macro_f1": 0.1 * ord(name) % 1, EPOCHS: 9, FINAL: True})
        return points

    assert propose(at_once, "abcdef") == propose(in_two, "abc") + propose(in_two, "def")


def test_early_stopping_knows_what_an_earlier_call_saw(sweep: Sweep, tmp_path: Path) -> None:
    class Trial:
        def __init__(self, number: int) -> None:
            self.trial_id, self.config = (
                f"new-{number}",
                {"number": number, "values": {"training.optimizer.lr": 0.01, "model.rnn.kind": "none"}},
            )

    search = Search(sweep, str(tmp_path))
    for name, value in zip("abc", (0.7, 0.8, 0.9), strict=True):
        search.searcher.suggest(name)
        search.searcher.on_trial_complete(name, epoch(1, value))
    bad = epoch(1, 0.1)
    fresh = scheduler(sweep, [])
    fresh.on_trial_add(None, Trial(3))
    assert fresh.on_trial_result(None, Trial(3), bad) == "CONTINUE", "the first of all has nothing to be compared with"
    informed = scheduler(sweep, search.study.get_trials())
    informed.on_trial_add(None, Trial(3))
    assert informed.on_trial_result(None, Trial(3), bad) == "STOP"
    assert informed.on_trial_result(None, Trial(3), {**bad, EPOCHS: 9}) == "CONTINUE", "the last epoch is never cut off"
    assert informed.on_trial_result(None, Trial(3), {**bad, FINAL: True}) == "CONTINUE"


def test_where_a_study_may_be_kept(tmp_path: Path) -> None:
    assert "sqlite" in str(study_storage(str(tmp_path), "sqlite").url)  # type: ignore[attr-defined]
    assert (tmp_path / "study.db").exists()
    with pytest.raises(ConfigError, match="SQLite needs a local file"):
        study_storage("s3://bucket/sweep", "sqlite")
    with pytest.raises(ConfigError, match="neither journal, sqlite nor a database URL"):
        study_storage(str(tmp_path), "postgres")


def test_the_study_opens_in_optuna_dashboard(sweep: Sweep, tmp_path: Path) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    search = Search(sweep, str(tmp_path))
    search.searcher.suggest("a")
    search.searcher.on_trial_complete("a", {"val_macro_f1": 0.6, EPOCHS: 9, FINAL: True})
    app = dashboard.wsgi(study_storage(str(tmp_path)))
    seen: list[str] = []
    environment = {"REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies", "SERVER_NAME": "x", "SERVER_PORT": "80", "wsgi.url_scheme": "http"}
    body = b"".join(app(environment, lambda status, _headers, *_: seen.append(status)))
    assert seen == ["200 OK"]
    assert b"sweep" in body
