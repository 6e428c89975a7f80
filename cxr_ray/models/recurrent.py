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
from cxr_ray.models.cells import LoopRnn

ATTENTION_SIZE = 128
"""Width of the hidden layer that scores a step."""


Rnn = nn.LSTM | nn.GRU | LoopRnn


class Recurrent(nn.Module):
    """An LSTM, a GRU, or with ``kind: none`` the sequence as it is (the control); then batch norm where asked, then dropout.

    Initialisation: input weights Glorot uniform and recurrent weights orthogonal, each gate by itself; biases zero, but the LSTM's
    forget gate 1 (Jozefowicz 2015), so that at first a cell remembers. (The papers' framework draws the gates of a layer as one matrix,
    which makes its weights smaller.) An LSTM has one bias a gate, as in the papers' framework: torch's second, which adds nothing, is
    held at zero, is no parameter and stands in no weight file.

    Args:
        channels: D, of the sequence.
        config: Kind, size, layers, directions, activation, batch norm, dropout, and whether it learns.
    """

    def __init__(self, channels: int, config: RnnConfig) -> None:
        super().__init__()
        self.rnn: Rnn | None = None
        self.norm: nn.BatchNorm1d | None = None
        self.trainable = config.trainable
        self.out_features = channels
        """F: channels, or hidden size times directions."""
        if config.kind != "none":
            self.rnn = _build(channels, config)
            self.out_features = config.hidden_size * (2 if config.bidirectional else 1)
            _initialise(self.rnn, config.kind)
            _one_bias(self.rnn)
            self.rnn.requires_grad_(config.trainable)
            if config.batch_norm:
                self.norm = nn.BatchNorm1d(self.out_features, eps=1e-3, momentum=0.01)  # the papers' framework's constants
        self.dropout = nn.Dropout(config.dropout)
        self.register_load_state_dict_pre_hook(_merge_biases)  # type: ignore[no-untyped-call]

    def forward(self, sequence_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, F)."""
        output_BTF = sequence_BTD if self.rnn is None else self.rnn(sequence_BTD)[0]
        if self.norm is not None:
            output_BTF = self.norm(output_BTF.transpose(1, 2)).transpose(1, 2)
        return self.dropout(output_BTF)  # type: ignore[no-any-return]

    def never_learning(self) -> set[Tensor]:
        """Parameters that are frozen for good: an optimiser need not know them."""
        return set() if self.rnn is None or self.trainable else set(self.rnn.parameters())

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if isinstance(self.rnn, nn.RNNBase):  # a copy's weights lie apart; cuDNN would gather them at every call, with a warning
            self.rnn.flatten_parameters()


def _build(channels: int, config: RnnConfig) -> Rnn:
    dropout = config.dropout if config.layers > 1 else 0.0
    if config.activation != "tanh":
        return LoopRnn(
            config.kind,
            channels,
            config.hidden_size,
            config.layers,
            bidirectional=config.bidirectional,
            dropout=dropout,
            activation=config.activation,
        )
    kind = nn.LSTM if config.kind == "lstm" else nn.GRU
    return kind(
        channels,
        config.hidden_size,
        config.layers,
        batch_first=True,
        bidirectional=config.bidirectional,
        dropout=dropout,
    )


def _initialise(rnn: Rnn, kind: str) -> None:
    gates = 4 if kind == "lstm" else 3
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


def _one_bias(rnn: Rnn) -> None:
    """Make the second bias of torch's LSTM, a zero already, a buffer."""
    if isinstance(rnn, nn.LSTM):
        for name, parameter in list(rnn.named_parameters()):
            if name.startswith("bias_hh"):
                del rnn._parameters[name]
                rnn.register_buffer(name, parameter.detach(), persistent=False)
                setattr(rnn, name, rnn.get_buffer(name))  # torch's own list of what its kernel reads follows assignments


def _merge_biases(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A state that holds both biases of an LSTM (torch's own, or one of our first BUNDLEs): their sum is the one."""
    for key in [key for key in state if key.startswith(f"{prefix}rnn.bias_hh_")]:
        if isinstance(module, Recurrent) and isinstance(module.rnn, nn.LSTM):
            other = key.replace("bias_hh_", "bias_ih_")
            state[other] = state[other] + state.pop(key)


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
