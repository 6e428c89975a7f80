"""The bundle and the X-ray that every system is asked about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from cxr_ray.bundle import MANIFEST, read_bundle, write_bundle
from cxr_ray.config import BackboneConfig, ModelConfig, RnnConfig
from cxr_ray.data.phantoms.encode import encode_jpeg
from cxr_ray.data.phantoms.plan import shots
from cxr_ray.data.phantoms.render import render_phantom
from cxr_ray.imaging.preprocess import PreprocessSpec, preprocess
from cxr_ray.labels import LabelSet
from cxr_ray.models.classifier import build_classifier
from cxr_ray.models.record import Provenance


def xray(side: int = 1000) -> bytes:
    """A synthetic chest X-ray of about ``side`` pixels, JPEG at quality 90."""
    return encode_jpeg(render_phantom(next(iter(shots("covid", 1, 7, side)))).image, 90)


def make_bundle(where: Path, backbone: str, size: int) -> str:
    """A bundle of ``backbone`` and a small LSTM with random weights, made once; its location.

    Batch norm's statistics are taken from phantoms: with those it starts with, the signal fades to denormal numbers, on which torch is
    many times slower than on a trained network's.
    """
    if (where / MANIFEST).is_file():
        return read_bundle(str(where)).location
    config = ModelConfig(backbone=BackboneConfig(name=backbone), rnn=RnnConfig(hidden_size=64))
    spec = PreprocessSpec(height=size, width=size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_classifier(config, 3, mean=0.5, std=0.25, image_size=(size, size))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all passes
    images = [preprocess(render_phantom(shot).image, spec) for shot in shots("covid", 16, 1, 2 * size)]
    with torch.no_grad():
        for start in range(0, len(images), 8):
            model(torch.from_numpy(np.stack(images[start : start + 8])))
    nothing = Provenance(
        cxr_ray="0", recipe=backbone, seed=0, epoch=0, dataset="none", dataset_fingerprint="0" * 64, run_fingerprint="0" * 64, versions={}
    )
    return write_bundle(
        str(where),
        model=model.eval(),
        name="benchmark",
        model_config=config,
        labels=LabelSet(("covid", "normal", "pneumonia"), "multiclass"),
        preprocess=spec,
        mean=0.5,
        std=0.25,
        provenance=nothing,
        card="# Random weights\n",
    ).location
