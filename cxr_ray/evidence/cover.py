"""What is left of the model's AUROC without the lungs, or with the border alone. A model that reads lungs falls to chance.

What is covered gets the mean grey of its own image: black would itself be a sign.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cxr_ray.audit.record import Check
from cxr_ray.evidence.sample import Sample, interval
from cxr_ray.evidence.verdict import above, not_asked
from cxr_ray.models.classifier import Classifier
from cxr_ray.models.ensemble import Ensemble
from cxr_ray.models.inference import predict_probabilities

BORDER: Final = 1 / 10
"""Width of the border as a share of the image's sides."""
LEAST_AUROC: Final = 0.6
"""Below it there is nothing of which a share could be left."""
_UNIT: Final = "share of AUROC above chance that is left"


def without_lungs(model: Classifier | Ensemble, sample: Sample) -> Check:
    """The lungs covered."""
    return _left(
        model,
        sample,
        lambda sample: sample.lungs,
        "without-lungs",
        "The lungs covered",
        warn_from=0.5,
        fail_from=0.8,
        advice="the model answers nearly as well without the lungs: it reads something else; see the border and the sources. "
        "(Disease also changes the heart, the chest wall and the exposure: some of it is honest.)",
        fine="without the lungs the model loses most of what it knows",
    )


def border_alone(model: Classifier | Ensemble, sample: Sample) -> Check:
    """All covered but a border."""
    return _left(
        model,
        sample,
        _middle,
        "border-alone",
        "Only the border left",
        warn_from=0.25,
        fail_from=0.5,
        advice="the border alone, where no lung is, tells the model the label: markers, collimation or cropping differ by class. "
        "Crop all images alike, mask markers, and train again",
        fine="the border tells the model little",
    )


def _middle(sample: Sample) -> NDArray[np.bool_]:
    height, width = sample.images.shape[1:]
    covered = np.zeros(sample.images.shape, bool)
    covered[:, round(BORDER * height) : height - round(BORDER * height), round(BORDER * width) : width - round(BORDER * width)] = True
    return covered


def _left(
    model: Classifier | Ensemble,
    sample: Sample,
    where: Callable[[Sample], NDArray[np.bool_]],
    name: str,
    title: str,
    *,
    warn_from: float,
    fail_from: float,
    advice: str,
    fine: str,
) -> Check:
    whole, whole_R = sample.spread["macro_auroc"]
    if not whole >= LEAST_AUROC:
        return not_asked(name, title, _UNIT, f"the model's AUROC here is {whole:.2f}: there is nothing of which a share could be left")
    covered = where(sample)
    means = sample.images.mean(axis=(1, 2), keepdims=True).round().astype(np.uint8)
    probabilities = predict_probabilities(model, np.where(covered, means, sample.images), sample.labels.task)
    left, left_R = sample.figures(probabilities)["macro_auroc"]
    return above(
        name,
        title,
        (left - 0.5) / (whole - 0.5),
        (left_R - 0.5) / (whole_R - 0.5),
        unit=_UNIT,
        warn_from=warn_from,
        fail_from=fail_from,
        advice=advice,
        fine=fine,
        details={
            "auroc": round(whole, 4),
            "auroc_covered": round(left, 4),
            "auroc_covered_ci95": interval(left_R),
            "share_of_the_image_covered": round(float(covered.mean()), 4),
        },
    )
