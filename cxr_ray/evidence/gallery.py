"""The errors the model was surest of, each beside its heat map: for a false alarm of the label called, for a miss of the label missed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cxr_ray.evaluation.evaluate import Subject
from cxr_ray.evaluation.explain import explain, overlay
from cxr_ray.evaluation.report import Sample as Shown
from cxr_ray.evidence.sample import Sample
from cxr_ray.models.decision import called

MOST: Final = 24
"""Images of the whole gallery: what keeps the page below 10 MB."""
EACH: Final = 3


def error_gallery(subject: Subject, sample: Sample, probabilities: NDArray[Any], method: str) -> dict[str, list[Shown]]:
    """False positives and false negatives of each label, the surest first.

    Args:
        subject: The model.
        sample: Images it has answered.
        probabilities: (N, K), calibrated where the model is.
        method: Of :func:`cxr_ray.evaluation.explain.explain`.

    Returns:
        Heading -> images; labels without errors are left out.
    """
    said = called(probabilities, sample.labels.task, subject.thresholds)
    truth = _truth(sample)
    found: dict[str, list[Shown]] = {}
    each = max(1, min(EACH, MOST // (2 * len(sample.labels))))
    for heading, label, rows in _errors(sample, said, truth, probabilities):
        if sum(map(len, found.values())) + each <= MOST:
            found[heading] = [_shown(subject, sample, said, truth, probabilities, row, label, method) for row in rows[:each]]
    return found


def _truth(sample: Sample) -> NDArray[np.float64]:
    """(N, K) of 1, 0 and NaN."""
    if sample.labels.task == "multilabel":
        return np.asarray(sample.targets, dtype=np.float64)
    return np.asarray(np.eye(len(sample.labels))[sample.targets], dtype=np.float64)


def _errors(
    sample: Sample, said: NDArray[Any], truth: NDArray[np.float64], probabilities: NDArray[Any]
) -> Iterator[tuple[str, int, NDArray[np.int64]]]:
    """Heading, label and rows, the worst first."""
    for label, name in enumerate(sample.labels.names):
        alarms = np.flatnonzero(said[:, label].astype(bool) & (truth[:, label] == 0))
        if len(alarms):
            yield f"False alarms: {name}", label, alarms[np.argsort(-probabilities[alarms, label], kind="stable")]
        misses = np.flatnonzero(~said[:, label].astype(bool) & (truth[:, label] == 1))
        if len(misses):
            yield f"Missed: {name}", label, misses[np.argsort(probabilities[misses, label], kind="stable")]


def _shown(
    subject: Subject,
    sample: Sample,
    said: NDArray[Any],
    truth: NDArray[np.float64],
    probabilities: NDArray[Any],
    row: int,
    label: int,
    method: str,
) -> Shown:
    image = sample.images[row]
    heat = explain(subject.model, image, label, method).heat_HW
    names = [
        "|".join(name for name, yes in zip(sample.labels.names, answers[row] == 1, strict=True) if yes) or "no finding"
        for answers in (truth, said)
    ]
    return Shown(image, names[0], names[1], float(probabilities[row, label]), False, overlay(image, heat))
