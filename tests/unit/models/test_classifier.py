"""The whole network: input, shapes, every readout and kind, precision, memory format, faults."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cxr_ray.errors import ModelError
from cxr_ray.models.classifier import Classifier

MakeClassifier = Callable[..., Classifier]
Grey = Callable[..., Tensor]

RNNS: list[dict[str, Any]] = [
    {"kind": kind, "readout": readout, "bidirectional": bidirectional, "hidden_size": 12}
    for kind in ("lstm", "gru", "none")
    for readout in ("last", "mean", "attention", "sequence")
    for bidirectional in (False, True)
    if not (kind == "none" and (readout == "last" or bidirectional))
]


def name_of(rnn: dict[str, Any]) -> str:
    return f"{'bi' if rnn['bidirectional'] else ''}{rnn['kind']}-{rnn['readout']}"


@pytest.mark.parametrize("rnn", RNNS, ids=name_of)
def test_every_rnn_and_readout_learns_whole_and_reloads(make_classifier: MakeClassifier, grey: Grey, rnn: dict[str, Any]) -> None:
    settings = {"rnn": rnn, "sequence": {"order": "spiral"}, "head": {"sizes": [9, 7], "dropout": 0.1, "batch_norm": True}}
    model = make_classifier(**settings)
    logits_BK = model(grey(4))
    assert logits_BK.shape == (4, 3)
    logits_BK.square().mean().backward()
    gradients = {name: 0.0 if p.grad is None else float(p.grad.abs().max()) for name, p in model.named_parameters()}
    # Not `== 0`: where a gradient is nought by construction, rounding leaves a trace.
    assert {name for name, gradient in gradients.items() if gradient < 1e-5 * max(gradients.values())} == set()

    width = {"none": 160}.get(rnn["kind"], 24 if rnn["bidirectional"] else 12) * (16 if rnn["readout"] == "sequence" else 1)
    assert model.num_features == width
    model.eval()
    assert model.features(grey(2)).shape == (2, width)
    assert torch.equal(model(grey(2)), model.classify_map(model.feature_map(grey(2))))

    other = make_classifier(seed=1, **settings).eval()
    assert not torch.equal(other(grey(2)), model(grey(2)))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(grey(2)), model(grey(2)))


def test_normalisation_by_hand(make_classifier: MakeClassifier) -> None:
    model = make_classifier(size=(16, 16))  # mean 0.45, std 0.25
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).reshape(3, 1, 1).expand(3, 16, 16)
    normal = model.normalize(images)
    assert normal.shape == (3, 1, 16, 16)
    torch.testing.assert_close(normal[:, 0, 0, 0], torch.tensor([-0.45 / 0.25, 0.55 / 0.25, -0.25 / 0.25]))
    assert {"mean", "std"} <= set(model.state_dict())


def test_normalised_by_its_statistics_an_image_has_mean_0_and_deviation_1(make_classifier: MakeClassifier, grey: Grey) -> None:
    model = make_classifier()
    images = grey(4)
    model.mean.fill_((images / 255.0).mean())
    model.std.fill_((images / 255.0).std())
    torch.testing.assert_close(torch.stack(torch.std_mean(model.normalize(images))), torch.tensor([1.0, 0.0]), atol=1e-5, rtol=0)


def test_input_kinds_agree(make_classifier: MakeClassifier, grey: Grey) -> None:
    model = make_classifier().eval()
    images = grey(2)
    expected = model(images)
    assert torch.equal(model(images.unsqueeze(1)), expected)
    floats = images.float()
    assert torch.equal(model(floats), expected)
    assert torch.equal(floats, images.float()), "the caller's images were changed"


@pytest.mark.parametrize("shape", [(2, 64, 63), (2, 3, 64, 64), (64, 64), (2, 1, 1, 64, 64), (2, 64, 64, 1)])
def test_other_shapes_are_refused(make_classifier: MakeClassifier, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"this network takes \(B, 64, 64\) or \(B, 1, 64, 64\)"):
        make_classifier()(torch.zeros(shape, dtype=torch.uint8))


def test_images_need_not_be_square(make_classifier: MakeClassifier, grey: Grey) -> None:
    model = make_classifier(size=(32, 80), rnn={"readout": "sequence"}).eval()
    assert model.map_size == (2, 5)
    assert model(grey(2, 32, 80)).shape == (2, 3)


def test_control_with_mean_is_global_average_pooling(make_classifier: MakeClassifier, grey: Grey) -> None:
    model = make_classifier(rnn={"kind": "none", "readout": "mean"}, sequence={"order": "spiral"}).eval()
    torch.testing.assert_close(model.features(grey(2)), model.feature_map(grey(2)).mean((2, 3)))


@pytest.mark.parametrize("order", ["horizontal", "vertical", "snake", "spiral"])
def test_order_reaches_the_rnn(make_classifier: MakeClassifier, grey: Grey, order: str) -> None:
    """The first step's gate sees the map's top left; the second the pixel that the order names."""
    model = make_classifier(sequence={"order": order}).eval()
    seen: list[Tensor] = []
    model.recurrent.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    map_BCHW = model.feature_map(grey(2))
    model.classify_map(map_BCHW)
    second = {"horizontal": (0, 1), "snake": (0, 1), "vertical": (1, 0), "spiral": (0, 1)}[order]
    fifth = {"horizontal": (1, 0), "snake": (1, 3), "vertical": (0, 1), "spiral": (1, 3)}[order]
    for step, (row, column) in ((0, (0, 0)), (1, second), (4, fifth)):
        assert torch.equal(seen[0][:, step], map_BCHW[:, :, row, column])


def test_attention_map_lies_as_the_image_does(make_classifier: MakeClassifier, grey: Grey) -> None:
    settings = {"rnn": {"kind": "none", "readout": "attention"}}
    maps = [make_classifier(sequence={"order": order}, **settings).eval().attention_map(grey(2)) for order in ("horizontal", "spiral")]
    assert maps[0].shape == (2, 4, 4)
    torch.testing.assert_close(maps[0].sum((1, 2)), torch.ones(2))
    torch.testing.assert_close(maps[0], maps[1])  # without an RNN a pixel's weight does not depend on the order
    with pytest.raises(ModelError, match="readout is 'last'"):
        make_classifier().attention_map(grey(2))


def test_whole_map_as_one_step(make_classifier: MakeClassifier, grey: Grey) -> None:
    model = make_classifier(sequence={"order": "flatten"}, rnn={"hidden_size": 7}, backbone={"name": "croup_cnn"}, size=(32, 40))
    assert model.recurrent.rnn is not None
    assert model.recurrent.rnn.input_size == 16 * 8 * 10
    assert model(grey(2, 32, 40)).shape == (2, 3)
    attention = make_classifier(sequence={"order": "flatten"}, rnn={"readout": "attention"})
    assert attention(grey(2)).shape == (2, 3)
    with pytest.raises(ModelError, match=r"the whole map is one step(.|\n)*model.sequence.order=horizontal"):
        attention.attention_map(grey(2))


@pytest.mark.parametrize("frozen", [0, -1])
def test_forward_of_a_kept_map_is_forward_of_the_image(make_classifier: MakeClassifier, grey: Grey, frozen: int) -> None:
    model = make_classifier(backbone={"name": "small_cnn", "freeze_stages": frozen}).eval()
    expected = model(grey(2))
    map_BCHW = model.feature_map(grey(2)).detach()
    model.backbone.register_forward_pre_hook(lambda *_: pytest.fail("the backbone ran"))
    assert torch.equal(model(map_BCHW, is_map=True), expected)


def test_grad_cam_needs_only_the_rest_of_a_frozen_network(make_classifier: MakeClassifier, grey: Grey) -> None:
    model = make_classifier(backbone={"name": "small_cnn", "freeze_stages": -1}).eval()
    map_BCHW = model.feature_map(grey(2)).detach().requires_grad_()
    model.classify_map(map_BCHW)[:, 0].sum().backward()
    assert map_BCHW.grad is not None
    assert map_BCHW.grad.any()


def test_set_epoch_reaches_the_backbone(make_classifier: MakeClassifier) -> None:
    model = make_classifier(backbone={"name": "small_cnn", "freeze_stages": 2, "unfreeze_epoch": 4})
    assert [model.set_epoch(epoch) for epoch in (0, 3, 4, 5, 0)] == [False, False, True, False, True]
    assert model.backbone.frozen_stages == 2


def test_same_seed_same_network(make_classifier: MakeClassifier) -> None:
    one, same, other = (make_classifier(seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["head.1.weight"], other["head.1.weight"])
    assert not torch.equal(one["recurrent.rnn.weight_ih_l0"], other["recurrent.rnn.weight_ih_l0"])


def test_bf16_autocast(make_classifier: MakeClassifier, grey: Grey) -> None:
    for rnn in ({"readout": "attention"}, {"kind": "none", "readout": "mean"}, {"kind": "gru", "bidirectional": True}):
        model = make_classifier(rnn=rnn)
        exact = copy.deepcopy(model)(grey(4))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model.feature_map(grey(4)).dtype == torch.bfloat16
            logits_BK = model(grey(4))
        assert logits_BK.dtype == torch.float32
        torch.testing.assert_close(logits_BK, exact, atol=0.1, rtol=0.1)
        logits_BK.sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("in_channels", [1, 3])
def test_channels_last_is_kept_from_the_image_to_the_map(make_classifier: MakeClassifier, grey: Grey, in_channels: int) -> None:
    model = make_classifier(backbone={"name": "mobilenet_v2", "in_channels": in_channels}, rnn={"hidden_size": 8}).eval()
    expected = model(grey(2))
    model.to(memory_format=torch.channels_last)
    formats = []
    for stage in model.backbone.stages:
        stage[-1].register_forward_hook(lambda _m, _i, output: formats.append(output.is_contiguous(memory_format=torch.channels_last)))
    torch.testing.assert_close(model(grey(2)), expected, atol=1e-5, rtol=1e-5)
    assert formats == [True] * 19


def test_compile_in_place(make_classifier: MakeClassifier, grey: Grey) -> None:
    model = make_classifier(backbone={"name": "small_cnn", "freeze_stages": 2, "unfreeze_epoch": 1})
    plain = copy.deepcopy(model)
    model.compile(backend="eager")  # what dynamo traces, without the minutes of code generation
    assert set(model.state_dict()) == set(plain.state_dict())
    for epoch in (0, 1):
        model.set_epoch(epoch)
        plain.set_epoch(epoch)
        torch.testing.assert_close(model(grey(4)), plain(grey(4)))
        model(grey(4)).sum().backward()
        assert (model.backbone.blocks[0][0].weight.grad is not None) == (epoch == 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outputs": 0}, "at least one output, got 0"),
        ({"size": (15, 64)}, "15x64 are too small for backbone small_cnn: at least 16x16"),
        ({"backbone": {"name": "small_cnn", "freeze_stages": 6}}, "has 5 stages"),
    ],
)
def test_faults(make_classifier: MakeClassifier, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make_classifier(**settings)


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan")])
def test_a_deviation_that_is_not_positive_is_refused(make_classifier: MakeClassifier, std: float) -> None:
    model = make_classifier()
    with pytest.raises(ModelError, match="must be above 0"):
        Classifier(model.config, model.backbone, 3, mean=0.5, std=std, image_size=(64, 64))
