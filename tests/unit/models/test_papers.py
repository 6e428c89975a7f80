"""Layer by layer what the papers print: shapes, parameters, totals. Everything without content, on the meta device."""

from __future__ import annotations

import pytest
import torch

from cxr_ray.config import ModelConfig, load_recipe
from cxr_ray.models.classifier import Classifier, build_classifier
from cxr_ray.models.parameters import count_flops, count_parameters, layer_parameters
from cxr_ray.settings import parse_settings


def ghost(model: ModelConfig, outputs: int = 3, size: int = 224) -> Classifier:
    with torch.device("meta"):
        return build_classifier(model, outputs, mean=0.5, std=0.25, image_size=(size, size), load_weights=False)


def of_recipe(name: str, outputs: int = 3, size: int = 224, *overrides: str) -> Classifier:
    return ghost(load_recipe(name, overrides).model, outputs, size)


CONVOLUTIONS_001 = [
    (3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256),
    (256, 512), (512, 512), (512, 512), (512, 512), (512, 512), (512, 512),
]  # fmt: skip


def test_paper_001_layer_by_layer() -> None:
    """Table 2: twelve convolutions, LSTM 49 x 512, FC 25,088 -> 64, output 64 -> 3."""
    model = of_recipe("islam-cnn-lstm")
    assert list(layer_parameters(model).values()) == [
        *[channels_out * (9 * channels_in + 1) for channels_in, channels_out in CONVOLUTIONS_001],
        2_099_200,
        1_605_696,
        195,
    ]
    assert (model.map_size, model.sequence.steps, model.backbone.channels) == ((7, 7), 49, 512)
    assert model.num_features == 25_088
    without = of_recipe("islam-cnn")
    assert list(layer_parameters(without).values()) == [n for n in layer_parameters(model).values() if n != 2_099_200]


def test_paper_000() -> None:
    """Figure 3 and section 4: Conv 8, pool, Conv 16, pool, flatten, LSTM 100, dense."""
    model = of_recipe("croup-cnn-lstm", outputs=2)
    assert list(layer_parameters(model).values()) == [8 * (9 + 1), 16 * (72 + 1), 4 * 100 * (56 * 56 * 16 + 100 + 1), 2 * 101]
    assert (model.sequence.steps, model.num_features) == (1, 100)


@pytest.mark.parametrize(
    ("backbone", "steps", "channels", "width", "flat"),
    [
        ("vgg19", 49, 512, 512, 25_088),
        ("densenet121", 49, 1024, 1024, 50_176),
        ("inceptionv3", 25, 2048, 512, 12_800),
        ("inceptionresnetv2", 25, 1536, 512, 12_800),
    ],
)
def test_paper_003_table_2(backbone: str, steps: int, channels: int, width: int, flat: int) -> None:
    model = of_recipe(f"{backbone}-rnn")
    assert (model.sequence.steps, model.backbone.channels) == (steps, channels)
    assert model.recurrent.out_features == width
    assert model.num_features == flat
    head = [count for name, count in layer_parameters(model).items() if name.startswith("head.")]
    assert head == [4096 * (flat + 1), 4096 * 4097, 3 * 4097]
    assert layer_parameters(model)["recurrent.rnn"] == 4 * width * (channels + width + 1)
    as_released = of_recipe(f"{backbone}-rnn-as-released")
    assert as_released.num_features == flat
    dense = [name for name in layer_parameters(as_released) if name.startswith("head.")]
    assert len(dense) == (3 if backbone == "inceptionresnetv2" else 5)  # that script has one hidden layer; each has a batch norm


@pytest.mark.parametrize(("backbone", "steps", "channels"), [("vgg19", 49, 512), ("resnet152v2", 49, 2048), ("densenet121", 49, 1024)])
def test_paper_002_shapes(backbone: str, steps: int, channels: int) -> None:
    model = of_recipe(f"{backbone}-lstm")
    assert (model.sequence.steps, model.sequence.width_of(model.backbone.channels)) == (steps, channels)


@pytest.mark.parametrize(
    ("backbone", "readout", "head", "millions"),
    [
        ("vgg19", "sequence", [4096, 4096], 144.0),
        ("densenet121", "mean", [], 8.0),
        ("inception_v3", "mean", [], 23.6),
        ("inception_resnet_v2", "mean", [], 56.0),
    ],
)
def test_paper_003_table_1(backbone: str, readout: str, head: list[int], millions: float) -> None:
    """With the ImageNet head of 1,000 outputs, within 1 % of the printed millions (Inception-V3: 23.83 here, 23.6 there)."""
    settings = {"backbone": {"name": backbone, "in_channels": 3}, "rnn": {"kind": "none", "readout": readout}, "head": {"sizes": head}}
    total = count_parameters(ghost(parse_settings(ModelConfig, settings, where="test"), outputs=1000))["total"]
    assert total / 1e6 == pytest.approx(millions, rel=0.011)


@pytest.mark.parametrize(
    ("recipe", "millions", "flops"), [("mobilenetv3", 5.5, 8.7), ("efficientnetb1", 7.8, 25.8), ("resnet34", 21.8, 153.9)]
)
def test_paper_004_table_2(recipe: str, millions: float, flops: float) -> None:
    """Millions of parameters with 1,000 outputs. Its FLOPS are multiply-adds of a batch of 32 at 256 x 256 (within 10 %)."""
    assert round(count_parameters(of_recipe(recipe, 1000))["total"] / 1e6, 1) == millions
    assert count_flops(of_recipe(recipe, 1000, 256)) / 2 * 32 / 1e9 == pytest.approx(flops, rel=0.1)


def test_multiply_adds_of_the_12_convolutions() -> None:
    """By hand, convolution by convolution, with the LSTM's 49 steps."""
    sides = [224, 224, 112, 112, 56, 56, 28, 28, 28, 14, 14, 14]
    convolutions = sum(side * side * a * b * 9 for side, (a, b) in zip(sides, CONVOLUTIONS_001, strict=True))
    lstm = 49 * 4 * 512 * (512 + 512)
    assert count_flops(of_recipe("islam-cnn-lstm")) == 2 * (convolutions + lstm + 25_088 * 64 + 64 * 3)
