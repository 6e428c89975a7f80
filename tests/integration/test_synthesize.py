"""``synthesize`` on phantoms of croup, through Ray Train: what it writes, deaths of the driver, torn checkpoints, two workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cxr_ray import cli, storage
from cxr_ray.config import BackboneConfig, ModelConfig, Recipe, RnnConfig, TrainingConfig
from cxr_ray.data.ingest import ingest
from cxr_ray.data.phantoms import write_phantoms
from cxr_ray.data.shards import open_dataset
from cxr_ray.data.sources import read_source
from cxr_ray.errors import RunError
from cxr_ray.imaging.preprocess import PreprocessSpec
from cxr_ray.synthesis.config import GanRequest
from cxr_ray.synthesis.state import load_state
from cxr_ray.synthesis.synthesize import Synthesis, synthesize
from cxr_ray.training.checkpoint import newest_valid
from cxr_ray.training.trainer import train

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]

CONFIG = GanRequest(epochs=6, batch_size=8, size=32, latent_size=16, generator_width=8, discriminator_width=8, checkpoint_every=1)
"""The dataset has 40 x 40 pixels: resized both ways."""


@pytest.fixture(scope="module")
def dataset(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("croup")
    write_phantoms(folder / "xrays", task="croup", count=90, size=64, seed=4)
    return ingest(read_source(str(folder / "xrays")), str(folder / "dataset"), preprocess=PreprocessSpec(height=40, width=40)).location


@pytest.fixture(scope="module")
def undisturbed(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Synthesis:
    """One worker, from start to end."""
    return synthesize(dataset, "croup", 12, str(tmp_path_factory.mktemp("out") / "enlarged"), config=CONFIG)


def generator(run: str) -> dict[str, torch.Tensor]:
    newest = newest_valid(storage.join(run, "checkpoints"))
    assert newest is not None
    return load_state(newest).average


def test_what_it_says_and_writes(dataset: str, undisturbed: Synthesis) -> None:
    record, run = undisturbed.record, Path(undisturbed.run)
    assert record["kid"]["floor"] < record["kid"]["value"]  # after so few epochs they are bad, and it is seen
    assert record["memorisation"]["copies"] == 0
    assert undisturbed.dataset.manifest.synthesis == (record,)
    assert json.loads((run / "report" / "report.json").read_text()) == record
    assert len((run / "history.jsonl").read_text().splitlines()) == 6
    assert sorted(path.name for path in (run / "samples").iterdir()) == [f"epoch-{epoch:04d}.png" for epoch in range(6)]
    assert list((run / "tensorboard").iterdir())
    before, after = open_dataset(dataset), open_dataset(undisturbed.dataset.location, verify=True)
    assert after.count("train") == before.count("train") + 12
    for part in ("val", "test"):
        for one, other in zip(before.files(part), after.files(part), strict=True):
            assert Path(one).read_bytes() == Path(other).read_bytes()
    again = synthesize(dataset, "croup", 12, after.location, config=CONFIG)
    assert again.already_finished
    assert again.record == record


DRIVER = """
import sys
from cxr_ray.synthesis.config import GanRequest
from cxr_ray.synthesis.synthesize import synthesize
synthesize(sys.argv[1], "croup", 12, sys.argv[2], config=GanRequest.model_validate_json(sys.argv[3]), address=sys.argv[4])
"""


def test_kill_9_of_the_driver_a_torn_checkpoint_and_the_same_call_again(undisturbed: Synthesis, dataset: str, tmp_path: Path) -> None:
    import ray

    out = tmp_path / "enlarged"
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", DRIVER, dataset, str(out), CONFIG.model_dump_json(), address]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    checkpoints = tmp_path / "enlarged.gan" / "checkpoints"
    with subprocess.Popen(command, env=environment) as driver:
        deadline = time.monotonic() + 120
        while not (checkpoints / "epoch-0001" / "manifest.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(RunError, match=f"in use by process {driver.pid}"):
            synthesize(dataset, "croup", 12, str(out), config=CONFIG)
        driver.kill()
        driver.wait()
    assert not (out / "dataset.json").exists()
    newest = max(checkpoints.iterdir())
    if (newest / "state.pt").exists():  # and one more misfortune
        (newest / "state.pt").write_bytes((newest / "state.pt").read_bytes()[:1000])
    result = synthesize(dataset, "croup", 12, str(out), config=CONFIG)
    for name, value in generator(undisturbed.run).items():
        assert torch.equal(generator(result.run)[name], value), name
    assert result.dataset.manifest.fingerprint == undisturbed.dataset.manifest.fingerprint


def test_two_workers_do_as_one(undisturbed: Synthesis, dataset: str, tmp_path: Path) -> None:
    """With batch normalisation over both. Measured: losses differ by 4e-8, weights by 7e-9; rounding grows with the steps."""
    config = CONFIG.model_copy(update={"epochs": 1})
    one = synthesize(dataset, "croup", 2, str(tmp_path / "one"), config=config)
    two = synthesize(dataset, "croup", 2, str(tmp_path / "two"), config=config, workers=2)
    states = [load_state(f"{done.run}/checkpoints/epoch-0000") for done in (one, two)]
    for name in ("generator_loss", "discriminator_loss", "real_score", "fake_score"):
        values = [getattr(state.history[0], name) for state in states]
        assert values[0] == pytest.approx(values[1], abs=1e-5), name
    for key, value in states[0].average.items():
        assert torch.allclose(value.double(), states[1].average[key].double(), atol=1e-5), key


# --- through the command line: last, for it sets up logging -----------------------------------------------------------------


def test_the_larger_dataset_trains_and_no_evaluation_sees_a_synthetic_row(undisturbed: Synthesis, tmp_path: Path) -> None:
    data = undisturbed.dataset
    model = ModelConfig(backbone=BackboneConfig(name="small_cnn"), rnn=RnnConfig(hidden_size=8))
    recipe = Recipe(name="test", model=model, training=TrainingConfig(epochs=1, batch_size=16))
    run = train(recipe, data.location, str(tmp_path / "run")).run
    assert (run.manifest.dataset.mean, run.manifest.dataset.std) == data.normalization  # of the real images
    synthetic = set(data.index().filter(np.asarray(data.index()["synthetic"].to_pylist()))["image_id"].to_pylist())
    assert len(synthetic) == 12
    for part in ("val", "test"):
        report = tmp_path / part
        assert cli.run(["evaluate", run.location, "--data", data.location, "--out", str(report), "--split", part]) == 0
        seen = set(pq.read_table(report / "predictions.parquet")["image_id"].to_pylist())
        assert len(seen) == data.count(part)
        assert not seen & synthetic


def test_the_command(undisturbed: Synthesis, dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another count of the same GAN: nothing is trained again, and the images are the same ones and more."""
    out = str(tmp_path / "enlarged")
    options = ["--label", "croup", "--count", "15", "--out", out, "--run", undisturbed.run, "--epochs", "6", "--json"]
    settings = ["batch_size=8", "size=32", "latent_size=16", "generator_width=8", "discriminator_width=8", "checkpoint_every=1"]
    assert cli.run(["synthesize", dataset, *options, *settings]) == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert facts["images_added"] == 15
    assert facts["generator"] == undisturbed.record["generator"]
    assert facts["label"] == "croup"
    assert {"value", "sd", "floor", "blurred", "noise", "extractor"} <= set(facts["kid"])
    assert facts["memorisation"]["verdict"] in {"ok", "warn"}
    assert facts["dataset"] == out
    assert "random weights" in said.err
    images = [
        {image for image, made in zip(table["image"].to_pylist(), table["synthetic"].to_pylist(), strict=True) if made}
        for table in (undisturbed.dataset.read("train"), open_dataset(out).read("train"))
    ]
    assert images[0] < images[1]
