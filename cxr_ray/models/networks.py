"""The convolutional networks, each cut into named parts and an ordered list of stages.

A builder returns a :class:`Network` that takes three channels; ``backbones`` narrows it to one where asked. Parts keep the
names they have in torchvision, so that a published weight file fits key by key once its classifier is left out. Here are the
papers' own networks, ours and those of torchvision that the recipes use; ``other_networks`` takes any other of torchvision and timm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torchvision.models as tv
from torch import nn

Stages = tuple[tuple[str, ...], ...]

SMALL_CNN_CHANNELS = (24, 48, 96, 128, 160)
"""Output channels of the blocks of ``small_cnn``: 0.35 million weights, 60 million multiply-adds at 112 x 112."""

CROUP_CHANNELS = (8, 16)
"""Filters of the two convolutions of paper 000."""

CROUP_DROPOUT = 0.25
"""After the last pool of ``croup_cnn``. Paper 000 names a dropout layer there and not its rate, which is ours."""

ISLAM_BLOCKS = ((2, 64), (2, 128), (2, 256), (3, 512), (3, 512))
"""(convolutions, channels) of each block: paper 001, table 2."""

ISLAM_DROPOUT = 0.25
"""After each block of ``islam_cnn``: paper 001, section 3.2.3."""

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
        publisher_root: Dotted name of the module below which keys are those of the published file; empty: all keys are.
    """

    parts: Mapping[str, nn.Module]
    stages: Stages
    first_conv: str
    channels: int
    publisher_root: str = ""


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
    return of_resnet(tv.resnet18(num_classes=1), channels=512)


def resnet34() -> Network:
    """He 2016. Stages: stem (convolution to max-pool), ``layer1`` … ``layer4``."""
    return of_resnet(tv.resnet34(num_classes=1), channels=512)


def resnet50() -> Network:
    """He 2016. Stages: stem (convolution to max-pool), ``layer1`` … ``layer4``."""
    return of_resnet(tv.resnet50(num_classes=1), channels=2048)


def densenet121() -> Network:
    """Huang 2017. Stages: stem, each dense block with the transition after it, the last dense block with norm and ReLU."""
    return of_densenet(tv.densenet121(num_classes=1), channels=1024)


def vgg19() -> Network:
    """Simonyan & Zisserman 2015, convolutions only. A stage is one block, its max-pool included."""
    return _plain_blocks(VGG19_BLOCKS, dropouts=(0.0,) * len(VGG19_BLOCKS))


def croup_cnn() -> Network:
    """Paper 000, figure 3: two blocks of 3 x 3 convolution, ReLU and 2 x 2 max-pool (8, then 16 filters), then dropout.

    The paper says that a convolution keeps the map's height and width, hence the padding; the rate of the dropout is ours.
    """
    return _plain_blocks(tuple((1, channels) for channels in CROUP_CHANNELS), dropouts=(0.0, CROUP_DROPOUT))


def islam_cnn() -> Network:
    """Paper 001, table 2: twelve 3 x 3 convolutions with ReLU in five blocks, each with a 2 x 2 max-pool and dropout 0.25 at its end.

    A stage is a block. Initialised as He 2015 (the paper does not say how): twelve ReLU layers without batch norm need it.
    """
    return _plain_blocks(ISLAM_BLOCKS, dropouts=(ISLAM_DROPOUT,) * len(ISLAM_BLOCKS))


def islam_cnn_bn() -> Network:
    """``islam_cnn`` as the authors' script has it: batch norm at the end of every block, before its max-pool, and no dropout.

    A stage is a block. Glorot uniform weights and batch norm with epsilon 0.001 and momentum 0.99, as in their framework: where the
    convolutions are never trained, how they begin is what they are.
    """
    network = _plain_blocks(ISLAM_BLOCKS, dropouts=(0.0,) * len(ISLAM_BLOCKS), keras_norm=True)
    for module in network.parts["features"].modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
    return network


def inception_v3() -> Network:
    """Szegedy 2016, without the auxiliary classifier. A stage is one convolution or Inception block with the max-pool after it.

    The map has 5 x 5 pixels at 224 x 224. torchvision shifts the pixels of its published network to another mean; ours are
    normalised by the training part's statistics as for every other network.
    """
    return of_children(tv.inception_v3(num_classes=1, aux_logits=False, init_weights=True), channels=2048)


def one_by_one(part: str, count: int) -> Stages:
    """Stages of an ``nn.Sequential`` called ``part``: each of its entries is one."""
    return tuple((f"{part}.{index}",) for index in range(count))


def of_children(model: nn.Module, *, channels: int) -> Network:
    """A network of torchvision whose forward pass is the chain of its children up to the pooling.

    A stage is a child that holds parameters, with those after it that hold none; a ``Sequential`` child is taken entry by entry.
    """
    parts: dict[str, nn.Module] = {}
    stages: list[tuple[str, ...]] = []
    for name, child in model.named_children():
        if name in {"avgpool", "classifier", "fc", "dropout"}:
            break
        parts[name] = child
        entries = [f"{name}.{key}" for key, _ in child.named_children()] if type(child) is nn.Sequential else [name]
        for entry in entries:
            if stages and next(model.get_submodule(entry).parameters(), None) is None:
                stages[-1] += (entry,)
            else:
                stages.append((entry,))
    return Network(parts, tuple(stages), first_convolution(model), channels)


def of_resnet(resnet: nn.Module, *, channels: int) -> Network:
    """A ResNet of torchvision: stem (convolution to max-pool), ``layer1`` … ``layer4``."""
    stem, layers = ("conv1", "bn1", "relu", "maxpool"), ("layer1", "layer2", "layer3", "layer4")
    parts = {name: resnet.get_submodule(name) for name in (*stem, *layers)}
    return Network(parts, (stem, *((layer,) for layer in layers)), "conv1", channels)


def of_densenet(densenet: tv.DenseNet, *, channels: int) -> Network:
    """A DenseNet of torchvision: stem, each dense block with the transition after it, the last dense block with norm and ReLU."""
    groups: Sequence[Sequence[str]] = (
        ("conv0", "norm0", "relu0", "pool0"),
        ("denseblock1", "transition1"),
        ("denseblock2", "transition2"),
        ("denseblock3", "transition3"),
        ("denseblock4", "norm5"),
    )
    stages = tuple(tuple(f"features.{name}" for name in group) for group in groups)
    # torchvision applies the last ReLU in its forward, outside of `features`.
    parts = {"features": densenet.features, "relu": nn.ReLU()}
    return Network(parts, (*stages[:-1], (*stages[-1], "relu")), "features.conv0", channels)


def first_convolution(model: nn.Module) -> str:
    """Dotted name of the first convolution in the order of definition; empty where there is none."""
    return next((name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)), "")


def _of_features(features: nn.Sequential, *, first_conv: str, channels: int) -> Network:
    return Network({"features": features}, one_by_one("features", len(features)), first_conv, channels)


def _plain_blocks(blocks: Sequence[tuple[int, int]], *, dropouts: Sequence[float], keras_norm: bool = False) -> Network:
    """Blocks of 3 x 3 convolutions with ReLU, a 2 x 2 max-pool and, where the rate is above 0, dropout; a stage is a block.

    VGG is built here too: torchvision's builder would first fill a classifier of 120 million weights that is thrown away.
    """
    layers: list[nn.Module] = []
    stages: list[tuple[str, ...]] = []
    channels_in = 3
    for (count, channels), dropout in zip(blocks, dropouts, strict=True):
        start = len(layers)
        for _ in range(count):
            convolution = nn.Conv2d(channels_in, channels, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
            layers += [convolution, nn.ReLU(inplace=True)]
            channels_in = channels
        if keras_norm:
            layers.append(nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01))
        layers.append(nn.MaxPool2d(2))
        if dropout:
            layers.append(nn.Dropout(dropout))
        stages.append(tuple(f"features.{index}" for index in range(start, len(layers))))
    return Network({"features": nn.Sequential(*layers)}, tuple(stages), "features.0", channels_in)
