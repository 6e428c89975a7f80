"""Splits: disjoint, complete, deterministic, even; and honest where they cannot be."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from cxr_ray.data.sources import Folder, Source, read_folder, read_source, tables
from cxr_ray.data.split import DROPPED, Split, SplitSpec, assign, make_split
from cxr_ray.errors import ConfigError, DatasetError
from cxr_ray.settings import parse_settings

SPECS = [
    SplitSpec(),
    SplitSpec(fractions=(0.5, 0.0, 0.5)),
    SplitSpec(fractions=(1, 0, 0)),
    SplitSpec(folds=2, test=0),
    SplitSpec(folds=5, test=0.2),
]


def multiclass(sizes: Sequence[int], classes: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Groups of these sizes; every class has groups enough, some groups have two classes."""
    random = np.random.default_rng(seed)
    groups = np.repeat([f"g{index}" for index in range(len(sizes))], sizes)
    first = np.arange(len(sizes)) % classes
    targets = np.repeat(first, sizes)
    other = random.random(len(targets)) < 0.1
    starts = np.cumsum([0, *sizes[:-1]])
    other[starts] = False
    targets[other] = random.integers(0, classes, other.sum())
    return targets, groups


GROUPS = st.tuples(st.lists(st.integers(1, 9), min_size=30, max_size=120), st.integers(2, 4), st.integers(0, 2**32 - 1))


def check(targets: NDArray[Any], groups: NDArray[Any], spec: SplitSpec, result: Split) -> None:
    """What holds for every grouped split."""
    assert set(result.partitions.tolist()) <= set(spec.shares)
    for group in np.unique(groups):
        assert len(set(result.partitions[groups == group].tolist())) == 1
    assert sum(result.report.images.values()) == len(targets)
    assert result.report.groups_crossing == result.report.images_crossing == 0
    assert result.report.crossings == {}


@settings(max_examples=20, deadline=None)
@given(GROUPS, st.sampled_from(SPECS), st.integers(0, 3))
def test_grouped_splits_are_disjoint_complete_and_leave_no_class_out(drawn: tuple[list[int], int, int], spec: SplitSpec, seed: int) -> None:
    targets, groups = multiclass(*drawn)
    spec = spec.model_copy(update={"seed": seed})
    result = make_split(targets, groups, spec)
    check(targets, groups, spec, result)
    for counts in result.report.per_label.values():
        assert min(counts.values()) > 0
    assert list(result.report.images) == list(spec.shares)


@settings(max_examples=6, deadline=None)
@given(GROUPS, st.sampled_from(SPECS), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(drawn: tuple[list[int], int, int], spec: SplitSpec, random: Any) -> None:
    targets, groups = multiclass(*drawn)
    keys = np.array([f"image-{index}" for index in range(len(targets))])
    order = list(range(len(targets)))
    random.shuffle(order)
    for policy in ("grouped", "image"):
        spec = spec.model_copy(update={"policy": policy, "undersample": spec.folds is None})
        first = assign(targets, groups, spec, keys=keys)
        assert np.array_equal(first, assign(targets, groups, spec, keys=keys))
        assert np.array_equal(first[order], assign(targets[order], groups[order], spec, keys=keys[order]))


@settings(max_examples=15, deadline=None)
@given(GROUPS, st.sampled_from(SPECS))
def test_multilabel_splits_are_disjoint_and_complete(drawn: tuple[list[int], int, int], spec: SplitSpec) -> None:
    sizes, labels, seed = drawn
    random = np.random.default_rng(seed)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    targets = (random.random((len(groups), labels)) < 0.3).astype(np.float32)
    targets[random.random(targets.shape) < 0.2] = np.nan
    result = make_split(targets, groups, spec)
    check(targets, groups, spec, result)
    has = targets == 1
    for name, counts in result.report.per_label.items():
        assert [counts[str(label)] for label in range(labels)] == has[result.partitions == name].sum(axis=0).tolist()


def test_another_seed_is_another_split() -> None:
    targets, groups = multiclass([1, 2, 3] * 100, 3, 0)
    splits = [assign(targets, groups, SplitSpec(seed=seed)) for seed in range(4)]
    tests = [set(np.flatnonzero(split == "test").tolist()) for split in splits]
    overlap = [len(tests[0] & other) / len(other) for other in tests[1:]]
    assert max(overlap) < 0.5


@pytest.mark.parametrize("spec", [SplitSpec(seed=3), SplitSpec(folds=5, test=0.1, seed=3)])
def test_shares_are_exact_where_groups_are_small(spec: SplitSpec) -> None:
    targets, groups = multiclass([1, 1, 2, 4] * 100, 3, 1)
    result = make_split(targets, groups, spec)
    totals = np.bincount(targets)
    for name, share in spec.shares.items():
        assert abs(result.report.images[name] - share * len(targets)) <= 2
        for label, count in result.report.per_label[name].items():
            assert abs(count - share * totals[int(label)]) <= 2


def test_large_and_small_groups_are_spread_alike() -> None:
    sizes = [1] * 400 + [10] * 60
    targets, groups = multiclass(sizes, 2, 0)
    split = assign(targets, groups, SplitSpec())
    large = np.isin(groups, [f"g{index}" for index in range(400, 460)])
    assert np.mean(split[large] == "test") == pytest.approx(0.15, abs=0.03)


def test_few_groups_of_a_class_reach_every_partition() -> None:
    groups = [f"a{index}" for index in range(100)] + ["r0", "r1", "r2"]
    targets = [0] * 100 + [1] * 3
    report = make_split(targets, groups, SplitSpec()).report
    assert [report.per_label[name]["1"] for name in ("train", "val", "test")] == [1, 1, 1]


def test_too_few_groups_of_a_class() -> None:
    targets, groups = [0, 0, 0, 0, 1, 1, 1], ["a", "b", "c", "d", "e", "e", "f"]
    with pytest.raises(DatasetError, match=r"each of 3 partitions \(train, val, test\) needs a group .* 'covid' has 2"):
        make_split(targets, groups, SplitSpec(), names=("normal", "covid"))
    assert set(assign(targets, groups, SplitSpec(fractions=(0.6, 0, 0.4)))) == {"train", "test"}


def test_too_few_groups_of_a_finding_is_noted() -> None:
    targets = np.zeros((12, 2))
    targets[:, 0] = 1
    targets[:2, 1] = 1
    report = make_split(targets, list("abcdefghijkl"), SplitSpec(), names=("Mass", "Hernia")).report
    assert "too few groups for 3 partitions: 'Hernia' has 2" in report.notes
    assert any(note.startswith("no image of 'Hernia' in ") for note in report.notes)


def test_image_level_splits_ignore_groups_and_say_so() -> None:
    targets, groups = multiclass([8] * 40, 2, 0)
    result = make_split(targets, groups, SplitSpec(policy="image"), keys=["same bytes"] * len(targets))
    report = result.report
    assert [round(count / len(targets), 2) for count in report.images.values()] == [0.7, 0.15, 0.15]
    crossing = [group for group in np.unique(groups) if len(set(result.partitions[groups == group])) > 1]
    assert report.groups_crossing == len(crossing) > 30
    assert report.images_crossing == 8 * len(crossing)
    both = sum({"train", "test"} <= set(result.partitions[groups == group]) for group in crossing)
    assert report.crossings["train/test"] == both
    assert any("too good" in note for note in report.notes)


OFFICIAL = ["train"] * 6 + ["val"] * 2 + ["test"] * 4
GROUPS_12 = ["a", "a", "b", "c", "d", "e", "f", "g", "a", "h", "i", "i"]


def test_official_parts_are_kept_and_their_overlaps_reported() -> None:
    result = make_split([0, 1] * 6, GROUPS_12, SplitSpec(policy="official"), official=OFFICIAL)
    assert result.partitions.tolist() == OFFICIAL
    assert (result.report.groups_crossing, result.report.images_crossing) == (1, 3)
    assert result.report.crossings == {"train/test": 1}
    assert any("1 group(s) stand on both sides" in note for note in result.report.notes)


@pytest.mark.parametrize("part", ["train_val", "train"])
def test_what_is_not_test_is_divided_by_group(part: str) -> None:
    targets, groups = multiclass([3] * 100, 2, 0)
    official = np.where(np.arange(300) < 200, part, "test")
    result = make_split(targets, groups, SplitSpec(policy="official"), official=official.tolist())
    assert (result.partitions[200:] == "test").all()
    assert np.mean(result.partitions[:200] == "val") == pytest.approx(0.15 / 0.85, abs=0.02)
    assert result.report.crossings in ({}, {"train/test": 1}, {"val/test": 1})  # row 200 cuts a group of three
    folds = make_split(targets, groups, SplitSpec(policy="official", folds=4), official=official.tolist())
    assert set(folds.partitions[:200]) == {"fold-0", "fold-1", "fold-2", "fold-3"}
    assert (folds.partitions[200:] == "test").all()


def test_no_official_split() -> None:
    spec = SplitSpec(policy="official")
    with pytest.raises(DatasetError, match="12 of 12 images have no official part"):
        make_split([0, 1] * 6, GROUPS_12, spec)
    with pytest.raises(DatasetError, match="1 of 12 images have no official part"):
        make_split([0, 1] * 6, GROUPS_12, spec, official=[None, *OFFICIAL[1:]])
    report = make_split([0, 1] * 6, GROUPS_12, spec, official=["train"] * 6 + ["val"] * 6).report
    assert "the source's split has no test part" in report.notes


@pytest.mark.parametrize("ratio", [1.0, 1.5])
def test_undersampling_cuts_the_training_part_alone(ratio: float) -> None:
    targets = np.array([0] * 300 + [1] * 60 + [2] * 100)
    groups = [f"g{index // 2}" for index in range(len(targets))]
    plain = make_split(targets, groups, SplitSpec())
    cut = make_split(targets, groups, SplitSpec(undersample=True, undersample_ratio=ratio))
    rarest = plain.report.per_label["train"]["1"]
    assert cut.report.per_label["train"] == {
        "0": int(rarest * ratio),
        "1": rarest,
        "2": min(int(rarest * ratio), plain.report.per_label["train"]["2"]),
    }
    kept = cut.partitions != DROPPED
    assert np.array_equal(cut.partitions[kept], plain.partitions[kept])
    assert set(plain.partitions[~kept]) == {"train"}
    assert np.array_equal(cut.dropped, np.flatnonzero(~kept))
    assert sum(cut.report.dropped.values()) == len(cut.dropped)
    assert cut.report.dropped["0"] == plain.report.per_label["train"]["0"] - int(rarest * ratio)
    other = make_split(targets, groups, SplitSpec(undersample=True, undersample_ratio=ratio, seed=1))
    assert not np.array_equal(cut.dropped, other.dropped)


def test_undersampling_is_for_classes() -> None:
    with pytest.raises(DatasetError, match="one class an image"):
        make_split(np.eye(9), list("abcdefghi"), SplitSpec(undersample=True))


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({"fractions": (0.7, 0.2, 0.2)}, "sum to 1, got 0.7, 0.2, 0.2"),
        ({"fractions": (1.2, -0.1, -0.1)}, "0 or more"),
        ({"fractions": (0, 0.5, 0.5)}, "1,0,0"),
        ({"folds": 1}, "folds"),
        ({"folds": 5, "test": 1.0}, "test"),
        ({"folds": 5, "undersample": True}, "needs a training part"),
        ({"policy": "random"}, "policy"),
        ({"fold": 5}, "unknown key; valid here: folds, fractions"),
    ],
)
def test_settings_that_do_not_fit(data: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        parse_settings(SplitSpec, data, where="--split")
    with pytest.raises(ValidationError):
        SplitSpec(**data)


def test_settings_survive_json() -> None:
    for spec in SPECS:
        assert SplitSpec.model_validate_json(spec.model_dump_json()) == spec
        assert sum(spec.shares.values()) == pytest.approx(1)


def test_the_report_is_plain_data() -> None:
    report = make_split([0, 1] * 30, [str(index) for index in range(60)], SplitSpec(policy="image", undersample=True)).report
    assert json.loads(json.dumps(report.as_dict()))["images"] == report.images


@pytest.mark.parametrize(
    ("targets", "groups", "fault"),
    [
        ([0, 1], ["a"], "2 targets, but 1 groups"),
        ([], [], "got"),
        ([0.5, 1.0], ["a", "b"], "integers"),
        ([-1, 1], ["a", "b"], "from 0 on"),
        ([0, 1], ["a", None], "1 images have no group"),
        ([0, 1], ["a", ""], "1 images have no group"),
        ([0, 2], ["a", "b"], "3 labels, but there are 2 names"),
    ],
)
def test_input_that_does_not_fit(targets: list[float], groups: list[str | None], fault: str) -> None:
    with pytest.raises(DatasetError, match=fault):
        make_split(targets, groups, SplitSpec(fractions=(1, 0, 0)), names=("x", "y"))


# --- real data ------------------------------------------------------------------------------------------------------------


def arrays(source: Source) -> tuple[NDArray[Any], list[str]]:
    if source.labels.task == "multiclass":
        targets = np.array([source.labels.index(row.label or "") for row in source.rows])
    else:
        targets = np.array([row.labels for row in source.rows])
    return targets, [row.patient or row.location for row in source.rows]


def worst_deviation(result: Split, spec: SplitSpec, totals: dict[str, int]) -> tuple[float, float]:
    """Of image shares, in parts of all; of label shares, relative to the share due."""
    size = sum(result.report.images.values())
    images = max(abs(result.report.images[name] / size - share) for name, share in spec.shares.items())
    labels = max(
        abs(result.report.per_label[name][label] / total / share - 1)
        for name, share in spec.shares.items()
        for label, total in totals.items()
    )
    return images, labels


@pytest.mark.parametrize("name", ["darkcovid", "kermany_train"])
@pytest.mark.parametrize("spec", [SplitSpec(), SplitSpec(seed=7), SplitSpec(folds=5, test=0.2)])
def test_real_classes_are_spread_evenly(real_data: Path, name: str, spec: SplitSpec) -> None:
    source = read_source(str(real_data / name))
    targets, groups = arrays(source)
    result = make_split(targets, groups, spec, names=source.labels.names)
    totals = dict(zip(source.labels.names, np.bincount(targets).tolist(), strict=True))
    images, labels = worst_deviation(result, spec, totals)
    assert images < 0.002
    assert labels < 0.03
    assert result.report.groups_crossing == 0


def test_nih64_is_spread_as_evenly_as_its_patients_allow(real_data: Path) -> None:
    """One patient has 21 of 31 images with Edema, another 20 of 40 with Pneumothorax: those cannot be even."""
    source = read_source(str(real_data / "nih64"))
    targets, groups = arrays(source)
    result = make_split(targets, groups, SplitSpec(), names=source.labels.names)
    common = {name: int(total) for name, total in zip(source.labels.names, targets.sum(axis=0), strict=True) if total >= 80}
    images, labels = worst_deviation(result, SplitSpec(), common)
    assert images < 0.01
    assert labels < 0.25
    for counts in result.report.per_label.values():
        assert all(count for label, count in counts.items() if label != "Hernia")


def test_nih_at_full_scale(real_data: Path) -> None:
    """112,120 images of 30,805 patients, 14 findings."""
    name = "Data_Entry_2017_v2020.csv.gz"
    table = tables.read_table(Folder(str(real_data / "nih_labels"), (name,)), name)
    patients = [row[3] for row in table.rows]
    findings = sorted({finding for row in table.rows for finding in row[1].split("|")} - {"No Finding"})
    targets = np.array([[finding in text for finding in findings] for text in (row[1].split("|") for row in table.rows)], dtype=np.float32)
    start = time.monotonic()
    result = make_split(targets, patients, SplitSpec(), names=findings)
    assert time.monotonic() - start < 30
    totals = dict(zip(findings, targets.sum(axis=0).astype(int).tolist(), strict=True))
    images, labels = worst_deviation(result, SplitSpec(), totals)
    assert images < 1e-4
    assert labels < 0.01
    assert result.report.groups_crossing == 0


def test_read_folder_rows_fit_a_split() -> None:
    listing = Folder("/x", tuple(f"{label}/{index}.png" for label in "ab" for index in range(10)))
    targets, groups = arrays(read_folder(listing, "folder"))
    assert set(assign(targets, groups, SplitSpec())) == {"train", "val", "test"}
