"""Labels of another source are matched by name or by mapping; what has no counterpart is left out and counted."""

from __future__ import annotations

import math

import pytest

from cxr_ray.data.sources.base import Source, SourceRow
from cxr_ray.errors import ConfigError, SourceError
from cxr_ray.evaluation.external import in_our_labels, parse_mapping
from cxr_ray.labels import LabelSet

OURS = LabelSet(("COVID-19", "Normal", "Pneumonia"), "multiclass")
FINDINGS = LabelSet(("effusion", "nodule", "mass"), "multilabel")


def row(name: str, label: str | None = None, labels: tuple[float, ...] | None = None) -> SourceRow:
    return SourceRow(f"/there/{name}.png", label, labels, None, "there", None, None, None, None)


def classes(*labels: str) -> Source:
    rows = tuple(row(str(place), label) for place, label in enumerate(labels))
    return Source("there", LabelSet(tuple(sorted(set(labels))), "multiclass"), rows, (), (), location="/there")


def test_names_match_whatever_their_capitals_and_the_rest_by_mapping() -> None:
    found = in_our_labels(classes("COVID", "NORMAL", "NORMAL", "Lung_Opacity"), OURS, {"COVID": "COVID-19"})
    assert found.source.labels == OURS
    assert [(each.location, each.label) for each in found.source.rows] == [
        ("/there/0.png", "COVID-19"),
        ("/there/1.png", "Normal"),
        ("/there/2.png", "Normal"),
    ]
    assert found.notes == (
        "External data there: labels read as COVID as COVID-19, NORMAL as Normal.",
        "Left out, for the model has no such label: Lung_Opacity (1 images).",
        "No image there is labelled Pneumonia: figures that need them are undefined.",
    )


def test_two_of_theirs_may_be_one_of_ours() -> None:
    found = in_our_labels(classes("bacteria", "virus", "normal"), OURS, {"bacteria": "Pneumonia", "virus": "Pneumonia"})
    assert [each.label for each in found.source.rows] == ["Pneumonia", "Pneumonia", "Normal"]


def test_findings_are_put_in_our_order_and_what_they_do_not_say_is_unknown() -> None:
    theirs = LabelSet(("Nodule", "Pleural effusion", "Fluid", "Hernia"), "multilabel")
    rows = (row("a", labels=(1.0, 0.0, 1.0, 1.0)), row("b", labels=(0.0, 0.0, math.nan, 0.0)))
    source = Source("there", theirs, rows, (), (), location="/there")
    found = in_our_labels(source, FINDINGS, {"Pleural effusion": "effusion", "Fluid": "effusion"})
    first, second = (each.labels for each in found.source.rows)
    assert first is not None
    assert second is not None
    assert first[:2] == (1.0, 1.0)
    assert second[:2] == (0.0, 0.0)
    assert math.isnan(first[2])
    assert "no such label: Hernia." in found.notes[1]
    assert "labelled mass" in found.notes[2]


@pytest.mark.parametrize(
    ("source", "mapping", "error", "expected"),
    [
        (classes("flu", "cold"), {}, SourceError, "no label of the source"),
        (classes("flu", "cold"), {"flue": "Normal"}, ConfigError, "'flue' is no label of the source; it has cold, flu"),
        (classes("flu", "cold"), {"flu": "normal"}, ConfigError, "'normal' is no label of the model; it has COVID-19"),
        (Source("t", LabelSet(("Normal",), "multilabel"), (), (), ()), {}, SourceError, "multilabel source, the model a multiclass"),
    ],
)
def test_what_cannot_be_matched(source: Source, mapping: dict[str, str], error: type[Exception], expected: str) -> None:
    with pytest.raises(error, match=expected):
        in_our_labels(source, OURS, mapping)


def test_a_mapping_is_read_and_all_its_faults_told() -> None:
    assert parse_mapping(None) == {}
    assert parse_mapping("COVID=COVID-19, NORMAL=Normal") == {"COVID": "COVID-19", "NORMAL": "Normal"}
    with pytest.raises(ConfigError, match=r"2 fault(?s:.)*THEIRS=OURS(?s:.)*twice"):
        parse_mapping("COVID,a=b,a=c")
