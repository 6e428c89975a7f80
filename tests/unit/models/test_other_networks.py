"""Networks of torchvision and timm by name: the publisher's own map, stages, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision.models as tv
from torch import Tensor, nn

from cxr_ray.errors import ModelError
from cxr_ray.models.backbones import Backbone
from cxr_ray.models.other_networks import on_meta

MakeBackbone = Callable[..., Backbone]


def normal(count: int, size: int = 64) -> Tensor:
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(size))


def state_of(backbone: Backbone, theirs: nn.Module) -> None:
    """Give their network the weights of our backbone; all that they have and we have not belongs to a classifier."""
    ours = backbone.get_submodule(backbone.publisher_root).state_dict()
    missing, unexpected = theirs.load_state_dict(ours, strict=False)
    assert not unexpected
    assert all(key.startswith(("classifier", "fc.", "head", "conv_head", "bn2", "norm_head")) for key in missing), missing


# Pooling, or the layer after the map, by the name that each of torchvision's families gives it.
TORCHVISION = {
    "alexnet": "avgpool", "googlenet": "avgpool", "squeezenet1_1": "classifier", "shufflenet_v2_x0_5": None,
    "regnet_x_400mf": "avgpool", "resnext50_32x4d": "avgpool", "convnext_tiny": "avgpool", "swin_t": "avgpool",
    "densenet169": None,
}  # fmt: skip


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_own_map(make_backbone: MakeBackbone, name: str) -> None:
    backbone = make_backbone(f"torchvision:{name}", in_channels=3).eval()
    extra: dict[str, Any] = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    with torch.random.fork_rng(devices=[]):
        theirs = tv.get_model(name, weights=None, num_classes=1, **extra).eval()
    state_of(backbone, theirs)
    x_B3HW = normal(1).repeat(1, 3, 1, 1)
    seen: list[Tensor] = []
    if layer := TORCHVISION[name]:
        theirs.get_submodule(layer).register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].clone()))
    with torch.inference_mode():
        logits = theirs(x_B3HW)
        map_BCHW = backbone(normal(1))
        if layer:
            assert torch.equal(map_BCHW, seen[0])
        else:
            torch.testing.assert_close((theirs.fc if name.startswith("shuffle") else theirs.classifier)(map_BCHW.mean((2, 3))), logits)
    assert map_BCHW.shape[1] == backbone.channels
    assert backbone.map_size(64, 64) == tuple(map_BCHW.shape[2:])


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("test_resnet", 5), ("test_efficientnet", 7), ("resnetv2_18", 5), ("mobilenetv3_small_050", 7), ("test_convnext", 1),
        ("test_byobnet", 1), ("swin_tiny_patch4_window7_224", 1),
    ],
)  # fmt: skip
def test_timms_own_map(make_backbone: MakeBackbone, name: str, stages: int) -> None:
    size = 224 if name.startswith("swin") else 96
    backbone = make_backbone(f"timm:{name}", in_channels=3).eval()
    assert len(backbone.stages) == stages
    with torch.random.fork_rng(devices=[]):
        theirs = timm.create_model(name, num_classes=0).eval()
    state_of(backbone, theirs)
    with torch.inference_mode():
        expected = theirs.forward_features(normal(1, size).repeat(1, 3, 1, 1))
        if name.startswith("swin"):
            assert expected.shape == (1, 7, 7, 768)
            expected = expected.permute(0, 3, 1, 2)
        assert torch.equal(backbone(normal(1, size)), expected)
    assert backbone.map_size(size, size) == tuple(expected.shape[2:])
    assert expected.shape[1] == backbone.channels


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_convnext", "timm:mobilenetv3_small_050", "torchvision:squeezenet1_1"])
def test_all_that_is_left_learns_and_freezes(make_backbone: MakeBackbone, name: str) -> None:
    backbone = make_backbone(name).train()
    backbone(normal(2, 96)).square().mean().backward()
    assert {key for key, parameter in backbone.named_parameters() if parameter.grad is None} == set()
    frozen = make_backbone(name, freeze_stages=-1)
    assert frozen.is_constant
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_convnext", "torchvision:squeezenet1_1"])
def test_one_channel_is_the_sum_of_three(make_backbone: MakeBackbone, name: str) -> None:
    one, three = make_backbone(name).eval().double(), make_backbone(name, in_channels=3).eval().double()
    first_key = f"{three.first_conv}.weight"
    one.load_state_dict(three.state_dict() | {first_key: three.state_dict()[first_key].sum(1, keepdim=True)})
    with torch.inference_mode():
        torch.testing.assert_close(one(normal(1).double()), three(normal(1).double()), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "channels", "side", "stages", "first"),
    [
        ("inception_v3", 2048, 5, 16, "Conv2d_1a_3x3.conv"),
        ("inception_resnet_v2", 1536, 5, 13, "timm.conv2d_1a.conv"),
        ("resnetv2_152", 2048, 7, 5, "timm.stem.conv"),
    ],
)
def test_the_papers_large_networks(make_backbone: MakeBackbone, name: str, channels: int, side: int, stages: int, first: str) -> None:
    with torch.device("meta"):
        backbone = make_backbone(name)
    assert (backbone.channels, backbone.map_size(224, 224), len(backbone.stages)) == (channels, (side, side), stages)
    assert backbone.first_conv == first
    with pytest.raises(ModelError, match=f"too small for backbone {name}: at least {backbone.min_size}x"):
        backbone.map_size(backbone.min_size - 1, 224)
    assert backbone.map_size(backbone.min_size, backbone.min_size) == (1, 1)
    staged = [id(p) for stage in backbone.stages for module in stage for p in module.parameters()]
    assert sorted(staged) == sorted(id(p) for p in backbone.parameters())


def test_inception_v3_runs_in_torchvisions_order(make_backbone: MakeBackbone) -> None:
    with torch.device("meta"):
        theirs = tv.inception_v3(weights=None, aux_logits=False, init_weights=False).eval()
        backbone = make_backbone("inception_v3", in_channels=3)
    called: list[str] = []
    for name, module in theirs.named_children():
        module.register_forward_hook(lambda _module, _inputs, _output, name=name: called.append(name))
    theirs(torch.empty(1, 3, 224, 224, device="meta"))
    assert [name for stage in backbone.stage_names for name in stage] == called[: called.index("avgpool")]


def test_inception_resnet_v2_runs_in_timms_order(make_backbone: MakeBackbone) -> None:
    with torch.device("meta"):
        theirs = timm.create_model("inception_resnet_v2").eval()
        backbone = make_backbone("inception_resnet_v2", in_channels=3)
    called: list[str] = []
    for name, module in theirs.named_children():
        module.register_forward_hook(lambda _module, _inputs, _output, name=name: called.append(f"timm.{name}"))
    theirs.forward_features(torch.empty(1, 3, 224, 224, device="meta"))
    assert [name for stage in backbone.stage_names for name in stage] == called


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "torchvision:resnet19",
            r"none of torchvision's networks; close: torchvision:resnet1(.|\n)*try: model.backbone.name=torchvision:resnet",
        ),
        ("timm:resnet19", r"none of timm's networks; close: timm:resnet(.|\n)*try: model.backbone.name=timm:resnet"),
        ("timm:", "none of timm's networks"),
        ("torchvision:", "none of torchvision's networks"),
        ("timm:hf-hub:some/model", "none of timm's networks"),
        ("keras:vgg19", "none of small_cnn, .*torchvision:NAME, timm:NAME"),
        ("timm:resnet18.no_such_tag", "timm:resnet18.no_such_tag cannot be built"),
        ("torchvision:vit_b_16", "makes no feature map"),
        ("torchvision:maxvit_t", "makes no feature map"),
        ("timm:test_vit", "makes no feature map"),
    ],
)
def test_refused(make_backbone: MakeBackbone, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make_backbone(name)


def test_a_kernel_that_is_scaled_as_a_whole_is_not_folded(make_backbone: MakeBackbone) -> None:
    with pytest.raises(ModelError, match=r"a StdConv2d, cannot be narrowed to one channel(.|\n)*in_channels=3"), torch.device("meta"):
        make_backbone("timm:resnetv2_50x1_bit")


def test_a_size_that_does_not_suit_the_network(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone("timm:swin_tiny_patch4_window7_224", in_channels=3)
    with pytest.raises(ModelError, match="images of 96x96 do not suit backbone timm:swin_tiny"):
        backbone.map_size(96, 96)
    with pytest.raises(ModelError, match=r"too small|do not suit"):
        make_backbone("torchvision:alexnet").map_size(32, 32)


def test_shapes_without_content_leave_the_modes_alone() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2).eval())
    assert on_meta(module, 1, 1, 3, 3).shape == (1, 2, 1, 1)
    assert [child.training for child in module] == [True, False]
