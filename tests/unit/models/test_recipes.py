"""Every built-in recipe: read without a fault, builds at 224 x 224, and exactly that learns which is meant to."""

from __future__ import annotations

import re

import pytest
import torch

from cxr_ray.config import RECIPE_DIRECTORY, Recipe, load_recipe, recipe_names
from cxr_ray.data.augment import build_augmentation
from cxr_ray.models.backbones import BACKBONES, NORMS
from cxr_ray.models.classifier import Classifier, build_classifier

OURS = {"demo", "cnn-lstm", "cnn", "cnn-lstm-transfer"}
ISLAM = {"islam-cnn-lstm", "islam-cnn"}
PAPER_003 = {f"{backbone}-rnn" for backbone in ("vgg19", "densenet121", "inceptionv3", "inceptionresnetv2")}
PAPER_002 = {
    f"{backbone}-{rnn}"
    for backbone in ("vgg19", "resnet152v2", "densenet121")
    for rnn in ("lstm", "gru", "bilstm", "bigru", "lstm-attention", "gru-attention")
}
PLAIN = {"resnet34", "mobilenetv3", "efficientnetb1"}
PAPER_004 = (
    PLAIN | {f"{name}-transfer" for name in PLAIN} | {f"{name}-multilabel" for name in PLAIN} | {"efficientnetb1-transfer-multilabel"}
)
AS_RELEASED = {f"{name}-as-released" for name in ISLAM | PAPER_003}
PAPERS = {
    "000": {"croup-cnn-lstm"},
    "001": ISLAM | {f"{name}-as-released" for name in ISLAM},
    "002": PAPER_002,
    "003": PAPER_003 | {f"{name}-as-released" for name in PAPER_003},
    "004": PAPER_004,
}
FIGURES = {
    "accuracy", "macro_f1", "f1", "auroc", "sensitivity", "specificity", "precision",
    "seconds_per_epoch", "best_epoch", "images_per_second",
}  # fmt: skip
UNBOUNDED = {"seconds_per_epoch", "best_epoch", "images_per_second"}


def ghost(recipe: Recipe) -> Classifier:
    with torch.device("meta"):
        return build_classifier(recipe.model, 3, mean=0.45, std=0.25, image_size=(224, 224), load_weights=False)


def test_all_files_are_recipes() -> None:
    assert set(recipe_names()) == OURS.union(*PAPERS.values())
    assert {path.name for path in RECIPE_DIRECTORY.iterdir()} == {f"{name}.yaml" for name in recipe_names()}


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_names_itself_and_says_what_it_is(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert re.fullmatch(r"[A-Z].{20,160}\.", recipe.description)
    assert recipe.model.backbone.name in BACKBONES
    assert recipe.paper == next((paper for paper, names in PAPERS.items() if name in names), None)
    assert (recipe.expects is None) == (recipe.paper is None)
    build_augmentation(recipe.augment)


def test_descriptions_are_each_of_one_recipe() -> None:
    descriptions = [load_recipe(name).description for name in recipe_names()]
    assert len(set(descriptions)) == len(descriptions)


@pytest.mark.parametrize("name", recipe_names())
def test_claims(name: str) -> None:
    recipe = load_recipe(name)
    claimed = {"croup-cnn-lstm"} | ISLAM | PAPER_003 | PAPER_004 - {"resnet34-transfer", "mobilenetv3-transfer"} | {"vgg19-lstm"}
    assert bool(recipe.claims) == (name in claimed)
    for claim in recipe.claims:
        assert set(claim.figures) <= FIGURES
        assert all(value > 1 if key in UNBOUNDED else 0.3 < value <= 1 for key, value in claim.figures.items())


@pytest.mark.parametrize("name", recipe_names())
def test_exactly_that_learns_which_is_meant_to(name: str) -> None:
    recipe = load_recipe(name)
    model = ghost(recipe)
    learning = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    whole = {key for key, _ in model.named_parameters()}
    head = {key for key in whole if key.startswith("head.")}
    backbone = {key for key in whole if key.startswith("backbone.")}
    norms = {f"{path}.{key}" for path, module in model.named_modules() if isinstance(module, NORMS) for key, _ in module.named_parameters()}
    if name in AS_RELEASED:
        assert learning == head | (norms if name.startswith("islam") else norms - backbone)
        assert bool(norms & backbone) == ("vgg19" not in name)
    elif name in PAPER_003 or (name in PAPER_002 and not name.startswith("resnet152v2")):
        assert learning == whole - backbone
        assert model.backbone.is_constant
    elif name == "cnn-lstm-transfer":
        first = tuple(f"backbone.features.{index}." for index in range(7))
        assert learning == {key for key in whole if not key.startswith(first)}
    else:
        assert learning == whole
    held = {id(p) for group in model.parameter_groups(1e-3) for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("name", sorted(OURS - {"cnn-lstm-transfer"} | {"croup-cnn-lstm"} | ISLAM | PLAIN))
def test_recipes_from_scratch_need_no_network(name: str) -> None:
    assert load_recipe(name).model.backbone.weights == "none"


@pytest.mark.parametrize("name", sorted(AS_RELEASED))
def test_what_the_authors_scripts_do(name: str) -> None:
    recipe = load_recipe(name)
    training, model = recipe.training, recipe.model
    assert recipe.unsound
    assert "fold" in recipe.unsound
    assert recipe.cross_validation.start == "previous"
    assert recipe.cross_validation.weights == (0, 1, 2, 4, 8)
    islam = name.startswith("islam")
    assert (training.epochs, training.batch_size, training.optimizer.lr) == ((25, 16, 3e-4) if islam else (20, 16, 2e-4))
    assert (training.schedule.name, training.schedule.gamma, training.monitor) == ("exponential", 0.95, "last")
    assert (training.optimizer.name, training.optimizer.momentum, training.optimizer.rms_decay) == ("rmsprop", 0.0, 0.9)
    assert model.backbone.freeze_stages == -1
    assert model.backbone.train_norms == islam
    assert (model.backbone.weights, model.backbone.in_channels) == (("none", 3) if islam else ("default", 1))
    assert model.head.batch_norm
    if model.rnn.kind != "none":
        assert (model.rnn.activation, model.rnn.trainable, model.rnn.batch_norm, model.rnn.dropout) == ("relu", False, True, 0.0)


@pytest.mark.parametrize("name", sorted(set(recipe_names()) - AS_RELEASED))
def test_only_what_the_scripts_do_is_unsound(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.unsound is None
    assert recipe.cross_validation.start == "scratch"


@pytest.mark.parametrize(
    ("name", "epochs", "batch", "optimizer", "lr"),
    [
        ("croup-cnn-lstm", 100, 8, "rmsprop", 1e-4),
        *[(name, 125, 16, "rmsprop", 1e-4) for name in sorted(ISLAM)],
        *[(name, 100, 32, "rmsprop", 1e-5) for name in sorted(PAPER_003)],
        *[(name, 100, 32, "adam", 0.01) for name in sorted(PAPER_004)],
    ],
)
def test_published_settings(name: str, epochs: int, batch: int, optimizer: str, lr: float) -> None:
    training = load_recipe(name).training
    assert (training.epochs, training.batch_size, training.optimizer.name, training.optimizer.lr) == (epochs, batch, optimizer, lr)
    if name in PAPER_004:
        assert (training.schedule.name, training.schedule.final_lr_ratio, training.monitor) == ("cosine", 0.1, "val_loss")
        assert training.class_weights == ("balanced" if name.endswith("multilabel") else "none")
        recipe = load_recipe(name)
        assert recipe.augment == "paper-004"
        assert recipe.expects is not None
        assert recipe.expects.model_dump() == {"size": 384 if name.endswith("multilabel") else 224, "equalize": "hist", "blur": 5}
        assert (recipe.model.backbone.weights == "default") == ("transfer" in name)
    if name in PAPER_003:
        assert training.clip.by == "norm"


@pytest.mark.parametrize(
    ("control", "of"), [("cnn", "cnn-lstm"), ("islam-cnn", "islam-cnn-lstm"), ("islam-cnn-as-released", "islam-cnn-lstm-as-released")]
)
def test_control_differs_in_the_rnn_alone(control: str, of: str) -> None:
    ours, theirs = load_recipe(control), load_recipe(of)
    assert ours.model.rnn.kind == "none"
    assert theirs.model.rnn.kind == "lstm"
    prose = {"name", *ours.prose}
    for recipe in (ours, theirs):
        assert recipe.prose <= set(Recipe.model_fields)
    without = {"model": {"rnn": True}, **dict.fromkeys(prose, True)}
    assert ours.model_dump(exclude=without) == theirs.model_dump(exclude=without)
    assert {key: tensor.shape for key, tensor in ghost(ours).state_dict().items()} == {
        key: tensor.shape for key, tensor in ghost(theirs.without_rnn()).state_dict().items()
    }


@pytest.mark.parametrize("name", sorted(PAPER_002))
def test_variants_of_paper_002_differ_in_the_rnn_alone(name: str) -> None:
    recipe = load_recipe(name)
    backbone, _, variant = name.partition("-")
    base = load_recipe(f"{backbone}-lstm")
    rnn = recipe.model.rnn
    kind = "gru" if "gru" in variant else "lstm"
    assert (rnn.kind, rnn.bidirectional, rnn.readout) == (kind, variant.startswith("bi"), "attention" if "attention" in variant else "last")
    without = {"model": {"rnn": True}, "name": True, "description": True, "claims": True}
    assert recipe.model_dump(exclude=without) == base.model_dump(exclude=without)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_a_control(name: str) -> None:
    recipe = load_recipe(name)
    control = recipe.without_rnn()
    assert control.model.rnn.kind == "none"
    assert (control.model.backbone, control.model.head, control.training) == (recipe.model.backbone, recipe.model.head, recipe.training)


def test_the_documentation_names_every_recipe() -> None:
    """In full, or as one of a group: ``resnet152v2-lstm`` "with ``-gru``"."""
    text = (RECIPE_DIRECTORY.parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    for name in recipe_names():
        bases = [
            name.removesuffix(ending)
            for ending in ("-as-released", "-transfer", "-gru", "-bilstm", "-bigru", "-lstm-attention", "-gru-attention")
        ]
        assert any(f"`{base}`" in text or f"`{base}-lstm`" in text for base in (name, *bases)), name
