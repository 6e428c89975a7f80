"""The input gate of a bundle, fitted when it is exported: on images of the training part, its thresholds on held-out ones.

Distances: mean and covariance of the training images' features, the covariance shrunk after Ledoit & Wolf (2004). Polarity and turn:
logistic regressions on the training pictures, their inverted copies and those turned by 90, 180 and 270 degrees. Every threshold lets
:data:`PASSED` of the validation images through; a probability is never refused below one half. See :mod:`cxr_ray.models.gate`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression

from cxr_ray.data.columns import pixels
from cxr_ray.data.shards import Dataset
from cxr_ray.errors import RunError
from cxr_ray.models.gate import CHECKS, Gate, picture_features
from cxr_ray.models.inference import predict_with_pooled
from cxr_ray.models.record import CheckName, GateRecord
from cxr_ray.training.held_out import dataset_of, named_dataset

if TYPE_CHECKING:
    from cxr_ray.models.classifier import Classifier
    from cxr_ray.training.export import Export

logger = logging.getLogger(__name__)

MOST: Final = 2000
"""Images that are looked at, of the training and of the validation part each."""
LEAST: Final = 20
"""Images that both parts must have."""
PASSED: Final = 0.995
"""Share of the validation images that a check lets through."""
_PENALTY: Final = 0.01
"""scikit-learn's ``C``: pictures of 16 x 16 are more numbers than some training parts have images."""
_LEAST_THRESHOLD: Final[dict[CheckName, float]] = {"polarity": 0.5, "upright": 0.5, "radiograph": 0.0, "familiar": 0.0}
"""In the order of fitting: how an image is turned is judged by whether it is inverted, and its distance by both."""

Images = NDArray[np.uint8]


def gate_for(plan: Export, data: str | None = None) -> Gate:
    """The gate of a bundle: by the network and the data of its first member.

    Args:
        plan: What is to be exported.
        data: DATASET, where it no longer lies where the run says.

    Raises:
        RunError: The DATASET is gone or is another, has no validation part, or too few images.
    """
    run = plan.runs[0]
    record = run.manifest.dataset
    if not record.validation:
        raise RunError(f"{run.location} has no validation part to set the input gate's thresholds on", hint="--no-gate")
    dataset = dataset_of(run, named_dataset(plan, data, instead="--no-gate"), instead="--no-gate")
    train, held_out = (_sample(dataset, parts, run.manifest.seed) for parts in (record.train, record.validation))
    logger.info("fitting the input gate on %d and %d images of %s", len(train), len(held_out), record.name)
    told = [f"{', '.join(parts)} of {record.name}" for parts in (record.train, record.validation)]
    return fit_gate(run.load_model(), train, held_out, fitted_on=told[0], held_out_told=told[1])


def fit_gate(model: Classifier, train_NHW: Images, held_out_MHW: Images, *, fitted_on: str, held_out_told: str) -> Gate:
    """Fit a gate.

    Args:
        model: The network, trained.
        train_NHW: What it learned from, or some of it.
        held_out_MHW: What it did not learn from; of the same kind.
        fitted_on: The former in words.
        held_out_told: The latter in words.

    Raises:
        RunError: Fewer than :data:`LEAST` images in either.
    """
    if min(len(train_NHW), len(held_out_MHW)) < LEAST:
        raise RunError(f"{fitted_on}, {held_out_told}: {len(train_NHW)} and {len(held_out_MHW)} images are too few for an input gate")
    pooled = [predict_with_pooled(model, images, "multilabel")[1] for images in (train_NHW, held_out_MHW)]
    turned = [picture_features(np.rot90(train_NHW, turns, axes=(1, 2))) for turns in range(4)]
    inverted = [picture_features(255 - np.rot90(train_NHW, turns, axes=(1, 2))) for turns in range(4)]
    quarters = np.repeat(np.arange(4), len(train_NHW))
    tensors = {
        **_cloud("picture", turned[0]),
        **_cloud("features", pooled[0]),
        **_separator("turn", np.concatenate(turned), quarters),
        **_separator("polarity", np.concatenate([*turned, *inverted]), np.repeat([0, 1], len(quarters))),
    }
    facts: dict[str, Any] = {"channels": model.channels, "fitted_on": fitted_on, "n": len(train_NHW)}
    facts |= {"held_out": held_out_told, "n_held_out": len(held_out_MHW)}
    return _with_thresholds(tensors, facts, pooled[1], held_out_MHW)


def _with_thresholds(tensors: dict[str, NDArray[np.float32]], facts: dict[str, Any], pooled_MC: NDArray[Any], images_MHW: Images) -> Gate:
    """The gate whose thresholds let the images pass, with what it makes of them and of their copies."""

    def gate(thresholds: Mapping[CheckName, float], **measured: Any) -> Gate:
        return Gate(GateRecord(**facts, thresholds=dict(thresholds), **measured), tensors)

    nothing = {"false_alarms": {}, "turned_found": 0.0, "inverted_found": 0.0}
    thresholds: dict[CheckName, float] = dict.fromkeys(CHECKS, 0.5)
    for name, least in _LEAST_THRESHOLD.items():
        values, _ = gate(thresholds, **nothing).values(pooled_MC, images_MHW)
        thresholds[name] = max(least, float(np.quantile(values[name], PASSED, method="higher")))
    thresholds["familiar"] *= 1 + ROUNDING
    fitted = gate(thresholds, **nothing)
    verdicts = fitted.check(pooled_MC, images_MHW)
    alarms = np.array([[check.verdict == "refused" for check in verdict.checks] for verdict in verdicts])
    turned = [fitted.values(pooled_MC, np.rot90(images_MHW, turns, axes=(1, 2)))[0]["upright"] for turns in (1, 2, 3)]
    inverted = fitted.values(pooled_MC, 255 - images_MHW)[0]["polarity"]
    return gate(
        thresholds,
        false_alarms={"any": float(alarms.any(axis=1).mean()), **dict(zip(CHECKS, alarms.mean(axis=0).tolist(), strict=True))},
        turned_found=float(np.mean(np.concatenate(turned) > thresholds["upright"])),
        inverted_found=float(np.mean(inverted > thresholds["polarity"])),
    )


def _cloud(name: str, features_ND: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
    """Mean and whitening of features: their precision is whitening times its transpose."""
    centre_D, spread_D = _standard(features_ND)
    shrunk = LedoitWolf().fit((features_ND - centre_D) / spread_D)
    whitening_DD = np.linalg.cholesky(shrunk.precision_) / spread_D[:, None]
    return {
        f"{name}.mean": (centre_D + shrunk.location_ * spread_D).astype(np.float32),
        f"{name}.whitening": whitening_DD.astype(np.float32),
    }


def _separator(name: str, features_ND: NDArray[Any], classes_N: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
    """A logistic regression as weight (D, classes; or 1 of two) and bias."""
    centre_D, spread_D = _standard(features_ND)
    fitted = LogisticRegression(C=_PENALTY, max_iter=2000).fit((features_ND - centre_D) / spread_D, classes_N)
    weight_DK = fitted.coef_.T / spread_D[:, None]
    return {f"{name}.weight": weight_DK.astype(np.float32), f"{name}.bias": (fitted.intercept_ - centre_D @ weight_DK).astype(np.float32)}


def _standard(features_ND: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and deviation; features that never change are taken to vary like the typical one."""
    features = features_ND.astype(np.float64)
    spread_D = features.std(axis=0)
    changing = spread_D > 1e-9
    typical = np.median(spread_D[changing]) if changing.any() else 1.0
    return features.mean(axis=0), np.where(changing, spread_D, typical)


def _sample(dataset: Dataset, parts: tuple[str, ...], seed: int) -> Images:
    """At most :data:`MOST` images of some parts, drawn evenly; one shard's pixels in memory beside them."""
    whole = sum(dataset.count(part) for part in parts)
    chosen = np.sort(np.random.default_rng(seed).permutation(whole)[:MOST])
    found: list[Images] = []
    start = 0
    for part in parts:
        for table in dataset.tables(part, ["image"]):
            images = pixels(table, dataset.preprocess.height, dataset.preprocess.width)
            found.append(images[chosen[(chosen >= start) & (chosen < start + len(images))] - start])
            start += len(images)
    return np.concatenate(found)


ROUNDING: Final = 1e-4
"""Relative, of features: engines add up in another order, and the image that sets a threshold must pass with each."""
