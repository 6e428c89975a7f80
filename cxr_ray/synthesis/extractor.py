"""The network in whose features images are compared: a model of ours, a backbone's weights, or a random one.

KID and FID are usually given in the features of Inception, a network trained on colour photographs. We use what the user has: a
BUNDLE or RUN that knows X-rays, or published weights of MobileNetV2. Without either, a MobileNetV2 with random weights: it ranks, it
misses finer faults (docs/synthesis.md), and its figures mean nothing beside those of another extractor.

Shapes: N images of H x W pixels, F features.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cxr_ray import bundle as bundles
from cxr_ray import storage
from cxr_ray.config import BackboneConfig
from cxr_ray.errors import ConfigError
from cxr_ray.imaging.preprocess import PreprocessSpec
from cxr_ray.models.backbones import build_backbone
from cxr_ray.models.classifier import Classifier
from cxr_ray.models.ensemble import Ensemble
from cxr_ray.synthesis.gan import stream_seed
from cxr_ray.synthesis.rare import Images, resize
from cxr_ray.training import run as runs

BACKBONE = "mobilenet_v2"
RANDOM_SEED = 0
BATCH = 32
CALIBRATION = 512
"""Real images at most that set the statistics of a random network's batch norms."""
_EXTRACTOR_STREAM = 0x6A14

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Extractor:
    """Images -> features.

    Args:
        name: What it is, for people.
        is_random: Its weights were never trained.
        size: (height, width) that images are resized to first. None: as they are.
        forward: (B, H, W) uint8 tensor -> (B, F).
    """

    name: str
    is_random: bool
    size: tuple[int, int] | None
    forward: Callable[[Tensor], Tensor]

    def measure(self, images: Images) -> Features:
        """(N, H, W) uint8 -> (N, F) float32."""
        if self.size is not None:
            images = resize(images, *self.size)
        with torch.inference_mode():
            parts = [self.forward(torch.from_numpy(np.array(images[start : start + BATCH]))) for start in range(0, len(images), BATCH)]
        return torch.cat(parts).float().numpy()


def build_extractor(source: str | None, real: Images, preprocess: PreprocessSpec) -> Extractor:
    """The extractor that ``source`` names, in evaluation mode on the CPU.

    Args:
        source: A BUNDLE, a RUN, or MobileNetV2 weights (``.safetensors``, ``.pth``, ``.pt``, or ``default``: published, downloaded).
            None: random weights.
        real: (N, H, W) real training images: their mean and deviation normalise what a bare backbone sees, and a random one's batch
            norms take their statistics from them, without which its features would fade from layer to layer.
        preprocess: What the images have been through, to be said where a model was trained on something else.

    Raises:
        ConfigError: ``source`` is none of these.
        CxrRayError: It cannot be opened.
    """
    if source is not None and storage.exists(storage.join(source, bundles.MANIFEST)):
        bundle = bundles.read_bundle(source)
        return _of_model(f"BUNDLE {bundle.manifest.name} {bundle.version}", bundle.load_model(), bundle.preprocess, preprocess)
    if source is not None and storage.exists(storage.join(source, runs.RUN)):
        run = runs.open_run(source)
        return _of_model(f"RUN {run.recipe.name}", run.load_model(), run.manifest.dataset.preprocess, preprocess)
    if source not in {None, "default"} and posixpath.splitext(str(source).partition("?")[0])[1] not in {".safetensors", ".pth", ".pt"}:
        raise ConfigError([f"{source!r} is neither a BUNDLE, nor a RUN, nor a file of {BACKBONE} weights"], where="--extractor")
    return _of_backbone(source, real)


def _of_model(name: str, model: Classifier | Ensemble, trained: PreprocessSpec, given: PreprocessSpec) -> Extractor:
    members = [cast(Classifier, member) for member in model.members] if isinstance(model, Ensemble) else [model]

    def forward(images_BHW: Tensor) -> Tensor:
        return torch.cat([member.features(images_BHW) for member in members], dim=1)

    same = trained.model_copy(update={"height": given.height, "width": given.width}) == given
    remark = "" if same else ", trained on images preprocessed in another way"
    return Extractor(f"{name} (its features){remark}", False, model.image_size, forward)


def _of_backbone(source: str | None, real: Images) -> Extractor:
    config = BackboneConfig(name=BACKBONE, weights=source or "none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(_EXTRACTOR_STREAM, RANDOM_SEED))
        backbone = build_backbone(config)
    mean, std = float(real.mean()) / 255, max(float(real.std()) / 255, 1e-6)

    def forward(images_BHW: Tensor) -> Tensor:
        map_BCHW: Tensor = backbone((images_BHW.unsqueeze(1).float() / 255 - mean) / std)
        return map_BCHW.mean((2, 3))

    if source is None:
        _calibrate(backbone, forward, real[:CALIBRATION])
    backbone.eval()
    if source is None:
        name = f"{BACKBONE} with random weights (seed {RANDOM_SEED}): it only ranks, and misses much of what a trained network sees"
    else:
        name = f"{BACKBONE} with {'the published weights' if source == 'default' else posixpath.basename(source)}, mean over the map"
    return Extractor(name, source is None, None, forward)


def _calibrate(backbone: nn.Module, forward: Callable[[Tensor], Tensor], real: Images) -> None:
    """Set the statistics of all batch norms to those of the real images."""
    for module in backbone.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # the plain mean over batches
    backbone.train()
    with torch.no_grad():
        for start in range(0, max(1, len(real) // BATCH) * BATCH, BATCH):  # a last batch of one would have no deviation
            forward(torch.from_numpy(np.array(real[start : start + BATCH])))
