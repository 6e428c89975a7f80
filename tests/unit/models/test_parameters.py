"""Groups for the optimiser hold each learning parameter once; counts agree with arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from cxr_ray.models.classifier import Classifier
from cxr_ray.models.parameters import count_flops, count_parameters, layer_parameters

MakeClassifier = Callable[..., Classifier]


def names_in(model: Classifier, group: dict[str, list[nn.Parameter]]) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for parameter in group["params"]}


def test_groups(make_classifier: MakeClassifier) -> None:
    model = make_classifier(rnn={"readout": "attention"}, head={"sizes": [8], "batch_norm": True})
    groups = model.parameter_groups(lr=0.1, backbone_lr_scale=0.5, weight_decay=0.01)
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups] == [
        ("backbone/decay", 0.05, 0.01),
        ("backbone/no-decay", 0.05, 0.0),
        ("rest/decay", 0.1, 0.01),
        ("rest/no-decay", 0.1, 0.0),
    ]
    held = [name for group in groups for name in names_in(model, group)]
    assert sorted(held) == sorted(name for name, _ in model.named_parameters())
    assert names_in(model, groups[0]) == {f"backbone.blocks.{index}.0.weight" for index in range(5)}
    assert names_in(model, groups[2]) == {
        "recurrent.rnn.weight_ih_l0",
        "recurrent.rnn.weight_hh_l0",
        "readout.hidden.weight",
        "readout.score.weight",
        "head.1.weight",
        "head.5.weight",
    }
    assert {"recurrent.rnn.bias_ih_l0", "head.2.weight", "head.5.bias"} <= names_in(model, groups[3])
    torch.optim.AdamW(groups, lr=1.0)


def test_stages_frozen_for_good_are_left_out_and_others_are_in_from_the_start(make_classifier: MakeClassifier) -> None:
    for_good = make_classifier(backbone={"name": "small_cnn", "freeze_stages": 3})
    names = {name for group in for_good.parameter_groups(0.1) for name in names_in(for_good, group)}
    assert names == {name for name, parameter in for_good.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith("backbone.blocks.2") for name in names)

    wholly = make_classifier(backbone={"name": "small_cnn", "freeze_stages": -1})
    assert [group["name"] for group in wholly.parameter_groups(0.1)] == ["rest/decay", "rest/no-decay"]

    for_now = make_classifier(backbone={"name": "small_cnn", "freeze_stages": 3, "unfreeze_epoch": 2})
    names = {name for group in for_now.parameter_groups(0.1) for name in names_in(for_now, group)}
    assert names == {name for name, _ in for_now.named_parameters()}


def test_groups_have_one_order(make_classifier: MakeClassifier) -> None:
    """An optimiser's state is saved by position."""
    one, other = (make_classifier().parameter_groups(0.1) for _ in range(2))
    assert [p.shape for group in one for p in group["params"]] == [p.shape for group in other for p in group["params"]]


def test_counts(make_classifier: MakeClassifier) -> None:
    model = make_classifier(
        backbone={"name": "small_cnn", "freeze_stages": 1}, rnn={"hidden_size": 10, "readout": "attention"}, head={"sizes": [6]}
    )
    first = 24 * 25 + 2 * 24
    assert count_parameters(model) == {
        "backbone": 348_264,
        "rnn": 4 * 10 * (160 + 10 + 1),
        "readout": 10 * 10 + 10 + 10,
        "head": 10 * 6 + 6 + 6 * 3 + 3,
        "total": 348_264 + 6_840 + 120 + 87,
        "learning": 348_264 + 6_840 + 120 + 87 - first,
    }


def test_a_frozen_rnn_is_in_no_group_and_in_the_state(make_classifier: MakeClassifier) -> None:
    model = make_classifier(rnn={"hidden_size": 4, "trainable": False, "batch_norm": True})
    names = {name for group in model.parameter_groups(0.1) for name in names_in(model, group)}
    assert names == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, _ in model.named_parameters()} - names == {
        f"recurrent.rnn.{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih")
    }
    assert "recurrent.rnn.weight_hh_l0" in model.state_dict()
    assert {"recurrent.norm.weight", "recurrent.norm.bias"} <= names


def test_layers(make_classifier: MakeClassifier) -> None:
    model = make_classifier(backbone={"name": "croup_cnn", "in_channels": 3}, rnn={"kind": "gru", "hidden_size": 5}, head={"sizes": [4]})
    assert layer_parameters(model) == {
        "backbone.features.0": 8 * (27 + 1),
        "backbone.features.3": 16 * (72 + 1),
        "recurrent.rnn": 3 * 5 * (16 + 5 + 2),
        "head.1": 5 * 4 + 4,
        "head.4": 4 * 3 + 3,
    }


def test_operations_by_hand(make_classifier: MakeClassifier) -> None:
    settings = {"backbone": {"name": "croup_cnn", "in_channels": 3}, "head": {"sizes": [4]}, "size": (8, 12)}
    convolutions = 2 * (8 * 12 * 8 * 27 + 4 * 6 * 16 * 72)
    rnn = {"kind": "lstm", "hidden_size": 5, "layers": 2, "bidirectional": True, "readout": "attention"}
    lstm = 2 * (2 * 3) * 2 * 4 * 5 * ((16 + 5) + (10 + 5))
    attention = 2 * (2 * 3) * (10 * 10 + 10)
    assert count_flops(make_classifier(rnn=rnn, **settings)) == convolutions + lstm + attention + 2 * (10 * 4 + 4 * 3)
    without = {"kind": "none", "readout": "sequence"}
    assert count_flops(make_classifier(rnn=without, **settings)) == convolutions + 2 * (6 * 16 * 4 + 4 * 3)
    whole = {"kind": "gru", "hidden_size": 5, "activation": "relu"}
    flat = make_classifier(rnn=whole, sequence={"order": "flatten"}, **settings)
    assert count_flops(flat) == convolutions + 2 * 3 * 5 * (96 + 5) + 2 * (5 * 4 + 4 * 3)


def test_counting_operations_leaves_the_network_alone(make_classifier: MakeClassifier) -> None:
    model = make_classifier().train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    count_flops(model)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_counting_needs_no_memory(make_classifier: MakeClassifier) -> None:
    with torch.device("meta"):
        model = make_classifier(backbone={"name": "vgg19"}, size=(224, 224))
    assert next(model.parameters()).device.type == "meta"
    assert count_parameters(model)["backbone"] == 20_024_384 - 2 * 64 * 9
