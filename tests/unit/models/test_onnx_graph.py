"""A network as an ONNX graph answers as torch does, for any batch size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from cxr_ray.errors import ModelError
from cxr_ray.models.ensemble import Ensemble
from cxr_ray.models.forward import Forward, TorchForward

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from cxr_ray.models.onnx_graph import OnnxForward, to_onnx

NETWORKS: dict[str, dict[str, Any]] = {
    "a bidirectional LSTM in spiral order": {
        "sequence": {"order": "spiral"},
        "rnn": {"kind": "lstm", "hidden_size": 8, "bidirectional": True, "readout": "last"},
    },
    "two GRU layers with attention": {"rnn": {"kind": "gru", "hidden_size": 8, "layers": 2, "readout": "attention"}},
    "ReLU cells, batch norm": {"rnn": {"kind": "lstm", "hidden_size": 8, "activation": "relu", "batch_norm": True, "readout": "sequence"}},
    "no RNN, one step": {"sequence": {"order": "flatten"}, "rnn": {"kind": "none", "readout": "mean"}},
    "MobileNetV2": {"backbone": {"name": "mobilenet_v2"}, "rnn": {"hidden_size": 8}},
}


def noise(count: int, size: int = 32) -> Any:
    return np.random.default_rng(count).integers(0, 256, (count, size, size), dtype=np.uint8)


def assert_alike(one: Forward, other: Forward) -> None:
    for count in (1, 3):
        ours, theirs = one(noise(count)), other(noise(count))
        for found, expected in zip(theirs, ours, strict=True):
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS.keys())
def test_answers_are_those_of_torch(make_classifier: Callable[..., Any], settings: dict[str, Any]) -> None:
    model = make_classifier(size=(32, 32), **settings)
    model(torch.from_numpy(noise(8)))  # in training mode: batch norm's statistics are not those it starts with
    graph = to_onnx(model, "multilabel")
    assert model.training
    assert_alike(TorchForward(model, "multilabel"), OnnxForward(graph, threads=1))


def test_all_members_of_an_ensemble_are_in_it(make_classifier: Callable[..., Any]) -> None:
    members = [make_classifier(seed=seed, size=(32, 32), rnn={"hidden_size": 8}) for seed in (0, 1)]
    ensemble = Ensemble(members, task="multiclass", weights=[1.0, 3.0])
    found = OnnxForward(to_onnx(ensemble, "multiclass"), threads=1)
    assert_alike(TorchForward(ensemble, "multiclass"), found)
    assert np.abs(found(noise(2))[0] - TorchForward(members[0], "multiclass")(noise(2))[0]).max() > 1e-3


def test_what_is_no_graph_is_refused() -> None:
    with pytest.raises(ModelError, match="refuses the graph"):
        OnnxForward(b"not a graph", threads=1)


def test_a_network_that_cannot_be_written_says_so(make_classifier: Callable[..., Any]) -> None:
    model = make_classifier(size=(32, 32))
    model.readout.register_forward_pre_hook(lambda module, inputs: inputs if inputs[0].sum() > 0 else None)  # a way that pixels decide
    with pytest.raises(ModelError, match="cannot be written"):
        to_onnx(model, "multiclass")
