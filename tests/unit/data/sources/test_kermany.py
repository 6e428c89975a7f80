"""Kermany: kinds and patients from file names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cxr_ray.data.sources import SourceOptions, read_source
from cxr_ray.data.sources.kermany import patient_and_kind

Tree = Callable[[Mapping[str, str]], str]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("person12_bacteria_46.jpeg", ("person12", "bacteria")),
        ("person12_virus_47.jpeg", ("person12", "virus")),
        ("person1372_virus_2363_1.jpeg", ("person1372", "virus")),
        ("train/NORMAL/IM-0115-0001.jpeg", ("IM-0115", "normal")),
        ("IM-0640-0001-0001.jpeg", ("IM-0640", "normal")),
        ("NORMAL2-IM-0383-0001.jpeg", ("NORMAL2-IM-0383", "normal")),
        ("BACTERIA-1008087-0001.jpeg", ("1008087", "bacteria")),
        ("NORMAL-1003233-0002.jpeg", ("1003233", "normal")),
        ("scan.jpeg", (None, None)),
    ],
)
def test_file_names(name: str, expected: tuple[str | None, str | None]) -> None:
    assert patient_and_kind(name) == expected


FILES = dict.fromkeys(
    (
        "chest_xray/train/NORMAL/IM-0115-0001.jpeg",
        "chest_xray/train/PNEUMONIA/person1_bacteria_1.jpeg",
        "chest_xray/val/PNEUMONIA/person2_virus_3.jpeg",
        "chest_xray/test/NORMAL/NORMAL2-IM-0007-0001.jpeg",
        "chest_xray/test/PNEUMONIA/odd.jpeg",
        "chest_xray/train/PNEUMONIA/IM-0009-0001.jpeg",
        "chest_xray/extra.jpeg",
        "__MACOSX/chest_xray/train/NORMAL/._IM-0115-0001.jpeg",
    ),
    "",
)


def test_three_labels_and_the_official_split(tree: Tree) -> None:
    source = read_source(tree(FILES))
    assert source.labels.names == ("normal", "bacteria", "virus")
    assert {(row.label, row.patient, row.split) for row in source.rows} == {
        ("normal", "IM-0115", "train"),
        ("bacteria", "person1", "train"),
        ("virus", "person2", "val"),
        ("normal", "NORMAL2-IM-0007", "test"),
    }
    assert source.rejected == (
        ("chest_xray/extra.jpeg", "not in NORMAL or PNEUMONIA"),
        ("chest_xray/test/PNEUMONIA/odd.jpeg", "no label"),
        ("chest_xray/train/PNEUMONIA/IM-0009-0001.jpeg", "conflicting labels"),
    )


def test_two_labels(tree: Tree) -> None:
    source = read_source(tree(FILES), options=SourceOptions(labels=2))
    assert source.labels.names == ("normal", "pneumonia")
    assert Counter(row.label for row in source.rows) == {"normal": 2, "pneumonia": 3}  # odd.jpeg needs no kind here
    assert ("chest_xray/train/PNEUMONIA/IM-0009-0001.jpeg", "conflicting labels") in source.rejected


def test_kermany_train(real_data: Path) -> None:
    source = read_source(str(real_data / "kermany_train"))
    assert source.format == "kermany"
    assert Counter(row.label for row in source.rows) == {"normal": 1341, "bacteria": 2530, "virus": 1345}
    assert len({row.patient for row in source.rows}) == 2846
    kinds: dict[str | None, set[str | None]] = {}
    for row in source.rows:
        kinds.setdefault(row.patient, set()).add(row.label)
    assert sum(len(kind) == 2 for kind in kinds.values()) == 808
    assert source.rejected == ()
