"""Subgroups: figures are those of their rows alone, small groups show counts alone, differences are to the rest."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from cxr_ray.evaluation.metrics import compute_metrics
from cxr_ray.evaluation.subgroups import attributes, subgroups
from cxr_ray.labels import LabelSet

TWO, FINDINGS = LabelSet(("covid", "normal"), "multiclass"), LabelSet(("effusion", "nodule"), "multilabel")


def case(rows: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A model that reads women better than men."""
    generator = np.random.default_rng(0)
    targets, sex = generator.integers(0, 2, rows), generator.choice(["F", "M"], rows)
    signal = np.where(sex == "F", 2.0, 0.3) * (1 - 2 * targets) + generator.normal(size=rows)
    present = 1 / (1 + np.exp(-signal))
    return np.column_stack([present, 1 - present]), targets, np.array([f"p{row // 2}" for row in range(rows)]), sex


def rows_of(found: dict[str, Any], attribute: str) -> dict[str, Any]:
    return {row["group"]: row for row in found["attributes"][attribute]}


def test_a_group_is_scored_by_its_own_rows() -> None:
    said, targets, patients, sex = case()
    found = rows_of(subgroups(said, targets, patients, TWO, {"sex": sex}, resamples=100), "sex")
    for kind, row in found.items():
        mine = sex == kind
        alone = compute_metrics(said[mine], targets[mine], patients[mine], TWO, split="x", resamples=1)
        assert row["n"] == mine.sum()
        assert row["figures"]["accuracy"]["value"] == pytest.approx(alone["accuracy"]["value"])
        assert row["per_label"]["covid"]["auroc"]["value"] == pytest.approx(alone["per_label"]["covid"]["auroc"]["value"])
    women, men = (found[kind]["figures"]["macro_auroc"] for kind in ("F", "M"))
    assert women["difference"]["value"] == pytest.approx(women["value"] - men["value"])
    assert women["difference"]["ci95"][0] > 0
    assert men["difference"]["value"] == pytest.approx(-women["difference"]["value"])
    json.dumps(found, allow_nan=False)


def test_small_groups_show_counts_alone() -> None:
    said, targets, patients, _ = case()
    view = np.where(np.arange(400) < 30, "lateral", "PA")
    found = rows_of(subgroups(said, targets, patients, TWO, {"view": view}, resamples=20), "view")
    assert found["lateral"]["figures"] is None
    assert found["lateral"]["per_label"] == {name: {"n": int((targets[:30] == k).sum())} for k, name in enumerate(TWO.names)}
    assert found["PA"]["figures"] is None, "the rest is too small to be compared with"
    asked = rows_of(subgroups(said, targets, patients, TWO, {"view": view}, least_images=5, resamples=20), "view")
    assert asked["lateral"]["figures"] is not None
    few = subgroups(said, targets, np.where(view == "PA", patients, "one"), TWO, {"view": view}, least_images=5, resamples=20)
    assert rows_of(few, "view")["lateral"]["figures"] is None, "images of one patient"
    assert subgroups(said, targets, patients, TWO, {"view": np.full(400, "PA")}, resamples=20)["attributes"] == {}


def test_a_finding_is_shown_where_it_alone_is_common_enough() -> None:
    said, targets, patients, sex = case()
    both = np.column_stack([targets == 0, np.arange(400) < 5]).astype(float)
    found = rows_of(subgroups(np.column_stack([said[:, 0]] * 2), both, patients, FINDINGS, {"sex": sex}, resamples=20), "sex")
    assert found["F"]["figures"] is None
    assert found["F"]["per_label"]["effusion"]["auroc"]["value"] > 0.8
    assert set(found["F"]["per_label"]["nodule"]) == {"n"}


def test_groups_of_the_columns() -> None:
    found = attributes({"sex": ["F", None], "view": ["PA", "AP"], "source": ["a", "a"], "age": [0.5, 65.0]})
    assert {name: values.tolist() for name, values in found.items()} == {
        "sex": ["F", ""],
        "view": ["PA", "AP"],
        "source": ["a", "a"],
        "age": ["0 to 0 years", "65 years and older"],
    }
    assert attributes({"sex": [None], "view": [None], "source": ["a"], "age": [float("nan")]})["age"].tolist() == [""]
