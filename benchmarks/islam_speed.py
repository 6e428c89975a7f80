"""Images a second of ``islam-cnn-lstm`` at its published size, beside paper 001's 24.9 in training and 8.1 in testing (GTX 1050 Ti).

The product's own loop (``cxr_ray.training.loop.fit``) and forward pass on images of the size and number asked for; the pixels are noise,
for the speed does not depend on them. ``python benchmarks/islam_speed.py --json`` takes about two minutes on two CPU cores;
on a GPU ``--images 3660 --epochs 125 --compile`` is the paper's whole training (the first epoch, which compiles, is left out of the rate).
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch

from cxr_ray.config import load_recipe
from cxr_ray.cpu import keep_memory
from cxr_ray.data.batches import MemoryFeed
from cxr_ray.labels import LabelSet
from cxr_ray.models.classifier import build_classifier
from cxr_ray.models.inference import predict_probabilities
from cxr_ray.models.parameters import count_flops
from cxr_ray.training.distributed import World
from cxr_ray.training.loop import fit
from cxr_ray.training.run import hardware, versions

LABELS = LabelSet(("covid", "pneumonia", "normal"), "multiclass")
PAPER = {"train": 24.9, "test": 8.1}
PAPER_TRAINING = 125 * 3660
"""Images that the paper's whole training sees."""


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train for some epochs, then score the images once more."""
    keep_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    overrides = [f"training.epochs={arguments.epochs}", "training.monitor=last", f"training.batch_size={arguments.batch_size}"]
    recipe = load_recipe("islam-cnn-lstm", [*overrides, f"training.compile={'true' if arguments.compile else 'false'}"])
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (arguments.images, arguments.size, arguments.size), dtype=np.uint8)
    targets = generator.integers(0, 3, arguments.images)
    torch.manual_seed(0)
    model = build_classifier(recipe.model, 3, mean=0.5, std=0.25, image_size=(arguments.size, arguments.size))
    feed = MemoryFeed(images, targets, arguments.batch_size, pin_memory=device.type == "cuda")
    started = time.perf_counter()
    fitted = fit(model, feed, None, recipe.training, labels=LABELS, world=World(device=device))
    seconds = time.perf_counter() - started
    counted = fitted.history[1:] or fitted.history
    train = float(np.median([record.images_per_second for record in counted]))
    model.eval()
    predict_probabilities(model, images[: arguments.batch_size], "multiclass", device=device)
    started = time.perf_counter()
    predict_probabilities(model, images, "multiclass", device=device)
    test = len(images) / (time.perf_counter() - started)
    return {
        "train": round(train, 2),
        "test": round(test, 2),
        "ratio_train": round(train / PAPER["train"], 2),
        "ratio_test": round(test / PAPER["test"], 2),
        "seconds_of_the_papers_training": round(PAPER_TRAINING / train, 1),
        "seconds_measured": round(seconds, 1),
        "gflop_an_image": round(count_flops(model) / 1e9, 2),
        "images": arguments.images,
        "epochs": arguments.epochs,
        "size": arguments.size,
        "batch_size": arguments.batch_size,
        "compile": arguments.compile,
        "device": str(device),
    }


def main() -> None:
    """Print the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    arguments = parser.parse_args()
    found = {**measure(arguments), **{f"{name}_version": value for name, value in versions().items()}, **hardware()}
    if arguments.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:32} {value}")


if __name__ == "__main__":
    main()
