"""What a model's calls would be worth where a label is rarer, or commoner, than among the images at hand. An assumption, not a measurement.

Sensitivity and specificity are taken over as they are (label shift: the images of a label look alike in both places); predictive values
and probabilities then follow from Bayes' rule (Saerens, Latinne & Decaestecker, Neural Computation 14:21-41, 2002).
Shapes: R resamples, N images, K labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_ray.errors import ConfigError
from cxr_ray.evaluation.delong import Patients
from cxr_ray.evaluation.metrics import bootstrap, one_hot
from cxr_ray.evaluation.weighted import Floats, figure, ratio
from cxr_ray.labels import LabelSet
from cxr_ray.models.calibration import normalised
from cxr_ray.models.decision import Cuts


def parse_prevalence(text: str, labels: LabelSet) -> dict[str, float]:
    """``LABEL=0.02,LABEL=0.5`` as numbers.

    Raises:
        ConfigError: A label that is none, a share outside 0..1, or shares of classes that sum to 1 or more and leave some out, or to
            something else than 1 and leave none out.
    """
    faults, found = [], {}
    for part in text.split(","):
        name, _, value = part.rpartition("=")
        try:
            share = float(value)
        except ValueError:
            share = math.nan
        if name.strip() not in labels.names:
            faults.append(f"{part!r}: expected LABEL=SHARE with a label of {', '.join(labels.names)}")
        elif not 0.0 < share < 1.0:
            faults.append(f"{part!r}: expected a share between 0 and 1")
        found[name.strip()] = share
    whole = math.fsum(found.values())
    if not faults and labels.task == "multiclass":
        if len(found) == len(labels) and abs(whole - 1) > 1e-6:
            faults.append(f"the shares of all classes sum to {whole:g}, not to 1")
        if len(found) < len(labels) and whole >= 1:
            faults.append(f"the shares sum to {whole:g} and leave nothing for the other classes")
    if faults:
        raise ConfigError(faults, where="--prevalence")
    return found


def shares_here(targets: NDArray[Any], labels: LabelSet) -> Floats:
    """(K,) share of each label among the known answers; NaN where there are none."""
    truth = one_hot(targets, labels)
    return ratio(np.nansum(truth, axis=0), (~np.isnan(truth)).sum(axis=0).astype(np.float64))


def shares_assumed(assumed: Mapping[str, float], here_K: Floats, labels: LabelSet) -> Floats:
    """(K,) of the place that is asked about: what was not said stays as it is here; of classes, in proportion, so that all sum to 1."""
    shares = np.array([assumed.get(name, here) for name, here in zip(labels.names, here_K, strict=True)], dtype=np.float64)
    if labels.task == "multiclass":
        rest = np.array([name not in assumed for name in labels.names])
        left = shares[rest].sum()
        shares[rest] *= (1 - shares[~rest].sum()) / left if left > 0 else 1.0
    return shares


def at_prevalence(
    probabilities: NDArray[Any],
    targets: NDArray[Any],
    patients: Patients,
    labels: LabelSet,
    assumed: Mapping[str, float],
    *,
    thresholds: Cuts | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Predictive values at an assumed prevalence, at the same thresholds, with intervals by patient.

    Args:
        probabilities: (N, K)
        targets: (N,) label index, or (N, K) of 1, 0 and NaN.
        patients: (N,)
        labels: The K names and the task.
        assumed: From :func:`parse_prevalence`.
        thresholds: As of :func:`cxr_ray.evaluation.metrics.compute_metrics`.
        seed: Of the bootstrap.
        resamples: How many samples of patients are drawn.

    Returns:
        ``{"assumption": sentence, "per_label": {L: {"here", "assumed", "ppv", "npv"}}}``; the last two are figures.
    """
    point, spread = bootstrap(probabilities, targets, patients, labels, thresholds=thresholds, seed=seed, resamples=resamples)
    here_K = shares_here(targets, labels)
    there_K = shares_assumed(assumed, here_K, labels)
    values, drawn = (_predictive(side["_confusion"], there_K, labels) for side in (point, spread))
    return {
        "assumption": "Prevalences are assumed; sensitivity and specificity are taken to be the same there as on these images.",
        "per_label": {
            label: {
                "here": _or_none(here_K[k]),
                "assumed": _or_none(there_K[k]),
                "ppv": figure(values[0][:, k], drawn[0][:, k]),
                "npv": figure(values[1][:, k], drawn[1][:, k]),
            }
            for k, label in enumerate(labels.names)
        },
    }


def reweighted(probabilities: NDArray[Any], targets: NDArray[Any], labels: LabelSet, assumed: Mapping[str, float]) -> NDArray[np.float32]:
    """(N, K) probabilities as they would be there: odds times those of the prevalences, there over here; classes sum to 1."""
    said, here_K = np.asarray(probabilities, dtype=np.float64), shares_here(targets, labels)
    there_K = shares_assumed(assumed, here_K, labels)
    known = (here_K > 0) & (here_K < 1)
    up_K = np.where(known, ratio(there_K, here_K), 1.0)
    if labels.task == "multiclass":
        return normalised(said * up_K).astype(np.float32)
    down_K = np.where(known, ratio(1 - there_K, 1 - here_K), 1.0)
    return np.asarray(said * up_K / (said * up_K + (1 - said) * down_K), dtype=np.float32)


def _predictive(confusion: Floats, there_K: Floats, labels: LabelSet) -> tuple[Floats, Floats]:
    """PPV and NPV, each (R, K), of counts (R, K, K) of truth by call; multilabel: (R, K, 2, 2)."""
    rates = ratio(confusion, np.broadcast_to(confusion.sum(-1, keepdims=True), confusion.shape))
    if labels.task == "multilabel":
        weighted = rates * np.stack([1 - there_K, there_K], -1)[None, :, :, None]
        return ratio(weighted[..., 1, 1], weighted[..., 1].sum(-1)), ratio(weighted[..., 0, 0], weighted[..., 0].sum(-1))
    weighted = np.where(there_K[None, :, None] > 0, rates * there_K[None, :, None], 0.0)
    hit = np.einsum("rkk->rk", weighted)
    called = weighted.sum(1)
    return ratio(hit, called), ratio(1 - called - (there_K - hit), 1 - called)


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
