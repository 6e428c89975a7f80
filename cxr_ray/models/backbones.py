"""The registry of backbones: name -> network, its stages, its published weights and needs; and freezing.

Shapes: B images, 1 or C channels, H x W pixels.

    x_B1HW   grey images, normalised with the mean and std of the training part
    map_BCHW the feature map

A further backbone is one builder in ``networks`` and one line in :data:`BACKBONES`; those of torchvision and timm need neither
(``torchvision:NAME``, ``timm:NAME``).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import torchvision.models as tv
from torch import Tensor, nn

from cxr_ray.config import BackboneConfig
from cxr_ray.errors import ModelError
from cxr_ray.models import networks, other_networks
from cxr_ray.models.networks import Network
from cxr_ray.models.other_networks import TimmWeights, on_meta, unknown_backbone
from cxr_ray.models.weights import Published, fold_first_conv, load_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackboneSpec:
    """What the registry knows of a backbone.

    Args:
        build: Makes it with random weights from torch's global random state.
        stage: What one stage is, in words; ``freeze_stages`` counts them from the image side.
        published: The weights that ``weights: default`` downloads; None: nobody publishes any.
        min_size: Least height and width in pixels.
    """

    build: Callable[[], Network]
    stage: str
    published: Published | None = None
    min_size: int = 32


NORMS = (nn.modules.batchnorm._BatchNorm,)
"""What ``train_norms`` lets learn: batch norm of any dimension, synchronised or not."""

_ENTRY = "each an entry of torchvision's `features`"
_RESNET = "stem, layer1 … layer4"
_BLOCK = "each a block of convolutions with its max-pool"

BACKBONES: Mapping[str, BackboneSpec] = MappingProxyType(
    {
        "small_cnn": BackboneSpec(networks.small_cnn, "each a block of convolution, batch norm, ReLU", min_size=16),
        "mobilenet_v2": BackboneSpec(networks.mobilenet_v2, _ENTRY, tv.MobileNet_V2_Weights.DEFAULT),
        "mobilenet_v3_small": BackboneSpec(networks.mobilenet_v3_small, _ENTRY, tv.MobileNet_V3_Small_Weights.DEFAULT),
        "mobilenet_v3_large": BackboneSpec(networks.mobilenet_v3_large, _ENTRY, tv.MobileNet_V3_Large_Weights.DEFAULT),
        "resnet18": BackboneSpec(networks.resnet18, _RESNET, tv.ResNet18_Weights.DEFAULT),
        "resnet34": BackboneSpec(networks.resnet34, _RESNET, tv.ResNet34_Weights.DEFAULT),
        "resnet50": BackboneSpec(networks.resnet50, _RESNET, tv.ResNet50_Weights.DEFAULT),
        "efficientnet_b0": BackboneSpec(networks.efficientnet_b0, _ENTRY, tv.EfficientNet_B0_Weights.DEFAULT),
        "efficientnet_b1": BackboneSpec(networks.efficientnet_b1, _ENTRY, tv.EfficientNet_B1_Weights.DEFAULT),
        "densenet121": BackboneSpec(networks.densenet121, "stem, four dense blocks with their transitions", tv.DenseNet121_Weights.DEFAULT),
        "vgg19": BackboneSpec(networks.vgg19, _BLOCK, tv.VGG19_Weights.DEFAULT),
        "inception_v3": BackboneSpec(
            networks.inception_v3, "each a convolution or Inception block", tv.Inception_V3_Weights.DEFAULT, min_size=75
        ),
        "inception_resnet_v2": BackboneSpec(
            other_networks.inception_resnet_v2,
            "each a convolution, Inception block or group of residual blocks",
            TimmWeights("inception_resnet_v2"),
            min_size=75,
        ),
        # timm's publisher has no ImageNet weights of this depth and width
        "resnetv2_152": BackboneSpec(other_networks.resnetv2_152, "stem and four groups of residual blocks"),
        "croup_cnn": BackboneSpec(networks.croup_cnn, _BLOCK, min_size=4),
        "islam_cnn": BackboneSpec(networks.islam_cnn, _BLOCK),
        "islam_cnn_bn": BackboneSpec(networks.islam_cnn_bn, _BLOCK),
    }
)


def backbone_spec(name: str) -> BackboneSpec:
    """What is known of a backbone of the registry, of torchvision or of timm; nothing is built.

    Raises:
        ModelError: Unknown name; the message names those nearest to it. (timm's names are only looked at when the network is built.)
    """
    publisher, colon, theirs = name.partition(":")
    if colon and publisher == "torchvision":
        build = functools.partial(other_networks.torchvision_network, theirs)
        known = theirs in tv.list_models(module=tv)
        return BackboneSpec(build, "as torchvision's layers follow each other", tv.get_model_weights(theirs).DEFAULT if known else None)
    if colon and publisher == "timm":
        build = functools.partial(other_networks.timm_network, theirs)
        return BackboneSpec(build, "stem and groups of blocks, or one in all", TimmWeights(theirs))
    if name not in BACKBONES:
        raise unknown_backbone(name, list(BACKBONES), where=f"{', '.join(BACKBONES)}, torchvision:NAME, timm:NAME")
    return BACKBONES[name]


class Backbone(nn.Module):
    """A convolutional network from the grey image to its feature map, the first stages of which may be frozen.

    Its state has torchvision's key names. ``in_channels: 1`` holds the first convolution summed over its input channels, which
    gives the output of the three-channel network on the grey image repeated three times; so both give the same network.

    Args:
        name: Its name in the registry, for messages.
        network: Its parts, with a first convolution over three channels.
        config: Channels and freezing; ``weights`` is not looked at.
        spec: Its line in the registry.

    Raises:
        ModelError: ``freeze_stages`` is more than there are.
    """

    def __init__(self, name: str, network: Network, config: BackboneConfig, spec: BackboneSpec) -> None:
        super().__init__()
        count = len(network.stages)
        if config.freeze_stages > count:
            raise ModelError(
                f"freeze_stages is {config.freeze_stages}, but backbone {name} has {count} stages ({spec.stage})",
                hint=f"model.backbone.freeze_stages= 0 … {count}, or -1 for all of them",
            )
        self.name, self.channels, self.min_size = name, network.channels, spec.min_size
        self.in_channels, self.first_conv = config.in_channels, network.first_conv
        self.publisher_root = network.publisher_root
        self.unfreeze_epoch, self.train_norms = config.unfreeze_epoch, config.train_norms
        self.freeze_stages = count if config.freeze_stages == -1 else config.freeze_stages
        self.stage_names = network.stages
        self.frozen_stages = 0
        """How many stages do not learn now; :meth:`set_epoch` changes it."""
        for part, module in network.parts.items():
            self.add_module(part, module)
        if self.in_channels == 1:
            _narrow(self.get_submodule(network.first_conv), name)
        self.set_epoch(0)

    @property
    def stages(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The modules of each stage, from the image side; the last of the last is Grad-CAM's layer."""
        # By name each time: what converts layers (quantisation, synchronised batch norm) replaces them.
        return tuple(tuple(map(self.get_submodule, stage)) for stage in self.stage_names)

    def forward(self, x_B1HW: Tensor) -> Tensor:
        """(B, 1, H, W) normalised grey -> (B, C, h, w). Three channels are a view of the one, no copy.

        Frozen stages need no ``no_grad``: where neither weights nor input ask for a gradient, autograd records and keeps nothing.
        """
        x_BCHW = x_B1HW.expand(-1, self.in_channels, -1, -1)
        for stage in self.stages:
            for module in stage:
                x_BCHW = module(x_BCHW)
        return x_BCHW

    def set_epoch(self, epoch: int) -> bool:
        """Freeze or free the first ``freeze_stages`` stages as the configuration says for this epoch (0 is the first).

        A frozen stage does not learn and is in evaluation mode whatever :meth:`train` says: its batch norm statistics stay. With
        ``train_norms`` its batch norms alone learn and follow their batches.

        Returns:
            Whether anything changed. Distributed wrappers must then be made anew; optimiser groups need not (``parameter_groups``).
        """
        frozen = 0 if self.unfreeze_epoch is not None and epoch >= self.unfreeze_epoch else self.freeze_stages
        changed = frozen != self.frozen_stages
        self.frozen_stages = frozen
        for stage in self.stages[: self.freeze_stages]:
            for module in stage:
                module.requires_grad_(frozen == 0)
                for norm in self._learning_norms(module):
                    norm.requires_grad_(True)
        self.train(self.training)
        return changed

    @property
    def is_constant(self) -> bool:
        """Whether the map follows from the image alone for the whole run, so that it may be computed once and kept."""
        whole = self.freeze_stages == len(self.stages) and self.unfreeze_epoch is None
        return whole and not any(self._learning_norms(self))

    def _learning_norms(self, module: nn.Module) -> Iterator[nn.Module]:
        """The batch norms in a module that is frozen which learn all the same."""
        return (child for child in module.modules() if self.train_norms and isinstance(child, NORMS))

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module.train``, but frozen stages stay in evaluation mode."""
        super().train(mode)
        for stage in self.stages[: self.frozen_stages]:
            for module in stage:
                module.eval()
                for norm in self._learning_norms(module):
                    norm.train(mode)
        return self

    def never_learning(self) -> set[Tensor]:
        """Parameters that are frozen for good: an optimiser need not know them."""
        if self.unfreeze_epoch is not None:
            return set()
        frozen = [module for stage in self.stages[: self.freeze_stages] for module in stage]
        norms: set[Tensor] = {parameter for module in frozen for norm in self._learning_norms(module) for parameter in norm.parameters()}
        every: set[Tensor] = {parameter for module in frozen for parameter in module.parameters()}
        return every - norms

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the feature map of an image; nothing is computed.

        Raises:
            ModelError: The image is smaller than ``min_size``.
        """
        if min(height, width) < self.min_size:
            raise ModelError(f"images of {height}x{width} are too small for backbone {self.name}: at least {self.min_size}x{self.min_size}")
        try:
            map_BCHW = on_meta(self, 1, 1, height, width)
        except (RuntimeError, AssertionError, ValueError) as error:  # what torch and timm say of a size that does not suit a network
            several = ":" in self.name and self.in_channels == 1  # some networks' image enters more than one convolution
            raise ModelError(
                f"images of {height}x{width} do not suit backbone {self.name} ({error})",
                hint="model.backbone.in_channels=3, or images of the size it is made for" if several else None,
            ) from None
        if 0 in map_BCHW.shape:
            raise ModelError(f"images of {height}x{width} are too small for backbone {self.name}: nothing is left of them in its map")
        return map_BCHW.shape[2], map_BCHW.shape[3]

    def extra_repr(self) -> str:
        """What ``repr`` adds to the class name."""
        return f"{self.name}, {self.in_channels} -> {self.channels} channels, {self.frozen_stages} of {len(self.stages)} stages frozen"


def build_backbone(config: BackboneConfig, *, load: bool = True) -> Backbone:
    """The backbone that ``config`` names, with its weights and its first stages frozen.

    Random weights follow from torch's global random state: fork it (``torch.random.fork_rng``) and seed it for the same network again.

    Args:
        config: Name, weights, channels, freezing.
        load: Whether ``config.weights`` is loaded. False where all weights come from elsewhere (a checkpoint, a BUNDLE).

    Raises:
        ModelError: Unknown name, too many frozen stages, or weights that cannot be had or do not fit.
        StorageError: A weight file cannot be read.
    """
    spec = backbone_spec(config.name)
    backbone = Backbone(config.name, spec.build(), config, spec)
    if load:
        root = backbone.publisher_root
        load_weights(
            backbone.get_submodule(root),
            config.weights,
            name=config.name,
            first_conv=backbone.first_conv.removeprefix(f"{root}."),
            published=spec.published,
        )
        if config.weights == "none" and config.freeze_stages:
            logger.warning("backbone %s: %d stages are frozen with random weights", config.name, backbone.freeze_stages)
    return backbone


def _narrow(convolution: nn.Module, name: str) -> None:
    """Turn the first convolution, in place, from three input channels to one with the same output for grey images."""
    # timm's weight-standardised convolutions (StdConv2d …) scale the kernel as a whole: a folded one would give another output
    if not isinstance(convolution, nn.Conv2d) or "Std" in type(convolution).__name__ or convolution.in_channels != 3:
        raise ModelError(
            f"the first layer of backbone {name}, a {type(convolution).__name__}, cannot be narrowed to one channel",
            hint="model.backbone.in_channels=3",
        )
    convolution.weight = nn.Parameter(fold_first_conv(convolution.weight.detach()))
    convolution.in_channels = 1
