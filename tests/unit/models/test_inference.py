"""Probabilities: of the right kind, whatever the batch size, and the network left as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from cxr_ray.errors import ModelError
from cxr_ray.models.classifier import Classifier
from cxr_ray.models.inference import evaluating, predict_probabilities, to_probabilities


@pytest.fixture(scope="module")
def model(make_classifier: Callable[..., Classifier]) -> Classifier:
    return make_classifier(
        size=(32, 32), backbone={"name": "small_cnn", "freeze_stages": 2}, rnn={"hidden_size": 8, "dropout": 0.5}, head={"dropout": 0.5}
    )


@pytest.fixture(scope="module")
def images(grey: Callable[..., Tensor]) -> npt.NDArray[np.uint8]:
    array: npt.NDArray[np.uint8] = grey(11, 32, 32).numpy()
    array.flags.writeable = False  # as Arrow's memory is
    return array


def test_multiclass(model: Classifier, images: npt.NDArray[np.uint8]) -> None:
    probabilities = predict_probabilities(model, images, "multiclass")
    assert (probabilities.shape, probabilities.dtype) == ((11, 3), np.float32)
    np.testing.assert_allclose(probabilities.sum(1), 1.0, rtol=1e-6)
    with evaluating(model), torch.inference_mode():
        expected = torch.softmax(model(torch.from_numpy(images.copy())).double(), 1)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
    assert len(np.unique(probabilities)) == 33


def test_multilabel(model: Classifier, images: npt.NDArray[np.uint8]) -> None:
    probabilities = predict_probabilities(model, images, "multilabel")
    with evaluating(model), torch.inference_mode():
        expected = 1 / (1 + np.exp(-model(torch.from_numpy(images.copy())).double().numpy()))
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 64])
def test_batch_size_changes_nothing(model: Classifier, images: npt.NDArray[np.uint8], batch_size: int) -> None:
    one = predict_probabilities(model, images, "multiclass", batch_size=3)
    np.testing.assert_allclose(predict_probabilities(model, images, "multiclass", batch_size), one, atol=1e-6)


def test_no_images(model: Classifier) -> None:
    assert predict_probabilities(model, np.empty((0, 32, 32), np.uint8), "multiclass").shape == (0, 3)


def test_every_module_is_back_in_its_mode(model: Classifier, images: npt.NDArray[np.uint8]) -> None:
    model.train()
    model.head.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    assert set(modes.values()) == {True, False}
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    predict_probabilities(model, images, "multiclass")
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in model.named_buffers())
    with pytest.raises(ModelError):
        predict_probabilities(model, images[:, :16], "multiclass")
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_device_moves_the_network(make_classifier: Callable[..., Classifier], images: npt.NDArray[np.uint8]) -> None:
    model = make_classifier(size=(32, 32))
    calls: list[Any] = []
    model.to = lambda device: calls.append(device) or model  # type: ignore[method-assign,func-returns-value]
    predict_probabilities(model, images, "multiclass")
    assert calls == []
    predict_probabilities(model, images, "multiclass", device="cpu")
    assert calls == ["cpu"]


def test_large_logits_in_half_precision() -> None:
    logits_BK = torch.tensor([[20.0, 0.0]], dtype=torch.bfloat16)
    torch.testing.assert_close(to_probabilities(logits_BK, "multiclass")[0, 1], torch.tensor(2.0611537e-09))
    assert to_probabilities(logits_BK, "multilabel").dtype == torch.float32


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((2, 32, 32), np.float32), r"expected images \(N, H, W\) uint8, got \(2, 32, 32\) float32"),
        (np.zeros((2, 1, 32, 32), np.uint8), r"got \(2, 1, 32, 32\) uint8"),
        (np.zeros((2, 33, 32), np.uint8), r"this network takes \(B, 32, 32\)"),
    ],
)
def test_wrong_images(model: Classifier, wrong: npt.NDArray[Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        predict_probabilities(model, wrong, "multiclass")


def test_wrong_task_and_batch_size(model: Classifier, images: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(ModelError, match="unknown task 'regression'; there are: multiclass, multilabel"):
        predict_probabilities(model, images, "regression")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="batch_size must be at least 1"):
        predict_probabilities(model, images, "multiclass", batch_size=0)
