"""Each change does what it says to the image of its own row, and lets gradients through."""

from __future__ import annotations

import torch

from cxr_ray.synthesis.changes import ChangePlan, change, draw_plan

NAMES = ("translation", "brightness", "cutout")


def test_translation_moves_down_and_right_and_fills_with_grey() -> None:
    images = torch.rand(2, 1, 16, 16) + 0.1
    moved = change(images, ChangePlan(torch.tensor([[2, -1], [0, 0]]), None, None))
    assert torch.equal(moved[0, 0, 2:, :-1], images[0, 0, :-2, 1:])
    assert not moved[0, 0, :2].any()
    assert not moved[0, 0, :, -1].any()
    assert torch.equal(moved[1], images[1])


def test_brightness_is_added() -> None:
    images = torch.zeros(2, 1, 8, 8)
    assert torch.equal(change(images, ChangePlan(None, torch.tensor([0.25, -0.5]), None))[:, 0, 0, 0], torch.tensor([0.25, -0.5]))


def test_cutout_takes_a_square_of_half_the_side() -> None:
    cut = change(torch.ones(2, 1, 16, 16), ChangePlan(None, None, torch.tensor([[8, 8], [0, 0]])))
    assert (cut[0] == 0).sum() == 64
    assert not cut[0, 0, 4:12, 4:12].any()
    assert (cut[1] == 0).sum() == 16  # the rest stands over the edge


def test_a_plan_is_divided_by_rows_and_repeats_by_seed() -> None:
    plans = [draw_plan(NAMES, 6, 16, torch.Generator().manual_seed(4)) for _ in range(2)]
    images = torch.rand(6, 1, 16, 16)
    whole = change(images, plans[0])
    assert torch.equal(whole, change(images, plans[1]))
    assert torch.equal(whole[2:5], change(images[2:5], plans[0].part(2, 5)))
    assert not torch.equal(whole, images)
    assert torch.equal(change(images, draw_plan((), 6, 16, torch.Generator())), images)


def test_gradients_pass() -> None:
    images = torch.rand(6, 1, 16, 16, requires_grad=True)
    change(images, draw_plan(("translation", "brightness"), 6, 16, torch.Generator().manual_seed(0))).sum().backward()
    assert images.grad is not None
    assert set(images.grad.unique().tolist()) <= {0.0, 1.0}
    assert images.grad.mean() > 0.7
