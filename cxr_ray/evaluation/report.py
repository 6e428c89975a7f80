"""``report.html``: one file that opens without a network and says how good the model is, and how sure we are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_ray.evaluation.figures import Picture, pictures_of, to_png_uri
from cxr_ray.evaluation.words import in_words, methods
from cxr_ray.labels import LabelSet
from cxr_ray.models.decision import Cuts, called
from cxr_ray.page import template

SAMPLES_A_KIND = 6


@dataclass(frozen=True)
class Sample:
    """One image of the gallery.

    Args:
        pixels: (H, W) uint8, as the model saw it.
        truth: The label, or the labels joined by ``|``.
        called: What the model says.
        probability: Of what it says (multiclass), or of the most probable label.
        right: Whether it is so.
        overlay: (H, W, 3) uint8, the image under its heat map; None: not explained.
    """

    pixels: NDArray[np.uint8]
    truth: str
    called: str
    probability: float
    right: bool
    overlay: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Section:
    """A part of the page that an evaluation alone does not have.

    Args:
        title: Heading.
        words: What it shows, for anybody.
        pictures: Figures.
        gallery: Images by kind.
        columns: Heads of a table; empty: no table.
        rows: Its cells as text.
    """

    title: str
    words: str
    pictures: Sequence[Picture] = ()
    gallery: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def choose_samples(
    probabilities: NDArray[Any], targets: NDArray[Any], labels: LabelSet, *, thresholds: Cuts | None = None, seed: int = 0
) -> dict[str, list[int]]:
    """Rows worth seeing: a random draw (no choice of ours), and the errors the model was surest of.

    Args:
        probabilities: (N, K).
        targets: (N,) or (N, K).
        labels: The K names and the task.
        thresholds: (K,), see :func:`cxr_ray.models.decision.called`.
        seed: Of the draw.

    Returns:
        ``{"random": rows, "errors": rows}``, at most :data:`SAMPLES_A_KIND` each.
    """
    right = _right(probabilities, targets, labels, thresholds)
    drawn = np.random.default_rng(seed).permutation(len(right))[:SAMPLES_A_KIND]
    surest = np.argsort(-probabilities.max(1), kind="stable")
    return {"random": drawn.tolist(), "errors": [int(row) for row in surest if not right[row]][:SAMPLES_A_KIND]}


def describe(
    row: int,
    pixels: NDArray[np.uint8],
    probabilities: NDArray[Any],
    targets: NDArray[Any],
    labels: LabelSet,
    *,
    thresholds: Cuts | None = None,
) -> Sample:
    """The gallery's entry for one row of the arrays of :func:`choose_samples`."""
    scores = probabilities[row]
    yes = called(scores[None], labels.task, thresholds)[0]
    said = "|".join(name for name, decided in zip(labels.names, yes, strict=True) if decided) or "no finding"
    if labels.task == "multiclass":
        truth = labels.names[int(targets[row])]
    else:
        truth = "|".join(name for name, value in zip(labels.names, targets[row], strict=True) if value == 1) or "no finding"
    one = slice(row, row + 1)
    return Sample(pixels, truth, said, float(scores.max()), bool(_right(probabilities[one], targets[one], labels, thresholds)[0]))


def _right(probabilities: NDArray[Any], targets: NDArray[Any], labels: LabelSet, thresholds: Cuts | None) -> NDArray[np.bool_]:
    decided = called(probabilities, labels.task, thresholds)
    if labels.task == "multiclass":
        return np.asarray(decided.argmax(1) == targets)
    return np.asarray((decided == (targets == 1)).all(1))


def render_report(
    *,
    title: str,
    metrics: Mapping[str, Any],
    probabilities: NDArray[Any],
    targets: NDArray[Any],
    labels: LabelSet,
    samples: Mapping[str, Sequence[Sample]],
    history: Sequence[Mapping[str, Any]],
    best_epoch: int | None,
    provenance: Mapping[str, str],
    warnings: Sequence[str] = (),
    sections: Sequence[Section] = (),
    pictures: Sequence[Picture] | None = None,
) -> str:
    """The whole page: first in plain words, then pictures, then every number, then methods and provenance.

    Args:
        title: Heading.
        metrics: ``metrics.json``.
        probabilities: (N, K) of the evaluated part.
        targets: (N,) or (N, K).
        labels: The K names and the task.
        samples: Gallery by kind, from :func:`describe`.
        history: A record an epoch (``history.jsonl``); empty where the run is not at hand.
        best_epoch: The epoch kept, for the mark in the learning curves.
        provenance: Name and value of what identifies data, run and versions.
        warnings: Sentences that a reader must see before the numbers.
        sections: Further parts, before the numbers.
        pictures: Of :func:`~cxr_ray.evaluation.figures.pictures_of`, where they are drawn already.

    Returns:
        HTML without any external reference.
    """
    drawn = pictures_of(metrics, probabilities, targets, labels, history, best_epoch) if pictures is None else pictures
    return template(__file__, "report.html", figure=_figure, png=to_png_uri).render(
        title=title,
        metrics=metrics,
        words=in_words(metrics),
        methods=methods(metrics),
        multiclass=labels.task == "multiclass",
        pictures=drawn,
        samples=samples,
        sections=sections,
        provenance=provenance,
        warnings=warnings,
    )


def _figure(figure: Mapping[str, Any]) -> str:
    """``0.912 [0.870, 0.948]``, or ``undefined``."""
    if figure["value"] is None:
        return "undefined"
    interval = figure["ci95"]
    return f"{figure['value']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
