"""Two models on the same images: counts and p by hand, intervals that cover what is so, the same patients for both, clear refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr_ray import cli
from cxr_ray.data.columns import targets_column
from cxr_ray.errors import DatasetError
from cxr_ray.evaluation.evaluate import METRICS, PREDICTIONS, write_predictions
from cxr_ray.evaluation.metrics import compute_metrics
from cxr_ray.evaluation.paired import compare, mcnemar, paired_difference, read_scored
from cxr_ray.labels import LabelSet

THREE = LabelSet(("covid", "normal", "pneumonia"), "multiclass")
FINDINGS = LabelSet(("effusion", "nodule"), "multilabel")


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def images(rows: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets, patients, and logits that share what is hard about each image."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, 3, rows)
    return targets, generator.integers(0, rows // 4, rows).astype(str), generator.normal(size=(rows, 3)) + 1.5 * np.eye(3)[targets]


def noisy(logits: np.ndarray, seed: int, much: float) -> np.ndarray:
    return softmax(logits + much * np.random.default_rng(seed).normal(size=logits.shape))


def test_mcnemar_by_hand() -> None:
    # 2 both, 1 only A, 6 only B, 3 neither: two-sided p = 2 * (C(7,0) + C(7,1)) / 2^7 = 16 / 128.
    a = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0], dtype=bool)
    b = np.array([1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0], dtype=bool)
    assert mcnemar(a, b) == {"both_right": 2, "only_a_right": 1, "only_b_right": 6, "both_wrong": 3, "p": pytest.approx(0.125)}
    assert mcnemar(b, a)["p"] == pytest.approx(0.125)
    assert mcnemar(a, a)["p"] == 1.0
    many = np.arange(40) < 25
    expected = 2 * sum(math.comb(40, k) for k in range(16)) / 2**40
    assert mcnemar(many, ~many)["p"] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_two_noisy_copies_of_one_model_do_not_differ(seed: int) -> None:
    targets, patients, logits = images(seed=seed)
    a, b = noisy(logits, 10 + seed, 0.5), noisy(logits, 20 + seed, 0.5)
    found = paired_difference(a, b, targets, patients, THREE)
    for figure in found["figures"].values():
        low, high = figure["difference"]["ci95"]
        assert low < 0.0 < high
        assert figure["difference"]["value"] == pytest.approx(figure["a"]["value"] - figure["b"]["value"])
    assert found["mcnemar"]["accuracy"]["p"] > 0.05


@pytest.mark.parametrize("seed", range(4))
def test_a_clearly_better_model_is_told(seed: int) -> None:
    targets, patients, logits = images(seed=seed)
    better, worse = noisy(logits, 1, 0.1), noisy(logits, 2, 2.0)
    found = paired_difference(better, worse, targets, patients, THREE)
    for figure in found["figures"].values():
        assert figure["difference"]["ci95"][0] > 0.0
    assert found["mcnemar"]["accuracy"]["p"] < 0.01
    turned = paired_difference(worse, better, targets, patients, THREE)
    assert turned["figures"]["accuracy"]["difference"]["ci95"][1] < 0.0


def test_the_same_patients_are_drawn_for_both() -> None:
    targets, patients, logits = images()
    a = noisy(logits, 1, 0.2)
    same = paired_difference(a, a, targets, patients, THREE)
    for figure in same["figures"].values():
        assert figure["difference"] == {"value": 0.0, "ci95": [0.0, 0.0], "p": 1.0}
        assert figure["a"]["ci95"][0] < figure["a"]["ci95"][1]
    near = noisy(logits, 2, 0.2)
    found = paired_difference(a, near, targets, patients, THREE)["figures"]["macro_auroc"]
    width = {side: found[side]["ci95"][1] - found[side]["ci95"][0] for side in ("a", "b", "difference")}
    assert width["difference"] < 0.5 * width["a"], "drawn apart, the interval of the difference would be wider than either"


def test_each_side_is_what_evaluate_says() -> None:
    targets, patients, logits = images()
    a, b = noisy(logits, 1, 0.2), noisy(logits, 2, 0.9)
    found = paired_difference(a, b, targets, patients, THREE, seed=3, resamples=200)
    for side, scores in (("a", a), ("b", b)):
        metrics = compute_metrics(scores, targets, patients, THREE, split="test", seed=3, resamples=200)
        assert {name: figure[side] for name, figure in found["figures"].items()} == {name: metrics[name] for name in found["figures"]}
    assert (found["n"], found["patients"]) == (400, len(set(patients)))


def test_many_labels_at_their_own_thresholds() -> None:
    generator = np.random.default_rng(0)
    targets = (generator.random((200, 2)) < 0.3).astype(np.float32)
    scores = np.clip(0.1 + 0.2 * targets + 0.1 * generator.random((200, 2)), 0, 1)
    targets[:20, 0] = np.nan
    patients = np.arange(200).astype(str)
    found = paired_difference(scores, scores, targets, patients, FINDINGS, thresholds=((0.25, 0.25), None), resamples=100)
    assert found["figures"]["macro_f1"]["a"]["value"] == 1.0
    assert found["figures"]["macro_f1"]["b"]["value"] == 0.0
    assert found["figures"]["macro_auroc"]["difference"]["value"] == 0.0
    test = found["mcnemar"]["effusion"]
    assert test["only_a_right"] == np.nansum(targets[:, 0])
    assert sum(test[key] for key in ("both_right", "only_a_right", "only_b_right", "both_wrong")) == 180
    assert set(found["mcnemar"]) == {"effusion", "nodule"}


# --- reports and cross-validations on disk --------------------------------------------------------------------------------


def write_report(location: Path, ids: list[str], patients: Any, targets: Any, scores: np.ndarray, labels: LabelSet, **settings: Any) -> str:
    table = pa.table({"image_id": ids, "patient_id": list(patients)})
    write_predictions(str(location / PREDICTIONS), table, scores, targets, labels)
    metrics = compute_metrics(scores, targets, patients, labels, split="test", resamples=10, **settings)
    (location / METRICS).write_text(json.dumps({**metrics, "warnings": ["mind the gap"]}))
    return str(location)


def write_folds(location: Path, ids: list[str], patients: Any, targets: Any, scores: np.ndarray, labels: LabelSet) -> str:
    location.mkdir()
    column = "label" if labels.task == "multiclass" else "labels"
    flat = pa.FixedSizeListArray.from_arrays(pa.array(scores.astype(np.float32).ravel()), len(labels))
    columns = {"image_id": ids, "patient_id": list(patients), column: targets_column(targets, labels), "probabilities": flat}
    pq.write_table(pa.table({**columns, "fold": [0] * len(ids)}), location / PREDICTIONS)
    metrics = compute_metrics(scores, targets, patients, labels, split="all folds", resamples=10)
    (location / METRICS).write_text(json.dumps(metrics))
    return str(location)


@pytest.mark.parametrize("labels", [THREE, FINDINGS], ids=lambda labels: labels.task)
def test_reports_and_cross_validations_are_joined_on_the_images(tmp_path: Path, labels: LabelSet) -> None:
    targets, patients, logits = images(60)
    scores = noisy(logits, 1, 0.1).astype(np.float32)
    if labels is FINDINGS:
        scores, targets = scores[:, :2], np.where(np.eye(3)[targets][:, :2] > 0, 1.0, 0.0).astype(np.float32)
        targets[4, 1] = np.nan
    ids = [f"{row:03d}" for row in range(60)]
    ids[7] = ids[6]  # a file that was ingested twice
    patients[7] = patients[6]
    targets[7], scores[7] = targets[6], scores[6]
    rows = np.random.default_rng(3).permutation(60)
    a = write_report(tmp_path / "a", ids, patients, targets, scores, labels)
    b = write_folds(tmp_path / "b", [ids[row] for row in rows], patients[rows], targets[rows], scores[rows], labels)
    found = compare(a, b, resamples=50)
    assert [figure["difference"] for figure in found["figures"].values()] == [{"value": 0.0, "ci95": [0.0, 0.0], "p": 1.0}] * 3
    assert found["warnings"] == [f"{a}: mind the gap"]
    cuts = read_scored(a).thresholds
    assert cuts is None if labels is THREE else np.array_equal(cuts, np.full((60, 2), 0.5))


def test_thresholds_of_folds_stay_with_their_images(tmp_path: Path) -> None:
    targets, scores = np.array([[1.0, 0.0]] * 4, dtype=np.float32), np.full((4, 2), 0.5, dtype=np.float32)
    location = write_folds(tmp_path / "cv", list("dcba"), np.array(list("wxyz")), targets, scores, FINDINGS)
    table = pq.read_table(tmp_path / "cv" / PREDICTIONS)
    pq.write_table(table.set_column(table.column_names.index("fold"), "fold", pa.array([0, 0, 1, 1])), tmp_path / "cv" / PREDICTIONS)
    metrics = json.loads((tmp_path / "cv" / METRICS).read_text())
    (tmp_path / "cv" / METRICS).write_text(json.dumps({**metrics, "thresholds_by_fold": {"0": [0.1, 0.2], "1": [0.3, 0.4]}}))
    assert read_scored(location).ordered().thresholds.tolist() == [[0.3, 0.4], [0.3, 0.4], [0.1, 0.2], [0.1, 0.2]]


def test_thresholds_are_those_of_the_report(tmp_path: Path) -> None:
    targets = np.array([[1, 0], [1, 1], [0, 0], [0, 1]], dtype=np.float32)
    scores = 0.1 + 0.2 * targets
    people = np.array(list("wxyz"))
    a = write_report(tmp_path / "a", list("1234"), people, targets, scores, FINDINGS, thresholds=(0.2, 0.2))
    b = write_report(tmp_path / "b", list("1234"), people, targets, scores, FINDINGS)
    found = compare(a, b, resamples=20)
    assert [found["figures"]["macro_f1"][side]["value"] for side in ("a", "b")] == [1.0, 0.0]


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    targets, patients, logits = images(30)
    scores, ids = noisy(logits, 1, 0.1), [str(row) for row in range(30)]
    a = write_report(tmp_path / "a", ids, patients, targets, scores, THREE)
    others = write_report(tmp_path / "others", ["x", *ids[1:]], patients, targets, scores, THREE)
    fewer = write_report(tmp_path / "fewer", ids[:20], patients[:20], targets[:20], scores[:20], THREE)
    truth = write_report(tmp_path / "truth", ids, patients, (targets + 1) % 3, scores, THREE)
    named = write_report(tmp_path / "named", ids, patients, targets, scores, LabelSet(("a", "b", "c"), "multiclass"))
    for other, expected in (
        (others, "has 1 of 30 that the other lacks"),
        (fewer, "has 10 of 30 that the other lacks"),
        (truth, "not the same truth"),
        (named, "cannot be compared"),
        (str(tmp_path / "nowhere"), "neither a REPORT nor a finished cross-validation"),
    ):
        with pytest.raises(DatasetError, match=expected):
            compare(a, other, resamples=10)
    (tmp_path / "fewer" / METRICS).write_text("{}")
    with pytest.raises(DatasetError, match="cannot be read"):
        compare(a, fewer)
    (tmp_path / "others" / PREDICTIONS).write_bytes(b"torn")
    with pytest.raises(DatasetError, match="cannot be read"):
        compare(a, others)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets, patients, logits = images(80)
    ids = [str(row) for row in range(80)]
    a = write_report(tmp_path / "a", ids, patients, targets, noisy(logits, 1, 0.1), THREE)
    b = write_report(tmp_path / "b", ids, patients, targets, noisy(logits, 2, 3.0), THREE)
    assert cli.run(["compare", a, b, "--resamples", "100", "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["figures"]["accuracy"]["difference"]["ci95"][0] > 0
    assert "McNemar" in said.err
    assert f"{found['figures']['macro_f1']['difference']['value']:.4f}" in said.err
    assert "mind the gap" in said.err
    assert cli.run(["compare", a, str(tmp_path / "nowhere")]) == 2
    assert "cxr-ray evaluate" in capsys.readouterr().err
    assert cli.run(["compare", "--help"]) == 0
    assert "Example: cxr-ray compare" in capsys.readouterr().out
