"""Each probe sees its own shortcut, and none sees one in noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cxr_ray.audit.chance import Draws
from cxr_ray.audit.dataset import check_sample
from cxr_ray.audit.noise import check_noise, doubtful
from cxr_ray.audit.probes import PROBES, binned, check_probe, grey_statistics, make_folds
from cxr_ray.audit.record import Check
from cxr_ray.audit.sample import Sample

BY_NAME = {probe.name: probe for probe in PROBES}
MARKED = np.arange(200) // 2 % 2 == 1


def look(name: str, sample: Sample) -> Check:
    return check_probe(BY_NAME[name], sample, make_folds(sample, 0), Draws.of(sample.groups, count=100, seed=0))


def test_noise_raises_no_alarm(make_sample: Any) -> None:
    checks, doubts = check_sample(make_sample(), seed=0)
    assert [check.name for check in checks if check.verdict != "ok"] == []
    assert doubts == []


def test_a_marker_in_a_corner_fails_the_border(make_sample: Any) -> None:
    images = make_sample().images.copy()
    images[MARKED, 1:4, 1:4] = 255
    found = look("label-from-border", make_sample(images=images))
    assert found.verdict == "fail"
    assert found.value == pytest.approx(1.0, abs=0.02)
    assert found.details["counterpart"]["value"] < 0.7


def test_something_in_the_centre_passes_the_border(make_sample: Any) -> None:
    images = make_sample().images.copy()
    images[MARKED, 25:40, 15:25] += 60
    assert look("label-from-border", make_sample(images=images)).verdict == "ok"


def test_brightness_by_class_is_seen_by_grey_statistics(make_sample: Any) -> None:
    images = make_sample().images.copy()
    images[MARKED] += 30
    assert look("label-from-grey", make_sample(images=images)).verdict == "fail"
    assert grey_statistics(make_sample(images=images)).shape[0] == 200


def test_a_hospital_a_class_is_seen_by_source_and_by_file(make_sample: Any) -> None:
    facts = {"file_width": [100] * 200, "file_bits": [8] * 200, "file_mode": ["L"] * 200, "file_format": ["png"] * 200}
    sample = make_sample(source=[str(mark) for mark in MARKED], file_height=[90 + 20 * int(mark) for mark in MARKED], **facts)
    assert look("label-from-source", sample).verdict == "fail"
    assert look("label-from-file", sample).verdict == "fail"


def test_too_few_patients_are_said_and_not_asked(make_sample: Any) -> None:
    sample = make_sample(12)
    assert make_folds(sample, 0) is None
    found = look("label-from-border", sample)
    assert (found.verdict, found.value) == ("ok", None)
    assert "patients" in found.advice


def test_no_group_stands_on_both_sides_of_a_fold(make_sample: Any) -> None:
    sample = make_sample()
    folds = make_folds(sample, 0)
    assert folds is not None
    assert all(len(set(folds.fold_N[sample.groups == group])) == 1 for group in np.unique(sample.groups))


def test_what_most_images_have_is_a_bin_of_its_own() -> None:
    assert binned(np.array([1.0] * 50 + [0.5] * 5 + [2.0] * 5)).sum(axis=0).tolist() == [5, 50, 5]
    assert binned(np.array(["x"] * 4)).shape == (4, 0)


def test_a_wrong_label_is_doubted() -> None:
    probabilities = np.array([[0.9, 0.1]] * 5 + [[0.5, 0.5]] + [[0.2, 0.8]] * 4)
    given = np.array([0, 0, 0, 0, 1, 0, 1, 1, 1, -1])
    assert doubtful(probabilities, given).tolist() == [0, 0, 0, 0, 0, -1, 1, 1, 1, -1]


def test_swapped_labels_come_first_in_the_gallery(make_sample: Any) -> None:
    marked = np.arange(600) // 2 % 2 == 1
    images = make_sample(600).images // 16  # little noise
    images[marked, 20:44, 12:30] += 12
    targets = marked.astype(np.int64)
    swapped = [10, 11, 96, 97, 300, 301]
    targets[swapped] = 1 - targets[swapped]
    sample = make_sample(600, images=images, targets=targets)
    found, doubts = check_noise(sample, make_folds(sample, 0), Draws.of(sample.groups, count=100, seed=0))
    assert found.value == pytest.approx(len(swapped) / 600, abs=0.004)
    assert {doubt.row for doubt in doubts} <= set(swapped)
    assert len(doubts) >= 3
