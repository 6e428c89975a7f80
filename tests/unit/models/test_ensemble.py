"""Several networks answer as one: the mean of their probabilities, exact where they are sure, on one device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cxr_ray.errors import ModelError
from cxr_ray.labels import Task
from cxr_ray.models.classifier import Classifier
from cxr_ray.models.ensemble import Ensemble, normalized_weights
from cxr_ray.models.inference import predict_probabilities, to_probabilities


class Says(nn.Module):
    """Stands in for a network: the same logits whatever the image."""

    num_outputs, image_size = 3, (32, 32)

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.5))
        self.register_buffer("logits", torch.tensor(logits))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)  # type: ignore[operator, no-any-return]


def answers(members: list[Any], task: Task, weights: list[float] | None = None) -> Tensor:
    logits = Ensemble(members, task=task, weights=weights)(torch.zeros(2, 32, 32, dtype=torch.uint8))
    assert (logits.dtype, logits.shape) == (torch.float32, (2, 3))
    return to_probabilities(logits, task)[0]


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("scale", [1.0, 30.0, 200.0, 1e4])
def test_probabilities_are_the_weighted_mean_however_sure_the_members_are(task: Task, scale: float) -> None:
    logits = scale * torch.randn(3, 3, generator=torch.Generator().manual_seed(4))
    each = to_probabilities(logits, task).double()
    expected = (each[0] + 2 * each[1] + 4 * each[2]) / 7
    got = answers([Says(row) for row in logits.tolist()], task, [1, 2, 4])
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_logits_stay_finite_where_float32_probabilities_are_0_and_1(task: Task) -> None:
    model = Ensemble([Says([300.0, -300.0, -300.0]), Says([400.0, -400.0, -400.0])], task=task)  # type: ignore[list-item]
    logits = model(torch.zeros(1, 32, 32, dtype=torch.uint8))
    assert torch.isfinite(logits).all()
    order = logits[0, 0] > logits[0, 1]
    assert order


def test_one_alone_is_left_as_it_is(make_classifier: Callable[..., Classifier], grey: Callable[..., Tensor]) -> None:
    model, images = make_classifier(size=(32, 32)).eval(), grey(4, 32, 32)
    with torch.inference_mode():
        for task in ("multiclass", "multilabel"):
            expected = to_probabilities(model(images), task)
            torch.testing.assert_close(to_probabilities(Ensemble([model], task=task)(images), task), expected)


def test_networks_of_different_kinds_predict_together(make_classifier: Callable[..., Classifier], grey: Callable[..., Tensor]) -> None:
    members = [make_classifier(size=(32, 32)), make_classifier(seed=1, size=(32, 32), rnn={"kind": "none", "readout": "mean"})]
    ensemble = Ensemble(members, task="multiclass")
    images = grey(7, 32, 32).numpy()
    expected = np.mean([predict_probabilities(member, images, "multiclass") for member in members], axis=0)
    got = predict_probabilities(ensemble, images, "multiclass", batch_size=3, device="cpu")
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert ensemble.num_outputs == 3
    assert ensemble.image_size == (32, 32)
    assert "log_weights" not in ensemble.state_dict()
    assert not {id(p) for p in members[0].parameters()} & {id(p) for p in members[1].parameters()}


def test_it_moves_as_one(make_classifier: Callable[..., Classifier]) -> None:
    ensemble = Ensemble([make_classifier(size=(32, 32)), make_classifier(seed=1, size=(32, 32))], task="multilabel").to("meta")
    assert ensemble.mean.device.type == "meta"
    assert {tensor.device.type for tensor in (*ensemble.parameters(), *ensemble.buffers())} == {"meta"}


def test_what_makes_no_ensemble(make_classifier: Callable[..., Classifier]) -> None:
    one = make_classifier(size=(32, 32))
    with pytest.raises(ModelError, match="at least one member"):
        Ensemble([], task="multiclass")
    for other in (make_classifier(size=(64, 64)), make_classifier(size=(32, 32), outputs=2)):
        with pytest.raises(ModelError, match="agree in labels and image size"):
            Ensemble([one, other], task="multiclass")
    with pytest.raises(ModelError, match="2 members and 1 weights"):
        Ensemble([one, one], task="multiclass", weights=[1.0])
    with pytest.raises(ModelError, match="unknown task"):
        Ensemble([one], task="regression")  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [[0.0, 1.0], [-1.0, 2.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_weights_are_numbers_above_0(weights: list[float]) -> None:
    with pytest.raises(ModelError, match="above 0"):
        normalized_weights(weights)


def test_only_the_ratios_of_weights_matter() -> None:
    assert normalized_weights([1, 2, 4, 8]) == pytest.approx([1 / 15, 2 / 15, 4 / 15, 8 / 15])
    assert normalized_weights([3, 3]) == (0.5, 0.5)
