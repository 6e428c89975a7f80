from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from cxr_ray.config import load_recipe
from cxr_ray.errors import ConfigError
from cxr_ray.tuning.sweep import Objective, Sweep, check_networks, load_sweep

Load = Callable[..., Sweep]
ONE = "recipe: demo\nspace:\n  training.optimizer.lr: {type: float, low: 1.0e-3, high: 1.0e-2}\n"


def test_defaults(load: Load) -> None:
    sweep = load()
    assert (sweep.name, sweep.planned, sweep.stopping.kind, sweep.search.algorithm) == ("search", 20, "none", "tpe")
    assert sweep.objectives == (Objective(metric="val_loss", mode="min"),)
    assert sweep.recipe.training.epochs == 4
    assert pickle.loads(pickle.dumps(sweep)) == sweep


def test_the_epoch_that_counts_is_the_best_by_the_first_objective(load: Load) -> None:
    point = {"training.optimizer.lr": 0.002, "model.rnn.kind": "none"}
    recipe = load(ONE + "  model.rnn.kind: {type: choice, options: [lstm, none]}\nobjectives: [val_macro_f1]\ntrials: 20\n").resolve(point)
    assert (recipe.training.monitor, recipe.training.optimizer.lr, recipe.model.rnn.kind) == ("val_macro_f1", 0.002, "none")
    demo = load_recipe("demo").training
    assert recipe.training.model_copy(update={"monitor": "val_loss", "optimizer": demo.optimizer}) == demo
    last = load(ONE.replace("demo", "cnn-lstm-transfer") + "trials: 20\n")
    assert last.resolve({"training.optimizer.lr": 0.002}).training.monitor == "last"
    assert last.objectives[0].metric == "val_loss"


def test_a_recipe_file_lies_beside_the_sweep_and_loses_its_claims(load: Load, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "extends: croup-cnn-lstm\nname: mine\nunsound: for a test\nclaims: [{data: x, figures: {f1: 0.9}}]\n"
    )
    sweep = load(ONE.replace("demo", "mine.yaml") + "trials: 20\n")
    assert sweep.recipe.claims
    recipe = sweep.resolve({"training.optimizer.lr": 0.002})
    assert (recipe.name, recipe.claims, recipe.unsound) == ("mine", (), "for a test")


def test_overrides(load: Load) -> None:
    sweep = load(ONE + "trials: 20\n", "trials=30", "set.training.epochs=2", "search.algorithm=random")
    assert (sweep.trials, sweep.recipe.training.epochs, sweep.search.algorithm) == (30, 2, "random")


def test_the_fingerprint_is_of_what_makes_trials_comparable(load: Load, tmp_path: Path) -> None:
    one, small = load(), (tmp_path / "search.yaml").read_text()
    assert load(small, "trials=40", "retrain_seeds=3", "name=other", "description=x").fingerprint() == one.fingerprint()
    for override in ("set.training.seed=1", "search.seed=1", "stopping.kind=asha", "objectives=[val_accuracy]", "recipe=cnn"):
        assert load(small, override).fingerprint() != one.fingerprint(), override
    assert load(small.replace("1.0e-3", "2.0e-3")).fingerprint() != one.fingerprint()


def test_a_grid_ends_by_itself(load: Load) -> None:
    text = "recipe: demo\nspace:\n  model.rnn.layers: {type: int, low: 1, high: 3}\nsearch: {algorithm: grid}\n"
    assert load(text).planned == 3
    assert load(text, "trials=2").planned == 2
    assert load(text, "trials=9").planned == 3


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("objectives: [latency_ms, val_loss]\ntrials: 20", "objectives: the first must be of validation, got latency_ms"),
        ("objectives: [val_loss, val_loss]\ntrials: 20", "objectives: one stands there twice"),
        ("objectives: [val_loss, flops]\ntrials: 20\nstopping: {kind: asha}", "stopping.kind: asha compares one number"),
        (
            "  training.seed: {type: int, low: 0, high: 9}\nobjectives: [val_loss, flops]\ntrials: 20\nsearch: {algorithm: cmaes}",
            "search.algorithm: cmaes knows one objective",
        ),
        ("objectives: [{metric: val_loss, mode: max}]\ntrials: 20", "objectives.0: mode of val_loss is min: smaller is better"),
        ("objectives: [f1]\ntrials: 20", "objectives.0.metric: Input should be 'val_loss', "),
        ("objectives: []\ntrials: 20", "objectives: expected one to three, got 0"),
        ("search: {algorithm: random}", "trials: how many? Only a grid ends by itself, and search.algorithm is random"),
        ("trials: 10", "search.startup_trials: 10 leaves nothing of 10 trials to tpe"),
        ("trials: 20\nsearch: {algorithm: cmaes}", "search.algorithm: cmaes needs two or more ranges"),
        ("trials: 20\nstopping: {kind: median, grace_epochs: 24}", "stopping.grace_epochs: 24 leaves nothing of 24 epochs to stop"),
        ("search: {algorithm: grid}", "space.training.optimizer.lr: a grid needs step, or a choice of values"),
        ("trials: 20\nset: {training: {optimizer: {lr: 1}}}", "set.training.optimizer.lr: is also searched"),
        (
            "trials: 20\nset: {training.monitor: val_accuracy}\nobjectives: [val_loss]",
            "set.training.monitor: val_accuracy, but the first objective",
        ),
        ("trials: 20\nset: {training.epoch: 3}", "set.training.epoch: unknown key; valid here: batch_size, "),
        ("trials: 20\nset: [1]", "set: Input should be a valid dictionary"),
        ("trials: 20\nname: a/b", "name: String should match pattern"),
        ("trials: 20\nstopping: {kind: asha, rungs: 3}", "stopping.rungs: unknown key; valid here: brackets, grace_epochs, "),
        ("trials: 20\nset: {schedule.name: cosine}", "set.schedule: unknown key; valid here: augment, "),
    ],
)
def test_one_fault(load: Load, text: str, fault: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(f"{ONE}{text}\n")
    assert len(raised.value.faults) == 1, raised.value
    assert raised.value.faults[0].startswith(fault)
    assert raised.value.where.endswith("search.yaml")


def test_all_faults_of_a_file_at_once(load: Load) -> None:
    with pytest.raises(ConfigError) as raised:
        load(
            """
recipe: demoo
space:
  training.optimizer.lr: {type: float, low: 2, high: 1}
  model.rnn.layers: {type: int, low: 1, hi: 3}
search: {algorithm: tpee}
objective: [val_loss]
trials: 0
"""
        )
    keys = [fault.split(":")[0] for fault in raised.value.faults]
    assert keys == [
        "recipe demoo",
        "space.training.optimizer.lr",
        "space.model.rnn.layers.high",
        "space.model.rnn.layers.hi",
        "search.algorithm",
        "trials",
        "objective",
    ]


@pytest.mark.parametrize(
    ("text", "fault"), [("recipe: demo\n", "space: nothing varies"), (ONE.replace("recipe: demo", "name: a"), "recipe: expected")]
)
def test_what_must_be_there(load: Load, text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        load(f"{text}trials: 20\n")


def test_values_that_give_no_valid_recipe_are_found_before_a_trial(load: Load) -> None:
    with pytest.raises(ConfigError) as raised:
        load(
            """
recipe: cnn-lstm
space:
  training.schedule.warmup_epochs: {type: choice, options: [0, 3]}
  training.epochs: {type: int, low: 3, high: 9}
  model.head.dropout: {type: float, low: 0.0, high: 1.0}
  model.rnn: {type: choice, options: {with: {kind: lstm}, without: {kind: none, readout: last}, odd: {kynd: gru}}}
  augment: {type: choice, options: {none: none, wild: [{op: turn}]}}
trials: 20
"""
        )
    faults = "\n".join(raised.value.faults)
    assert "training: schedule.warmup_epochs 3 leaves nothing of 3 epochs (with " in faults
    assert "model.head.dropout: Input should be less than 1 (got 1.0) (with " in faults
    assert "model.rnn: readout 'last' needs an RNN" in faults
    assert "model.rnn.kynd: unknown key; valid here: activation" in faults
    assert "augment.0.op: unknown operation 'turn'" in faults
    assert len(raised.value.faults) == 5


def test_networks_that_cannot_be_built_are_found_before_a_trial(load: Load) -> None:
    text = (
        "recipe: demo\ntrials: 20\nspace:\n  model.backbone.name: {type: choice, options: [small_cnn, small_cmm]}\n"
        "  model.backbone.freeze_stages: {type: int, low: 0, high: 9}\n"
    )
    sweep = load(text)
    with pytest.raises(ConfigError) as raised:
        check_networks(sweep, 3, (64, 64))
    assert len(raised.value.faults) == 1, "the endpoint with too many stages is the one with the unknown backbone"
    assert "small_cmm" in raised.value.faults[0]
    with pytest.raises(ConfigError, match="freeze_stages is 9, but backbone small_cnn has 5 stages"):
        check_networks(load(text.replace(", small_cmm", "")), 3, (64, 64))
    with pytest.raises(ConfigError, match="too small for backbone small_cnn"):
        check_networks(load(), 3, (8, 8))
    check_networks(load(), 3, (64, 64))


def test_a_missing_file() -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: 1 fault\(s\)\n  - cannot be read"):
        load_sweep("none.yaml")
