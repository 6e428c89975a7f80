"""A tiny model, images whose label is a bright patch, and the sample that the checks look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cxr_ray.evidence.sample import Sample
from cxr_ray.labels import LabelSet

LABELS = LabelSet(("covid", "normal"), "multiclass")


@pytest.fixture
def sample() -> Callable[..., Sample]:
    """``sample(count, sources=("a", "b"), probabilities=None, pooled=None)``: labels by turns, two images a patient."""

    def make(
        count: int = 120, *, sources: tuple[str, ...] = ("a", "b"), probabilities: Any = None, pooled: Any = None, source_of: Any = None
    ) -> Sample:
        generator = np.random.default_rng(1)
        targets = np.arange(count) // 2 % 2
        images = generator.integers(60, 140, (count, 32, 32), dtype=np.uint8)
        images[targets == 0, 10:22, 10:22] += 100
        place = np.arange(count) // 4 % len(sources) if source_of is None else source_of
        people = [f"p{row // 2}" for row in range(count)]
        about = pa.table(
            {
                "image_id": [f"i{row}" for row in range(count)],
                "patient_id": people,
                "group_id": people,
                "source": [sources[one] for one in place],
            }
        )
        said = np.column_stack([1.0 - targets, targets]) * 0.8 + 0.1 if probabilities is None else probabilities
        features = generator.normal(size=(count, 6)).astype(np.float32) if pooled is None else pooled
        return Sample(images, targets, about, LABELS, np.asarray(said, np.float32), features, count, 0)

    return make
