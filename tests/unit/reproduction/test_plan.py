from __future__ import annotations

from pathlib import Path

import pytest

from cxr_ray.errors import ConfigError
from cxr_ray.reproduction.plan import arms_of, load_plan, plan_names, recipe_of, title

PLAN = """
name: small
description: A test.
data: {phantoms: cxr-ray ingest a, by-image: cxr-ray ingest b}
entries:
  - recipe: demo
    honest: {data: phantoms, protocol: test, overrides: [training.epochs=2]}
    published: {data: by-image, overrides: ["model.backbone.weights=$weights"]}
  - {recipe: cnn, title: other, control: false, honest: {data: phantoms}}
not_run:
  - {systems: vgg19, why: too slow}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return str(path)


@pytest.mark.parametrize("name", plan_names())
def test_built_in_plans_are_valid(name: str) -> None:
    plan = load_plan(name)
    assert plan.entries
    assert len({title(entry) for entry in plan.entries}) == len(plan.entries)


def test_the_control_is_the_honest_arm_without_its_rnn(file: str) -> None:
    entry = load_plan(file).entries[0]
    arms = arms_of(entry)
    assert list(arms) == ["honest", "control", "published"]
    honest, control = (recipe_of(entry, kind, arms[kind], {}) for kind in ("honest", "control"))
    assert honest.training == control.training
    assert honest.model.backbone == control.model.backbone
    assert (honest.model.rnn.kind, control.model.rnn.kind) == ("lstm", "none")
    assert honest.training.epochs == 2


def test_only_some_systems(file: str) -> None:
    some = load_plan(file, ["other"])
    assert [title(entry) for entry in some.entries] == ["other"]
    assert some.left_out == ("demo",)
    assert [title(entry) for entry in load_plan(file, ["cnn", "demo"]).entries] == ["demo", "other"]
    with pytest.raises(ConfigError, match=r"'none' is no system of this plan; there are: cnn, demo, other"):
        load_plan(file, ["none"])


def test_values_of_the_user_stand_for_names(file: str) -> None:
    entry = load_plan(file).entries[0]
    arm = arms_of(entry)["published"]
    assert recipe_of(entry, "published", arm, {"weights": "file.safetensors"}).model.backbone.weights == "file.safetensors"
    with pytest.raises(ConfigError, match=r"needs a value for \$weights(?s:.)*--let weights=VALUE"):
        recipe_of(entry, "published", arm, {})


def test_faults_are_found_before_anything_runs(file: str) -> None:
    Path(file).write_text(
        PLAN.replace("training.epochs=2", "training.epoch=2")
        .replace("recipe: cnn,", "recipe: cnnn,")
        .replace(", by-image: cxr-ray ingest b", "")
    )
    with pytest.raises(ConfigError, match=r"data 'by-image' is not(?s:.)*training.epoch: unknown key(?s:.)*other: no recipe of this name"):
        load_plan(file)
    with pytest.raises(ConfigError, match=r"no plan of this name; there are: .*cpu"):
        load_plan("gpu")
