"""Samples made of noise, with whatever goes with the label put in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cxr_ray.audit.sample import SIDE, Sample
from cxr_ray.labels import LabelSet

LABELS = LabelSet(("a", "b"), "multiclass")
MakeSample = Callable[..., Sample]


@pytest.fixture
def make_sample() -> MakeSample:
    """``make_sample(count, images=…, source=[…])``: two classes in turn, two images a patient, noise."""

    def make(count: int = 200, *, targets: Any = None, labels: LabelSet = LABELS, **columns: Any) -> Sample:
        generator = np.random.default_rng(0)
        images = columns.pop("images", None)
        if images is None:
            images = generator.integers(60, 190, (count, SIDE, SIDE), dtype=np.uint8)
        if targets is None:
            targets = np.arange(count) // 2 % 2
        about = pa.table({"image_id": [f"i{row}" for row in range(count)], "source": ["one"] * count} | columns)
        groups = np.array([f"p{row // 2}" for row in range(count)])
        return Sample(images, np.asarray(targets), groups, about, labels, count)

    return make
