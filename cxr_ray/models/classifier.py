"""The whole network: uint8 images -> logits.

Shapes: B images, H x W pixels, C channels of the feature map (h x w), read as T steps, F features, K labels.

    images      (B, H, W) or (B, 1, H, W), 0 … 255
    map_BCHW    the backbone's feature map
    features_BF what the head sees
    pooled_BC   the feature map's mean over its pixels
    logits_BK   float32; softmax (multiclass) or sigmoid (multilabel) makes probabilities of them
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from cxr_ray.config import HeadConfig, ModelConfig
from cxr_ray.errors import ModelError
from cxr_ray.models.backbones import Backbone, build_backbone
from cxr_ray.models.parameters import count_parameters, parameter_groups
from cxr_ray.models.recurrent import AttentionPooling, Recurrent, build_readout
from cxr_ray.models.sequence import FLATTEN, PixelSequence

__all__ = ["Classifier", "build_classifier", "count_parameters"]

_PIXEL_ORDER = "model.sequence.order=horizontal"


class Classifier(nn.Module):
    """backbone -> sequence -> RNN -> readout -> head, with the normalisation of the pixels inside.

    Every image is taken as ``(pixel / 255 - mean) / std`` with the mean and standard deviation of the training part, which stand in
    the state beside the weights: training, evaluation and serving cannot differ in it. Published weights were trained on colour
    photographs normalised otherwise; we keep the training part's statistics (as paper 004 does), which brings grey X-rays to the mean 0 and
    deviation 1 that such a network expects.

    Args:
        config: The network.
        backbone: Built from ``config.backbone``.
        num_outputs: K, at least 1.
        mean: Mean pixel of the training part, 0 … 1.
        std: Standard deviation of its pixels, 0 … 1, above 0.
        image_size: (height, width) of the images in pixels.

    Raises:
        ModelError: Images too small for the backbone, no outputs, or a deviation that is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, config: ModelConfig, backbone: Backbone, num_outputs: int, *, mean: float, std: float, image_size: tuple[int, int]
    ) -> None:
        super().__init__()
        if num_outputs < 1:
            raise ModelError(f"a network needs at least one output, got {num_outputs}")
        if not std > 0.0:
            raise ModelError(f"the standard deviation of the pixels must be above 0, got {std}: are all training images one flat grey?")
        self.config, self.num_outputs, self.image_size = config, num_outputs, (image_size[0], image_size[1])
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        self.map_size = backbone.map_size(*image_size)
        """(height, width) of the feature map."""
        self.backbone = backbone
        self.channels = backbone.channels
        """C."""
        self.sequence = PixelSequence(config.sequence.order, *self.map_size)
        self.recurrent = Recurrent(self.sequence.width_of(backbone.channels), config.rnn)
        self.readout, features = build_readout(config.rnn, self.recurrent.out_features, self.sequence.steps)
        self.num_features = features
        """F: width of what the head sees."""
        self.head = _build_head(config.head, features, num_outputs)

    def forward(self, images: Tensor, *, is_map: bool = False) -> Tensor:
        """(B, H, W) or (B, 1, H, W), uint8 or float in 0 … 255 -> logits (B, K) float32.

        Args:
            images: The images; or, with ``is_map``, what :meth:`feature_map` made of them.
            is_map: Whether the backbone's part is done. So that a wrapper such as ``DistributedDataParallel``, which only knows
                ``forward``, also trains from maps that are kept.

        Raises:
            ModelError: The images have another shape or size than the network was built for.
        """
        return self.classify_map(images if is_map else self.feature_map(images))

    def feature_map(self, images: Tensor) -> Tensor:
        """Images as for :meth:`forward` -> (B, C, h, w), the backbone's output (Grad-CAM's layer)."""
        return self.backbone(self.normalize(images))  # type: ignore[no-any-return]

    def logits_and_pooled(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images as for :meth:`forward` -> logits (B, K) and, of the same pass, pooled_BC; both float32."""
        map_BCHW = self.feature_map(images)
        return self.classify_map(map_BCHW), map_BCHW.float().mean(dim=(2, 3))

    def features(self, images: Tensor) -> Tensor:
        """Images as for :meth:`forward` -> (B, F), what the head sees (for t-SNE and nearest neighbours)."""
        return self._features_of_map(self.feature_map(images))

    def classify_map(self, map_BCHW: Tensor) -> Tensor:
        """(B, C, h, w) -> logits (B, K) float32: the rest of :meth:`forward`, all that Grad-CAM differentiates, frozen backbone or not."""
        return self.head(self._features_of_map(map_BCHW)).float()  # type: ignore[no-any-return]

    def attention_map(self, images: Tensor) -> Tensor:
        """Images as for :meth:`forward` -> (B, h, w) float32 summing to 1: how much each pixel of the map counts.

        Raises:
            ModelError: The readout is not ``attention``, or there is but one step (order ``flatten``).
        """
        if self.sequence.order == FLATTEN:
            raise ModelError("no attention to show: with model.sequence.order flatten the whole map is one step", hint=_PIXEL_ORDER)
        if not isinstance(self.readout, AttentionPooling):
            raise ModelError(f"no attention to show: model.rnn.readout is {self.config.rnn.readout!r}", hint="model.rnn.readout=attention")
        weights_BT = self.readout.weights(self.recurrent(self.sequence(self.feature_map(images))))
        return self.sequence.to_map(weights_BT.unsqueeze(-1)).squeeze(1)

    def normalize(self, images: Tensor) -> Tensor:
        """Images as for :meth:`forward` -> (B, 1, H, W) float32, ``(pixel / 255 - mean) / std``."""
        x_B1HW = images.unsqueeze(1) if images.ndim == 3 else images
        if x_B1HW.ndim != 4 or tuple(x_B1HW.shape[1:]) != (1, *self.image_size):
            height, width = self.image_size
            raise ModelError(
                f"images of shape {tuple(images.shape)}: this network takes (B, {height}, {width}) or (B, 1, {height}, {width})",
                hint="a DATASET ingested with --size as the network was built for",
            )
        return (x_B1HW.to(self.std.dtype) / 255.0 - self.mean) / self.std

    def set_epoch(self, epoch: int) -> bool:
        """Freeze or free the backbone's first stages as configured for this epoch; see :meth:`Backbone.set_epoch`."""
        return self.backbone.set_epoch(epoch)

    def parameter_groups(self, lr: float, backbone_lr_scale: float = 1.0, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Groups for a torch optimiser; see :func:`cxr_ray.models.parameters.parameter_groups`."""
        return parameter_groups(self, lr, backbone_lr_scale, weight_decay)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As ``nn.Module.compile``, in place and without new key names, of the backbone alone.

        Dynamo does not trace torch's LSTM and GRU (cuDNN's kernels are as good), and the rest is a few small operations.
        """
        self.backbone.compile(*args, **kwargs)

    def _features_of_map(self, map_BCHW: Tensor) -> Tensor:
        return self.readout(self.recurrent(self.sequence(map_BCHW)))  # type: ignore[no-any-return]


def build_classifier(
    config: ModelConfig, num_outputs: int, *, mean: float, std: float, image_size: tuple[int, int], load_weights: bool = True
) -> Classifier:
    """The network that ``config`` describes, in training mode, on the CPU (or under ``torch.device``).

    Random weights follow from torch's global random state: fork it (``torch.random.fork_rng``) and seed it for the same network again.

    Args:
        config: The network.
        num_outputs: K, one a label.
        mean: Mean pixel of the training part, 0 … 1.
        std: Standard deviation of its pixels, 0 … 1.
        image_size: (height, width) of the images in pixels.
        load_weights: Whether ``config.backbone.weights`` is loaded. False where all weights come from a checkpoint or BUNDLE.

    Raises:
        ModelError: The network cannot be built so, or its weights cannot be had or do not fit.
        StorageError: A weight file cannot be read.
    """
    backbone = build_backbone(config.backbone, load=load_weights)
    return Classifier(config, backbone, num_outputs, mean=mean, std=std, image_size=image_size)


def _build_head(config: HeadConfig, features: int, num_outputs: int) -> nn.Sequential:
    """Dropout before every linear layer; hidden layers He normal, the last Glorot uniform, biases zero."""
    layers: list[nn.Module] = []
    widths = (features, *config.sizes)
    for width_in, width_out in itertools.pairwise(widths):
        # Batch norm subtracts the mean: a bias before it would never learn.
        hidden = nn.Linear(width_in, width_out, bias=not config.batch_norm)
        nn.init.kaiming_normal_(hidden.weight, nonlinearity="relu")
        layers += [nn.Dropout(config.dropout), hidden]
        if config.batch_norm:
            layers.append(nn.BatchNorm1d(width_out))
        else:
            nn.init.zeros_(hidden.bias)
        layers.append(nn.ReLU())
    last = nn.Linear(widths[-1], num_outputs)
    nn.init.xavier_uniform_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, nn.Dropout(config.dropout), last)
