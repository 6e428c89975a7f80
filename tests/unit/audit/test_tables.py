"""A label that goes with a facet is told from one that does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cxr_ray.audit.chance import Draws
from cxr_ray.audit.record import Check
from cxr_ray.audit.sample import Sample
from cxr_ray.audit.tables import FACETS, check_facet, judge
from cxr_ray.labels import LabelSet

BY_NAME = {facet.name: facet for facet in FACETS}


def look(name: str, sample: Sample) -> Check:
    return check_facet(BY_NAME[name], sample, Draws.of(sample.groups, count=100, seed=0))


def test_one_source_a_class_fails(make_sample: Any) -> None:
    found = look("label-by-source", make_sample(source=["x" if row // 2 % 2 else "y" for row in range(200)]))
    assert found.verdict == "fail"
    assert found.value == pytest.approx(1.0)
    assert found.details["counts"] == {"a": {"x": 0, "y": 100}, "b": {"x": 100, "y": 0}}


def test_both_classes_from_both_sources_pass(make_sample: Any) -> None:
    found = look("label-by-source", make_sample(source=[str(row // 4 % 2) for row in range(200)]))
    assert (found.verdict, found.advice) == ("ok", "nothing to do")


def test_a_facet_that_is_missing_or_constant_does_not_arise(make_sample: Any) -> None:
    sample = make_sample(view=[None] * 200)
    for name in ("label-by-view", "label-by-age", "label-by-size", "label-by-source"):
        found = look(name, sample)
        assert (found.verdict, found.value, found.threshold) == ("ok", None, None)
        assert found.advice


def test_what_is_unknown_in_one_class_alone_is_seen(make_sample: Any) -> None:
    found = look("label-by-sex", make_sample(sex=[None if row // 2 % 2 else "FM"[row // 4 % 2] for row in range(200)]))
    assert found.verdict == "fail"
    assert "unknown" in found.details["counts"]["b"]


def test_children_against_adults_is_seen(make_sample: Any) -> None:
    found = look("label-by-adult-or-child", make_sample(age=[5.0 if row // 2 % 2 else 50.0 for row in range(200)]))
    assert found.verdict == "fail"


def test_a_size_of_one_class_is_seen_though_most_images_share_it(make_sample: Any) -> None:
    heights = [640 if row // 2 % 2 else 400 + row for row in range(200)]
    found = look("label-by-size", make_sample(file_height=heights, file_width=[640] * 200))
    assert found.value == pytest.approx(1.0, abs=0.05)


def test_of_several_labels_the_one_that_is_tied_decides(make_sample: Any) -> None:
    labels = LabelSet(("free", "tied"), "multilabel")
    rows = np.arange(200)
    targets = np.column_stack([rows // 4 % 2, rows // 2 % 2]).astype(np.float32)
    targets[::20, 1] = np.nan
    found = look("label-by-source", make_sample(targets=targets, labels=labels, source=[str(row // 2 % 2) for row in rows]))
    assert found.verdict == "fail"
    assert found.details["by_label"]["free"] < 0.2 < found.details["by_label"]["tied"]


@pytest.mark.parametrize(
    ("low", "value", "chance", "verdict"),
    [(0.05, 0.2, 0.1, "ok"), (0.2, 0.3, 0.4, "ok"), (0.2, 0.3, 0.1, "warn"), (0.6, 0.7, 0.1, "fail")],
)
def test_verdicts_need_the_whole_interval_and_more_than_chance(low: float, value: float, chance: float, verdict: str) -> None:
    assert judge(low, value, chance, 0.1, 0.5) == verdict
