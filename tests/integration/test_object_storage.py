"""The whole line on an object store: the commands a user runs, against a real S3 API (moto's server), with a kill in the middle."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from cxr_ray import storage
from cxr_ray.training.progress import read_history
from cxr_ray.training.run import open_run

server = pytest.importorskip("moto.server")

ROOT = Path(__file__).parents[2]
BUCKET = "xrays"
EPOCHS = 6
SECONDS = 240
"""For what a command may take."""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Address of an S3 service with one empty bucket; keys stand in the environment, as a user has them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}.items():
            patch.setenv(name, value)
        service = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        service.start()
        host, port = service.get_host_and_port()
        fs.S3FileSystem(endpoint_override=f"http://{host}:{port}", region="us-east-1", allow_bucket_creation=True).create_dir(BUCKET)
        yield f"http://{host}:{port}"
        service.stop()


def command(*arguments: str, endpoint: str | None = None) -> subprocess.Popen[str]:
    """``cxr-ray`` with these arguments, in a session of its own, its result on stdout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if endpoint is not None:
        environment["AWS_ENDPOINT_URL"] = endpoint
    return subprocess.Popen(
        [sys.executable, "-m", "cxr_ray", *arguments, "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def done(*arguments: str, endpoint: str | None = None) -> dict[str, Any]:
    """What a command answers."""
    process = command(*arguments, endpoint=endpoint)
    answer, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    found: dict[str, Any] = json.loads(answer)
    return found


def kill_after_an_epoch(process: subprocess.Popen[str], run: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not read_history(run):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no epoch ended"
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.timeout(600)
def test_from_images_to_answers(endpoint: str, tmp_path: Path) -> None:
    def at(name: str) -> str:
        return f"s3://{BUCKET}/{name}?endpoint_override={endpoint}"

    dataset, run = at("dataset"), at("run")
    images = str(tmp_path / "images")
    done("phantoms", "--out", images, "--count", "36")
    bucket, prefix = storage.open_location(at("images"))
    fs.copy_files(images, prefix, destination_filesystem=bucket)
    made = done("ingest", at("images"), "--out", dataset, "--size", "32")
    assert made["dataset"] == dataset
    assert sum(part["images"] for part in made["partitions"].values()) >= 36

    train = ("train", "--recipe", "cnn-lstm", "--data", dataset, "--out", run, "--workers", "2", f"training.epochs={EPOCHS}")
    train = (*train, "model.backbone.name=small_cnn", "training.batch_size=8", "training.patience=null")
    kill_after_an_epoch(command(*train), run)
    assert open_run(run).manifest.status == "running"
    finished = done(*train)
    assert finished["resumed_after"] is not None
    assert [record["epoch"] for record in finished["history"]] == list(range(EPOCHS))
    assert open_run(run).manifest.launches == 2

    metrics = done("evaluate", run, "--data", dataset, "--out", at("report"), "--resamples", "100")
    assert storage.read_json(storage.join(at("report"), "metrics.json"))["n"] == metrics["n"] > 0

    def plain(name: str) -> str:
        return f"s3://{BUCKET}/{name}"

    bundle = done("export", plain("run"), "--out", plain("bundle"), "--report", plain("report"), endpoint=endpoint)
    assert bundle["bundle"] == plain("bundle")
    answers = done("predict", plain("bundle"), plain("images"), "--out", plain("answers.csv"), endpoint=endpoint)
    rows = list(csv.DictReader(io.StringIO(storage.read_bytes(at("answers.csv")).decode())))
    assert len(rows) == answers["scored"] + answers["refused"]
    assert answers["scored"] >= 36


@pytest.mark.timeout(600)
def test_a_sweep_and_its_study(endpoint: str, tmp_path: Path) -> None:
    """The study lies beside the trials, and a second call finds every trial in it."""
    done("phantoms", "--out", str(tmp_path / "images"), "--count", "24")
    done("ingest", str(tmp_path / "images"), "--out", str(tmp_path / "dataset"), "--size", "32")
    sweep = tmp_path / "sweep.yaml"
    space = "{training.optimizer.lr: {type: choice, options: [0.001, 0.01]}}"
    sweep.write_text(f"recipe: demo\nset: {{training.epochs: 1}}\nspace: {space}\nsearch: {{algorithm: grid}}\n")
    tune = ("tune", str(sweep), "--data", str(tmp_path / "dataset"), "--out", f"s3://{BUCKET}/sweep", "--resume")
    first = done(*tune, endpoint=endpoint)
    assert (first["trials"], first["complete"], first["epochs"]) == (2, 2, 2)
    there = f"s3://{BUCKET}/sweep?endpoint_override={endpoint}"
    for name in ("sweep.html", "trials.csv", "best.yaml", "bundle/bundle.json", "trials/0001/run.json"):
        assert storage.exists(storage.join(there, name)), name
    assert done(*tune, endpoint=endpoint) == first
    assert open_run(storage.join(there, "trials", "0000")).manifest.launches == 1
