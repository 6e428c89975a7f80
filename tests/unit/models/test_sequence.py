"""Feature map <-> sequence: hand-written maps, and exact inverses for any size."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_ray.errors import ModelError
from cxr_ray.models.sequence import ORDERS, PixelSequence, from_sequence, order_indices, to_sequence

#   0 1 2      0 1 2 3
#   3 4 5      4 5 6 7
#   6 7 8
BY_HAND = {
    ("horizontal", 3, 3): [0, 1, 2, 3, 4, 5, 6, 7, 8],
    ("vertical", 3, 3): [0, 3, 6, 1, 4, 7, 2, 5, 8],
    ("snake", 3, 3): [0, 1, 2, 5, 4, 3, 6, 7, 8],
    ("spiral", 3, 3): [0, 1, 2, 5, 8, 7, 6, 3, 4],
    ("horizontal", 2, 4): [0, 1, 2, 3, 4, 5, 6, 7],
    ("vertical", 2, 4): [0, 4, 1, 5, 2, 6, 3, 7],
    ("snake", 2, 4): [0, 1, 2, 3, 7, 6, 5, 4],
    ("spiral", 2, 4): [0, 1, 2, 3, 7, 6, 5, 4],
    ("spiral", 4, 3): [0, 1, 2, 5, 8, 11, 10, 9, 6, 3, 4, 7],
    ("spiral", 1, 3): [0, 1, 2],
    ("spiral", 3, 1): [0, 1, 2],
}

sizes = st.integers(1, 9)
orders = st.sampled_from(ORDERS)


@pytest.mark.parametrize(("case", "expected"), BY_HAND.items(), ids=str)
def test_order_by_hand(case: tuple[str, int, int], expected: list[int]) -> None:
    assert order_indices(*case).tolist() == expected


@pytest.mark.parametrize(("case", "expected"), BY_HAND.items(), ids=str)
def test_pixels_by_hand_forward_and_back(case: tuple[str, int, int], expected: list[int]) -> None:
    order, height, width = case
    map_BCHW = torch.stack([torch.arange(height * width).reshape(height, width) + 100 * channel for channel in range(2)])[None]
    sequence_BTD = to_sequence(map_BCHW, order)
    assert sequence_BTD[0].tolist() == [[pixel, pixel + 100] for pixel in expected]
    assert torch.equal(from_sequence(sequence_BTD, order, height, width), map_BCHW)


@given(order=orders, height=sizes, width=sizes)
@settings(max_examples=60, deadline=None)
def test_every_pixel_stands_once(order: str, height: int, width: int) -> None:
    assert sorted(order_indices(order, height, width).tolist()) == list(range(height * width))


@given(order=orders, height=sizes, width=sizes, channels_last=st.booleans())
@settings(max_examples=60, deadline=None)
def test_inverse_is_exact(order: str, height: int, width: int, channels_last: bool) -> None:
    map_BCHW = torch.randn(2, 3, height, width)
    if channels_last:
        map_BCHW = map_BCHW.to(memory_format=torch.channels_last)
    sequence_BTD = to_sequence(map_BCHW, order)
    assert sequence_BTD.shape == (2, height * width, 3)
    assert torch.equal(from_sequence(sequence_BTD, order, height, width), map_BCHW)


@given(order=st.sampled_from(["snake", "spiral"]), height=sizes, width=sizes)
@settings(max_examples=60, deadline=None)
def test_neighbours_in_snake_and_spiral_are_neighbours_in_the_map(order: str, height: int, width: int) -> None:
    positions = [divmod(position, width) for position in order_indices(order, height, width).tolist()]
    for (row, column), (next_row, next_column) in itertools.pairwise(positions):
        assert abs(row - next_row) + abs(column - next_column) == 1


@pytest.mark.parametrize("channels_last", [False, True])
def test_flatten_is_one_step_of_the_whole_map(channels_last: bool) -> None:
    """Pixel after pixel, each with its channels, as the papers' framework flattens (H, W, C)."""
    map_BCHW = torch.arange(12).reshape(1, 2, 2, 3)
    if channels_last:
        map_BCHW = map_BCHW.to(memory_format=torch.channels_last)
    sequence = PixelSequence("flatten", 2, 3)
    assert (sequence.steps, sequence.width_of(2)) == (1, 12)
    assert sequence(map_BCHW).tolist() == [[[0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]]]
    assert torch.equal(sequence.to_map(sequence(map_BCHW)), map_BCHW)
    assert torch.equal(from_sequence(to_sequence(map_BCHW, "flatten"), "flatten", 2, 3), map_BCHW)


def test_steps_and_width_of_pixels() -> None:
    sequence = PixelSequence("spiral", 2, 3)
    assert (sequence.steps, sequence.width_of(5)) == (6, 5)


def test_horizontal_of_a_channels_last_map_is_a_view() -> None:
    map_BCHW = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert to_sequence(map_BCHW, "horizontal").data_ptr() == map_BCHW.data_ptr()


def test_indices_are_no_part_of_a_weight_file() -> None:
    sequence = PixelSequence("spiral", 3, 4)
    assert sequence.state_dict() == {}
    assert {name for name, _ in sequence.named_buffers()} == {"index", "inverse"}


def test_faults() -> None:
    with pytest.raises(ModelError, match=r"diagonal.*\n.*horizontal, vertical, snake, spiral, flatten"):
        order_indices("diagonal", 3, 3)
    with pytest.raises(ModelError, match="0x3 has no pixels"):
        order_indices("spiral", 0, 3)
    with pytest.raises(ModelError, match="8 steps is no map of 3x3 = 9"):
        from_sequence(torch.zeros(1, 8, 2), "spiral", 3, 3)
    with pytest.raises(ModelError, match="one step: its pixels stand in no order"):
        order_indices("flatten", 3, 3)
    for shape in ((1, 1, 10), (1, 2, 9)):
        with pytest.raises(ModelError, match="is no map of 3x3 in one step"):
            from_sequence(torch.zeros(shape), "flatten", 3, 3)


def test_orders_are_those_of_the_configuration() -> None:
    assert ORDERS == ("horizontal", "vertical", "snake", "spiral")
