"""Ray Tune and Optuna over whole trainings: early stopping that frees its workers, trials that fail, a sweep killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from cxr_ray.cli import run_inside
from cxr_ray.errors import ClusterError, ConfigError, RunError
from cxr_ray.training.run import open_run
from cxr_ray.tuning.journal import WHOLE
from cxr_ray.tuning.rows import rows_of
from cxr_ray.tuning.study import study_storage

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]

FREE_SECONDS = 30


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sixty phantoms of 32 pixels."""
    folder = tmp_path_factory.mktemp("tune")
    run_inside(["phantoms", "--out", str(folder / "phantoms"), "--count", "60", "--seed", "1"])
    run_inside(["ingest", str(folder / "phantoms"), "--out", str(folder / "dataset"), "--size", "32"])
    return str(folder / "dataset")


def write_sweep(folder: Path, **changes: Any) -> str:
    """A sweep file over the learning rate of a tiny network."""
    sweep = {
        "name": "tiny",
        "recipe": "demo",
        "set": {"training.epochs": 2, "training.batch_size": 16},
        "space": {"training.optimizer.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
        "objectives": ["val_loss"],
        "search": {"algorithm": "random", "seed": 3},
        "trials": 3,
        **changes,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(sweep))
    return str(path)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.2)


def live_groups() -> list[dict[str, Any]]:
    from ray.util import placement_group_table

    return [group for group in placement_group_table().values() if group["state"] != "REMOVED"]


def study_of(out: Path) -> optuna.Study:
    return optuna.load_study(study_name=None, storage=study_storage(str(out)))


def trials_of(out: Path) -> list[optuna.trial.FrozenTrial]:
    if not (out / WHOLE).exists():
        return []
    try:
        return study_of(out).get_trials()
    except (KeyError, ValueError):  # the file is there, the study not yet
        return []


def test_stopped_trials_free_their_workers_and_the_best_becomes_a_bundle(dataset: str, tmp_path: Path) -> None:
    """With one slow trial at a time and four to run, a stopped trial that kept its CPU would leave none for the last."""
    out = tmp_path / "sweep"
    changes = {"set": {"training.epochs": 4, "training.batch_size": 16}, "trials": 4, "stopping": {"kind": "asha", "grace_epochs": 1}}
    sweep = write_sweep(tmp_path, **changes)
    answer = run_inside(["tune", sweep, "--data", dataset, "--out", str(out), "--retrain", "2"])
    rows = rows_of(study_of(out))
    assert [row.number for row in rows] == [0, 1, 2, 3]
    assert {row.state for row in rows} == {"complete", "pruned"}
    for row in rows:
        history = open_run(str(out / "trials" / f"{row.number:04d}")).history()
        assert list(row.history) == pytest.approx([record.val_loss for record in history[: len(row.history)]])
    complete = [row for row in rows if row.state == "complete"]
    assert answer["best"]["trial"] == min(complete, key=lambda row: row.values[0] or 0).number
    assert answer["epochs"] == sum(len(row.history) for row in rows) < 16
    assert len(answer["retrained"]["values"]) == 2
    assert answer["best"]["run"].endswith(
        f"seed-{answer['retrained']['seeds'][answer['retrained']['values'].index(min(answer['retrained']['values']))]}"
    )
    assert (out / "bundle" / "bundle.json").exists()
    assert (out / "sweep.html").stat().st_size > 100_000
    told = [json.loads(line) for line in (out / "epochs.jsonl").read_text().splitlines()]
    assert len(told) == answer["epochs"]
    assert live_groups() == []


def test_several_objectives_two_workers_and_a_trial_that_fails(dataset: str, tmp_path: Path) -> None:
    """A learning rate beyond reason diverges; the trial is recorded with its reason and the others go on."""
    out = tmp_path / "sweep"
    changes = {
        "space": {
            "training.optimizer.lr": {"type": "choice", "options": [1e-3, 1e30]},
            "model.rnn.hidden_size": {"type": "choice", "options": [8, 64]},
        },
        "search": {"algorithm": "grid"},
        "trials": 3,
        "objectives": ["val_loss", "parameters", "latency_ms"],
    }
    answer = run_inside(["tune", write_sweep(tmp_path, **changes), "--data", dataset, "--out", str(out), "--workers", "2"])
    assert answer["trials"] == 3
    rows = rows_of(study_of(out))
    failed = [row for row in rows if row.params["training.optimizer.lr"] == 1e30]
    assert failed
    assert all(row.state == "failed" and "finite" in row.reason for row in failed)
    complete = [row for row in rows if row not in failed]
    for row in complete:
        run = open_run(str(out / "trials" / f"{row.number:04d}"))
        assert run.manifest.workers == 2
        loss, parameters, latency = row.values
        assert loss == pytest.approx(run.best().value)
        assert parameters is not None
        assert parameters > 10_000
        assert latency is not None
        assert latency > 0
        assert list(row.history) == pytest.approx([record.val_loss for record in run.history()])
    assert len({row.values[1] for row in complete}) == len(complete)
    assert answer["best"]["params"]["training.optimizer.lr"] == 1e-3


def test_kill_9_in_the_middle_and_resume(dataset: str, tmp_path: Path) -> None:
    """No finished trial is run again, the open ones go on after their last epoch, and nothing keeps a placement group."""
    import ray

    out = tmp_path / "sweep"
    changes = {"set": {"training.epochs": 12, "training.batch_size": 4}, "trials": 4}
    sweep = write_sweep(tmp_path, **changes)
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "cxr_ray", "tune", sweep, "--data", dataset, "--out", str(out), "--address", address]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as driver:

        def in_the_middle() -> bool:
            assert driver.poll() is None, "the sweep ended before it could be killed"
            trials = trials_of(out)
            ended = [trial for trial in trials if trial.state.is_finished()]
            begun = [trial for trial in trials if not trial.state.is_finished() and trial.intermediate_values]
            return bool(ended) and bool(begun)

        wait_for(in_the_middle, "a finished trial beside one with an epoch", seconds=240)
        driver.send_signal(signal.SIGKILL)
    wait_for(lambda: live_groups() == [], "the placement groups to go", seconds=FREE_SECONDS)
    before = trials_of(out)
    ended = {trial.number: trial for trial in before if trial.state.is_finished()}
    open_ones = {trial.number: trial for trial in before if not trial.state.is_finished()}
    assert ended
    assert open_ones
    with pytest.raises(RunError, match="holds a sweep already"):
        run_inside(["tune", sweep, "--data", dataset, "--out", str(out)])

    answer = run_inside(["tune", sweep, "--data", dataset, "--out", str(out), "--resume"])
    after = trials_of(out)
    assert answer["trials"] == 4
    assert [trial.number for trial in after] == [0, 1, 2, 3]
    assert all(trial.state == optuna.trial.TrialState.COMPLETE for trial in after)
    for number, trial in ended.items():
        assert after[number] == trial
        assert open_run(str(out / "trials" / f"{number:04d}")).manifest.launches == 1
    for number, trial in open_ones.items():
        assert after[number].params == trial.params
        assert list(after[number].intermediate_values) == list(range(12))
    first = {number: [record.seconds for record in open_run(str(out / "trials" / f"{number:04d}")).history()] for number in open_ones}
    assert all(len(seconds) == 12 for seconds in first.values())
    points = [tuple(trial.params.items()) for trial in after]
    assert len(set(points)) == 4, "a resumed search proposed a point again"

    again = run_inside(["tune", sweep, "--data", dataset, "--out", str(out), "--resume"])
    assert again["best"] == answer["best"]
    assert trials_of(out) == after


def test_more_trials_than_there_is_room_for_are_refused_at_once(dataset: str, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path)
    with pytest.raises(ClusterError, match=r"3 trial\(s\) at a time of 2 worker\(s\) needs .* CPU \(there are 4\)"):
        run_inside(["tune", sweep, "--data", dataset, "--out", str(tmp_path / "sweep"), "--workers", "2", "--max-concurrent", "3"])
    with pytest.raises(ClusterError, match=r"GPU \(there are 0\)"):
        run_inside(["tune", sweep, "--data", dataset, "--out", str(tmp_path / "gpu"), "--gpu"])


def test_another_sweep_does_not_go_on_here(dataset: str, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    out.mkdir()
    one = run_inside(["tune", write_sweep(tmp_path), "--data", dataset, "--out", str(out), "--check"])
    assert one == {"sweep": "tiny", "trials": 3, "valid": True}
    with pytest.raises(ConfigError, match="several DATASETs need names"):
        run_inside(["tune", write_sweep(tmp_path), "--data", dataset, "--data", dataset, "--out", str(out)])
