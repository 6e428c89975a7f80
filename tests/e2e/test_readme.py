"""The README is run: every `sh` block, in order, in an empty folder, as a user would; then what came out is checked."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from readme_line import KEY, ROOT, URL, commands, shell_blocks


def test_the_readme_has_its_commands() -> None:
    named = {line.split()[1] for line in commands() if line.startswith("cxr-ray")}
    assert {"phantoms", "ingest", "train", "evaluate", "export", "serve", "predict", "doctor", "recipes", "validate", "tune"} <= named
    assert {"make demo", "make test"} <= {line.partition("  #")[0].strip() for block in shell_blocks() for line in block.splitlines()}


def test_the_make_targets_exist() -> None:
    for target in ("demo", "test", "check"):
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


def test_the_tree_is_the_tree() -> None:
    tree = re.search(r"## What is where\n\n```text\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert tree is not None
    for row in tree[1].splitlines():
        names = re.match(r"( *)((?:[\w.]+/? )+)", row)
        if names is None:
            continue
        base = ROOT / "cxr_ray" if names[1] else ROOT
        for name in names[2].split():
            if name.endswith("/") or name.endswith(".py"):
                assert (base / name).exists(), row


def test_the_sweep_leaves_a_bundle_and_its_page(line: dict[str, Any]) -> None:
    sweep = line["folder"] / "sweep"
    assert (sweep / "bundle" / "bundle.json").exists()
    assert len(list((sweep / "trials").iterdir())) == len((sweep / "trials.csv").read_text().splitlines()) - 1 == 6
    assert "://" not in re.sub(r"<script.*?</script>", "", (sweep / "sweep.html").read_text(), flags=re.DOTALL)


def test_metrics_follow_the_contract(line: dict[str, Any]) -> None:
    metrics = json.loads((line["folder"] / "report" / "metrics.json").read_text())
    assert {"split", "n", "patients", "labels", "confusion_matrix", "accuracy", "macro_f1", "macro_auroc", "ece", "per_label"} <= set(
        metrics
    )
    assert metrics["split"] == "test"
    assert set(metrics["accuracy"]) == {"value", "ci95"}
    for label in metrics["labels"]:
        wanted = {"sensitivity", "specificity", "precision", "f1", "auroc", "average_precision", "accuracy", "n"}
        assert wanted <= set(metrics["per_label"][label])
    assert sum(map(sum, metrics["confusion_matrix"])) == metrics["n"]
    low, high = metrics["accuracy"]["ci95"]
    assert low <= metrics["accuracy"]["value"] <= high
    assert metrics["macro_f1"]["value"] > 0.45, "three classes: worse than this is chance, the line learned nothing"


def answers(path: Path) -> dict[str, dict[str, float]]:
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert any(row["error"] for row in rows), "the planted corrupt files are missing"
    return {row["file"]: {key[2:]: float(row[key]) for key in row if key.startswith("p_")} for row in rows if not row["error"]}


def test_training_and_serving_give_the_same_probabilities(line: dict[str, Any]) -> None:
    """Evaluation of the RUN reads the DATASET's pixels; predict and serve decode the files themselves, and calibrate as the BUNDLE says."""
    import hashlib

    from cxr_ray.bundle import read_bundle

    folder = line["folder"]
    offline = answers(folder / "predictions.csv")
    by_digest = {hashlib.sha256((folder / "xrays" / file).read_bytes()).hexdigest(): (file, value) for file, value in offline.items()}
    evaluated = pq.read_table(folder / "report" / "predictions.parquet").to_pylist()
    assert len(evaluated) > 20
    bundle = read_bundle(str(folder / "bundle"))
    raw = np.array([[row[f"p_{label}"] for label in bundle.labels.names] for row in evaluated], dtype=np.float32)
    for row, answered in zip(evaluated, bundle.answers(raw), strict=True):
        file, value = by_digest[row["image_id"]]
        assert [value[label] for label in bundle.labels.names] == pytest.approx(answered.tolist(), abs=1e-5), file
    for row in evaluated[:8]:
        file, value = by_digest[row["image_id"]]
        request = urllib.request.Request(
            f"{URL}/v1/predict?gate=flag",
            data=(folder / "xrays" / file).read_bytes(),
            headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/octet-stream"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.load(response)
        assert answer["probabilities"] == pytest.approx(value, abs=1e-5), file
        assert answer["image_sha256"] == row["image_id"]


def test_the_dataset_keeps_patients_apart_and_counts_the_corrupt(line: dict[str, Any]) -> None:
    folder = line["folder"]
    manifest = json.loads((folder / "dataset" / "dataset.json").read_text())
    index = pq.read_table(folder / "dataset" / "index.parquet")
    for column in ("patient_id", "group_id"):
        pairs = set(zip(index[column].to_pylist(), index["partition"].to_pylist(), strict=True))
        assert len(pairs) == len({value for value, _ in pairs}), f"a {column} stands in two parts"
    assert len(index) == sum(part["images"] for part in manifest["partitions"].values())
    assert manifest["copies"]["across_parts"] == 0
    assert manifest["copies"]["exact"] + manifest["copies"]["near"] > 0
    with open(folder / "dataset" / "quarantine.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == manifest["quarantined"] > 0


def test_the_run_and_the_bundle_are_complete(line: dict[str, Any]) -> None:
    folder = line["folder"]
    run = json.loads((folder / "run" / "run.json").read_text())
    history = [json.loads(row) for row in (folder / "run" / "history.jsonl").read_text().splitlines()]
    assert run["status"] == "finished"
    assert [record["epoch"] for record in history] == list(range(run["epochs"]))
    assert list((folder / "run" / "tensorboard").glob("events*"))
    assert sorted(path.name for path in (folder / "bundle").iterdir()) == [
        "README.md",
        "bundle.json",
        "gate.safetensors",
        "model.safetensors",
    ]
    metrics = json.loads((folder / "report" / "metrics.json").read_text())
    assert f"| macro_f1 | {metrics['macro_f1']['value']:.4f} |" in (folder / "bundle" / "README.md").read_text()


def test_each_command_says_what_to_type_next(line: dict[str, Any]) -> None:
    for command in ("ingest", "train", "evaluate", "export"):
        assert "next: cxr-ray" in line["said"][f"cxr-ray {command}"]
