"""LSTM and GRU layers as a loop over the steps, for activations that torch's own (fast) layers do not have.

Shapes: B images, T steps, D features of a step, H hidden size, G gates (4 for an LSTM, 3 for a GRU).

    sequence_BTD the input
    drive_BTG    what the input adds to the gates at every step, G * H wide
    output_BTF   H wide a direction
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({"tanh": torch.tanh, "relu": torch.relu})


class LoopRnn(nn.Module):
    """An LSTM or GRU with any activation, of any number of layers, in one or both directions; ``batch_first``.

    Equations and names of the parameters are those of ``torch.nn.LSTM`` and ``torch.nn.GRU`` (gates input, forget, cell, output; and
    reset, update, new), whose output it gives with ``activation: tanh``. As in the papers' framework the activation replaces tanh for the
    candidate and for the LSTM's output, the gates stay sigmoid, and an LSTM has one bias a gate: it has no ``bias_hh``. The state is
    kept in float32 under autocast: ReLU does not bound it.

    Args:
        kind: ``lstm`` or ``gru``.
        input_size: D.
        hidden_size: H.
        layers: How many, one over the other.
        bidirectional: Whether a second direction reads the sequence from its end; the outputs stand side by side.
        dropout: Between layers.
        activation: A name of :data:`ACTIVATIONS`.
    """

    def __init__(
        self,
        kind: str,
        input_size: int,
        hidden_size: int,
        layers: int = 1,
        *,
        bidirectional: bool = False,
        dropout: float = 0.0,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.kind, self.input_size, self.hidden_size, self.layers = kind, input_size, hidden_size, layers
        self.bidirectional, self.dropout, self.activation = bidirectional, dropout, activation
        gates = 4 if kind == "lstm" else 3
        self.directions = ("", "_reverse") if bidirectional else ("",)
        for layer in range(layers):
            width = input_size if layer == 0 else hidden_size * len(self.directions)
            for direction in self.directions:
                tag = f"l{layer}{direction}"
                self.register_parameter(f"weight_ih_{tag}", nn.Parameter(torch.empty(gates * hidden_size, width)))
                self.register_parameter(f"weight_hh_{tag}", nn.Parameter(torch.empty(gates * hidden_size, hidden_size)))
                self.register_parameter(f"bias_ih_{tag}", nn.Parameter(torch.empty(gates * hidden_size)))
                if kind == "gru":
                    self.register_parameter(f"bias_hh_{tag}", nn.Parameter(torch.empty(gates * hidden_size)))

    def forward(self, sequence_BTD: Tensor) -> tuple[Tensor, None]:
        """(B, T, D) -> the output at every step, (B, T, F), and None where torch's layers have their last state."""
        output_BTF = sequence_BTD
        for layer in range(self.layers):
            if layer:
                output_BTF = F.dropout(output_BTF, self.dropout, self.training)
            both = [self._direction(output_BTF, f"l{layer}{direction}", backward=bool(direction)) for direction in self.directions]
            output_BTF = torch.cat(both, dim=2) if self.bidirectional else both[0]
        return output_BTF, None

    def extra_repr(self) -> str:
        """What ``repr`` adds to the class name."""
        arrow = "both directions" if self.bidirectional else "forward"
        return f"{self.kind}, {self.input_size} -> {self.hidden_size}, {self.layers} layers, {arrow}, {self.activation}"

    def _direction(self, sequence_BTD: Tensor, tag: str, *, backward: bool) -> Tensor:
        steps = sequence_BTD.shape[1]
        drive_BTG = F.linear(sequence_BTD, self.get_parameter(f"weight_ih_{tag}"), self.get_parameter(f"bias_ih_{tag}"))
        weight_hh = self.get_parameter(f"weight_hh_{tag}")
        dtype = torch.promote_types(drive_BTG.dtype, torch.float32)
        state = drive_BTG.new_zeros(sequence_BTD.shape[0], self.hidden_size, dtype=dtype)
        cell = state
        outputs: list[Tensor] = []
        for step in reversed(range(steps)) if backward else range(steps):
            if self.kind == "lstm":
                state, cell = self._lstm(drive_BTG[:, step] + F.linear(state, weight_hh), cell)
            else:
                state = self._gru(drive_BTG[:, step], F.linear(state, weight_hh, self.get_parameter(f"bias_hh_{tag}")), state)
            outputs.append(state)
        return torch.stack(outputs[::-1] if backward else outputs, dim=1)

    def _lstm(self, gates_BG: Tensor, cell_BH: Tensor) -> tuple[Tensor, Tensor]:
        activation = ACTIVATIONS[self.activation]
        enter, forget, candidate, leave = gates_BG.to(cell_BH.dtype).chunk(4, dim=1)
        cell_BH = torch.sigmoid(forget) * cell_BH + torch.sigmoid(enter) * activation(candidate)
        return torch.sigmoid(leave) * activation(cell_BH), cell_BH

    def _gru(self, drive_BG: Tensor, recurrent_BG: Tensor, state_BH: Tensor) -> Tensor:
        reset_in, update_in, new_in = drive_BG.to(state_BH.dtype).chunk(3, dim=1)
        reset_back, update_back, new_back = recurrent_BG.to(state_BH.dtype).chunk(3, dim=1)
        update = torch.sigmoid(update_in + update_back)
        candidate = ACTIVATIONS[self.activation](new_in + torch.sigmoid(reset_in + reset_back) * new_back)
        return (1.0 - update) * candidate + update * state_BH
