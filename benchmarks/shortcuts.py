"""Could a trivial feature solve a DATASET? Logistic regression on grey-level histograms, statistics and a 16 x 16 picture.

Fitted on the training part, scored on the test part, the same parts that a model gets:
``python benchmarks/shortcuts.py work/demo/dataset --json``. A histogram near chance says that brightness carries no label; a
16 x 16 picture well below the model says that position alone does not either.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cxr_ray.data.columns import pixels, targets_of
from cxr_ray.data.shards import Dataset, open_dataset

Images = NDArray[np.uint8]


def histogram(images: Images) -> NDArray[np.float64]:
    """(N, 64): share of pixels in each of 64 bins of grey."""
    return np.stack([np.bincount(image.ravel() >> 2, minlength=64) / image.size for image in images])


def statistics(images: Images) -> NDArray[np.float64]:
    """(N, 7): mean, deviation and five percentiles of grey."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    return np.column_stack([flat.mean(1), flat.std(1), np.percentile(flat, [1, 25, 50, 75, 99], axis=1).T])


def thumbnail(images: Images) -> NDArray[np.float64]:
    """(N, 256): the picture at 16 x 16."""
    return np.stack([cv2.resize(image, (16, 16), interpolation=cv2.INTER_AREA).ravel() for image in images]).astype(np.float64)


FEATURES: dict[str, Callable[[Images], NDArray[np.float64]]] = {
    "histogram": histogram,
    "statistics": statistics,
    "thumbnail_16": thumbnail,
}


def part(dataset: Dataset, name: str) -> tuple[Images, NDArray[Any]]:
    """Pixels and label indices of a partition."""
    table = dataset.read(name)
    return pixels(table, dataset.preprocess.height, dataset.preprocess.width), targets_of(table, dataset.labels)


def main() -> None:
    """Print macro F1 of each feature on the test part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="multiclass DATASET with parts train and test")
    parser.add_argument("--json", action="store_true", help="one flat object on stdout")
    arguments = parser.parse_args()
    dataset = open_dataset(arguments.dataset)
    if dataset.labels.task != "multiclass":
        sys.exit("this benchmark is for multiclass data")
    (train_images, train_targets), (test_images, test_targets) = part(dataset, "train"), part(dataset, "test")
    chance = f1_score(test_targets, np.random.default_rng(0).permutation(test_targets), average="macro")
    found: dict[str, Any] = {"fingerprint": dataset.manifest.fingerprint, "n_test": len(test_targets), "permuted": round(float(chance), 4)}
    for name, feature in FEATURES.items():
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=5000))
        called = model.fit(feature(train_images), train_targets).predict(feature(test_images))
        found[name] = round(float(f1_score(test_targets, called, average="macro")), 4)
    print(json.dumps(found) if arguments.json else "\n".join(f"{key:14} {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()
