"""Does the audit catch a shortcut wherever a classifier falls for it, and is it silent where there is none?

    python benchmarks/shortcut_strength.py --json

Phantoms with a planted shortcut (``cxr-ray phantoms --plant KIND --strength S``), as files: encoded, decoded, preprocessed as ``ingest``
does. A small classifier (three convolutions, from scratch) is trained with the shortcut and scored on other patients without it; what it
loses against one trained without the shortcut is what the shortcut did to it. ``caught`` counts the sets of training images of which some
check of the audit is not ok. Then so many seeds without a shortcut, each audited: none may be marked. Prints one object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any, get_args

import cv2
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import nn

from cxr_ray.audit.dataset import check_sample
from cxr_ray.audit.sample import SIDE, Sample
from cxr_ray.data.phantoms import CLASSES, Plant, Shot, render_phantom, shots
from cxr_ray.data.phantoms.encode import encode
from cxr_ray.data.phantoms.shortcuts import Kind
from cxr_ray.imaging.preprocess import PreprocessSpec, load_image
from cxr_ray.labels import LabelSet
from cxr_ray.training.run import hardware, versions

LABELS = LabelSet(CLASSES["covid"], "multiclass")
STRENGTHS = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
SIZE, EPOCHS, BATCH = 128, 12, 32
LOSS = 0.05
"""Macro AUROC that a shortcut must cost before it counts as one."""


def sample(count: int, seed: int, plant: Plant | None = None, first: int = 0) -> Sample:
    """Phantoms as the audit sees them: ``count`` images from number ``first`` on."""
    plan = list(shots("covid", first + count, seed, SIZE))[first:]
    images, facts = zip(*(_read(shot, plant) for shot in plan), strict=True)
    about = pa.Table.from_pylist(list(facts))
    groups = np.array([shot.patient_id for shot in plan])
    targets = np.array([LABELS.index(shot.label) for shot in plan])
    return Sample(np.stack(images), targets, groups, about, LABELS, count)


def _read(shot: Shot, plant: Plant | None) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    placed = shot if plant is None else plant.place(shot)
    picture = _picture(placed)
    data = encode(picture if plant is None else plant.draw(picture, placed), placed)
    image, found = load_image(data, PreprocessSpec(height=SIDE, width=SIDE))
    facts = {"image_id": shot.name, "source": placed.source, "view": shot.view, "sex": shot.sex, "age": shot.age}
    about = {name: getattr(found, name) for name in ("format", "mode", "bits", "height", "width")}
    return image, facts | {f"file_{name}": value for name, value in about.items()}


@cache
def _picture(shot: Shot) -> NDArray[np.uint8]:
    """Drawn once for all strengths."""
    return render_phantom(shot).image


def score(train: Sample, test: Sample, seed: int) -> float:
    """Macro AUROC on ``test`` of a small network trained on ``train``."""
    torch.manual_seed(seed)
    widths = (1, 16, 32, 48)
    blocks = [
        block
        for before, after in pairwise(widths)
        for block in (nn.Conv2d(before, after, 5, stride=2, padding=2), nn.BatchNorm2d(after), nn.ReLU())
    ]
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(widths[-1] * 16, len(LABELS)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    images, targets = _tensor(train), torch.from_numpy(train.targets)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(BATCH):  # type: ignore[no-untyped-call]
            loss = nn.functional.cross_entropy(model(images[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    model.eval()
    with torch.inference_mode():
        answers = model(_tensor(test)).softmax(1).numpy()
    return float(roc_auc_score(test.targets, answers, multi_class="ovr"))


def _tensor(images: Sample) -> torch.Tensor:
    return (torch.from_numpy(images.images).float() / 255 - 0.5)[:, None] / 0.25


def marked(images: Sample, seed: int) -> list[str]:
    """Names of the checks that are not ok."""
    return [check.name for check in check_sample(images, seed=seed)[0] if check.verdict != "ok"]


def ladder(count: int, seeds: int) -> Iterator[dict[str, Any]]:
    """A row for each kind and strength: what it cost the classifier, over seeds, and what the audit said."""
    tests = [sample(count, seed, first=count) for seed in range(seeds)]
    clean = np.array([score(sample(count, seed), test, seed) for seed, test in enumerate(tests)])
    for kind in get_args(Kind):
        for strength in STRENGTHS:
            trains = [sample(count, seed, Plant(kind, strength)) for seed in range(seeds)]
            costs = clean - [score(train, test, seed) for seed, (train, test) in enumerate(zip(trains, tests, strict=True))]
            names = [marked(train, seed) for seed, train in enumerate(trains)]
            row = {
                "kind": kind,
                "strength": strength,
                "cost": round(float(costs.mean()), 4),
                "costs": [round(float(cost), 4) for cost in costs],
                "caught": sum(bool(name) for name in names),
                "checks": sorted({name for found in names for name in found}),
            }
            print(json.dumps(row), file=sys.stderr)
            yield row


def main() -> None:
    """Plant, train, audit; then the seeds without a shortcut."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=450, help="images to train on, and as many to test on")
    parser.add_argument("--seeds", type=int, default=2, help="sets of phantoms a strength")
    parser.add_argument("--silent", type=int, default=20, help="seeds without a shortcut")
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    start = time.monotonic()
    rows = list(ladder(arguments.count, arguments.seeds))
    alarms = {seed: names for seed in range(arguments.silent) if (names := marked(sample(arguments.count, seed), seed))}
    costly = [row for row in rows if row["cost"] > LOSS]
    facts = {
        "images": arguments.count,
        "seeds": arguments.seeds,
        "costly": len(costly),
        "missed": sum(row["caught"] < arguments.seeds for row in costly),
        "false_alarms": len(alarms),
        "silent_seeds": arguments.silent,
        "alarms": alarms,
        "ladder": rows,
        "seconds": round(time.monotonic() - start, 1),
        "date": time.strftime("%Y-%m-%d"),
        **hardware(),
        "versions": versions(),
    }
    print(json.dumps(facts) if arguments.json else json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
