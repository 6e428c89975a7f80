"""Intervals hold the truth about as often as they say, where patients have several images; counted by image they do not."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """``benchmarks/coverage.py``."""
    path = Path(__file__).parents[3] / "benchmarks" / "coverage.py"
    specification = importlib.util.spec_from_file_location("coverage_benchmark", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_truth_of_the_simulation_is_known(benchmark: ModuleType) -> None:
    from cxr_ray.evaluation.metrics import compute_metrics

    said, so, patient = benchmark.simulate(np.random.default_rng(0), 40_000, 1.0)
    found = compute_metrics(said, so, patient, benchmark.LABELS, split="x", resamples=1)["per_label"]["disease"]
    for name, value in benchmark.truth(1.0).items():
        assert found[name]["value"] == pytest.approx(value, abs=0.01)


def test_intervals_by_patient_hold_the_truth_and_by_image_too_seldom(benchmark: ModuleType) -> None:
    """120 studies: the share that is seen lies within 6 points of the true one."""
    shares, _ = benchmark.covered(repeats=120, patients=80, shared=1.5, resamples=200, seed=1)
    for name in ("sensitivity", "specificity", "auroc", "accuracy"):
        assert shares[f"bootstrap_patients.{name}"] > 0.89
    assert shares["delong_patients.auroc"] > 0.89
    assert shares["bootstrap_images.auroc"] < 0.86
    assert shares["delong_images.auroc"] < 0.86
