"""Shared by all tests: markers by folder, the hostile files, and where the real data lie."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cxr_ray.cluster import prepare_environment

prepare_environment()  # before anything imports ray

TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in {"unit", "integration", "e2e", "golden"}:
            item.add_marker(folder)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real X-rays; the test is skipped where it is absent."""
    folder = Path(os.environ.get("CXR_RAY_DATA") or TESTS.parent.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"real X-rays are absent: no folder at CXR_RAY_DATA or {folder}")
    return folder


@pytest.fixture(scope="session")
def hostile() -> ModuleType:
    """``tests/hostile.py``: makers of good and of hostile image files."""
    specification = importlib.util.spec_from_file_location("hostile", TESTS / "hostile.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def classifier() -> Any:
    """A tiny CNN-LSTM for 32 x 32 images and two labels, its random weights always the same."""
    import torch

    from cxr_ray.models.classifier import build_classifier

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_classifier(tiny_model(), 2, mean=0.5, std=0.25, image_size=(32, 32))


def tiny_model() -> Any:
    """The network of :func:`classifier`."""
    from cxr_ray.config import BackboneConfig, ModelConfig, RnnConfig

    return ModelConfig(backbone=BackboneConfig(name="small_cnn"), rnn=RnnConfig(hidden_size=8))


@pytest.fixture
def bundle(tmp_path: Path, classifier: Any) -> Any:
    """A bundle of :func:`classifier`."""
    from cxr_ray.bundle import Provenance, write_bundle
    from cxr_ray.imaging.preprocess import PreprocessSpec
    from cxr_ray.labels import LabelSet

    provenance = Provenance(
        cxr_ray="0", recipe="tiny", seed=0, epoch=0, dataset="none", dataset_fingerprint="d" * 64, run_fingerprint="r" * 64, versions={}
    )
    return write_bundle(
        str(tmp_path / "bundle"),
        model=classifier,
        name="tiny",
        model_config=tiny_model(),
        labels=LabelSet(("covid", "normal"), "multiclass"),
        preprocess=PreprocessSpec(height=32, width=32),
        mean=0.5,
        std=0.25,
        provenance=provenance,
        card="# tiny\n",
    )


@pytest.fixture(scope="session")
def png() -> bytes:
    """A grey PNG of 48 x 40 pixels."""
    import io

    import numpy as np
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()
