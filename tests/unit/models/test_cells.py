"""The loop over steps: torch's own layers with tanh, the papers' framework's equations with ReLU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cxr_ray.models.cells import LoopRnn


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def pair(kind: str, **settings: Any) -> tuple[LoopRnn, nn.RNNBase]:
    """A loop and torch's layer with the same weights."""
    torch.manual_seed(0)
    theirs = (nn.LSTM if kind == "lstm" else nn.GRU)(
        6, 5, settings.get("layers", 1), batch_first=True, bidirectional=settings.get("bidirectional", False)
    )
    if kind == "lstm":
        for name, parameter in theirs.named_parameters():
            if name.startswith("bias_hh"):
                nn.init.zeros_(parameter)
    ours = LoopRnn(kind, 6, 5, activation="tanh", **settings)
    state = {name: tensor for name, tensor in theirs.state_dict().items() if kind == "gru" or not name.startswith("bias_hh")}
    ours.load_state_dict(state)  # strict: the names and shapes are torch's
    return ours, theirs


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("settings", [{}, {"layers": 2}, {"bidirectional": True}, {"layers": 3, "bidirectional": True}], ids=str)
def test_with_tanh_it_is_torchs(kind: str, settings: dict[str, Any]) -> None:
    ours, theirs = pair(kind, **settings)
    sequence_BTD = noise(3, 7, 6)
    a, b = sequence_BTD.clone().requires_grad_(), sequence_BTD.clone().requires_grad_()
    output, expected = ours(a)[0], theirs(b)[0]
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-5)
    output.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-5)
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-5)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def reference(kind: str, rnn: LoopRnn, sequence_TD: np.ndarray) -> np.ndarray:
    """Keras's equations step by step (GRU: ``reset_after``), gate by gate in torch's order, in numpy."""
    w, u, b = (
        np.split(getattr(rnn, name).detach().numpy(), 4 if kind == "lstm" else 3) for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0")
    )
    h, c = np.zeros(rnn.hidden_size), np.zeros(rnn.hidden_size)
    outputs = []
    for x in sequence_TD:
        if kind == "lstm":
            i, f, g, o = (w[k] @ x + u[k] @ h + b[k] for k in range(4))
            c = sigmoid(f) * c + sigmoid(i) * np.maximum(g, 0)
            h = sigmoid(o) * np.maximum(c, 0)
        else:
            b2 = np.split(rnn.bias_hh_l0.detach().numpy(), 3)
            r = sigmoid(w[0] @ x + b[0] + u[0] @ h + b2[0])
            z = sigmoid(w[1] @ x + b[1] + u[1] @ h + b2[1])
            h = z * h + (1 - z) * np.maximum(w[2] @ x + b[2] + r * (u[2] @ h + b2[2]), 0)
        outputs.append(h)
    return np.stack(outputs)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_relu_by_the_equations(kind: str) -> None:
    torch.manual_seed(1)
    rnn = LoopRnn(kind, 6, 5, bidirectional=True).double()
    for parameter in rnn.parameters():
        nn.init.normal_(parameter, std=0.5)
    sequence_BTD = noise(2, 7, 6).double()
    output_BTF, _ = rnn(sequence_BTD)
    for image in range(2):
        np.testing.assert_allclose(output_BTF[image, :, :5].detach().numpy(), reference(kind, rnn, sequence_BTD[image].numpy()), atol=1e-12)
    assert (output_BTF >= 0).all()
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", *(["bias_hh_l0"] if kind == "gru" else [])):
        getattr(rnn, name).data = getattr(rnn, f"{name}_reverse").data
    backward = reference(kind, rnn, sequence_BTD[0].flip(0).numpy())[::-1]
    np.testing.assert_allclose(output_BTF[0, :, 5:].detach().numpy(), backward, atol=1e-12)


def test_dropout_stands_between_layers_only() -> None:
    rnn = LoopRnn("lstm", 6, 5, layers=2, dropout=0.9)
    for parameter in rnn.parameters():
        nn.init.normal_(parameter, std=0.5)
    sequence_BTD = noise(2, 7, 6)
    torch.manual_seed(0)
    first, second = rnn(sequence_BTD)[0], rnn(sequence_BTD)[0]
    assert not torch.equal(first, second)
    rnn.eval()
    assert torch.equal(rnn(sequence_BTD)[0], rnn(sequence_BTD)[0])
    one = LoopRnn("lstm", 6, 5, dropout=0.9)
    for parameter in one.parameters():
        nn.init.normal_(parameter, std=0.5)
    assert torch.equal(one(sequence_BTD)[0], one(sequence_BTD)[0])


def test_state_is_float32_under_autocast() -> None:
    """Sums without a bound in bfloat16 would lose what is added to them."""
    rnn = LoopRnn("lstm", 6, 5)
    for parameter in rnn.parameters():
        nn.init.normal_(parameter, std=0.3)
    exact = rnn(noise(2, 40, 6))[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output_BTF = rnn(noise(2, 40, 6))[0]
    assert output_BTF.dtype == torch.float32
    torch.testing.assert_close(output_BTF, exact, atol=0.1, rtol=0.1)
