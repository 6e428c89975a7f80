"""One thread (these networks are tiny), and makers of small networks with seeded random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from cxr_ray.config import BackboneConfig, ModelConfig
from cxr_ray.models.backbones import Backbone, build_backbone
from cxr_ray.models.classifier import Classifier, build_classifier
from cxr_ray.settings import parse_settings

BuildBackbone = Callable[..., Backbone]
BuildClassifier = Callable[..., Classifier]


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def make_backbone() -> BuildBackbone:
    """``make_backbone("resnet18", seed=1, in_channels=3)``; the global random state is left alone."""

    def make(name: str, *, seed: int = 0, load: bool = False, **settings: Any) -> Backbone:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_backbone(BackboneConfig(name=name, **settings), load=load)

    return make


@pytest.fixture(scope="package")
def make_classifier() -> BuildClassifier:
    """``make_classifier(rnn={"kind": "gru"}, size=(32, 32))``: ``small_cnn`` unless said otherwise, three labels."""

    def make(*, seed: int = 0, size: tuple[int, int] = (64, 64), outputs: int = 3, **settings: Any) -> Classifier:
        settings.setdefault("backbone", {"name": "small_cnn"})
        config = parse_settings(ModelConfig, settings, where="test")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_classifier(config, outputs, mean=0.45, std=0.25, image_size=size)

    return make


@pytest.fixture(scope="package")
def grey() -> Callable[..., Tensor]:
    """``grey(4, 64, 64)``: uint8 noise, the same each time."""

    def make(count: int, height: int = 64, width: int = 64) -> Tensor:
        generator = torch.Generator().manual_seed(count)
        return torch.randint(0, 256, (count, height, width), dtype=torch.uint8, generator=generator)

    return make
