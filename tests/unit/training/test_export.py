"""RUNs and cross-validations become bundles: members, weights, refusals, thresholds of held-out images, the card."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from cxr_ray import cli, storage
from cxr_ray.bundle import read_bundle
from cxr_ray.config import BackboneConfig, CrossValidationConfig, ModelConfig, Recipe, RnnConfig
from cxr_ray.data.columns import pixels, targets_of
from cxr_ray.data.shards import Dataset
from cxr_ray.errors import BundleError, ConfigError, CxrRayError, RunError
from cxr_ray.evaluation.thresholds import fit_thresholds
from cxr_ray.labels import LabelSet
from cxr_ray.models.classifier import Classifier, build_classifier
from cxr_ray.models.ensemble import Ensemble
from cxr_ray.models.inference import predict_probabilities, predict_with_pooled
from cxr_ray.serving.predictor import Predictor
from cxr_ray.training import crossval
from cxr_ray.training.checkpoint import Best, EpochRecord, TrainState, save_checkpoint
from cxr_ray.training.export import export_run, plan_export, write_export
from cxr_ray.training.gate import gate_for
from cxr_ray.training.held_out import held_out
from cxr_ray.training.progress import write_history
from cxr_ray.training.run import BestRecord, RunManifest, describe_data, run_fingerprint, write_run

CLASSES, FINDINGS = LabelSet(("covid", "normal"), "multiclass"), LabelSet(("effusion", "nodule"), "multilabel")
NETWORKS = {
    "gru": ModelConfig(backbone=BackboneConfig(name="small_cnn"), rnn=RnnConfig(kind="gru", hidden_size=5, readout="mean")),
    "plain": ModelConfig(backbone=BackboneConfig(name="small_cnn"), rnn=RnnConfig(kind="none", readout="mean")),
}
Write = Callable[..., Dataset]


@dataclass(frozen=True)
class Data:
    """One DATASET for each kind of split and task."""

    split: Dataset
    folds: Dataset
    classes: Dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_noise: Write) -> Data:
    folder = tmp_path_factory.mktemp("data")
    return Data(
        write_noise(folder / "split", FINDINGS, {"train": 20, "val": 30, "test": 4}),
        write_noise(folder / "folds", FINDINGS, {"fold-0": 14, "fold-1": 15, "fold-2": 16, "test": 4}, seed=1),
        write_noise(folder / "classes", CLASSES, {"train": 20, "val": 10}),
    )


def make_run(
    out: Path, data: Dataset, *, seed: int = 0, network: str = "plain", fold: int | None = None, status: str = "finished", **recipe: Any
) -> str:
    """A RUN as ``train`` leaves it, its weights random."""
    record = describe_data(data, fold)
    settings = Recipe(**{"name": f"recipe-{network}", **recipe}, model=NETWORKS[network])
    initial = recipe.get("cross_validation") and fold and "0" * 64
    manifest = RunManifest(
        schema="cxr-ray/run/1",
        status=status,  # type: ignore[arg-type]
        fingerprint=run_fingerprint(settings, record),
        initial=initial or None,
        recipe=settings,
        dataset=record,
        seed=seed,
        workers=1,
        use_gpu=False,
        versions={"torch": "2"},
        hardware={},
        started="2024-01-01T00:00:00Z",
        launches=1,
        epochs=1,
        best=BestRecord(epoch=0, metric="last", value=None, checkpoint="checkpoints/epoch-0000"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_classifier(settings.model, 2, mean=record.mean, std=record.std, image_size=(16, 16))
        with torch.no_grad():  # random heads hardly answer: make what the members say differ
            model.head[-1].weight.mul_(40)  # type: ignore[operator, union-attr]
    history = [EpochRecord(0, 1.0, 0.1, 1.0, 1.0)]
    save_checkpoint(
        f"{out}/checkpoints", TrainState(dict(model.state_dict()), None, {}, tuple(history), Best(0, "last", None), False), keep=9
    )
    write_history(str(out), history)
    write_run(str(out), manifest)
    return str(out)


def model_of(run: str) -> Classifier:
    from cxr_ray.training.run import open_run

    return open_run(run).load_model()


def scores(run: str, data: Dataset, part: str) -> np.ndarray:
    table = data.read(part)
    return predict_probabilities(model_of(run), pixels(table, 16, 16), data.labels.task)


def truth(data: Dataset, part: str) -> np.ndarray:
    return targets_of(data.read(part), data.labels)


def make_folds(out: Path, data: Dataset, **recipe: Any) -> str:
    """A cross-validation as ``cross_validate`` leaves it."""
    runs = [make_run(out / f"fold-{fold}", data, seed=fold, fold=fold, **recipe) for fold in range(3)]
    tables, facts = [], []
    for fold, run in enumerate(runs):
        table = data.read(f"fold-{fold}").select(["image_id", "patient_id", "labels"])
        column = pa.FixedSizeListArray.from_arrays(pa.array(scores(run, data, f"fold-{fold}").ravel()), 2)
        tables.append(table.append_column("probabilities", column).append_column("fold", pa.array([fold] * len(table))))
        facts.append({"fold": fold, "run": f"fold-{fold}"})
    crossval._write(str(out), Recipe(name="cv"), data.manifest.fingerprint, "0" * 64, pa.concat_tables(tables), facts)
    return str(out)


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.run(["export", *arguments, "--json"]) == 0, capsys.readouterr().err
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_one_run_gives_a_plain_model(tmp_path: Path, data: Data) -> None:
    run = make_run(tmp_path / "run", data.classes)
    bundle = export_run(run, str(tmp_path / "bundle"))
    assert isinstance(bundle.load_model(), Classifier)
    (member,) = bundle.manifest.members
    assert member.provenance.trained_on == ("train", "val")
    assert (bundle.manifest.thresholds, bundle.manifest.threshold_origin, bundle.manifest.unsound) == (None, None, None)
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "| Recipe, seed, epoch | recipe-plain, 0, 1 of 1 |" in card
    assert "must not be used" not in card
    with pytest.raises(BundleError, match="not empty"):
        export_run(run, bundle.location)
    assert export_run(run, bundle.location, overwrite=True).version == bundle.version


def test_several_runs_of_different_networks_make_an_ensemble(tmp_path: Path, data: Data) -> None:
    runs = [make_run(tmp_path / network, data.classes, network=network, seed=seed) for seed, network in enumerate(NETWORKS)]
    bundle = write_export(plan_export(runs, str(tmp_path / "bundle"), weights=[1, 3]))
    model = bundle.load_model()
    assert isinstance(model, Ensemble)
    images = pixels(data.classes.read("val"), 16, 16)
    each = [predict_probabilities(model_of(run), images, "multiclass") for run in runs]
    np.testing.assert_allclose(predict_probabilities(model, images, "multiclass"), (each[0] + 3 * each[1]) / 4, atol=1e-6)
    assert bundle.manifest.name == "recipe-gru+recipe-plain"
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "An ensemble of 2 models" in card
    assert "| 1 | small_cnn → horizontal sequence → none → head | recipe-plain, 1, 1 of 1 | val | 3 |" in card


def test_a_cross_validation_is_exported_with_the_recipes_weights(tmp_path: Path, data: Data) -> None:
    folds = make_folds(tmp_path / "cv", data.folds, cross_validation=CrossValidationConfig(weights=(0, 1, 2)))
    plan = plan_export([folds], str(tmp_path / "bundle"))
    assert plan.weights == (1.0, 2.0)
    assert [run.manifest.dataset.fold for run in plan.left_out] == [0]
    bundle = write_export(plan)
    assert [member.weight for member in bundle.manifest.members] == [1.0, 2.0]
    assert bundle.manifest.members[0].provenance.trained_on == ("fold-0", "fold-2", "fold-1")
    assert "Left out, with a weight of 0: fold 0." in (tmp_path / "bundle" / "README.md").read_text()
    assert plan_export([folds], str(tmp_path / "other"), weights=[1, 1, 1]).weights == (1, 1, 1)
    one = write_export(plan_export([folds], str(tmp_path / "one"), weights=[0, 0, 5]))
    assert isinstance(one.load_model(), Classifier)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1.0, 1.0], "2 weights for 3 folds"),
        ([0.0, 0.0, 0.0], "not all 0"),
        ([1.0, -1.0, 1.0], "at least 0"),
        ([float("nan")] * 3, "at least 0"),
    ],
)
def test_weights_that_make_no_sense(tmp_path: Path, data: Data, weights: list[float], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        plan_export([make_folds(tmp_path / "cv", data.folds)], str(tmp_path / "bundle"), weights=weights)


def test_what_makes_no_bundle(tmp_path: Path, data: Data, write_noise: Write) -> None:
    out, run = str(tmp_path / "bundle"), make_run(tmp_path / "run", data.split)
    with pytest.raises(RunError, match="not finished"):
        plan_export([make_run(tmp_path / "half", data.split, status="running")], out)
    with pytest.raises(RunError, match=r"covid, normal \(multiclass\)"):
        plan_export([run, make_run(tmp_path / "classes", data.classes)], out)
    larger = make_run(tmp_path / "large", write_noise(tmp_path / "larger", FINDINGS, {"train": 9, "val": 9}, size=24))
    with pytest.raises(RunError, match="preprocessed differently"):
        plan_export([run, larger], out)
    with pytest.raises(RunError, match="named twice"):
        plan_export([run, run], out)
    folds = make_folds(tmp_path / "cv", data.folds)
    with pytest.raises(RunError, match="exported alone"):
        plan_export([run, folds], out)
    storage.remove(f"{folds}/cv.json")
    with pytest.raises(RunError, match="cross-validation that is not finished"):
        plan_export([folds], out)
    with pytest.raises(RunError, match="not a RUN"):
        plan_export([str(tmp_path)], out)
    assert not storage.exists(out)


def test_an_unsound_model_is_refused_and_marked(tmp_path: Path, data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = make_run(tmp_path / "run", data.classes, unsound="its folds leak"), str(tmp_path / "bundle")
    assert cli.run(["export", run, "--out", out]) == 2
    said = capsys.readouterr().err
    assert "its folds leak" in said
    assert "--allow-unsound" in said
    assert not storage.exists(out)
    assert ran(capsys, run, "--out", out, "--allow-unsound")["unsound"] == "its folds leak"
    assert read_bundle(out).manifest.unsound == "its folds leak"
    card = (tmp_path / "bundle" / "README.md").read_text().splitlines()
    assert card[2] == "**This model must not be used:** its folds leak"


def test_folds_that_went_on_from_each_other_are_unsound_without_a_word_of_the_recipe(tmp_path: Path, data: Data) -> None:
    folds = make_folds(tmp_path / "cv", data.folds, cross_validation=CrossValidationConfig(start="previous"))
    with pytest.raises(RunError, match=r"went on from the fold before(?s:.)*--allow-unsound"):
        plan_export([folds], str(tmp_path / "bundle"))
    assert plan_export([f"{folds}/fold-0"], str(tmp_path / "first")).unsound is None
    assert plan_export([folds], str(tmp_path / "bundle"), allow_unsound=True).unsound


# --- thresholds -----------------------------------------------------------------------------------------------------------


def test_thresholds_are_fitted_on_the_validation_part(tmp_path: Path, data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = make_run(tmp_path / "run", data.split), str(tmp_path / "bundle")
    said, told = scores(run, data.split, "val"), truth(data.split, "val")
    for policy in ("f1", "youden", None):
        flags = ["--thresholds", policy] if policy else []
        answer = ran(capsys, run, "--out", out, "--overwrite", "--calibrate", "none", *flags)
        assert answer["thresholds"] == list(fit_thresholds(said, told, policy=policy or "f1"))
        manifest = read_bundle(out).manifest
        assert list(manifest.thresholds or ()) == answer["thresholds"]
        origin = manifest.threshold_origin
        assert origin is not None
        assert (origin.policy, origin.part, origin.n, origin.not_fitted) == (policy or "f1", "val of noise", 30, ())
    assert f"| nodule | {answer['thresholds'][1]:.4f} |" in (tmp_path / "bundle" / "README.md").read_text()
    answer = ran(capsys, run, "--out", out, "--overwrite", "--thresholds", "fixed")
    assert answer["thresholds"] == [0.5, 0.5]
    assert answer["threshold_origin"] == {"policy": "fixed", "part": None, "n": 0, "not_fitted": [], "positive": None}


def test_calibration_is_fitted_on_the_validation_part_before_the_thresholds(
    tmp_path: Path, data: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = make_run(tmp_path / "run", data.split), str(tmp_path / "bundle")
    answer = ran(capsys, run, "--out", out)
    calibration = read_bundle(out).manifest.calibration
    assert calibration is not None
    assert answer["calibration"]["method"] == calibration.method == "temperature", "too few images for isotonic regression"
    assert (calibration.fitted_on, calibration.n, calibration.patients) == ("val of noise", 30, 30)
    assert calibration.after.log_loss < calibration.before.log_loss, "random heads are too sure of themselves"
    said, told = scores(run, data.split, "val"), truth(data.split, "val")
    assert answer["thresholds"] == list(fit_thresholds(calibration.apply(said, "multilabel"), told, policy="f1"))
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert f"The probabilities are calibrated: {calibration.told()}" in card
    assert f"| expected calibration error | {calibration.before.ece:.4f} | {calibration.after.ece:.4f} |" in card
    images = pixels(data.split.read("test"), 16, 16)
    np.testing.assert_allclose(
        Predictor(read_bundle(out)).predict_checked(images)[0], calibration.apply(scores(run, data.split, "test"), "multilabel"), atol=1e-6
    )
    nothing = {key: {"value": None, "ci95": None} for key in ("accuracy", "macro_f1", "macro_auroc", "ece")}
    metrics = {"labels": list(FINDINGS.names), "split": "test", "dataset": {"name": "noise"}, "n": 4, "patients": 4, "reliability": {}}
    storage.write_json(str(tmp_path / "report" / "metrics.json"), {**metrics, **nothing})
    ran(capsys, run, "--out", out, "--overwrite", "--report", str(tmp_path / "report"))
    assert "before calibration: `evaluate` this bundle" in (tmp_path / "bundle" / "README.md").read_text()
    assert "reliability" not in (read_bundle(out).manifest.metrics or {}), "tables stay in the report"
    plain = ran(capsys, run, "--out", out, "--overwrite", "--calibrate", "none")
    assert plain["calibration"] is None
    assert plain["version"] != answer["version"]
    assert "None (it was exported without a calibration)" in (tmp_path / "bundle" / "README.md").read_text()


def test_the_mean_of_folds_is_not_calibrated_by_what_single_folds_say(
    tmp_path: Path, data: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    folds = make_folds(tmp_path / "cv", data.folds)
    assert ran(capsys, folds, "--out", str(tmp_path / "a"))["calibration"] is None
    assert "less sure of itself" in (tmp_path / "a" / "README.md").read_text()
    assert ran(capsys, folds, "--out", str(tmp_path / "b"), "--calibrate", "temperature")["calibration"]["n"] == 45
    assert ran(capsys, folds, "--out", str(tmp_path / "c"), "--weights", "1,0,0")["calibration"]["n"] == 14


def test_without_its_dataset_a_multiclass_model_is_exported_as_it_is(
    tmp_path: Path, write_noise: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write_noise(tmp_path / "whole", CLASSES, {"train": 20})
    run = make_run(tmp_path / "run", whole)
    assert ran(capsys, run, "--out", str(tmp_path / "a"), "--no-gate")["calibration"] is None
    assert "no validation part" in (tmp_path / "a" / "README.md").read_text()
    assert cli.run(["export", run, "--out", str(tmp_path / "b"), "--calibrate", "temperature"]) == 2
    assert "--calibrate none" in capsys.readouterr().err


def test_a_multiclass_model_may_call_one_label_at_a_cut(tmp_path: Path, data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = make_run(tmp_path / "run", data.classes), str(tmp_path / "bundle")
    answer = ran(capsys, run, "--out", out, "--positive", "covid", "--thresholds", "sensitivity=1")
    assert answer["thresholds"][1] is None
    bundle = read_bundle(out)
    predictor = Predictor(bundle)
    said = predictor.predict_arrays(pixels(data.classes.read("val"), 16, 16))
    called = [predictor.call(row).labels == ("covid",) for row in said]
    assert called == [float(row[0]) >= answer["thresholds"][0] for row in said]
    assert all(yes for yes, target in zip(called, truth(data.classes, "val"), strict=True) if target == 0)
    assert "covid is called at or above its threshold" in (tmp_path / "bundle" / "README.md").read_text()


def test_members_of_one_validation_part_are_scored_together(tmp_path: Path, data: Data) -> None:
    runs = [make_run(tmp_path / network, data.split, network=network, seed=seed) for seed, network in enumerate(NETWORKS)]
    found = held_out(plan_export(runs, str(tmp_path / "bundle"), weights=[1, 3]))
    expected = (scores(runs[0], data.split, "val") + 3 * scores(runs[1], data.split, "val")) / 4
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    np.testing.assert_array_equal(found.targets, truth(data.split, "val"))


def test_folds_are_each_scored_by_the_member_that_held_them_out(tmp_path: Path, data: Data) -> None:
    folds = make_folds(tmp_path / "cv", data.folds)
    runs = [f"{folds}/fold-{fold}" for fold in range(3)]
    expected = np.concatenate([scores(run, data.folds, f"fold-{fold}") for fold, run in enumerate(runs)])
    pooled = held_out(plan_export([folds], str(tmp_path / "a")))
    np.testing.assert_allclose(pooled.probabilities, expected, atol=1e-6)
    np.testing.assert_array_equal(pooled.targets, np.concatenate([truth(data.folds, f"fold-{fold}") for fold in range(3)]))
    assert pooled.part == "fold-0, fold-1, fold-2 of noise, each by the fold that held it out"
    named = held_out(plan_export(runs, str(tmp_path / "a")))
    np.testing.assert_allclose(named.probabilities, expected, atol=1e-6)
    fewer = held_out(plan_export([folds], str(tmp_path / "a"), weights=[1, 0, 1]))
    np.testing.assert_allclose(fewer.probabilities, np.delete(expected, slice(14, 29), axis=0), atol=1e-6)
    assert fewer.part.startswith("fold-0, fold-2 of")


def test_the_test_part_is_never_read(tmp_path: Path, data: Data, write_noise: Write) -> None:
    moved = write_noise(tmp_path / "here", FINDINGS, {"train": 20, "val": 30, "test": 4})
    run = make_run(tmp_path / "run", moved)
    for file in (tmp_path / "here" / "test").iterdir():
        size = file.stat().st_size
        file.write_bytes(b"x" * size)
    assert len(held_out(plan_export([run], str(tmp_path / "b"))).targets) == 30


def test_a_dataset_that_moved_is_named_or_done_without(
    tmp_path: Path, data: Data, write_noise: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    old = write_noise(tmp_path / "old", FINDINGS, {"train": 20, "val": 30})
    run, out = make_run(tmp_path / "run", old), str(tmp_path / "bundle")
    expected = ran(capsys, run, "--out", out)["thresholds"]
    (tmp_path / "old").rename(tmp_path / "new")
    assert cli.run(["export", run, "--out", str(tmp_path / "b")]) == 2
    said = capsys.readouterr().err
    assert "--data" in said
    assert "--thresholds fixed" in said
    assert "Traceback" not in said
    assert ran(capsys, run, "--out", out, "--overwrite", "--data", str(tmp_path / "new"))["thresholds"] == expected
    with pytest.raises(RunError, match="the training was on"):
        held_out(plan_export([run], str(tmp_path / "b")), data.split.location)
    write_noise(tmp_path / "old", FINDINGS, {"train": 20, "val": 30}, seed=5)
    with pytest.raises(RunError, match="no longer the DATASET"):
        held_out(plan_export([run], str(tmp_path / "b")))
    assert ran(capsys, run, "--out", out, "--overwrite", "--thresholds", "fixed")["thresholds"] == [0.5, 0.5]


def test_without_a_validation_part_there_is_nothing_to_fit(tmp_path: Path, write_noise: Write) -> None:
    whole = write_noise(tmp_path / "whole", FINDINGS, {"train": 20})
    with pytest.raises(RunError, match=r"no validation part(?s:.)*--thresholds fixed"):
        held_out(plan_export([make_run(tmp_path / "run", whole)], str(tmp_path / "b")))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--thresholds", "f1"], "with --positive LABEL"),
        (["--thresholds", "best"], "valid: f1, youden, sensitivity=S"),
        (["--positive", "flu"], "none of the model's labels: covid, normal"),
        (["--calibrate", "best"], "valid: auto, temperature, isotonic, none"),
        (["--weights", "a,b"], "numbers with commas"),
        (["--weights", "1,2"], "2 weights for 1 runs"),
    ],
)
def test_a_users_mistake_is_one_message(
    tmp_path: Path, data: Data, flags: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", data.classes)
    assert cli.run(["export", run, "--out", str(tmp_path / "b"), *flags]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert "Traceback" not in said
    assert not (tmp_path / "b").exists()


def test_the_report_of_a_cross_validation_is_not_taken_for_the_ensembles(tmp_path: Path, data: Data) -> None:
    from cxr_ray.evaluation.crossval import pooled_metrics

    folds = make_folds(tmp_path / "cv", data.folds)
    table = crossval.CrossValidation(folds, {}).predictions()
    pooled_metrics(table, data.folds, folds, recipe="test")
    write_export(plan_export([folds], str(tmp_path / "bundle"), report=folds))
    assert "not of the ensemble" in (tmp_path / "bundle" / "README.md").read_text()
    with pytest.raises(CxrRayError):
        plan_export([folds], str(tmp_path / "other"), report=str(tmp_path / "nowhere"))


# --- the input gate -------------------------------------------------------------------------------------------------------


def test_the_gate_is_fitted_on_the_training_part_and_stored(tmp_path: Path, data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = make_run(tmp_path / "run", data.split), str(tmp_path / "bundle")
    without = ran(capsys, run, "--out", out, "--no-gate")
    assert without["gate"] is None
    assert not (tmp_path / "bundle" / "gate.safetensors").exists()
    assert "## Input gate\n\nNone (it was exported without one)" in (tmp_path / "bundle" / "README.md").read_text()
    answer = ran(capsys, run, "--out", out, "--overwrite")
    assert (answer["gate"]["fitted_on"], answer["gate"]["n"]) == ("train of noise", 20)
    assert (answer["gate"]["held_out"], answer["gate"]["n_held_out"]) == ("val of noise", 30)
    assert answer["version"] != without["version"]
    bundle = read_bundle(out)
    gate = bundle.load_gate()
    assert gate is not None
    assert gate.record.model_dump() == answer["gate"]
    assert ran(capsys, run, "--out", out, "--overwrite")["version"] == answer["version"]
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert f"| familiar | {gate.record.thresholds['familiar']:.4g} |" in card
    assert "Fitted on 20 images (train of noise); thresholds from 30 held-out ones (val of noise)." in card
    assert ran(capsys, run, "--out", out, "--overwrite", "--no-gate")["version"] == without["version"]
    assert not (tmp_path / "bundle" / "gate.safetensors").exists()


def test_the_gate_of_an_ensemble_is_its_first_members(tmp_path: Path, write_noise: Write) -> None:
    folds = write_noise(tmp_path / "folds", FINDINGS, {"fold-0": 20, "fold-1": 21, "fold-2": 22})
    runs = [make_run(tmp_path / f"run-{fold}", folds, seed=fold, fold=fold) for fold in range(3)]
    plan = plan_export(runs, str(tmp_path / "bundle"), weights=[0, 1, 1])
    bundle = write_export(plan, gate=gate_for(plan))
    record = bundle.manifest.gate
    assert record is not None
    assert (record.fitted_on, record.n) == ("fold-0, fold-2 of noise", 42)
    assert (record.held_out, record.n_held_out) == ("fold-1 of noise", 21)
    images = pixels(folds.read("fold-1"), 16, 16)
    predictor = Predictor(bundle)
    probabilities, verdicts = predictor.predict_checked(images)
    np.testing.assert_array_equal(probabilities, predictor.predict_arrays(images))
    _, pooled = predict_with_pooled(model_of(runs[1]), images, "multilabel")
    gate = bundle.load_gate()
    assert gate is not None
    expected = gate.check(pooled, images)
    assert [verdict.verdict for verdict in verdicts if verdict is not None] == [verdict.verdict for verdict in expected]
    for verdict, same in zip(verdicts, expected, strict=True):  # the engine keeps its memory in another order: it adds up in another
        assert verdict is not None
        assert [check.value for check in verdict.checks] == pytest.approx([check.value for check in same.checks], rel=1e-4)
    assert {verdict.verdict for verdict in verdicts if verdict is not None} == {"ok"}  # so few that the thresholds are their largest


def test_without_its_data_a_bundle_has_no_gate_and_says_so(
    tmp_path: Path, data: Data, write_noise: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    old = write_noise(tmp_path / "old", CLASSES, {"train": 20, "val": 30, "test": 4})
    run, out = make_run(tmp_path / "run", old), str(tmp_path / "bundle")
    for file in (tmp_path / "old" / "test").iterdir():  # never read
        file.write_bytes(b"x" * file.stat().st_size)
    assert ran(capsys, run, "--out", out)["gate"]["n"] == 20
    (tmp_path / "old").rename(tmp_path / "new")
    assert ran(capsys, run, "--out", out, "--overwrite")["gate"] is None
    assert "None (train, val of noise" in (tmp_path / "bundle" / "README.md").read_text()
    assert ran(capsys, run, "--out", out, "--overwrite", "--data", str(tmp_path / "new"))["gate"]["n"] == 20
    assert cli.run(["export", run, "--out", out, "--overwrite", "--data", data.classes.location]) == 2
    said = capsys.readouterr().err
    assert "the training was on" in said
    assert "--calibrate none" in said
    assert ran(capsys, make_run(tmp_path / "few", data.classes), "--out", str(tmp_path / "b"))["gate"] is None
    assert "too few for an input gate" in (tmp_path / "b" / "README.md").read_text()
