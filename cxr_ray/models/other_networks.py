"""Any convolutional network of torchvision (``torchvision:NAME``) or timm (``timm:NAME``), cut into stages where its family has them.

timm is imported when one of its networks is asked for, not before.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchvision.models as tv
from torch import Tensor, nn
from torch.func import functional_call

from cxr_ray.errors import ModelError
from cxr_ray.models.networks import Network, first_convolution, of_children, of_densenet, of_resnet

PROBE_SIZE = 224
"""Height and width of the image, without content, that shows how many channels a network's map has."""


def torchvision_network(name: str) -> Network:
    """A classification network of torchvision with random weights, up to its feature map.

    ResNets and DenseNets have their five stages; elsewhere a stage is a layer of the outermost level. Maps of the Swin family are
    turned to (B, C, h, w).

    Raises:
        ModelError: No such network, or one that makes no map of the image (vision transformers, MaxViT).
    """
    known = tv.list_models(module=tv)
    if name not in known:
        raise unknown_backbone(f"torchvision:{name}", [f"torchvision:{other}" for other in known], where="torchvision's networks")
    if "vit" in name:
        raise _no_map(f"torchvision:{name}")
    # GoogLeNet and Inception would add classifiers in their middle, and warn that their initialisation is to change.
    extra = {"aux_logits": False, "init_weights": True} if name in {"googlenet", "inception_v3"} else {}
    model = tv.get_model(name, weights=None, num_classes=1, **extra)
    if isinstance(model, tv.ResNet):
        return of_resnet(model, channels=model.fc.in_features)
    if isinstance(model, tv.DenseNet):
        return of_densenet(model, channels=model.classifier.in_features)
    if isinstance(model, tv.SwinTransformer):
        return of_children(_Swin(model), channels=model.head.in_features)
    network = of_children(model, channels=0)
    return _with_channels(network, f"torchvision:{name}")


def timm_network(name: str) -> Network:
    """A network of timm with random weights, up to its feature map.

    ResNet, ResNetV2, EfficientNet, MobileNetV3 and Inception-ResNetV2 have their stages; any other network is one stage and runs
    timm's own ``forward_features``, a map with the channels last turned to (B, C, h, w). Parts that
    the map does not depend on are left out.

    Raises:
        ModelError: No such network, or one that makes no map of the image (tokens alone).
    """
    import timm

    if not timm.is_model(name) or ":" in name:
        raise unknown_backbone(f"timm:{name}", [f"timm:{other}" for other in timm.list_models()], where="timm's networks")
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"timm:{name} cannot be built ({error})") from None
    chain = _timm_chain(model)
    return _with_channels(chain, f"timm:{name}") if chain else _timm_whole(model, f"timm:{name}")


def resnetv2_152() -> Network:
    """He 2016b ("identity mappings"), ResNet152V2. Stages: stem, four of residual blocks, the last with the final norm and ReLU."""
    return timm_network("resnetv2_152")


def inception_resnet_v2() -> Network:
    """Szegedy 2017. A stage is a convolution, Inception block or group of residual blocks. The map has 5 x 5 pixels at 224 x 224."""
    return timm_network("inception_resnet_v2")


@dataclass(frozen=True)
class TimmWeights:
    """The weights that timm's publisher gives for a network; stands in for a torchvision ``WeightsEnum``.

    Args:
        name: Of the network in timm, with or without the tag of its training.
    """

    name: str

    @property
    def url(self) -> str:
        """Where the file can be fetched by hand; empty where nobody publishes any."""
        import timm
        from huggingface_hub import hf_hub_url

        published = timm.get_pretrained_cfg(self.name)
        if published is not None and isinstance(published.url, str) and published.url:
            return published.url
        if published is None or not published.hf_hub_id:
            return ""
        return str(hf_hub_url(published.hf_hub_id, published.hf_hub_filename or "model.safetensors"))

    def get_state_dict(self, **_: Any) -> dict[str, Tensor]:
        """The tensors by timm's names, downloaded once and then kept in its cache."""
        import timm

        return dict(timm.create_model(self.name, pretrained=True).state_dict())


def unknown_backbone(name: str, known: Sequence[str], *, where: str) -> ModelError:
    """The error for a name that is none of ``known``, with the nearest of them."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return ModelError(
        f"unknown backbone {name!r}: none of {where}" + (f"; close: {', '.join(close)}" if close else ""),
        hint=f"model.backbone.name={close[0]}" if close else None,
    )


def on_meta(module: nn.Module, *shape: int) -> Tensor:
    """What ``module`` makes of a float32 input of this shape, in evaluation mode, without content: nothing is computed."""
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in _tensors(module)}
    training = [child for child in module.modules() if child.training]
    module.eval()  # batch norm in training mode refuses one pixel of one image
    try:
        return functional_call(module, state, (torch.empty(*shape, device="meta"),))  # type: ignore[no-any-return]
    finally:
        for child in training:
            child.training = True


class _Swin(nn.Module):
    """torchvision's Swin without its classifier, its names kept; the permutation is its own."""

    def __init__(self, model: tv.SwinTransformer) -> None:
        super().__init__()
        self.features, self.norm, self.permute = model.features, model.norm, model.permute


class _TimmFeatures(nn.Module):
    """``forward_features`` of a network of timm as (B, C, h, w)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.channels_last = False

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w)."""
        map_BCHW = self.model.forward_features(x_BCHW)
        return map_BCHW.permute(0, 3, 1, 2) if self.channels_last else map_BCHW  # type: ignore[no-any-return]


def _timm_chain(model: Any) -> Network | None:
    """Stages of the families whose ``forward_features`` is a chain of modules; None for any other."""
    from timm.models.efficientnet import EfficientNet
    from timm.models.mobilenetv3 import MobileNetV3
    from timm.models.resnet import ResNet
    from timm.models.resnetv2 import ResNetV2

    kind = type(model)  # not its children, which may run otherwise
    if kind is ResNet:
        return _chain(model, [("conv1", "bn1", "act1", "maxpool"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)])
    if kind is ResNetV2:
        groups: list[tuple[str, ...]] = [("stem",), *((f"stages.{name}",) for name, _ in model.stages.named_children())]
        return _chain(model, [*groups[:-1], (*groups[-1], "norm")])
    if kind is EfficientNet or kind is MobileNetV3:
        blocks = [(f"blocks.{name}",) for name, _ in model.blocks.named_children()]
        last = [("conv_head", "bn2")] if kind is EfficientNet else []
        return _chain(model, [("conv_stem", "bn1"), *blocks, *last])
    if kind.__name__ == "InceptionResnetV2":  # its module is hidden by a function of the same name
        children = [name for name, _ in model.named_children()]
        stages: list[tuple[str, ...]] = []
        for name in children[: children.index("global_pool")]:
            if name.startswith("maxpool"):
                stages[-1] += (name,)
            else:
                stages.append((name,))
        return _chain(model, stages)
    return None


def _chain(model: nn.Module, stages: Sequence[tuple[str, ...]]) -> Network:
    """Under one part of their own: timm's names, such as ``stages``, mean something else in a ``Backbone``."""
    tops = dict.fromkeys(name.split(".")[0] for stage in stages for name in stage)
    parts = {"timm": nn.ModuleDict({name: model.get_submodule(name) for name in tops})}
    named = tuple(tuple(f"timm.{name}" for name in stage) for stage in stages)
    return Network(parts, named, f"timm.{first_convolution(model)}", 0, publisher_root="timm")


def _timm_whole(model: Any, name: str) -> Network:
    whole = _TimmFeatures(model)
    size = model.default_cfg["input_size"] if getattr(model, "default_cfg", None) else (3, PROBE_SIZE, PROBE_SIZE)
    try:
        map_BCHW = on_meta(whole, 1, *size)
    except (RuntimeError, AssertionError, AttributeError, NotImplementedError) as error:
        raise ModelError(f"{name} cannot be used as a backbone ({error})") from None
    if not isinstance(map_BCHW, Tensor) or map_BCHW.ndim != 4:
        raise _no_map(name)
    if map_BCHW.shape[1] != model.num_features:
        if map_BCHW.shape[3] != model.num_features:
            raise _no_map(name)
        whole.channels_last = True
    _drop_unreached(whole, size)
    return Network({"timm": whole}, (("timm",),), f"timm.model.{_first_conv_of(model)}", model.num_features, publisher_root="timm.model")


def _first_conv_of(model: Any) -> str:
    named = (getattr(model, "default_cfg", None) or {}).get("first_conv")
    return named if isinstance(named, str) and isinstance(model.get_submodule(named), nn.Conv2d) else first_convolution(model)


def _drop_unreached(whole: _TimmFeatures, size: Iterable[int]) -> None:
    """Replace modules whose parameters the map does not depend on (norms and layers of a classifier): all that is left can learn."""
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in _tensors(whole)}
    parameters = {name: state[name].requires_grad_() for name, _ in whole.named_parameters()}
    map_BCHW = functional_call(whole, state, (torch.empty(2, *size, device="meta"),))
    gradients = torch.autograd.grad(map_BCHW, list(parameters.values()), torch.empty_like(map_BCHW), allow_unused=True)
    reached = {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    for path, _ in list(whole.named_modules()):
        held = [name for name in parameters if name.startswith(f"{path}.")]
        parent, _, child = path.rpartition(".")
        if path and held and not reached.intersection(held):
            whole.get_submodule(parent)._modules[child] = nn.Identity()
            parameters = {name: tensor for name, tensor in parameters.items() if name not in held}


def _with_channels(network: Network, name: str) -> Network:
    """The network with its channels counted, where its family does not say them."""
    parts = nn.ModuleDict(network.parts)
    chain = nn.Sequential(*(parts.get_submodule(part) for stage in network.stages for part in stage))
    try:
        map_BCHW = on_meta(chain, 1, 3, PROBE_SIZE, PROBE_SIZE)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"{name} cannot be used as a backbone ({error})") from None
    if map_BCHW.ndim != 4:
        raise _no_map(name)
    return Network(network.parts, network.stages, network.first_conv, map_BCHW.shape[1], network.publisher_root)


def _no_map(name: str) -> ModelError:
    return ModelError(
        f"{name} makes no feature map (B, C, h, w) of an image, which is what an RNN, attention and Grad-CAM read",
        hint="a convolutional network, or one that keeps a map, such as timm:swin_tiny_patch4_window7_224",
    )


def _tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
