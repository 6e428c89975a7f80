"""A bundle is whole, verified and self-describing, or refused with the reason."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cxr_ray import storage
from cxr_ray.bundle import MANIFEST, WEIGHTS, Bundle, NewMember, check_target, overwrite_guard, read_bundle, write_members
from cxr_ray.config import BackboneConfig, ModelConfig, RnnConfig
from cxr_ray.errors import BundleError
from cxr_ray.imaging.preprocess import PreprocessSpec
from cxr_ray.labels import LabelSet
from cxr_ray.models.classifier import Classifier, build_classifier
from cxr_ray.models.ensemble import Ensemble
from cxr_ray.models.gate import CHECKS, Gate, shapes
from cxr_ray.models.inference import predict_probabilities
from cxr_ray.models.record import GATE_FILE, GateRecord, Provenance, ThresholdOrigin


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
    assert bundle.version == read_bundle(bundle.location).version
    assert len(bundle.version) == 12
    assert [member.model.backbone.weights for member in bundle.manifest.members] == ["none"]
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


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schema": "cxr-ray/bundle/9"}, "schema"),
        ({"schema": "cxr-ray/bundle/1"}, r"cxr-ray/bundle/1(?s:.)*export the run again"),
        ({"colour": 1}, "unknown key"),
        ({"members": []}, "members"),
        ({"thresholds": [0.5, 0.5]}, "multilabel"),
        ({"task": "multilabel"}, "multilabel"),
        ({"task": "multilabel", "thresholds": [0.5]}, "2 labels and 1 thresholds"),
        ({"task": "multilabel", "thresholds": [0.5, 1.5]}, "in 0..1"),
    ],
)
def test_another_schema_or_contradiction_is_refused(bundle: Bundle, changes: dict[str, object], expected: str) -> None:
    edit(bundle, **changes)
    with pytest.raises(BundleError, match=expected):
        read_bundle(bundle.location)


def test_weights_of_another_network_are_refused(bundle: Bundle) -> None:
    data = json.loads((Path(bundle.location) / MANIFEST).read_text())
    data["members"][0]["model"]["rnn"]["hidden_size"] = 7
    edit(bundle, members=data["members"])
    with pytest.raises(BundleError, match="does not fit"):
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


# --- several models -------------------------------------------------------------------------------------------------------

NETWORKS = (
    ModelConfig(backbone=BackboneConfig(name="small_cnn"), rnn=RnnConfig(hidden_size=8)),
    ModelConfig(backbone=BackboneConfig(name="small_cnn"), rnn=RnnConfig(kind="gru", hidden_size=5, readout="mean")),
    ModelConfig(backbone=BackboneConfig(name="small_cnn"), rnn=RnnConfig(kind="none", readout="mean")),
)
CLASSES, FINDINGS = LabelSet(("covid", "normal"), "multiclass"), LabelSet(("effusion", "nodule"), "multilabel")


def build(seed: int, *, outputs: int = 2, size: int = 32) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_classifier(NETWORKS[seed], outputs, mean=0.4 + seed / 10, std=0.2, image_size=(size, size))


def member(seed: int, weight: float = 1.0, load: Callable[[], Classifier] | None = None) -> NewMember:
    provenance = Provenance(
        cxr_ray="0",
        recipe=f"tiny-{seed}",
        seed=seed,
        epoch=0,
        dataset="none",
        dataset_fingerprint="d" * 64,
        run_fingerprint=str(seed) * 64,
        versions={},
        trained_on=("fold-0", "fold-1"),
    )
    return NewMember(load or (lambda: build(seed)), NETWORKS[seed], 0.4 + seed / 10, 0.2, provenance, weight)


def write(out: Path, members: list[NewMember], labels: LabelSet = CLASSES, **settings: Any) -> Bundle:
    spec = PreprocessSpec(height=32, width=32)
    return write_members(str(out), members, name="several", labels=labels, preprocess=spec, card="# several", **settings)


@pytest.mark.parametrize("labels", [CLASSES, FINDINGS], ids=lambda labels: labels.task)
def test_several_models_answer_with_the_weighted_mean(tmp_path: Path, labels: LabelSet) -> None:
    bundle = write(tmp_path / "b", [member(0, 1), member(1, 2), member(2, 5)], labels)
    files = ["README.md", "bundle.json", "model-0.safetensors", "model-1.safetensors", "model-2.safetensors"]
    assert sorted(storage.list_files(bundle.location)) == files
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32), dtype=np.uint8)
    model = bundle.load_model()
    assert isinstance(model, Ensemble)
    assert not any(module.training for module in model.modules())
    each = [predict_probabilities(build(seed), images, labels.task) for seed in range(3)]
    expected = (each[0] + 2 * each[1] + 5 * each[2]) / 8
    assert np.abs(each[0] - each[1]).max() > 0.01, "members that agree would prove nothing"
    np.testing.assert_allclose(predict_probabilities(model, images, labels.task), expected, atol=1e-6)
    again = write(tmp_path / "again", [member(0, 1), member(1, 2), member(2, 5)], labels)
    assert again.version == bundle.version


def test_the_version_follows_from_all_that_answers_follow_from(tmp_path: Path) -> None:
    several = [
        write(tmp_path / "a", [member(0), member(1)], FINDINGS),
        write(tmp_path / "b", [member(0), member(2)], FINDINGS),
        write(tmp_path / "c", [member(0), member(1, 2)], FINDINGS),
        write(tmp_path / "d", [member(0), member(1)], FINDINGS, thresholds=(0.5, 0.4)),
        write(tmp_path / "e", [member(0)], FINDINGS),
    ]
    assert len({bundle.version for bundle in several}) == len(several)
    assert several[0].dataset_fingerprints == ("d" * 64,)


def test_no_two_models_need_be_in_memory(tmp_path: Path) -> None:
    alive: list[Any] = []

    def load(seed: int) -> Classifier:
        import weakref

        assert not any(reference() for reference in alive), "the model before is still held"
        model = build(seed)
        alive.append(weakref.ref(model))
        return model

    write(tmp_path / "b", [member(seed, load=lambda seed=seed: load(seed)) for seed in range(3)])
    assert len(alive) == 3


def test_a_member_is_checked_file_by_file(tmp_path: Path) -> None:
    bundle = write(tmp_path / "b", [member(0), member(1)])
    data = json.loads((tmp_path / "b" / MANIFEST).read_text())
    edit(bundle, members=[data["members"][0], {**data["members"][1], "weights": "../model-1.safetensors"}])
    with pytest.raises(BundleError, match=r"members.1.weights"):
        read_bundle(bundle.location)
    edit(bundle, members=[data["members"][0]] * 2)
    with pytest.raises(BundleError, match="two members name one file"):
        read_bundle(bundle.location)
    edit(bundle, members=[data["members"][0], {**data["members"][1], "weight": 0}])
    with pytest.raises(BundleError, match=r"members.1.weight"):
        read_bundle(bundle.location)
    edit(bundle, members=data["members"])
    assert read_bundle(bundle.location) == bundle
    (tmp_path / "b" / "model-1.safetensors").unlink()
    with pytest.raises(BundleError, match=r"model-1.safetensors is missing"):
        read_bundle(bundle.location)


def test_a_model_that_does_not_fit_is_not_written(tmp_path: Path) -> None:
    for load in (lambda: build(1, outputs=3), lambda: build(1, size=48)):
        out = tmp_path / str(load())[:5]
        with pytest.raises(BundleError, match=r"model-1.safetensors: a network of"):
            write(out, [member(0), member(1, load=load)])
        assert not (out / MANIFEST).exists()
        overwrite_guard(str(out), overwrite=True)
    with pytest.raises(BundleError, match="at least one"):
        write(tmp_path / "none", [])


def test_thresholds_and_warnings_travel_with_the_bundle(tmp_path: Path, png: bytes, caplog: pytest.LogCaptureFixture) -> None:
    from cxr_ray.serving.predictor import Prediction, Predictor

    origin = ThresholdOrigin(policy="f1", part="val of chest", n=40, not_fitted=("nodule",))
    told = origin.told()
    assert "F1 score" in told
    assert "val of chest (40 images)" in told
    assert "nodule" in told
    for cuts, expected in (((0.0, 1.0), ("effusion",)), ((1.0, 0.0), ("nodule",))):
        out = tmp_path / expected[0]
        bundle = write(out, [member(0), member(1)], FINDINGS, thresholds=cuts, threshold_origin=origin, unsound="it cheats")
        assert read_bundle(bundle.location).manifest.threshold_origin == origin
        answer = Predictor(bundle).predict_bytes([png])[0]
        assert isinstance(answer, Prediction)
        assert answer.labels == expected
    with caplog.at_level(logging.WARNING):
        bundle.warn_if_unsound()
    assert "must not be used: it cheats" in caplog.text
    caplog.clear()
    plain = write(tmp_path / "plain", [member(0)], FINDINGS)
    assert plain.manifest.thresholds == (0.5, 0.5)
    assert plain.manifest.threshold_origin == ThresholdOrigin(policy="fixed")
    plain.warn_if_unsound()
    assert caplog.text == ""


def test_a_bundle_of_several_is_overwritten_too(tmp_path: Path) -> None:
    bundle = write(tmp_path / "b", [member(0), member(1)])
    check_target(bundle.location, overwrite=True)
    overwrite_guard(bundle.location, overwrite=True)
    assert not (tmp_path / "b").exists()
    write(tmp_path / "b", [member(0)])
    (tmp_path / "b" / "model-x.safetensors").touch()
    with pytest.raises(BundleError, match="left alone"):
        check_target(str(tmp_path / "b"), overwrite=True)


@pytest.fixture
def gate() -> Gate:
    """One that lets all pass, of the tiny network's 160 channels."""
    facts: dict[str, Any] = {"channels": 160, "fitted_on": "a", "n": 30, "held_out": "b", "n_held_out": 20}
    facts |= {"false_alarms": {"any": 0.0}, "turned_found": 1.0, "inverted_found": 1.0, "thresholds": dict.fromkeys(CHECKS, 0.9)}
    return Gate(GateRecord(**facts), {name: np.zeros(shape, np.float32) for name, shape in shapes(160).items()})


def test_a_gate_travels_with_the_bundle(tmp_path: Path, gate: Gate) -> None:
    plain, gated = write(tmp_path / "plain", [member(0)]), write(tmp_path / "gated", [member(0)], gate=gate)
    assert plain.load_gate() is None
    found = gated.load_gate()
    assert found is not None
    assert found.record == gate.record
    assert all(np.array_equal(found.tensors[name], tensor) for name, tensor in gate.tensors.items())
    stricter = Gate(gate.record.model_copy(update={"thresholds": dict.fromkeys(CHECKS, 0.8)}), gate.tensors)
    other = Gate(gate.record, {**gate.tensors, "turn.bias": np.ones(4, np.float32)})
    versions = {write(tmp_path / name, [member(0)], gate=one).version for name, one in (("c", stricter), ("d", other))}
    assert len({plain.version, gated.version, *versions}) == 4
    overwrite_guard(gated.location, overwrite=True)
    assert not storage.exists(gated.location)


def test_a_gate_that_is_not_the_exported_one_is_refused(tmp_path: Path, gate: Gate) -> None:
    bundle = write(tmp_path / "b", [member(0)], gate=gate)
    place = tmp_path / "b" / GATE_FILE
    data = json.loads((tmp_path / "b" / MANIFEST).read_text())
    edit(bundle, gate={**data["gate"], "channels": 8})
    with pytest.raises(BundleError, match="does not fit the gate"):
        read_bundle(bundle.location).load_gate()
    edit(bundle, gate=data["gate"], files={name: record for name, record in data["files"].items() if name != GATE_FILE})
    with pytest.raises(BundleError, match=f"no checksum of {GATE_FILE}"):
        read_bundle(bundle.location)
    edit(bundle, files=data["files"])
    place.write_bytes(place.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="checksum differs"):
        read_bundle(bundle.location)
    place.unlink()
    with pytest.raises(BundleError, match=f"{GATE_FILE} is missing"):
        read_bundle(bundle.location)
