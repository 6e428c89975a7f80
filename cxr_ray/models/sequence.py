"""The feature map read as a sequence of its pixels, and back (paper 003, "pixel sequence").

Shapes: B images, C = D channels, H x W the feature map, T = H * W steps.

    map_BCHW     the backbone's feature map
    sequence_BTD step t is the channel vector of the t-th pixel in the chosen order; with ``flatten`` T = 1 and D = C * H * W
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import get_args

import torch
from torch import Tensor, nn

from cxr_ray.config import SequenceConfig
from cxr_ray.errors import ModelError

FLATTEN = "flatten"
"""The order that is no sequence of pixels: one step that holds the whole map (paper 000)."""

ORDERS: tuple[str, ...] = tuple(order for order in get_args(SequenceConfig.model_fields["order"].annotation) if order != FLATTEN)
"""The orders in which pixels can stand."""


def order_indices(order: str, height: int, width: int) -> Tensor:
    """Which pixel stands at each step.

    Paper 003 names the horizontal, vertical and spiral orders and leaves open where the spiral starts and which way it turns;
    ours starts at the top left, runs clockwise and ends at the centre. ``snake`` (ours) turns at the end of each row, so that
    neighbours in the sequence are always neighbours in the image.

    Args:
        order: ``horizontal`` (row by row), ``vertical`` (column by column), ``snake`` or ``spiral``.
        height: Rows of the map, at least 1.
        width: Columns of the map, at least 1.

    Returns:
        (T,) int64: row-major positions ``row * width + column``, each exactly once.

    Raises:
        ModelError: Unknown order, ``flatten``, which has no pixels in order, or a map without pixels.
    """
    if order == FLATTEN:
        raise ModelError("with order flatten the whole map is one step: its pixels stand in no order")
    if order not in ORDERS:
        raise ModelError(f"unknown sequence order {order!r}", hint=f"model.sequence.order= one of {', '.join((*ORDERS, FLATTEN))}")
    if height < 1 or width < 1:
        raise ModelError(f"a feature map of {height}x{width} has no pixels to read")
    return torch.tensor(_positions(order, height, width), dtype=torch.int64)


@lru_cache(maxsize=128)
def _positions(order: str, height: int, width: int) -> tuple[int, ...]:
    if order == "spiral":
        return tuple(row * width + column for row, column in _spiral(height, width))
    if order == "vertical":
        return tuple(row * width + column for column in range(width) for row in range(height))
    rows = [range(row * width, (row + 1) * width) for row in range(height)]
    if order == "snake":
        return tuple(position for row, line in enumerate(rows) for position in (reversed(line) if row % 2 else line))
    return tuple(position for line in rows for position in line)


def _spiral(height: int, width: int) -> Iterator[tuple[int, int]]:
    """(row, column) ring by ring, each ring clockwise from its top left corner."""
    top, left, bottom, right = 0, 0, height - 1, width - 1
    while top <= bottom and left <= right:
        yield from ((top, column) for column in range(left, right + 1))
        yield from ((row, right) for row in range(top + 1, bottom + 1))
        if top < bottom and left < right:  # a ring of one row or one column has no way back
            yield from ((bottom, column) for column in range(right - 1, left - 1, -1))
            yield from ((row, left) for row in range(bottom - 1, top, -1))
        top, left, bottom, right = top + 1, left + 1, bottom - 1, right - 1


class PixelSequence(nn.Module):
    """Feature map <-> sequence for one map size; the index tensors are kept as buffers and follow the module's device.

    Args:
        order: See :func:`order_indices`.
        height: Rows of the map.
        width: Columns of the map.

    Raises:
        ModelError: Unknown order, or a map without pixels.
    """

    index: Tensor
    inverse: Tensor

    def __init__(self, order: str, height: int, width: int) -> None:
        super().__init__()
        self.order, self.height, self.width = order, height, width
        self.steps = 1 if order == FLATTEN else height * width
        """T: how long the sequence is."""
        # flatten: pixel after pixel, each with all its channels, as the papers' framework flattens
        index = order_indices("horizontal" if order == FLATTEN else order, height, width)
        # They follow from the configuration, so a weight file need not hold them.
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("inverse", torch.argsort(index), persistent=False)

    def width_of(self, channels: int) -> int:
        """D, the features of a step, for a map of C channels."""
        return channels * self.height * self.width // self.steps

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, T, D): the pixels in order. Without a copy for ``horizontal`` and a channels-last map."""
        sequence_BTD = map_BCHW.permute(0, 2, 3, 1).flatten(1, 2)
        if self.order == FLATTEN:
            return sequence_BTD.flatten(1).unsqueeze(1)
        return sequence_BTD if self.order == "horizontal" else sequence_BTD.index_select(1, self.index)

    def to_map(self, sequence_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, C, H, W): exactly undoes :meth:`forward`."""
        if self.order not in {"horizontal", FLATTEN}:
            sequence_BTD = sequence_BTD.index_select(1, self.inverse)
        map_BHWC = sequence_BTD.reshape(sequence_BTD.shape[0], self.height, self.width, -1)
        return map_BHWC.permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """What ``repr`` adds to the class name."""
        return f"{self.order}, {self.height}x{self.width} -> {self.steps} steps"


def to_sequence(map_BCHW: Tensor, order: str) -> Tensor:
    """(B, C, H, W) -> (B, T, D), for a map of any size. The classifier keeps a :class:`PixelSequence` instead.

    Raises:
        ModelError: Unknown order, or a map without pixels.
    """
    height, width = map_BCHW.shape[2:]
    return PixelSequence(order, height, width).to(map_BCHW.device)(map_BCHW)  # type: ignore[no-any-return]


def from_sequence(sequence_BTD: Tensor, order: str, height: int, width: int) -> Tensor:
    """(B, T, D) -> (B, C, H, W): exactly undoes :func:`to_sequence`.

    Raises:
        ModelError: Unknown order, or a sequence that is not ``height * width`` steps long (with ``flatten``: one).
    """
    if order == FLATTEN:
        if sequence_BTD.shape[1] != 1 or sequence_BTD.shape[2] % (height * width):
            raise ModelError(f"{tuple(sequence_BTD.shape[1:])} is no map of {height}x{width} in one step")
    elif sequence_BTD.shape[1] != height * width:
        raise ModelError(f"a sequence of {sequence_BTD.shape[1]} steps is no map of {height}x{width} = {height * width} pixels")
    return PixelSequence(order, height, width).to(sequence_BTD.device).to_map(sequence_BTD)
