"""Does a CNN-LSTM's heat map find the lesion? ``python benchmarks/pointing.py --json``; about four minutes on two quiet cores.

Draws healthy chests and chests with one kind of lesion, trains the network of a recipe on them with the package's own loop
(no Ray), and explains the lesion in every image of other patients that the network calls right, by every method. What is found, a method:

    concentration  share of the heat inside the lesions over their share of the area, mean over images
    pointing       share of images whose hottest pixel lies in a lesion, or within --tolerance of it (the pointing game of Zhang 2018, whose
                   15 pixels are about 3 % of the side); pointing_exact: without any tolerance

The lesions' outlines come from the phantoms; the labels know nothing of them. ``--untrained`` explains the network before it has learned
anything, too: what chance and anatomy alone give.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cxr_ray.config import load_recipe
from cxr_ray.data.augment import build_augmentation
from cxr_ray.data.batches import MemoryFeed
from cxr_ray.data.phantoms import Lesion, Shot, render_phantom, shots
from cxr_ray.evaluation.explain import METHODS, explain
from cxr_ray.imaging.preprocess import PreprocessSpec, preprocess
from cxr_ray.labels import LabelSet
from cxr_ray.models.classifier import Classifier, build_classifier
from cxr_ray.models.inference import predict_probabilities
from cxr_ray.training.loop import fit
from cxr_ray.training.loss import LabelCounts
from cxr_ray.training.run import hardware, versions

LABELS = LabelSet(("healthy", "lesion"), "multiclass")


@dataclass(frozen=True)
class Drawn:
    """Phantoms as a network sees them: (N, S, S) uint8, (N,) labels, (N, S, S) bool lesions."""

    images: NDArray[np.uint8]
    targets: NDArray[np.int64]
    lesions: NDArray[np.bool_]

    def part(self, chosen: NDArray[np.bool_]) -> Drawn:
        """Some of the rows."""
        return Drawn(self.images[chosen], self.targets[chosen], self.lesions[chosen])


def lesion_mask(lesions: Sequence[Lesion], shape: tuple[int, int], size: int) -> NDArray[np.bool_]:
    """(size, size): the outlines of an image of ``shape``, brought to the network's size."""
    mask = np.zeros(shape, np.uint8)
    for lesion in lesions:
        cv2.fillPoly(mask, [np.array(polygon, np.int32) for polygon in lesion.polygons], 255)
    return np.asarray(cv2.resize(mask, (size, size), interpolation=cv2.INTER_AREA) > 127)


def planted(shot: Shot, finding: str) -> Shot:
    """Half of the patients get the finding, the others are healthy; histograms are those of the healthy picture in both."""
    return dataclasses.replace(shot, findings=(finding,) if shot.patient % 2 else (), decoy=())


def draw(count: int, size: int, seed: int, finding: str) -> tuple[Drawn, NDArray[np.int64]]:
    """The first ``count`` phantoms of a seed, and their patients."""
    spec = PreprocessSpec(height=size, width=size)

    def one(shot: Shot) -> tuple[NDArray[np.uint8], int, NDArray[np.bool_], int]:
        phantom = render_phantom(shot)
        mask = lesion_mask(phantom.lesions, (phantom.image.shape[0], phantom.image.shape[1]), size)
        return preprocess(phantom.image, spec), int(bool(shot.findings)), mask, shot.patient

    with ThreadPoolExecutor() as pool:
        images, targets, lesions, patients = zip(
            *pool.map(one, (planted(shot, finding) for shot in shots("multilabel", count, seed, max(size, 128)))), strict=True
        )
    return Drawn(np.stack(images), np.array(targets), np.stack(lesions)), np.array(patients)


def train(drawn: Drawn, validation: Drawn, recipe_name: str, epochs: int | None, seed: int) -> tuple[Classifier, Classifier]:
    """The network before and after its training."""
    recipe = load_recipe(recipe_name)
    config = recipe.training.model_copy(update={"seed": seed, **({} if epochs is None else {"epochs": epochs})})
    networks = []
    for _ in range(2):
        torch.manual_seed(seed)
        pixels = drawn.images / np.float32(255)
        size = (drawn.images.shape[1], drawn.images.shape[2])
        networks.append(
            build_classifier(
                recipe.model, len(LABELS), mean=float(pixels.mean()), std=float(pixels.std()), image_size=size, load_weights=False
            )
        )
    feed = MemoryFeed(drawn.images, drawn.targets, config.batch_size, seed=seed, augmentation=build_augmentation(recipe.augment))
    held_out = MemoryFeed(validation.images, validation.targets, 64, shuffle=False)
    fit(networks[1], feed, held_out, config, labels=LABELS, counts=LabelCounts.of(drawn.targets, len(LABELS)))
    return networks[0].eval(), networks[1].eval()


def judge(model: Classifier, drawn: Drawn, method: str, tolerance: int) -> dict[str, float]:
    """Concentration, pointing and seconds an image of one method on images that all have lesions."""
    found, hits, exact, started = [], [], [], time.perf_counter()
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * tolerance + 1, 2 * tolerance + 1))
    for image, target, lesion in zip(drawn.images, drawn.targets, drawn.lesions, strict=True):
        heat = explain(model, image, int(target), method).heat_HW
        found.append(float(heat[lesion].sum() / max(heat.sum(), 1e-9) / lesion.mean()))
        hottest = np.unravel_index(heat.argmax(), heat.shape)
        hits.append(heat.any() and cv2.dilate(lesion.astype(np.uint8), disc)[hottest] > 0)
        exact.append(heat.any() and lesion[hottest])
    seconds = (time.perf_counter() - started) / len(found)
    means = {"concentration": np.mean(found), "pointing": np.mean(hits), "pointing_exact": np.mean(exact)}
    return {name: round(float(value), 3) for name, value in means.items()} | {"seconds": round(seconds, 4)}


def main() -> None:
    """Draw, train, explain, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1200, help="phantoms to draw; a sixth of the patients is held out")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--finding", default="consolidation", help="one of cxr_ray.data.phantoms.MULTILABEL")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tolerance", type=float, default=0.03, help="share of the side beside a lesion that still counts as a hit")
    parser.add_argument("--untrained", action="store_true", help="judge the network without its training, too")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    drawn, patients = draw(arguments.images, arguments.size, arguments.seed, arguments.finding)
    held_out = patients // 2 % 6 == 0  # patients come in pairs, one healthy
    before, model = train(drawn.part(~held_out), drawn.part(held_out), arguments.recipe, arguments.epochs, arguments.seed)
    unseen = drawn.part(held_out)
    right = predict_probabilities(model, unseen.images, "multiclass").argmax(1) == unseen.targets
    ill = unseen.part(right & unseen.lesions.any((1, 2)))
    facts: dict[str, Any] = {"images": len(drawn.images), "accuracy": round(float(right.mean()), 3), "explained": len(ill.images)}
    facts["lesion_area"] = round(float(ill.lesions.mean()), 4)
    for name, network in {"": model, **({"untrained_": before} if arguments.untrained else {})}.items():
        for method in METHODS:
            facts |= {
                f"{name}{method}_{key}": value
                for key, value in judge(network, ill, method, round(arguments.tolerance * arguments.size)).items()
            }
    facts |= {"date": time.strftime("%Y-%m-%d"), **hardware(), **{f"{name}_version": version for name, version in versions().items()}}
    if arguments.json:
        print(json.dumps(facts))
    else:
        for key, value in facts.items():
            print(f"{key:32} {value}")


if __name__ == "__main__":
    main()
