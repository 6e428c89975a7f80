from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from cxr_ray.config import OptimizerConfig, ScheduleConfig, TrainingConfig
from cxr_ray.errors import RunError
from cxr_ray.models.classifier import Classifier
from cxr_ray.training.checkpoint import Best, TrainState
from cxr_ray.training.loop import epoch_seed, fit, is_better
from cxr_ray.training.loss import LabelCounts

Network = Callable[..., Classifier]
QUICK = OptimizerConfig(name="adam", lr=0.02)


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{"epochs": 3, "batch_size": 8, "optimizer": QUICK, "monitor": "val_loss", **changes})


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def test_learns_a_small_set_by_heart(problem: Any, network: Network) -> None:
    result = fit(network(), problem.train(), problem.validation(), config(epochs=8), labels=problem.labels)
    losses = [record.train_loss for record in result.history]
    assert losses[-1] < 0.3 * losses[0]
    assert result.history[-1].val_accuracy >= 0.95
    assert result.best.epoch == min(result.history, key=lambda record: record.val_loss).epoch
    assert result.history[-1].lr < result.history[0].lr


def test_learns_many_labels_of_which_some_are_unknown(multilabel_problem: Any, network: Network) -> None:
    counts = LabelCounts.of(multilabel_problem.targets, 2)
    settings = config(epochs=10, class_weights="balanced", monitor="val_macro_auroc", schedule=ScheduleConfig(name="constant"))
    result = fit(
        network(2), multilabel_problem.train(), multilabel_problem.validation(), settings, labels=multilabel_problem.labels, counts=counts
    )
    assert result.history[-1].train_loss < 0.7 * result.history[0].train_loss
    assert result.best.value > 0.9


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "ema_decay": 0.8,
            "mixup_alpha": 0.3,
            "label_smoothing": 0.1,
            "optimizer": OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.1),
        },
        {"optimizer": OptimizerConfig(name="sgd", lr=0.05), "schedule": ScheduleConfig(name="one_cycle")},
    ],
    ids=["plain", "everything", "sgd"],
)
def test_resumed_run_is_bit_identical(changes: dict[str, Any], problem: Any, network: Network) -> None:
    """With dropout, which follows from (seed, epoch, rank) and not from what was drawn before."""
    settings, states = config(epochs=4, **changes), []
    model = network(dropout=0.5)
    whole = fit(
        model, problem.train(), problem.validation(), settings, labels=problem.labels, report=lambda _, state: states.append(state())
    )
    torch.rand(17)  # another state of the global generator must not matter
    again, later = network(dropout=0.5, seed=5), []
    resumed = fit(
        again,
        problem.train(),
        problem.validation(),
        settings,
        labels=problem.labels,
        resume=states[1],
        report=lambda _, state: later.append(state()),
    )
    assert torch.equal(weights(model), weights(again))
    assert [record.epoch for record in resumed.history] == [0, 1, 2, 3]
    assert [record.val_loss for record in resumed.history] == [record.val_loss for record in whole.history]
    assert len(later) == 2
    assert resumed.best == whole.best
    if settings.ema_decay is not None:
        assert all(torch.equal(states[-1].average[name], value) for name, value in later[-1].average.items())
        assert not torch.equal(states[-1].average["head.1.weight"], states[-1].model["head.1.weight"])


def test_global_generator_is_left_alone(problem: Any, network: Network) -> None:
    before = torch.random.get_rng_state()
    fit(network(dropout=0.5), problem.train(), problem.validation(), config(epochs=1), labels=problem.labels)
    assert torch.equal(before, torch.random.get_rng_state())


def test_seeds_differ_by_epoch_and_rank() -> None:
    seeds = {epoch_seed(seed, epoch, rank) for seed in range(3) for epoch in range(3) for rank in range(3)}
    assert len(seeds) == 27


def test_validated_weights_are_the_averaged_ones(problem: Any, network: Network) -> None:
    """With a decay near 1 the average stays at the start, whatever the network learns."""
    start = fit(network(), problem.train(), problem.validation(), config(epochs=1, ema_decay=0.999999), labels=problem.labels)
    with torch.no_grad():
        logits = network().eval()(torch.from_numpy(problem.images))
        expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(problem.targets))
    assert start.history[0].val_loss == pytest.approx(float(expected), abs=1e-4)


def test_stages_thaw_when_configured(problem: Any, network: Network) -> None:
    model, seen = network(freeze_stages=-1, unfreeze_epoch=2), []
    first = model.backbone.state_dict()
    first = {name: value.clone() for name, value in first.items()}

    def changed(*_: object) -> None:
        seen.append(any(not torch.equal(first[name], value) for name, value in model.backbone.state_dict().items()))

    fit(model, problem.train(), problem.validation(), config(epochs=3), labels=problem.labels, report=changed)
    assert seen == [False, False, True]


def test_patience(problem: Any, network: Network) -> None:
    """At a learning rate of nothing no epoch is better than the first."""
    frozen = config(epochs=9, patience=2, optimizer=OptimizerConfig(name="sgd", lr=1e-30), monitor="val_accuracy")
    states: list[TrainState] = []
    result = fit(
        network(), problem.train(), problem.validation(), frozen, labels=problem.labels, report=lambda _, state: states.append(state())
    )
    assert len(result.history) == 3
    assert result.stopped_early
    assert [state.finished for state in states] == [False, False, True]
    again = fit(network(), problem.train(), problem.validation(), frozen, labels=problem.labels, resume=states[-1])
    assert len(again.history) == 3


def test_is_better() -> None:
    smallest, largest, last = config(), config(monitor="val_macro_f1"), config(monitor="last")
    assert is_better(smallest, None, None)
    assert is_better(smallest, 0.4, Best(0, "val_loss", 0.5))
    assert not is_better(smallest, 0.5, Best(0, "val_loss", 0.5))
    assert not is_better(smallest, None, Best(0, "val_loss", 0.5))
    assert is_better(largest, 0.6, Best(0, "val_macro_f1", 0.5))
    assert is_better(largest, 0.1, Best(0, "val_macro_f1", None))
    assert is_better(last, None, Best(0, "last", None))


def test_last_takes_the_newest_and_needs_no_validation(problem: Any, network: Network) -> None:
    result = fit(network(), problem.train(), None, config(epochs=2, monitor="last"), labels=problem.labels)
    assert result.best == Best(1, "last", None)
    assert result.history[0].val_loss is None
    with pytest.raises(RunError, match="val_loss needs a validation part"):
        fit(network(), problem.train(), None, config(), labels=problem.labels)


def test_a_loss_that_is_not_finite_says_where_and_what_to_try(problem: Any, network: Network) -> None:
    with pytest.raises(RunError, match=r"not finite at epoch 0, step [1-9]") as caught:
        fit(network(), problem.train(), None, config(monitor="last", optimizer=OptimizerConfig(name="sgd", lr=1e30)), labels=problem.labels)
    assert "training.optimizer.lr" in str(caught.value)


def test_a_state_of_another_network_is_refused(problem: Any, network: Network) -> None:
    states: list[TrainState] = []
    fit(
        network(),
        problem.train(),
        None,
        config(epochs=1, monitor="last"),
        labels=problem.labels,
        report=lambda _, state: states.append(state()),
    )
    with pytest.raises(RunError, match="another network"):
        fit(network(5), problem.train(), None, config(monitor="last"), labels=problem.labels, resume=states[0])


def test_gradient_is_that_of_the_mean_over_each_batch(problem: Any, network: Network) -> None:
    """One step of plain SGD over a batch whose last part is smaller: 24 images in batches of 20 and 4."""
    settings = config(
        epochs=1, monitor="last", optimizer=OptimizerConfig(name="sgd", lr=0.1, momentum=0.0), schedule=ScheduleConfig(name="constant")
    )
    model, by_hand = network(), network()
    fit(model, problem.train(batch_size=20), None, settings, labels=problem.labels)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    by_hand.train()
    for batch in problem.train(batch_size=20).epoch(0):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(by_hand(batch.images), batch.targets).backward()
        optimizer.step()
    assert torch.allclose(weights(model), weights(by_hand), atol=1e-5)


def test_bf16_on_a_cpu_trains(problem: Any, network: Network) -> None:
    result = fit(network(), problem.train(), problem.validation(), config(precision="bf16", epochs=4), labels=problem.labels)
    assert np.isfinite(result.history[-1].val_loss)
    assert result.history[-1].train_loss < result.history[0].train_loss
