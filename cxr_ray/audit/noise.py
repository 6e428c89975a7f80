"""Labels that are probably wrong: confident learning (Northcutt, Jiang and Chuang 2021) with a cheap classifier.

The classifier is the logistic regression of :mod:`cxr_ray.audit.probes` on small pictures. What it cannot tell apart looks to it like
noise, so the estimate is an upper one, and is not given where it tells the classes apart too badly. Where we differ from the paper: a
count by confident thresholds, without its pruning; several labels are taken one by one.

Shapes: N images, C classes of one question, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cxr_ray.audit.chance import Draws, Floats, interval, macro_auroc
from cxr_ray.audit.probes import Folds, components, out_of_fold
from cxr_ray.audit.record import Check, Verdict
from cxr_ray.audit.sample import Sample

WARN_FROM: Final = 0.05
"""Lower end of the interval of the share of doubtful labels."""
LEAST_AUROC: Final = 0.80
"""Below it the classifier's doubts say more of the classifier than of the labels."""
SHOWN: Final = 12
_COMPONENTS: Final = 80


@dataclass(frozen=True)
class Doubt:
    """A label that the other images speak against."""

    row: int
    """Of the sample."""
    given: str
    suggested: str
    probability: float
    """Of the suggested label."""


def doubtful(probabilities_NC: Floats, given_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) the class that an image confidently belongs to (eq. 1 and 2 of the paper); its own where there is none, or it is unknown (-1).

    A class's threshold is the mean probability that its own images give it.
    """
    classes = probabilities_NC.shape[1]
    limits = np.array([probabilities_NC[given_N == kind, kind].mean() if (given_N == kind).any() else np.inf for kind in range(classes)])
    confident = np.where(probabilities_NC >= limits, probabilities_NC, -1.0)
    return np.where((given_N >= 0) & (confident.max(axis=1) >= 0), confident.argmax(axis=1), given_N)


def check_noise(sample: Sample, folds: Folds | None, draws: Draws) -> tuple[Check, list[Doubt]]:
    """The share of doubtful labels, and the most doubtful images, most first."""
    if folds is None:
        return _unknown("a label has too few patients"), []
    scores = out_of_fold(components(sample.images.reshape(len(sample), -1), _COMPONENTS), sample, folds)
    quality = float(macro_auroc(scores, sample.truth)[0])
    if quality < LEAST_AUROC:
        return _unknown(f"small pictures tell the labels apart too badly (AUROC {quality:.2f}) for their doubts to mean anything"), []
    wrong, known, doubts = _all_questions(sample, folds, scores)
    share = float(wrong.sum() / known.sum())
    low, high = interval((draws.weights_RN @ wrong) / (draws.weights_RN @ known))
    verdict: Verdict = "warn" if low > WARN_FROM else "ok"
    advice = "an upper estimate: look at the gallery, have the labels of such images read again, and keep them out of the test part"
    check = Check(
        name="label-noise",
        title="Doubtful labels",
        verdict=verdict,
        value=share,
        ci95=(low, high),
        unit="share of labels",
        threshold=WARN_FROM,
        advice=advice if verdict == "warn" else "nothing to do; the gallery shows the most doubtful",
        details={
            "n": len(sample),
            "classifier_auroc": round(quality, 4),
            "doubtful": [
                {
                    "image_id": sample.about.column("image_id")[doubt.row].as_py(),
                    "given": doubt.given,
                    "suggested": doubt.suggested,
                    "probability": round(doubt.probability, 4),
                }
                for doubt in doubts
            ],
        },
    )
    return check, doubts


def _all_questions(sample: Sample, folds: Folds, scores: Floats) -> tuple[Floats, Floats, list[Doubt]]:
    """(N,) doubtful and (N,) known labels of each image, and the worst of the doubts."""
    names = sample.labels.names
    if sample.labels.task == "multiclass":
        asked: list[tuple[Floats, NDArray[np.int64], tuple[str, ...]]] = [(np.nan_to_num(scores), sample.targets, names)]
    else:
        asked = [
            (
                np.column_stack([1 - scores[:, column], scores[:, column]]),
                np.nan_to_num(sample.truth[:, column], nan=-1).astype(np.int64),
                (f"no {names[column]}", names[column]),
            )
            for column in folds.asked
        ]
    wrong, known = np.zeros(len(sample)), np.zeros(len(sample))
    found: list[tuple[float, Doubt]] = []
    for probabilities, given, words in asked:
        suggested = doubtful(probabilities, given)
        other = suggested != given
        wrong, known = wrong + other, known + (given >= 0)
        for row in np.flatnonzero(other).tolist():
            chance, own = float(probabilities[row, suggested[row]]), float(probabilities[row, given[row]])
            found.append((own - chance, Doubt(row, words[given[row]], words[suggested[row]], chance)))
    return wrong, known, [doubt for _, doubt in sorted(found, key=lambda pair: (pair[0], pair[1].row))[:SHOWN]]


def _unknown(why: str) -> Check:
    return Check(name="label-noise", title="Doubtful labels", verdict="ok", value=None, unit="share of labels", threshold=None, advice=why)
