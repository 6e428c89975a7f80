"""KID orders what it should order: real below blurred below noise; and the extractor is the one that was named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cxr_ray.bundle import Bundle
from cxr_ray.config import BackboneConfig
from cxr_ray.data.phantoms import render_phantom, shots
from cxr_ray.errors import BundleError, ConfigError
from cxr_ray.imaging.preprocess import PreprocessSpec
from cxr_ray.models.backbones import build_backbone
from cxr_ray.models.classifier import Classifier
from cxr_ray.synthesis import quality
from cxr_ray.synthesis.extractor import Extractor, build_extractor
from cxr_ray.synthesis.quality import fid, kid, measure_quality
from cxr_ray.synthesis.rare import resize

SPEC = PreprocessSpec(height=48, width=48)


@pytest.fixture(scope="module")
def necks() -> np.ndarray:
    """60 croup phantoms of 48 x 48."""
    return np.concatenate([resize(render_phantom(shot).image[None], 48, 48) for shot in shots("croup", 60, 1, 96)])


def test_real_images_are_at_the_floor_and_noise_is_not(necks: np.ndarray) -> None:
    random = build_extractor(None, necks[:40], SPEC)
    assert random.is_random
    assert "random weights" in random.name
    found = measure_quality(necks[:40], necks[40:], random)
    assert found.floor.value < found.blurred.value < found.noise.value
    assert abs(found.kid.value) < 0.25 * found.blurred.value  # further real images, as good as can be
    assert found.fid is None
    facts = found.as_dict()
    assert facts["value"] == found.kid.value
    assert facts["noise"] == found.noise.value
    assert facts["subset"] == 20
    worse = measure_quality(necks[:40], quality.blur(necks[40:]), random)
    assert worse.kid.value > 0.5 * worse.blurred.value


def test_kid_of_features_repeats_and_is_zero_in_the_mean_for_equals() -> None:
    random = np.random.default_rng(0)
    one, other, far = (random.normal(shift, 1, (200, 6)).astype(np.float32) for shift in (0, 0, 1))
    assert kid(one, other, 50) == kid(one, other, 50)
    assert abs(kid(one, other, 50).value) < 0.1 * kid(one, far, 50).value
    assert fid(one, other) < 0.1 * fid(one, far)


def test_fid_only_where_there_are_enough_images(monkeypatch: pytest.MonkeyPatch) -> None:
    grey = Extractor("means", False, None, lambda images: torch.stack([images.float().mean((1, 2)), images.float().std((1, 2))], dim=1))
    random = np.random.default_rng(0)
    real, made = (random.integers(0, high, (30, 8, 8), dtype=np.uint8) for high in (256, 128))
    assert measure_quality(real, made, grey).fid is None
    monkeypatch.setattr(quality, "FID_LEAST", 30)
    assert (measure_quality(real, made, grey).fid or 0) > 100


def test_weights_of_a_backbone(tmp_path: Path, necks: np.ndarray) -> None:
    backbone = build_backbone(BackboneConfig(name="mobilenet_v2", in_channels=3))
    save_file(backbone.state_dict(), tmp_path / "weights.safetensors")
    extractor = build_extractor(str(tmp_path / "weights.safetensors"), necks, SPEC)
    assert not extractor.is_random
    assert "weights.safetensors" in extractor.name
    assert extractor.measure(necks[:5]).shape == (5, 1280)


def test_a_bundle(bundle: Bundle, classifier: Classifier) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 48, 48), dtype=np.uint8)
    extractor = build_extractor(bundle.location, images, SPEC)
    assert "BUNDLE" in extractor.name
    assert not extractor.is_random
    expected = classifier.eval().features(torch.from_numpy(resize(images, 32, 32))).detach().numpy()
    assert np.allclose(extractor.measure(images), expected, atol=1e-5)
    (Path(bundle.location) / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(BundleError):
        build_extractor(bundle.location, images, SPEC)


def test_an_extractor_that_is_nothing(tmp_path: Path, necks: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="neither a BUNDLE, nor a RUN"):
        build_extractor(str(tmp_path), necks, SPEC)
