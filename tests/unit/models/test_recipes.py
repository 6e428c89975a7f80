"""Every built-in recipe: read without a fault, builds, learns where it should, and comes back from its state."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cxr_ray.config import RECIPE_DIRECTORY, Recipe, load_recipe, recipe_names
from cxr_ray.models.backbones import BACKBONES
from cxr_ray.models.classifier import Classifier, build_classifier

OURS = {
    "demo", "cnn-lstm", "cnn", "densenet121-lstm", "vgg19-lstm",
}  # fmt: skip


def build(recipe: Recipe, *, seed: int) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_classifier(recipe.model, 3, mean=0.45, std=0.25, image_size=(64, 64), load_weights=False)


def test_all_files_are_recipes() -> None:
    assert set(recipe_names()) >= OURS
    assert {path.name for path in RECIPE_DIRECTORY.iterdir()} == {f"{name}.yaml" for name in recipe_names()}


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_names_itself_and_says_what_it_is(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert re.fullmatch(r"[A-Z].{20,160}\.", recipe.description)
    assert recipe.model.backbone.name in BACKBONES


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_builds_learns_and_reloads(name: str, grey: Callable[..., Tensor]) -> None:
    recipe = load_recipe(name)
    model = build(recipe, seed=0)
    torch.manual_seed(0)  # dropout
    loss = F.cross_entropy(model(grey(4)), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    learning = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    reached = {key for key, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert reached == learning
    optimizer_holds = {id(p) for group in model.parameter_groups(1e-3) for p in group["params"]}
    assert {id(p) for p in model.parameters() if p.requires_grad} <= optimizer_holds

    model.eval()
    other = build(recipe, seed=1).eval()
    other.load_state_dict(model.state_dict())
    with torch.inference_mode():
        assert torch.equal(other(grey(2)), model(grey(2)))


@pytest.mark.parametrize("name", sorted(OURS))
def test_our_recipes_need_no_network(name: str) -> None:
    assert load_recipe(name).model.backbone.weights == "none"


def test_control_differs_from_cnn_lstm_in_the_rnn_alone() -> None:
    cnn_lstm, cnn = load_recipe("cnn-lstm"), load_recipe("cnn")
    assert cnn.model.rnn.kind == "none"
    assert (cnn.model.backbone, cnn.model.head) == (cnn_lstm.model.backbone, cnn_lstm.model.head)
    assert (cnn.training, cnn.augment, cnn.feed) == (cnn_lstm.training, cnn_lstm.augment, cnn_lstm.feed)
