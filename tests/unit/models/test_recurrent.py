"""LSTM, GRU and the control; the readouts against what they are said to be; initialisation."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxr_ray.config import RnnConfig
from cxr_ray.models.recurrent import AttentionPooling, LastStep, MeanOverSteps, Recurrent, build_readout


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def recurrent(channels: int = 6, **settings: Any) -> Recurrent:
    torch.manual_seed(0)
    return Recurrent(channels, RnnConfig.model_validate({"hidden_size": 5, "readout": "mean", **settings}))


@pytest.mark.parametrize(
    ("settings", "features"),
    [
        ({"kind": "lstm"}, 5),
        ({"kind": "gru", "layers": 2, "dropout": 0.1}, 5),
        ({"kind": "lstm", "bidirectional": True}, 10),
        ({"kind": "none"}, 6),
    ],
)
def test_width(settings: dict[str, Any], features: int) -> None:
    module = recurrent(**settings)
    assert module(noise(2, 7, 6)).shape == (2, 7, features)
    assert module.out_features == features


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_last_is_the_final_state_of_each_direction(kind: str, bidirectional: bool) -> None:
    module = recurrent(kind=kind, bidirectional=bidirectional, layers=2, readout="last")
    assert module.rnn is not None
    output_BTF, state = module.rnn(noise(2, 7, 6))
    final = (state[0] if kind == "lstm" else state)[-2 if bidirectional else -1 :]  # of the upper layer
    read, features = build_readout(RnnConfig(kind=kind, hidden_size=5, bidirectional=bidirectional), module.out_features, 7)
    assert isinstance(read, LastStep)
    assert features == module.out_features
    torch.testing.assert_close(read(output_BTF), final.transpose(0, 1).flatten(1))


def test_mean_and_sequence_by_hand() -> None:
    output_BTF = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    assert MeanOverSteps()(output_BTF).tolist() == [[2.0, 4.0]]
    flatten, features = build_readout(RnnConfig(readout="sequence"), 2, 2)
    assert flatten(output_BTF).tolist() == [[1.0, 2.0, 3.0, 6.0]]
    assert features == 4


def test_attention_is_a_weighted_mean() -> None:
    torch.manual_seed(0)
    pooling = AttentionPooling(6)
    output_BTF = noise(2, 7, 6)
    weights_BT = pooling.weights(output_BTF)
    assert (weights_BT > 0).all()
    torch.testing.assert_close(weights_BT.sum(1), torch.ones(2))
    expected = torch.stack([sum(w * h for w, h in zip(weights_BT[b], output_BTF[b], strict=True)) for b in range(2)])
    torch.testing.assert_close(pooling(output_BTF), expected)
    nn.init.zeros_(pooling.score.weight)
    torch.testing.assert_close(pooling(output_BTF), output_BTF.mean(1))


def test_control_without_rnn_is_the_sequence_itself() -> None:
    sequence_BTD = noise(2, 7, 6)
    assert torch.equal(recurrent(kind="none", dropout=0.5).eval()(sequence_BTD), sequence_BTD)


def test_dropout_falls_on_the_output_in_training_only() -> None:
    module = recurrent(kind="none", dropout=0.5)
    dropped = module.train()(torch.ones(4, 7, 6))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert recurrent(kind="lstm", layers=1, dropout=0.5).rnn.dropout == 0.0  # type: ignore[union-attr]
    assert recurrent(kind="lstm", layers=2, dropout=0.5).rnn.dropout == 0.5  # type: ignore[union-attr]


@pytest.mark.parametrize(("kind", "gates"), [("lstm", 4), ("gru", 3)])
def test_initialisation(kind: str, gates: int) -> None:
    rnn = recurrent(channels=64, kind=kind, hidden_size=16, layers=2, bidirectional=True).rnn
    assert rnn is not None
    for name, parameter in rnn.named_parameters():
        blocks = parameter.detach().chunk(gates)
        if name.startswith("weight_hh"):
            for block in blocks:
                torch.testing.assert_close(block @ block.T, torch.eye(16), atol=1e-5, rtol=0)
        elif name.startswith("weight_ih"):
            limit = (6 / (16 + blocks[0].shape[1])) ** 0.5
            assert all(0.9 * limit < block.abs().max() <= limit for block in blocks)
        else:
            forget = kind == "lstm" and name.startswith("bias_ih")
            assert [block.unique().tolist() for block in blocks] == [[1.0 if forget and gate == 1 else 0.0] for gate in range(gates)]


def test_an_lstm_has_one_bias_a_gate() -> None:
    module = recurrent(channels=512, hidden_size=512)
    assert sum(parameter.numel() for parameter in module.parameters()) == 4 * (512 * 512 + 512 * 512 + 512) == 2_099_200
    assert set(module.state_dict()) == {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_ih_l0"}
    assert sum(p.numel() for p in recurrent(channels=8, kind="gru", hidden_size=4).parameters()) == 3 * 4 * (8 + 4 + 2)


@pytest.mark.parametrize(
    "settings", [{"layers": 2, "bidirectional": True}, {"activation": "relu", "layers": 2, "bidirectional": True}], ids=str
)
def test_one_bias_through_copy_pickle_state_and_the_meta_device(settings: dict[str, Any]) -> None:
    module = recurrent(**settings).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
    expected = module(noise(2, 7, 6))
    other = recurrent(**settings).eval()
    assert not torch.equal(other(noise(2, 7, 6)), expected)
    other.load_state_dict(module.state_dict())
    for same in (other, copy.deepcopy(module), pickle.loads(pickle.dumps(module)), copy.deepcopy(module).double().float()):
        assert torch.equal(same(noise(2, 7, 6)), expected)
        same(noise(2, 7, 6)).sum().backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in same.parameters())
        torch.optim.SGD(same.parameters(), lr=0.1).step()  # the kernel reads the parameters that the optimiser moves
        moved = same(noise(2, 7, 6))
        assert not torch.equal(moved, expected)
        again = recurrent(**settings).eval()
        again.load_state_dict(same.state_dict())
        assert torch.equal(again(noise(2, 7, 6)), moved)
    assert torch.equal(module(noise(2, 7, 6)), expected)
    with torch.device("meta"):
        ghost = Recurrent(6, RnnConfig.model_validate({"hidden_size": 5, **settings}))
    assert {name: tensor.shape for name, tensor in ghost.state_dict().items()} == {n: t.shape for n, t in other.state_dict().items()}
    assert ghost(torch.empty(2, 7, 6, device="meta")).shape == (2, 7, 10)


def test_a_state_with_both_biases_is_read_as_their_sum() -> None:
    """torch's own, and what our first BUNDLEs hold."""
    torch.manual_seed(3)
    theirs = torch.nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True)
    module = recurrent(layers=2, bidirectional=True)
    state = {f"rnn.{name}": tensor for name, tensor in theirs.state_dict().items()}
    kept = dict(state)
    module.load_state_dict(state)
    assert state.keys() == kept.keys(), "the caller's state was changed"
    torch.testing.assert_close(module(noise(2, 7, 6)), theirs(noise(2, 7, 6))[0])


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_frozen_rnn_keeps_its_start_and_passes_the_gradient(activation: str) -> None:
    module = recurrent(trainable=False, activation=activation, batch_norm=True).train()
    sequence_BTD = noise(4, 7, 6).requires_grad_()
    module(sequence_BTD).square().sum().backward()
    assert sequence_BTD.grad is not None
    assert module.rnn is not None
    assert all(parameter.grad is None for parameter in module.rnn.parameters())
    assert module.never_learning() == set(module.rnn.parameters())
    assert {name for name, parameter in module.named_parameters() if parameter.requires_grad} == {"norm.weight", "norm.bias"}
    assert recurrent().never_learning() == set()


def test_batch_norm_of_the_output_by_channel() -> None:
    module = recurrent(batch_norm=True).train()
    output_BTF = module(noise(8, 7, 6))
    torch.testing.assert_close(output_BTF.mean((0, 1)), torch.zeros(5), atol=1e-5, rtol=0)
    assert (output_BTF.std((0, 1)) > 0.5).all()
    assert recurrent(kind="none", batch_norm=True).norm is None


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_activation(kind: str, activation: str) -> None:
    output_BTF = recurrent(kind=kind, activation=activation)(noise(2, 7, 6) * 3)
    assert bool((output_BTF < 0).any()) == (activation == "tanh")


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_learns_where_a_pattern_stands_in_a_sequence_of_1280_channels(kind: str, bidirectional: bool) -> None:
    """The mean over steps is the same for both labels: only what knows the order can tell them apart."""
    config = RnnConfig.model_validate({"kind": kind, "hidden_size": 16, "bidirectional": bidirectional, "readout": "last"})
    torch.manual_seed(0)
    module = Recurrent(1280, config)
    readout, features = build_readout(config, module.out_features, 9)
    model = nn.Sequential(module, readout, nn.Linear(features, 2))
    label = torch.arange(32) % 2
    sequence_BTD = noise(32, 9, 1280).relu()  # half zeros, as feature maps are
    pattern = noise(1280).relu() * 2
    sequence_BTD[label == 0, 0] += pattern
    sequence_BTD[label == 1, 8] += pattern
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(25):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(sequence_BTD), label)
        loss.backward()
        optimizer.step()
    assert loss < 0.1
