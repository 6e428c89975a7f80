"""Are the heat maps worth looking at, and do they lie in the lungs?

Shapes: N images, H x W pixels, S x S of the maps that are compared.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from cxr_ray.audit.record import Check, Verdict
from cxr_ray.evaluation.explain import explain
from cxr_ray.evidence.sample import RESAMPLES, Floats, Sample, interval
from cxr_ray.evidence.verdict import above, not_asked
from cxr_ray.models.classifier import Classifier, build_classifier
from cxr_ray.models.ensemble import Ensemble

METHOD: Final = "gradcam"
SIDE: Final = 32
"""S."""


def heat_in_lungs(model: Classifier | Ensemble, sample: Sample) -> Check:
    """Share of the heat that lies in the lungs over the lungs' share of the image; 1 is what heat thrown at random would have."""
    name, title, unit = "heat-in-lungs", "Heat inside the lungs", "times its share by area"
    ratios = np.full(len(sample), np.nan)
    for row, (image, lungs) in enumerate(zip(sample.images, sample.lungs, strict=True)):
        heat = explain(model, image, method=METHOD).heat_HW
        if heat.any() and lungs.any():
            ratios[row] = heat[lungs].sum() / heat.sum() / lungs.mean()
    known = np.isfinite(ratios)
    if not known.any():
        return not_asked(name, title, unit, "no image has any heat")
    values_R = _means_by_group(ratios[known], sample.groups[known], sample.seed)
    value, spread = float(ratios[known].mean()), interval(values_R)
    assert spread is not None
    verdict: Verdict = "ok" if spread[0] >= 1.0 else "fail" if spread[1] < 0.8 else "warn"
    advice = "the heat lies mostly in the lungs, or at least no less than by chance"
    if verdict != "ok":
        advice = "what decides for the model lies outside the lungs as often as inside, or more: look at the error gallery and the border"
    details = {
        "method": METHOD,
        "images": int(known.sum()),
        "without_heat": int((~known).sum()),
        "lungs_share_of_area": round(float(sample.lungs.mean()), 4),
        "note": "the lungs are found by a classical method (cxr_ray.imaging.lungs); a heat map is as coarse as the feature map",
    }
    return Check(
        name=name, title=title, verdict=verdict, value=value, ci95=spread, unit=unit, threshold=1.0, advice=advice, details=details
    )


def follows_weights(model: Classifier | Ensemble, sample: Sample) -> Check:
    """Sanity check of Adebayo (2018): with weights made random, from the head down, the map must become another.

    Of an ensemble the first member is looked at. The label is the one that the trained network calls.
    """
    name, title, unit = "heat-follows-weights", "Heat map with random weights", "rank correlation"
    trained = model.members[0] if isinstance(model, Ensemble) else model
    assert isinstance(trained, Classifier)
    labels = [explain(trained, image, method=METHOD).label for image in sample.images]
    before = _maps(trained, sample.images, labels)
    stages: dict[str, Floats] = {}
    for stage, network in _cascade(trained, sample.seed):
        after = _maps(network, sample.images, labels)
        stages[stage] = np.array([_rank_correlation(one, other) for one, other in zip(before, after, strict=True)])
    last = next(reversed(stages.values()))
    return above(
        name,
        title,
        float(last.mean()),
        _means_by_group(last, sample.groups, sample.seed),
        unit=unit,
        warn_from=0.5,
        fail_from=None,
        advice="the map is much the same whatever the weights: it shows edges of the picture, not what the network knows; do not read it",
        fine="the map follows the weights",
        details={
            "method": METHOD,
            "images": len(sample),
            "cascade": [
                {"random_from_the_head_to": stage, "rank_correlation": round(float(found.mean()), 4)} for stage, found in stages.items()
            ],
        },
    )


def _cascade(trained: Classifier, seed: int) -> Iterator[tuple[str, Classifier]]:
    """The network with random head; head and RNN; and the backbone's parts from the last to the first."""
    mean, std = float(trained.mean), float(trained.std)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = build_classifier(trained.config, trained.num_outputs, mean=mean, std=std, image_size=trained.image_size, load_weights=False)
    random, network = fresh.state_dict(), copy.deepcopy(trained).eval()
    for name, prefixes in _stages(list(random)):
        state = network.state_dict()
        network.load_state_dict({key: random[key].to(value) if key.startswith(prefixes) else value for key, value in state.items()})
        yield name, network


def _stages(keys: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Name of a stage and the prefixes of its keys; the backbone in at most four parts, each as many keys as the others."""
    yield "head", ("head.",)
    yield "RNN and readout", ("recurrent.", "readout.")
    backbone = [key for key in keys if key.startswith("backbone.")]
    parts = [part for part in np.array_split(np.array(backbone), 4) if len(part)]
    for number, part in reversed(list(enumerate(parts, start=1))):
        yield f"backbone, part {number} of {len(parts)}", tuple(part.tolist())


def _maps(network: Classifier, images: NDArray[np.uint8], labels: list[int]) -> list[NDArray[np.float32]]:
    heats = (explain(network, image, label, METHOD).heat_HW for image, label in zip(images, labels, strict=True))
    return [np.asarray(cv2.resize(heat, (SIDE, SIDE), interpolation=cv2.INTER_AREA)) for heat in heats]


def _rank_correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Spearman's; 0 where a map is flat: what was seen is gone."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return abs(float(spearmanr(one, other, axis=None).statistic))


def _means_by_group(values: Floats, groups: NDArray[np.str_], seed: int) -> Floats:
    """(R,) means of resamples of groups."""
    names, cluster = np.unique(groups, return_inverse=True)
    generator = np.random.default_rng(seed)
    times = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)[:, cluster]
    return np.asarray((times @ values) / times.sum(1))
