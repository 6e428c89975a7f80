"""What features know is found, and what they do not know is not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cxr_ray.evidence.probes import leave_one_source_out, source_in_features
from cxr_ray.evidence.sample import Sample

Make = Callable[..., Sample]


def test_a_source_that_features_hold_is_read_and_fails_where_labels_hang_on_it(sample: Make) -> None:
    whole = sample(120)
    told = np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32)
    told[whole.sources == "b", 0] += 4
    even = source_in_features(sample(120, pooled=told))
    assert even.value is not None
    assert even.value > 0.95
    assert even.verdict == "warn"  # readable, but the labels are spread evenly
    place = np.arange(120) // 2 % 2  # the source is the label
    told = np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32)
    told[place == 1, 0] += 4
    assert source_in_features(sample(120, pooled=told, source_of=place)).verdict == "fail"


def test_features_without_a_source_are_fine(sample: Make) -> None:
    check = source_in_features(sample(120))
    assert check.verdict == "ok"
    assert check.value is not None
    assert abs(check.value - 0.5) < 0.2


def test_one_source_or_too_few_images_are_no_question(sample: Make) -> None:
    for check in (source_in_features(sample(40, sources=("a",))), leave_one_source_out(sample(40, sources=("a",)))):
        assert check.value is None
        assert check.verdict == "ok"


def test_what_holds_at_one_source_alone_is_lost_at_the_other(sample: Make) -> None:
    whole = sample(240)
    signs = np.where(whole.targets == 1, 1.0, -1.0)
    everywhere, here = (np.random.default_rng(3).normal(size=(240, 6)).astype(np.float32) for _ in range(2))
    everywhere[:, 0] += 2 * signs
    here[:, 0] += np.where(whole.sources == "a", 3.0, -3.0) * signs  # at b the sign is the other way round
    here[:, 1] += np.where(whole.sources == "a", 3.0, 0.0) * signs
    here[:, 2] += np.where(whole.sources == "b", 3.0, 0.0) * signs
    assert leave_one_source_out(sample(240, pooled=everywhere)).verdict == "ok"
    lost = leave_one_source_out(sample(240, pooled=here))
    assert lost.verdict != "ok"
    assert {row["source"] for row in lost.details["table"]} == {"a", "b"}
