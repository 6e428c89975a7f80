"""A plan from its data to its pages: folds, an ensemble of folds, a control, an arm that fails, and the same command again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cxr_ray.data.ingest import ingest
from cxr_ray.data.phantoms import write_phantoms
from cxr_ray.data.shards import open_dataset
from cxr_ray.data.sources import read_source
from cxr_ray.data.split import SplitSpec
from cxr_ray.errors import ConfigError
from cxr_ray.imaging.preprocess import PreprocessSpec
from cxr_ray.reproduction.plan import load_plan
from cxr_ray.reproduction.reproduce import reproduce

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]

RECIPE = """
name: small
paper: "001"
description: A small network for this test.
claims: [{data: claimed data, figures: {accuracy: 0.99}}]
model: {backbone: {name: small_cnn}, rnn: {hidden_size: 8, readout: mean}}
training: {epochs: 1, batch_size: 16, monitor: last}
"""
RELEASED = """
extends: EXTENDED
name: small-as-released
unsound: this test says so
cross_validation: {start: previous, weights: [0, 1]}
"""
PLAN = """
name: test
description: A plan for a test.
data: {folds: the commands that make folds, absent: never given}
entries:
  - recipe: SMALL
    title: small
    honest: {data: folds, protocol: cv}
    released: {recipe: RELEASED, data: folds, protocol: ensemble}
    published: {data: folds, protocol: cv, overrides: [model.backbone.weights=/no/such/file.safetensors]}
  - {recipe: SMALL, title: other, honest: {data: absent}}
not_run: [{systems: a large one, why: too slow}]
"""


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("reproduce")
    write_phantoms(str(folder / "xrays"), task="covid", count=60, seed=1)
    source, spec = read_source(str(folder / "xrays")), PreprocessSpec(height=32, width=32)
    return ingest(source, str(folder / "folds"), preprocess=spec, split=SplitSpec(folds=2, test=0.3)).location


@pytest.fixture
def plan_file(tmp_path: Path) -> str:
    small, released, plan = (tmp_path / f"{name}.yaml" for name in ("small", "released", "plan"))
    small.write_text(RECIPE)
    released.write_text(RELEASED.replace("EXTENDED", str(small)))
    plan.write_text(PLAN.replace("SMALL", str(small)).replace("RELEASED", str(released)))
    return str(plan)


def test_a_plan_from_data_to_pages(folds: str, plan_file: str, tmp_path: Path) -> None:
    plan, out = load_plan(plan_file), str(tmp_path / "out")
    seen: list[str] = []
    result = reproduce(plan, {"folds": folds}, out, command="the command", show=lambda system, where, _: seen.append(f"{system} {where}"))
    assert sorted(set(seen)) == [f"small {kind} fold {fold}" for kind in ("control", "honest", "released") for fold in (0, 1)]
    (row,) = result["rows"]
    assert set(row["arms"]) == {"honest", "control", "released"}
    assert "published" in row["failed"]
    images = {name: part.images for name, part in open_dataset(folds).manifest.partitions.items()}
    assert row["arms"]["honest"]["n"] == images["fold-0"] + images["fold-1"]
    assert row["arms"]["released"]["n"] == images["test"] > 0
    assert row["arms"]["control"]["parameters"] < row["arms"]["honest"]["parameters"]
    assert row["difference"]["n"] == row["arms"]["honest"]["n"]
    assert any("this test says so" in warning for warning in row["arms"]["released"]["warnings"])

    page = Path(out, "reproduction.md").read_text()
    assert "accuracy 0.9900 (claimed data)" in page
    assert "no --data absent=DATASET was given" in page
    assert "Made by `the command`" in page
    assert json.loads(Path(out, "reproduction.json").read_text())["plan"] == "test"

    seen.clear()
    again = reproduce(plan, {"folds": folds}, out, show=lambda system, where, _: seen.append(where))
    assert not seen  # what is finished is not run again
    assert again["rows"][0]["arms"]["honest"]["figures"] == row["arms"]["honest"]["figures"]


def test_data_that_the_plan_does_not_know_is_a_mistake(plan_file: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no data called 'fold'; it has folds, absent"):
        reproduce(load_plan(plan_file), {"fold": "x"}, str(tmp_path))
    with pytest.raises(ConfigError, match="no system of the plan has its data"):
        reproduce(load_plan(plan_file), {}, str(tmp_path))
