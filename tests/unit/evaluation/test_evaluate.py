"""Evaluating a bundle: members, thresholds and warnings reach metrics.json, the report and the card's source."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cxr_ray.bundle import Bundle, NewMember, write_members
from cxr_ray.config import BackboneConfig, ModelConfig, RnnConfig
from cxr_ray.data import columns
from cxr_ray.data.shards import Dataset
from cxr_ray.errors import DatasetError
from cxr_ray.evaluation.evaluate import Subject, evaluate, subject_of_bundle
from cxr_ray.imaging.preprocess import PreprocessSpec
from cxr_ray.labels import LabelSet
from cxr_ray.models.classifier import Classifier, build_classifier
from cxr_ray.models.record import Provenance, ThresholdOrigin

FINDINGS = LabelSet(("effusion", "nodule"), "multilabel")
NETWORK = ModelConfig(backbone=BackboneConfig(name="small_cnn"), rnn=RnnConfig(kind="none", readout="mean"))
SPEC = PreprocessSpec(height=16, width=16)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, write_noise: Callable[..., Dataset]) -> Dataset:
    return write_noise(tmp_path_factory.mktemp("noise"), FINDINGS, {"fold-0": 24, "fold-1": 24, "test": 24})


def build(seed: int) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_classifier(NETWORK, 2, mean=0.5, std=0.25, image_size=(16, 16))


def bundle_of(out: Path, trained: list[tuple[str, tuple[str, ...]]], **settings: Any) -> Bundle:
    """A member for each (fingerprint of its data, partitions)."""
    members = []
    for seed, (fingerprint, parts) in enumerate(trained):
        provenance = Provenance(
            cxr_ray="0",
            recipe=f"recipe-{seed}",
            seed=seed,
            epoch=seed,
            dataset="noise",
            dataset_fingerprint=fingerprint,
            run_fingerprint=str(seed) * 64,
            versions={},
            trained_on=parts,
        )
        members.append(NewMember(lambda seed=seed: build(seed), NETWORK, 0.5, 0.25, provenance, weight=seed + 1.0))  # type: ignore[misc]
    return write_members(str(out), members, name="several", labels=FINDINGS, preprocess=SPEC, card="# several", **settings)


def test_an_ensemble_is_scored_as_one_and_the_report_says_how(tmp_path: Path, dataset: Dataset) -> None:
    here = dataset.manifest.fingerprint
    scored = []
    for cuts in ((0.0, 1.0), (1.0, 0.0)):
        out = tmp_path / str(cuts)
        origin = ThresholdOrigin(policy="f1", part="fold-0 of noise", n=24)
        bundle = bundle_of(out / "bundle", [(here, ("fold-0",)), (here, ("fold-1",))], thresholds=cuts, threshold_origin=origin)
        metrics = evaluate(subject_of_bundle(bundle), dataset, str(out / "report"), resamples=20)
        assert metrics["warnings"] == []
        assert json.loads((out / "report" / "metrics.json").read_text()) == metrics
        assert [metrics["per_label"][name]["threshold"] for name in FINDINGS.names] == list(cuts)
        page = (out / "report" / "report.html").read_text()
        assert "Called from" in page
        assert "largest F1 score of each label on fold-0 of noise (24 images)" in page
        assert "recipe-1, training seed 1, epoch 2, run 111111111111, weight 2" in page
        called = "effusion" if cuts[0] == 0.0 else "nodule"
        assert f"called: {called}<" in page, "the gallery calls labels as the metrics do"
        scored.append(metrics)
        table = pq.read_table(out / "report" / "predictions.parquet")
        direct = torch.sigmoid(bundle.load_model()(torch.from_numpy(columns.pixels(dataset.read("test"), 16, 16).copy())))
        np.testing.assert_allclose(table["p_effusion"].to_numpy(), direct[:, 0].detach().numpy(), atol=1e-6)
    first, second = (entry["per_label"]["effusion"]["sensitivity"]["value"] for entry in scored)
    assert (first, second) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("trained", "split", "expected"),
    [
        ([("here", ("fold-0",)), ("here", ("fold-1",))], "test", []),
        ([("here", ("fold-0",)), ("here", ("fold-1",))], "fold-0", ["learned from"]),
        ([("here", ("fold-0",)), ("here", ("fold-1",))], "fold-1", ["learned from"]),
        ([("elsewhere", ("train",)), ("here", ("fold-1",))], "fold-1", ["other data", "learned from"]),
        ([("elsewhere", ("fold-1",)), ("here", ("fold-0",))], "fold-1", ["other data"]),
        ([("elsewhere", ("train",))], "test", ["external test"]),
    ],
)
def test_a_part_that_any_member_knows_is_warned_of(
    tmp_path: Path, dataset: Dataset, trained: list[tuple[str, tuple[str, ...]]], split: str, expected: list[str]
) -> None:
    here = [(dataset.manifest.fingerprint if where == "here" else "e" * 64, parts) for where, parts in trained]
    metrics = evaluate(subject_of_bundle(bundle_of(tmp_path / "b", here)), dataset, str(tmp_path / "r"), split=split, resamples=10)
    assert len(metrics["warnings"]) == len(expected)
    for warning, part in zip(metrics["warnings"], expected, strict=True):
        assert part in warning


def test_what_must_not_be_used_is_said_first(tmp_path: Path, dataset: Dataset) -> None:
    bundle = bundle_of(tmp_path / "b", [(dataset.manifest.fingerprint, ("fold-0",))], unsound="its folds leak")
    metrics = evaluate(subject_of_bundle(bundle), dataset, str(tmp_path / "r"), resamples=10)
    assert metrics["warnings"] == ["This model must not be used: its folds leak"]
    assert "its folds leak" in (tmp_path / "r" / "report.html").read_text()


def test_a_run_of_many_labels_says_that_a_half_was_used(tmp_path: Path, dataset: Dataset) -> None:
    trained_on = {dataset.manifest.fingerprint: ("fold-0", "fold-1")}
    subject = Subject("run", build(0).eval(), FINDINGS, SPEC, trained_on)
    metrics = evaluate(subject, dataset, str(tmp_path / "r"), resamples=10)
    (note,) = metrics["warnings"]
    assert "0.5" in note
    assert "cxr-ray export" in note
    assert metrics["per_label"]["nodule"]["threshold"] == 0.5
    with pytest.raises(DatasetError, match="no part 'val'"):
        evaluate(subject, dataset, str(tmp_path / "r2"), split="val")


def test_made_images_among_those_scored_are_said(tmp_path: Path, write_noise: Callable[..., Dataset]) -> None:
    plain = write_noise(tmp_path / "data", FINDINGS, {"train": 24, "test": 24})
    enlarged = replace(plain, manifest=plain.manifest.model_copy(update={"synthesis": ({"label": "nodule", "count": 7},)}))
    subject = subject_of_bundle(bundle_of(tmp_path / "b", [("e" * 64, ("train",))]))
    found = [evaluate(subject, enlarged, str(tmp_path / part), split=part, resamples=10)["warnings"] for part in ("train", "test")]
    assert [any("made by a GAN" in warning for warning in warnings) for warnings in found] == [True, False]
