"""How much do the figures fall when the same picture is taken, scanned or saved a little otherwise?

Six changes at three severities, after Hendrycks & Dietterich (2019), with amounts that one would call mild, plain and strong.
Sizes are shares of the image's side, so that 64 and 512 pixels are treated alike; random numbers follow from the image's place.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cxr_ray.audit.record import Check
from cxr_ray.evidence.sample import Floats, Sample, interval
from cxr_ray.evidence.verdict import above, not_asked
from cxr_ray.models.classifier import Classifier
from cxr_ray.models.ensemble import Ensemble
from cxr_ray.models.inference import predict_probabilities

Picture = NDArray[np.uint8]


def _contrast(image: Picture, amount: float, _: np.random.Generator) -> Picture:
    mean = image.mean()
    return np.asarray(np.rint((image - mean) * amount + mean), np.uint8)


def _noise(image: Picture, amount: float, generator: np.random.Generator) -> Picture:
    return np.asarray(np.rint(np.clip(image + generator.normal(0, amount, image.shape), 0, 255)), np.uint8)


def _blur(image: Picture, amount: float, _: np.random.Generator) -> Picture:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), amount * max(image.shape)), np.uint8)


def _rotation(image: Picture, amount: float, generator: np.random.Generator) -> Picture:
    height, width = image.shape
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), amount * generator.choice((-1, 1)), 1.0)
    return np.asarray(cv2.warpAffine(image, turn, (width, height), borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _jpeg(image: Picture, amount: float, _: np.random.Generator) -> Picture:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=round(amount))
    return np.asarray(Image.open(stream))


def _crop(image: Picture, amount: float, generator: np.random.Generator) -> Picture:
    height, width = image.shape
    rows, columns = round(amount * height), round(amount * width)
    top, left = generator.integers(0, rows + 1), generator.integers(0, columns + 1)
    part = image[top : top + height - rows, left : left + width - columns]
    return np.asarray(cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


CHANGES: Final[dict[str, tuple[str, Callable[[Picture, float, np.random.Generator], Picture], tuple[float, float, float]]]] = {
    "contrast": ("contrast times", _contrast, (0.8, 0.6, 0.4)),
    "noise": ("noise, deviation in grey levels", _noise, (5.0, 10.0, 20.0)),
    "blur": ("blur, deviation as share of the side", _blur, (0.006, 0.012, 0.024)),
    "rotation": ("degrees", _rotation, (3.0, 7.0, 15.0)),
    "jpeg": ("JPEG quality", _jpeg, (60.0, 30.0, 10.0)),
    "crop": ("share of the side cut off", _crop, (0.05, 0.1, 0.2)),
}
"""What the amount is, the change, and its amounts from mild to strong."""


def changed(images: NDArray[np.uint8], kind: str, severity: int, seed: int) -> NDArray[np.uint8]:
    """(N, H, W) images after a change of :data:`CHANGES` at severity 1, 2 or 3."""
    _, change, amounts = CHANGES[kind]
    place = list(CHANGES).index(kind)
    return np.stack(
        [change(image, amounts[severity - 1], np.random.default_rng((seed, place, severity, row))) for row, image in enumerate(images)]
    )


def robustness(model: Classifier | Ensemble, sample: Sample) -> Check:
    """Falls of AUROC and F1 under every change; the largest fall of AUROC under a mild one decides."""
    name, title, unit = "robustness", "Picture taken or saved a little otherwise", "AUROC lost"
    whole, whole_R = sample.spread["macro_auroc"]
    if not np.isfinite(whole):
        return not_asked(name, title, unit, "AUROC is undefined here")
    table: list[dict[str, Any]] = []
    mild: list[tuple[float, Floats, str]] = []
    for kind, (told, _, amounts) in CHANGES.items():
        for severity, amount in enumerate(amounts, start=1):
            figures = sample.figures(predict_probabilities(model, changed(sample.images, kind, severity, sample.seed), sample.labels.task))
            row: dict[str, Any] = {"change": kind, "amount": amount, "what": told, "severity": severity}
            for figure, (value, values_R) in figures.items():
                before, before_R = sample.spread[figure]
                row |= {
                    figure: round(value, 4),
                    f"{figure}_lost": round(before - value, 4),
                    f"{figure}_ci95": interval(before_R - values_R),
                }
            table.append(row)
            if severity == 1:
                value, values_R = figures["macro_auroc"]
                mild.append((whole - value, whole_R - values_R, kind))
    worst, worst_R, kind = max(mild, key=lambda one: one[0])
    return above(
        name,
        title,
        worst,
        worst_R,
        unit=unit,
        warn_from=0.02,
        fail_from=0.1,
        advice=f"a mild change ({kind}) costs the model part of what it knows: train with such changes (recipe: augment), "
        "and keep the acquisition as it was in training",
        fine="mild changes cost the model little",
        details={"worst": kind, "table": table},
    )
