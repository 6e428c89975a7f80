"""Every backbone of the registry: shapes, one grey channel, freezing, reload, and that training reaches what it should."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn

from cxr_ray.config import BackboneConfig
from cxr_ray.errors import ModelError
from cxr_ray.models.backbones import BACKBONES, Backbone, build_backbone

MakeBackbone = Callable[..., Backbone]

LARGE = {"inception_v3", "inception_resnet_v2", "resnetv2_152"}
"""Looked at without content (test_other_networks.py), and trained by tests/recipes/test_recipes.py."""
NAMES = [name for name in BACKBONES if name not in LARGE]
PROMISED = {
    "small_cnn", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "resnet18", "resnet34",
    "efficientnet_b0", "efficientnet_b1", "densenet121", "vgg19", "croup_cnn", "islam_cnn", "islam_cnn_bn",
}  # fmt: skip
STAGES = {
    "small_cnn": 5, "mobilenet_v2": 19, "mobilenet_v3_small": 13, "mobilenet_v3_large": 17, "resnet18": 5, "resnet34": 5, "resnet50": 5,
    "efficientnet_b0": 9, "efficientnet_b1": 9, "densenet121": 5, "vgg19": 5,
    "croup_cnn": 2, "islam_cnn": 5, "islam_cnn_bn": 5,
}  # fmt: skip


def normal(count: int, size: int = 64) -> Tensor:
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(size))


def without_gradient(backbone: Backbone) -> set[str]:
    """Parameters that the last backward pass did not reach, or only with zeros."""
    return {name for name, parameter in backbone.named_parameters() if parameter.grad is None or not bool(parameter.grad.any())}


def statistics(modules: tuple[nn.Module, ...]) -> list[Tensor]:
    return [buffer.clone() for module in modules for buffer in module.buffers()]


def test_registry_holds_what_is_promised() -> None:
    assert set(NAMES) == PROMISED | {"resnet50"}
    assert set(BACKBONES) == set(NAMES) | LARGE


@pytest.fixture(scope="module", params=NAMES)
def settled(request: pytest.FixtureRequest, make_backbone: MakeBackbone) -> Backbone:
    """Each backbone in evaluation mode, with batch norm statistics of noise: those of a new one let its output vanish."""
    backbone = make_backbone(request.param)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    torch.manual_seed(0)  # stochastic depth
    with torch.no_grad():
        backbone.train()(normal(4))
    return backbone.eval()


def test_feature_map(settled: Backbone) -> None:
    with torch.inference_mode():
        map_BCHW = settled(normal(2))
        smallest = settled(normal(1, settled.min_size))
    assert map_BCHW.shape == (2, settled.channels, *settled.map_size(64, 64))
    assert smallest.shape == (1, settled.channels, 1, 1)
    assert map_BCHW.isfinite().all()
    assert 1e-3 < map_BCHW.std() < 1e3  # neither vanished nor exploded
    assert settled.map_size(224, 160) == {"small_cnn": (14, 10), "croup_cnn": (56, 40)}.get(settled.name, (7, 5))


def test_reloaded_state_gives_equal_output(settled: Backbone, make_backbone: MakeBackbone) -> None:
    other = make_backbone(settled.name, seed=1).eval()
    with torch.inference_mode():
        expected = settled(normal(1, 32))
        assert not torch.equal(other(normal(1, 32)), expected)
        other.load_state_dict(settled.state_dict())
        assert torch.equal(other(normal(1, 32)), expected)


def test_every_parameter_is_in_one_stage_and_stages_are_counted(settled: Backbone) -> None:
    staged = [id(p) for stage in settled.stages for module in stage for p in module.parameters()]
    assert sorted(staged) == sorted(id(p) for p in settled.parameters())
    assert len(settled.stages) == STAGES[settled.name]


def test_one_channel_is_the_sum_of_three(settled: Backbone, make_backbone: MakeBackbone) -> None:
    three = make_backbone(settled.name, in_channels=3)
    first_key = f"{three.first_conv}.weight"
    ours, theirs = dict(settled.named_parameters()), dict(three.named_parameters())
    assert (ours[first_key].shape[1], theirs[first_key].shape[1]) == (1, 3)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs if key != first_key)
    grey = normal(2)
    with torch.inference_mode():
        narrow = settled.get_submodule(three.first_conv)(grey)
        wide = three.get_submodule(three.first_conv)(grey.repeat(1, 3, 1, 1))
    torch.testing.assert_close(narrow, wide, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["small_cnn", "mobilenet_v3_small"])
def test_whole_network_gives_from_one_channel_what_it_gives_from_three(make_backbone: MakeBackbone, name: str) -> None:
    """In float64: a deep random network makes 1e-4 of a rounding error of float32."""
    one, three = make_backbone(name).double(), make_backbone(name, in_channels=3).double()
    first_key = f"{three.first_conv}.weight"
    one.load_state_dict(three.state_dict() | {first_key: three.state_dict()[first_key].sum(1, keepdim=True)})
    x_B1HW = normal(2).double()
    with torch.inference_mode():
        expected = three(x_B1HW.repeat(1, 3, 1, 1))
        assert expected.std() > 1e-3
        assert torch.equal(three(x_B1HW), expected)
        torch.testing.assert_close(one(x_B1HW), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_freezing_and_unfreezing(make_backbone: MakeBackbone, name: str) -> None:
    frozen = STAGES[name] // 2
    backbone = make_backbone(name, freeze_stages=frozen, unfreeze_epoch=3).train()
    every = {key for key, _ in backbone.named_parameters()}
    stage_of = {id(p): index for index, stage in enumerate(backbone.stages) for module in stage for p in module.parameters()}
    learning = {key for key, parameter in backbone.named_parameters() if stage_of[id(parameter)] >= frozen}
    assert 0 < len(learning) < len(every)

    before = [statistics(stage) for stage in backbone.stages]
    torch.manual_seed(0)  # stochastic depth
    backbone(normal(4, 32)).square().mean().backward()
    assert without_gradient(backbone) == every - learning
    for index, stage in enumerate(backbone.stages):
        same = all(torch.equal(old, new) for old, new in zip(before[index], statistics(stage), strict=True))
        assert same == (index < frozen or not before[index]), f"stage {index}"

    assert not backbone.set_epoch(2)
    assert backbone.set_epoch(3)
    assert all(module.training for module in backbone.modules())
    before = [statistics(stage) for stage in backbone.stages]
    backbone(normal(4, 32)).square().mean().backward()
    assert without_gradient(backbone) == set()
    for index, stage in enumerate(backbone.stages):
        assert not before[index] or not any(torch.equal(a, b) for a, b in zip(before[index], statistics(stage), strict=True))


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "resnet18", "efficientnet_b0", "densenet121", "vgg19"])
def test_keys_are_torchvisions_without_its_classifier(make_backbone: MakeBackbone, name: str) -> None:
    with torch.device("meta"):
        published = tv.get_model(name, weights=None).state_dict()
        ours = make_backbone(name, in_channels=3).state_dict()
    expected = {key: value.shape for key, value in published.items() if not key.startswith(("classifier.", "fc."))}
    assert {key: value.shape for key, value in ours.items()} == expected


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "densenet121"])
def test_feature_map_is_torchvisions(make_backbone: MakeBackbone, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    theirs = tv.get_model(name, weights=None, num_classes=1).eval()
    monkeypatch.setattr(tv, name, lambda num_classes: theirs)  # the same modules in our chain
    backbone = make_backbone(name, in_channels=3).eval()
    seen: list[Tensor] = []
    if name == "resnet18":
        theirs.avgpool.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    else:
        theirs.features.register_forward_hook(lambda _module, _inputs, output: seen.append(output.clone()))
    with torch.inference_mode():
        theirs(normal(1, 32).repeat(1, 3, 1, 1))
        assert torch.equal(backbone(normal(1, 32)), seen[0].relu() if name == "densenet121" else seen[0])


def test_frozen_stages_keep_nothing_for_backward(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone("small_cnn", freeze_stages=3)
    seen: list[Tensor] = []
    for stage in backbone.stages:
        stage[-1].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    backbone(normal(2))
    assert [output.requires_grad for output in seen] == [False, False, False, True, True]


def test_a_gradient_with_respect_to_the_image_passes_frozen_stages(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone("small_cnn", freeze_stages=-1)
    x_B1HW = normal(1).requires_grad_()
    backbone(x_B1HW).sum().backward()
    assert x_B1HW.grad is not None
    assert x_B1HW.grad.any()


def test_frozen_stages_stay_in_evaluation_mode_through_train(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone("mobilenet_v2", freeze_stages=-1)
    backbone.eval().train()
    assert not any(module.training for stage in backbone.stages for module in stage)
    assert backbone.frozen_stages == 19
    backbone = make_backbone("mobilenet_v2", freeze_stages=4).train()
    assert [stage[0].training for stage in backbone.stages] == [False] * 4 + [True] * 15


def test_too_many_frozen_stages_says_how_many_there_are(make_backbone: MakeBackbone) -> None:
    with pytest.raises(ModelError, match=r"freeze_stages is 20, but backbone mobilenet_v2 has 19 stages(.|\n)*0 … 19, or -1"):
        make_backbone("mobilenet_v2", freeze_stages=20)
    assert make_backbone("mobilenet_v2", freeze_stages=19).frozen_stages == 19


def test_unknown_name_lists_the_known_ones_and_the_nearest(make_backbone: MakeBackbone) -> None:
    with pytest.raises(ModelError, match=r"'resnet19': none of small_cnn, .*timm:NAME; close: (.|\n)*try: model.backbone.name=resnet18"):
        make_backbone("resnet19")


def test_too_small_images(make_backbone: MakeBackbone) -> None:
    with pytest.raises(ModelError, match="31x64 are too small for backbone resnet18: at least 32x32"):
        make_backbone("resnet18").map_size(31, 64)


def test_map_size_leaves_the_mode_alone(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone("small_cnn", freeze_stages=1)
    for mode in (True, False):
        backbone.train(mode).map_size(64, 64)
        assert [stage[0].training for stage in backbone.stages] == [False] + [mode] * 4


def test_the_seed_decides_the_weights_and_one_channel_draws_as_three_do() -> None:
    torch.manual_seed(7)
    one = build_backbone(BackboneConfig(name="mobilenet_v3_small"))
    after_one = torch.rand(1)
    torch.manual_seed(7)
    three = build_backbone(BackboneConfig(name="mobilenet_v3_small", in_channels=3))
    assert torch.equal(torch.rand(1), after_one)
    assert torch.equal(one.features[0][0].weight, three.features[0][0].weight.sum(1, keepdim=True))
    assert torch.equal(one.features[5].block[0][0].weight, three.features[5].block[0][0].weight)


def test_frozen_stages_with_train_norms_learn_their_norms_alone(make_backbone: MakeBackbone) -> None:
    """As the scripts of papers 001 and 003: convolutions as drawn, batch norms that follow their batches."""
    backbone = make_backbone("islam_cnn_bn", in_channels=3, freeze_stages=-1, train_norms=True).train()
    norms = {f"features.{index}.{name}" for index in (4, 10, 16, 24, 32) for name in ("weight", "bias")}
    assert {key for key, parameter in backbone.named_parameters() if parameter.requires_grad} == norms
    for index, module in enumerate(backbone.features):
        assert module.training == (index in (4, 10, 16, 24, 32)), index
    never = backbone.never_learning()
    assert {key for key, parameter in backbone.named_parameters() if parameter not in never} == norms
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    backbone(normal(4)).square().mean().backward()
    assert {key for key, p in backbone.named_parameters() if p.grad is not None and p.grad.any()} == norms
    after = backbone.state_dict()
    moved = {key for key, tensor in after.items() if not torch.equal(tensor, before[key])}
    assert moved == {f"features.{i}.{name}" for i in (4, 10, 16, 24, 32) for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert not any(module.training for module in backbone.eval().modules())


def test_train_norms_ends_with_the_freeze(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone("small_cnn", freeze_stages=3, train_norms=True, unfreeze_epoch=2).train()
    assert not backbone.blocks[0][0].weight.requires_grad
    assert backbone.blocks[0][1].weight.requires_grad
    assert backbone.blocks[0][1].training
    assert not backbone.blocks[0][2].training
    assert backbone.set_epoch(2)
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert backbone.set_epoch(0)
    assert not backbone.blocks[0][0].weight.requires_grad
    assert backbone.blocks[0][1].weight.requires_grad


@pytest.mark.parametrize(
    ("settings", "constant"),
    [
        ({"name": "small_cnn", "freeze_stages": -1}, True),
        ({"name": "small_cnn", "freeze_stages": 5}, True),
        ({"name": "small_cnn", "freeze_stages": 4}, False),
        ({"name": "small_cnn"}, False),
        ({"name": "small_cnn", "freeze_stages": -1, "unfreeze_epoch": 9}, False),
        ({"name": "small_cnn", "freeze_stages": -1, "train_norms": True}, False),
        ({"name": "islam_cnn", "freeze_stages": -1, "train_norms": True}, True),  # it has none
    ],
)
def test_is_constant(make_backbone: MakeBackbone, settings: dict[str, Any], constant: bool) -> None:
    backbone = make_backbone(**settings).train()
    assert backbone.is_constant == constant
    backbone.set_epoch(3)
    assert backbone.is_constant == constant
    with torch.inference_mode():
        first, second = backbone(normal(4)), backbone(normal(4)[:2])
    if constant:  # neither dropout nor the other images of the batch matter
        torch.testing.assert_close(first[:2], second)


def test_three_channels_of_a_grey_image_are_a_view(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone("croup_cnn", in_channels=3)
    seen: list[Tensor] = []
    backbone.features[0].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    image = normal(2)
    backbone(image)
    assert seen[0].shape == (2, 3, 64, 64)
    assert seen[0].data_ptr() == image.data_ptr()
    assert seen[0].stride(1) == 0


def test_random_frozen_stages_are_reported(make_backbone: MakeBackbone, caplog: pytest.LogCaptureFixture) -> None:
    make_backbone("small_cnn", freeze_stages=2, load=False)
    assert not caplog.records
    make_backbone("small_cnn", freeze_stages=2, load=True)
    assert "2 stages are frozen with random weights" in caplog.text


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["copy", "pickle"])
def test_a_copy_is_whole_and_apart(make_backbone: MakeBackbone, duplicate: Callable[[Backbone], Backbone]) -> None:
    backbone = make_backbone("resnet18", freeze_stages=2).eval()
    other = duplicate(backbone)
    with torch.inference_mode():
        expected = backbone(normal(1))
        assert torch.equal(other(normal(1)), expected)
        for parameter in other.parameters():
            parameter.zero_()
        assert not other(normal(1)).any()
        assert torch.equal(backbone(normal(1)), expected)


def test_a_replaced_layer_is_used(make_backbone: MakeBackbone) -> None:
    """What converts layers, such as synchronised batch norm, replaces modules by name."""
    backbone = make_backbone("resnet18").eval()
    with torch.inference_mode():
        before = backbone(normal(1))
        backbone.bn1 = nn.BatchNorm2d(64).eval()
        nn.init.constant_(backbone.bn1.bias, 2.0)
        assert not torch.equal(backbone(normal(1)), before)
