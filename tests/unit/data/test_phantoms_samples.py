"""The service's samples are what the generator draws, and nobody's X-rays."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from cxr_ray.data.phantoms.samples import SAMPLES, Sample, sample_file, write_samples
from cxr_ray.imaging.decode import decode


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_the_committed_file_is_what_is_drawn(sample: Sample) -> None:
    committed = decode((files("cxr_ray.serving.web") / "samples" / sample.name).read_bytes()).pixels
    drawn = decode(sample_file(sample)).pixels
    assert committed.shape == drawn.shape
    assert np.abs(committed.astype(int) - drawn).mean() < 1  # encoders of other versions may round otherwise


def test_all_are_written(tmp_path: Path) -> None:
    write_samples(tmp_path / "samples")
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {sample.name for sample in SAMPLES}
