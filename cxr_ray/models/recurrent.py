"""Sequence -> features: an LSTM, a GRU or nothing, and how the outcome is read.

Shapes: B images, T steps, D channels of the feature map, F features of a step.

    sequence_BTD pixels of the feature map in order
    output_BTF   the RNN's output at every step
    features_BF  what the head sees (for readout ``sequence``: T * F wide)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from cxr_ray.config import RnnConfig

ATTENTION_SIZE = 128
"""Width of the hidden layer that scores a step."""


class Recurrent(nn.Module):
    """An LSTM, a GRU, or with ``kind: none`` the sequence as it is (the control); then dropout.

    Initialisation: input weights Glorot uniform and recurrent weights orthogonal, each gate by itself; biases zero, but the LSTM's
    forget gate 1 (Jozefowicz 2015), so that at first a cell remembers.

    Args:
        channels: D, of the sequence.
        config: Kind, size, layers, directions, dropout.
    """

    def __init__(self, channels: int, config: RnnConfig) -> None:
        super().__init__()
        self.rnn: nn.LSTM | nn.GRU | None = None
        self.out_features = channels
        """F: channels, or hidden size times directions."""
        if config.kind != "none":
            kind = nn.LSTM if config.kind == "lstm" else nn.GRU
            self.rnn = kind(
                channels,
                config.hidden_size,
                config.layers,
                batch_first=True,
                bidirectional=config.bidirectional,
                dropout=config.dropout if config.layers > 1 else 0.0,
            )
            self.out_features = config.hidden_size * (2 if config.bidirectional else 1)
            _initialise(self.rnn)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, sequence_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, F)."""
        output_BTF = sequence_BTD if self.rnn is None else self.rnn(sequence_BTD)[0]
        return self.dropout(output_BTF)  # type: ignore[no-any-return]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self.rnn is not None:  # a copy's weights lie apart; cuDNN would gather them at every call, with a warning
            self.rnn.flatten_parameters()


def _initialise(rnn: nn.LSTM | nn.GRU) -> None:
    gates = 4 if isinstance(rnn, nn.LSTM) else 3
    for name, parameter in rnn.named_parameters():
        blocks = parameter.detach().chunk(gates)
        if name.startswith("weight_ih"):
            for block in blocks:
                nn.init.xavier_uniform_(block)
        elif name.startswith("weight_hh"):
            for block in blocks:
                nn.init.orthogonal_(block)
        else:
            nn.init.zeros_(parameter)
            if name.startswith("bias_ih") and gates == 4:
                nn.init.ones_(blocks[1])  # torch's order of gates: input, forget, cell, output


class LastStep(nn.Module):
    """The last step of the forward direction, beside the first step of the backward one: each has then seen every pixel."""

    def __init__(self, hidden_size: int, *, bidirectional: bool) -> None:
        super().__init__()
        self.hidden_size, self.bidirectional = hidden_size, bidirectional

    def forward(self, output_BTF: Tensor) -> Tensor:
        """(B, T, F) -> (B, F)."""
        if not self.bidirectional:
            return output_BTF[:, -1]
        return torch.cat((output_BTF[:, -1, : self.hidden_size], output_BTF[:, 0, self.hidden_size :]), dim=1)


class MeanOverSteps(nn.Module):
    """The mean over the steps. Without an RNN this is global average pooling."""

    def forward(self, output_BTF: Tensor) -> Tensor:
        """(B, T, F) -> (B, F)."""
        return output_BTF.mean(dim=1)


class AttentionPooling(nn.Module):
    """A weighted mean over the steps, the weights softmax(v . tanh(W h_t + b)): Yang 2016, equations 5 to 7.

    Args:
        features: F.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        size = min(features, ATTENTION_SIZE)
        self.hidden = nn.Linear(features, size)
        self.score = nn.Linear(size, 1, bias=False)  # softmax takes no notice of a constant: a bias would never learn
        nn.init.xavier_uniform_(self.hidden.weight)
        nn.init.zeros_(self.hidden.bias)
        nn.init.normal_(self.score.weight, std=1.0 / math.sqrt(size))

    def weights(self, output_BTF: Tensor) -> Tensor:
        """(B, T, F) -> (B, T) float32, positive, summing to 1."""
        scores_BT = self.score(torch.tanh(self.hidden(output_BTF))).squeeze(-1)
        return torch.softmax(scores_BT.float(), dim=1)

    def forward(self, output_BTF: Tensor) -> Tensor:
        """(B, T, F) -> (B, F)."""
        weights_BT = self.weights(output_BTF).to(output_BTF.dtype)
        return (weights_BT.unsqueeze(-1) * output_BTF).sum(dim=1)


def build_readout(config: RnnConfig, features: int, steps: int) -> tuple[nn.Module, int]:
    """How (B, T, F) becomes the head's input, and the width of that.

    Args:
        config: ``readout`` (and for ``last`` the size and directions).
        features: F.
        steps: T, needed for ``sequence``, which flattens all steps (papers 001 and 003).
    """
    if config.readout == "last":
        return LastStep(config.hidden_size, bidirectional=config.bidirectional), features
    if config.readout == "mean":
        return MeanOverSteps(), features
    if config.readout == "attention":
        return AttentionPooling(features), features
    return nn.Flatten(start_dim=1), steps * features
