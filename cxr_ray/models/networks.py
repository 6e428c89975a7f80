"""The convolutional networks, each cut into named parts and an ordered list of stages.

A builder returns a :class:`Network` that takes three channels; ``backbones`` narrows it to one where asked. Parts keep the
names they have in torchvision, so that a published weight file fits key by key once its classifier is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torchvision.models as tv
from torch import nn

Stages = tuple[tuple[str, ...], ...]

SMALL_CNN_CHANNELS = (24, 48, 96, 128, 160)
"""Output channels of the blocks of ``small_cnn``: 0.35 million weights, 60 million multiply-adds at 112 x 112."""

VGG19_BLOCKS = ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))
"""(convolutions, channels) of each block: configuration E of Simonyan & Zisserman 2015, table 1."""


@dataclass(frozen=True)
class Network:
    """A convolutional network that is the chain of its stages.

    Args:
        parts: Top-level modules by their torchvision name.
        stages: From the image side to the output; each the dotted names of the modules it runs, in order. Freezing works by stage.
        first_conv: Dotted name of the convolution that sees the image (three input channels).
        channels: Channels of the feature map.
    """

    parts: Mapping[str, nn.Module]
    stages: Stages
    first_conv: str
    channels: int


def small_cnn() -> Network:
    """Our own network for CPUs: five blocks of convolution, batch norm, ReLU; strides 2, 2, 2, 2, 1.

    The first kernel is 5 x 5: a stride-2 convolution reads the image itself there, and a wider kernel aliases less.
    """
    blocks: list[nn.Module] = []
    channels_in = 3
    for index, channels in enumerate(SMALL_CNN_CHANNELS):
        kernel = 5 if index == 0 else 3
        stride = 1 if index == len(SMALL_CNN_CHANNELS) - 1 else 2
        convolution = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        blocks.append(nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU()))
        channels_in = channels
    return Network({"blocks": nn.Sequential(*blocks)}, one_by_one("blocks", len(blocks)), "blocks.0.0", channels_in)


def mobilenet_v2() -> Network:
    """Sandler 2018. A stage is one entry of torchvision's ``features`` (0 … 18)."""
    return _of_features(tv.mobilenet_v2(num_classes=1).features, first_conv="features.0.0", channels=1280)


def mobilenet_v3_small() -> Network:
    """Howard 2019. A stage is one entry of torchvision's ``features`` (0 … 12)."""
    return _of_features(tv.mobilenet_v3_small(num_classes=1).features, first_conv="features.0.0", channels=576)


def mobilenet_v3_large() -> Network:
    """Howard 2019. A stage is one entry of torchvision's ``features`` (0 … 16)."""
    return _of_features(tv.mobilenet_v3_large(num_classes=1).features, first_conv="features.0.0", channels=960)


def efficientnet_b0() -> Network:
    """Tan & Le 2019. A stage is one entry of torchvision's ``features``: stem, seven groups of blocks, last convolution."""
    return _of_features(tv.efficientnet_b0(num_classes=1).features, first_conv="features.0.0", channels=1280)


def efficientnet_b1() -> Network:
    """Tan & Le 2019. A stage is one entry of torchvision's ``features``: stem, seven groups of blocks, last convolution."""
    return _of_features(tv.efficientnet_b1(num_classes=1).features, first_conv="features.0.0", channels=1280)


def resnet18() -> Network:
    """He 2016. Stages: stem (convolution to max-pool), ``layer1`` … ``layer4``."""
    return _of_resnet(tv.resnet18(num_classes=1), channels=512)


def resnet34() -> Network:
    """He 2016. Stages: stem (convolution to max-pool), ``layer1`` … ``layer4``."""
    return _of_resnet(tv.resnet34(num_classes=1), channels=512)


def resnet50() -> Network:
    """He 2016. Stages: stem (convolution to max-pool), ``layer1`` … ``layer4``."""
    return _of_resnet(tv.resnet50(num_classes=1), channels=2048)


def densenet121() -> Network:
    """Huang 2017. Stages: stem, each dense block with the transition after it, the last dense block with norm and ReLU."""
    features = tv.densenet121(num_classes=1).features
    groups: Sequence[Sequence[str]] = (
        ("conv0", "norm0", "relu0", "pool0"),
        ("denseblock1", "transition1"),
        ("denseblock2", "transition2"),
        ("denseblock3", "transition3"),
        ("denseblock4", "norm5"),
    )
    stages = tuple(tuple(f"features.{name}" for name in group) for group in groups)
    # torchvision applies the last ReLU in its forward, outside of `features`.
    return Network({"features": features, "relu": nn.ReLU()}, (*stages[:-1], (*stages[-1], "relu")), "features.conv0", 1024)


def vgg19() -> Network:
    """Simonyan & Zisserman 2015, convolutions only. A stage is one block, its max-pool included."""
    return _vgg(VGG19_BLOCKS)


def one_by_one(part: str, count: int) -> Stages:
    """Stages of an ``nn.Sequential`` called ``part``: each of its entries is one."""
    return tuple((f"{part}.{index}",) for index in range(count))


def _of_features(features: nn.Sequential, *, first_conv: str, channels: int) -> Network:
    return Network({"features": features}, one_by_one("features", len(features)), first_conv, channels)


def _of_resnet(resnet: tv.ResNet, *, channels: int) -> Network:
    stem, layers = ("conv1", "bn1", "relu", "maxpool"), ("layer1", "layer2", "layer3", "layer4")
    parts = {name: resnet.get_submodule(name) for name in (*stem, *layers)}
    return Network(parts, (stem, *((layer,) for layer in layers)), "conv1", channels)


def _vgg(blocks: Sequence[tuple[int, int]]) -> Network:
    """Built here: torchvision's builder would first fill a classifier of 120 million weights that is thrown away."""
    layers: list[nn.Module] = []
    stages: list[tuple[str, ...]] = []
    channels_in = 3
    for count, channels in blocks:
        start = len(layers)
        for _ in range(count):
            convolution = nn.Conv2d(channels_in, channels, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
            layers += [convolution, nn.ReLU(inplace=True)]
            channels_in = channels
        layers.append(nn.MaxPool2d(2))
        stages.append(tuple(f"features.{index}" for index in range(start, len(layers))))
    return Network({"features": nn.Sequential(*layers)}, tuple(stages), "features.0", channels_in)
