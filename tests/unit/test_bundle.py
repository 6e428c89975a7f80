"""A bundle is whole, verified and self-describing, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cxr_ray import storage
from cxr_ray.bundle import MANIFEST, WEIGHTS, Bundle, overwrite_guard, read_bundle
from cxr_ray.errors import BundleError


def edit(bundle: Bundle, **changes: object) -> None:
    place = Path(bundle.location) / MANIFEST
    data = json.loads(place.read_text())
    data.update(changes)
    place.write_text(json.dumps(data))


def test_the_model_comes_back_with_the_same_answers(bundle: Bundle, classifier: torch.nn.Module) -> None:
    images = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(bundle.load_model()(images), classifier.eval()(images))


def test_it_says_what_it_is(bundle: Bundle) -> None:
    assert bundle.labels.names == ("covid", "normal")
    assert (bundle.preprocess.height, bundle.preprocess.width) == (32, 32)
    assert bundle.version == storage.sha256_file(Path(bundle.location) / WEIGHTS)[:12]
    assert bundle.manifest.model.backbone.weights == "none"
    assert sorted(storage.list_files(bundle.location)) == ["README.md", "bundle.json", "model.safetensors"]


def test_no_pickle_in_it(bundle: Bundle) -> None:
    for name in storage.list_files(bundle.location):
        data = storage.read_bytes(storage.join(bundle.location, name))
        assert not data.startswith((b"\x80", b"PK\x03\x04")), name


@pytest.mark.parametrize("name", ["model.safetensors", "README.md"])
def test_a_changed_file_is_refused(bundle: Bundle, name: str) -> None:
    place = Path(bundle.location) / name
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 1
    place.write_bytes(bytes(data))
    with pytest.raises(BundleError, match="checksum"):
        read_bundle(bundle.location)


@pytest.mark.parametrize("name", ["model.safetensors", "README.md"])
def test_a_missing_file_is_refused(bundle: Bundle, name: str) -> None:
    (Path(bundle.location) / name).unlink()
    with pytest.raises(BundleError, match="missing"):
        read_bundle(bundle.location)


def test_a_missing_checksum_is_refused(bundle: Bundle) -> None:
    data = json.loads((Path(bundle.location) / MANIFEST).read_text())
    del data["files"][WEIGHTS]
    edit(bundle, files=data["files"])
    with pytest.raises(BundleError, match="no checksum"):
        read_bundle(bundle.location)


def test_preprocessing_this_version_cannot_do_is_refused(bundle: Bundle) -> None:
    data = json.loads((Path(bundle.location) / MANIFEST).read_text())
    edit(bundle, preprocess={**data["preprocess"], "fingerprint": "0" * 64})
    with pytest.raises(BundleError, match="preprocessing"):
        read_bundle(bundle.location)
    edit(bundle, preprocess={"spec": {**data["preprocess"]["spec"], "version": 9}, "fingerprint": data["preprocess"]["fingerprint"]})
    with pytest.raises(BundleError, match="version"):
        read_bundle(bundle.location)


@pytest.mark.parametrize(("changes", "expected"), [({"schema": "cxr-ray/bundle/9"}, "schema"), ({"colour": 1}, "unknown key")])
def test_another_schema_is_refused(bundle: Bundle, changes: dict[str, object], expected: str) -> None:
    edit(bundle, **changes)
    with pytest.raises(BundleError, match=expected):
        read_bundle(bundle.location)


def test_weights_of_another_network_are_refused(bundle: Bundle) -> None:
    data = json.loads((Path(bundle.location) / MANIFEST).read_text())
    data["model"]["rnn"]["hidden_size"] = 7
    edit(bundle, model=data["model"])
    with pytest.raises(BundleError, match="do not fit"):
        read_bundle(bundle.location).load_model()


@pytest.mark.parametrize("text", [None, b"", b"{", b"[]"], ids=["absent", "empty", "torn", "list"])
def test_what_is_no_bundle_is_said(tmp_path: Path, text: bytes | None) -> None:
    if text is not None:
        (tmp_path / MANIFEST).write_bytes(text)
    with pytest.raises(BundleError):
        read_bundle(str(tmp_path))


def test_overwriting_is_asked_for_and_removes_bundles_only(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not empty"):
        overwrite_guard(bundle.location, overwrite=False)
    overwrite_guard(bundle.location, overwrite=True)
    assert not Path(bundle.location).exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "x.png").write_bytes(b"x")
    with pytest.raises(BundleError, match="left alone"):
        overwrite_guard(str(tmp_path / "photos"), overwrite=True)
    assert (tmp_path / "photos" / "x.png").exists()


def test_the_predictor_answers_each_file_or_says_why_not(bundle: Bundle, png: bytes) -> None:
    from cxr_ray.errors import ImageError
    from cxr_ray.serving.predictor import Prediction, Predictor

    predictor = Predictor(bundle)
    good, bad, again = predictor.predict_bytes([png, b"text", png])
    assert isinstance(good, Prediction)
    assert isinstance(bad, ImageError)
    assert good == again
    assert sum(good.probabilities.values()) == pytest.approx(1.0, abs=1e-6)
    assert good.labels == (max(good.probabilities, key=lambda name: good.probabilities[name]),)
    one = predictor.predict_arrays(np.stack([predictor.decode(png)]))[0]
    assert [float(value) for value in one] == pytest.approx(list(good.probabilities.values()), abs=1e-6)
