"""Which phantoms there are: independent of the count, and nothing but the picture says the label."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from cxr_ray.data.phantoms import CLASSES, MULTILABEL, SOURCES, TASKS, Shot, shots

LARGE = 1500


@pytest.fixture(scope="module", params=TASKS)
def plan(request: pytest.FixtureRequest) -> list[Shot]:
    return list(shots(request.param, LARGE, 0, 256))


def association(labels: np.ndarray, others: np.ndarray) -> float:
    """Cramér's V of two categorical columns: 0 is independent, 1 is a function of each other."""
    rows, columns = np.unique(labels, return_inverse=True)[1], np.unique(others, return_inverse=True)[1]
    if columns.max() == 0:  # a column of one value says nothing
        return 0.0
    table = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(table, (rows, columns), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    return float(np.sqrt(((table - expected) ** 2 / expected).sum() / table.sum() / (min(table.shape) - 1)))


@pytest.mark.parametrize("task", TASKS)
def test_a_longer_plan_goes_on_where_a_shorter_one_ends(task: str) -> None:
    assert list(shots(task, 40, 3, 128)) == list(shots(task, 90, 3, 128))[:40]


def test_another_seed_gives_other_images() -> None:
    first, second = (list(shots("covid", 40, seed, 128)) for seed in (0, 1))
    assert not {shot.name for shot in first} & {shot.name for shot in second}
    assert [shot.findings for shot in first] != [shot.findings for shot in second]


def test_names_are_unique_and_do_not_follow_the_order(plan: list[Shot]) -> None:
    names = [shot.name for shot in plan]
    assert len(set(names)) == LARGE
    assert names != sorted(names)


def test_a_patient_stays_the_same(plan: list[Shot]) -> None:
    visits = defaultdict(list)
    for shot in plan[:-1]:
        visits[shot.patient_id].append(shot)
    assert sum(len(each) > 1 for each in visits.values()) > LARGE / 10
    for each in visits.values():
        assert len({(shot.sex, shot.age, shot.source) for shot in each}) == 1
        if each[0].task != "multilabel":
            assert len({shot.label for shot in each}) == 1


@pytest.mark.parametrize("task", CLASSES)
def test_classes_are_balanced(task: str) -> None:
    counts = Counter(shot.label for shot in shots(task, 600, 0, 256))
    assert set(counts) == set(CLASSES[task])
    assert max(counts.values()) < 1.25 * min(counts.values())


def test_findings_come_together_and_some_are_unknown() -> None:
    plan = list(shots("multilabel", 600, 0, 256))
    assert {name for shot in plan for name in shot.findings} == set(MULTILABEL)
    assert sum(len(shot.findings) > 1 for shot in plan) > 150
    assert sum(not shot.findings for shot in plan) > 50
    unknown = sum(len(shot.unknown) for shot in plan) / (600 * len(MULTILABEL))
    assert 0.05 < unknown < 0.12


@pytest.mark.parametrize("column", ["decoy", "source", "format", "view", "sex", "wide", "tall", "old"])
def test_nothing_else_tells_the_label(plan: list[Shot], column: str) -> None:
    derived = {
        "wide": lambda shot: shot.width // 20,
        "tall": lambda shot: shot.height // 20,
        "old": lambda shot: min(8, int(shot.age // 10)) if shot.task != "croup" else int(shot.age),
        "decoy": lambda shot: few_values(shot.decoy, shot.task),
    }
    read = derived.get(column, lambda shot: getattr(shot, column))
    labels = np.array([few_values(shot.findings, shot.task) for shot in plan])
    # 1,500 images, up to 9 x 2 cells: independent columns stay under 0.12; a column that helps is far above.
    assert association(labels, np.array([str(read(shot)) for shot in plan])) < 0.12


def few_values(findings: tuple[str, ...], task: str) -> str:
    """A label with few values: the class, or whether anything is found in the lungs."""
    return "|".join(findings) if task != "multilabel" else str("consolidation" in findings)


def test_each_source_sends_every_format_but_dicom() -> None:
    seen = defaultdict(set)
    for shot in shots("covid", 400, 0, 256):
        seen[shot.source].add(shot.format)
    assert set(seen) == set(SOURCES)
    assert all({"png", "jpeg"} <= formats for formats in seen.values())


@pytest.mark.parametrize("task", TASKS)
def test_dicom_series_belong_to_a_patient_of_each_class(task: str) -> None:
    series = [shot for shot in shots(task, 60, 0, 256) if shot.format == "dicom"]
    assert {shot.monochrome for shot in series} == {1, 2}
    assert min(Counter(shot.patient_id for shot in series).values()) >= 2
    if task in CLASSES:
        assert {shot.label for shot in series} == set(CLASSES[task])
