"""Can the label be told from what is not the lungs? A logistic regression on each, cross-validated by patient and copy.

Features follow from the images alone, without labels: bins of file facts and of grey-level statistics, principal components of pixels.
So that a score is compared with something, each part of the picture has its *counterpart*, which holds what the part lacks: the border and
what it encloses, the outside of the lungs and the lungs, grey values without places and places without grey values. A part that knows the
label *better* than its counterpart is no by-product of disease.

Shapes: N images, S pixels a side, K labels, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from cxr_ray.audit.chance import Draws, Floats, interval, macro_auroc
from cxr_ray.audit.record import Check, Verdict
from cxr_ray.audit.sample import SIDE, Sample
from cxr_ray.audit.tables import judge
from cxr_ray.imaging.lungs import lung_mask

WARN_FROM, FAIL_FROM = 0.60, 0.75
"""Lower ends of the interval of the macro AUROC."""
FOLDS: Final = 5
LEAST_GROUPS: Final = 10
"""A label is asked for where so many patients have it and so many have it not."""
COMPONENTS: Final = 40
_BORDER: Final = SIDE // 8
_BINS: Final = 8
_MASKED: Final = 200  # images whose lungs are looked for
_LUNG_SHARE: Final = 0.05
_PERCENTILES: Final = (1, 2, 5, 10, 25, 40, 50, 60, 75, 90, 95, 98)


@dataclass(frozen=True)
class Folds:
    """Which images are held out together; the same for every probe."""

    fold_N: NDArray[np.int64]
    asked: tuple[int, ...]
    """Columns of the labels that have patients enough."""


def make_folds(sample: Sample, seed: int) -> Folds | None:
    """Grouped, stratified folds; None: no label has patients enough, on either side."""
    groups = np.unique(sample.groups, return_inverse=True)[1]

    def enough(truth: Floats) -> bool:
        return all(len(np.unique(groups[truth == side])) >= LEAST_GROUPS for side in (0, 1))

    asked = tuple(column for column, truth in enumerate(sample.truth.T) if enough(truth))
    if not asked or (sample.labels.task == "multiclass" and len(asked) < 2):
        return None
    fold_N = np.empty(len(sample), np.int64)
    rare = np.bincount(sample.strata)[sample.strata] < FOLDS  # too few to be dealt out: with the rest
    kinds = np.where(rare, sample.strata.max() + 1, sample.strata)
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for number, (_, held_out) in enumerate(splitter.split(groups, kinds, groups)):
        fold_N[held_out] = number
    return Folds(fold_N, asked)


def out_of_fold(features_NF: Floats, sample: Sample, folds: Folds) -> Floats:
    """(N, K) probability of each label by a model that saw no image of the same group; NaN for labels that are not asked for."""
    scaled = (features_NF - features_NF.mean(axis=0)) / (features_NF.std(axis=0) + 1e-9)
    found = np.full(sample.truth.shape, np.nan)
    if sample.labels.task == "multiclass":
        found[:, list(folds.asked)] = 0
        _fill(found, list(range(len(sample.labels))), scaled, sample.targets, folds.fold_N)
    else:
        for column in folds.asked:
            _fill(found, [-1, column], scaled, sample.truth[:, column], folds.fold_N)
    return found


def _fill(found: Floats, columns: list[int], features_NF: Floats, targets: NDArray[Any], fold_N: NDArray[np.int64]) -> None:
    """Probabilities of the classes 0, 1 … into their columns; column -1 is not wanted. Unknown targets are not learned from."""
    known = ~np.isnan(targets.astype(np.float64))
    for fold in range(FOLDS):
        held_out, seen = fold_N == fold, (fold_N != fold) & known
        model = LogisticRegression(C=0.1, max_iter=1000, tol=1e-3).fit(features_NF[seen], targets[seen].astype(np.int64))
        probabilities = model.predict_proba(features_NF[held_out])
        for place, kind in enumerate(model.classes_):
            if columns[kind] >= 0:
                found[held_out, columns[kind]] = probabilities[:, place]


# --- what is shown to the model -----------------------------------------------------------------------------------------


def binned(values_N: NDArray[Any]) -> Floats:
    """(N, bins): numbers as one of eight equally filled bins, names as one of their kinds; nothing for what does not vary."""
    if values_N.dtype.kind in "fiu":
        edges = np.quantile(values_N, np.linspace(0, 1, _BINS + 1)[1:-1])
        edges = np.unique([edges, np.nextafter(edges, np.inf)])  # what most images have is a bin of its own
        places = np.searchsorted(edges, values_N, side="right")
    else:
        places = np.unique(values_N, return_inverse=True)[1]
    kinds = np.unique(places)
    return (places[:, None] == kinds).astype(np.float64) if len(kinds) > 1 else np.empty((len(places), 0))


def components(pixels_NP: NDArray[Any], count: int = COMPONENTS) -> Floats:
    """(N, count) principal components of pixels."""
    few = min(count, *np.subtract(pixels_NP.shape, 1))
    return np.asarray(PCA(few, svd_solver="randomized", random_state=0).fit_transform(pixels_NP.astype(np.float32)), dtype=np.float64)


def by_source(sample: Sample) -> Floats:
    """(N, sources)."""
    return binned(np.asarray(sample.column("source"), dtype=str))


def by_file(sample: Sample) -> Floats:
    """(N, F): height, width, aspect, mode, bits and format of the source files; nothing where they are not known."""
    names = ("file_height", "file_width", "file_bits", "file_mode", "file_format")
    known = {name: values for name in names if (values := sample.column(name)) is not None}
    if len(known) < len(names):
        return np.empty((len(sample), 0))
    numbers = {name: np.asarray(known[name], dtype=np.float64) for name in names[:3]}
    aspect = numbers["file_width"] / numbers["file_height"]
    kinds = [np.asarray(known[name], dtype=str) for name in names[3:]]
    return np.column_stack([binned(values) for values in (*numbers.values(), aspect, *kinds)])


def grey_statistics(sample: Sample) -> Floats:
    """(N, 16 times bins): mean, deviation, extremes and twelve percentiles, none of which knows a place."""
    flat = sample.images.reshape(len(sample), -1)
    columns = [flat.mean(axis=1), flat.std(axis=1), flat.min(axis=1), flat.max(axis=1), *np.percentile(flat, _PERCENTILES, axis=1)]
    return np.column_stack([binned(np.asarray(column, dtype=np.float64)) for column in columns])


def equalised(sample: Sample) -> Floats:
    """(N, F): the picture after histogram equalisation: places, without grey values."""
    return components(np.stack([cv2.equalizeHist(image) for image in sample.images]).reshape(len(sample), -1))


@cache
def _frame() -> NDArray[np.bool_]:
    """(S, S): the outer eighth on every side."""
    frame = np.ones((SIDE, SIDE), bool)
    frame[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    return frame


def border(sample: Sample) -> Floats:
    """(N, F): the outer eighth on every side, the rest black."""
    return components(sample.images[:, _frame()])


def centre(sample: Sample) -> Floats:
    """(N, F): the picture without its border."""
    return components(sample.images[:, ~_frame()])


def without_lungs(sample: Sample) -> Floats:
    """(N, F): the picture with the lungs black."""
    return components(sample.images[:, ~_lungs(sample)])


def lungs_alone(sample: Sample) -> Floats:
    """(N, F): the lungs, the rest black."""
    return components(sample.images[:, _lungs(sample)])


def _lungs(sample: Sample) -> NDArray[np.bool_]:
    """(S, S): where the lungs of at least one image in twenty lie. One mask for all: outlines of their own would tell opaque lungs."""
    every = sample.images[:: max(1, len(sample) // _MASKED)]
    share = np.mean([lung_mask(image) for image in every], axis=0)
    return np.asarray(share >= _LUNG_SHARE)


# --- the checks ---------------------------------------------------------------------------------------------------------

Features = Callable[[Sample], Floats]


@dataclass(frozen=True)
class Probe:
    """One thing that the label may be told from."""

    name: str
    title: str
    features: Features
    advice: str
    counterpart: Features | None = None
    """None: there is no innocent way to tell the label from this."""
    beside: str = ""
    """What the counterpart is, in words."""


_READ_BORDER = "crop or mask the border and compare; look whether the classes were collimated, marked or positioned differently"
PROBES: Final = (
    Probe("label-from-source", "Label from the source alone", by_source, "take each class from every source, or test on another source"),
    Probe(
        "label-from-file",
        "Label from facts of the file",
        by_file,
        "save all images alike before ingest, and ask why the classes differ",
    ),
    Probe(
        "label-from-grey",
        "Label from 16 grey-level statistics",
        grey_statistics,
        "ingest with --equalize hist or clahe, and look for another scanner or exposure in one class",
        equalised,
        "the picture with its grey values equalised",
    ),
    Probe("label-from-border", "Label from the border, centre black", border, _READ_BORDER, centre, "the centre"),
    Probe(
        "label-from-outside-lungs",
        "Label from the picture, lungs black",
        without_lungs,
        "look at cxr-ray explain: heat maps that lie outside the lungs mean the model reads what this probe reads",
        lungs_alone,
        "the lungs",
    ),
)


def check_probe(probe: Probe, sample: Sample, folds: Folds | None, draws: Draws) -> Check:
    """Macro AUROC of a probe, with its interval, chance, and its counterpart's."""
    features = probe.features(sample)
    if folds is None or not features.shape[1]:
        why = "this does not vary, or is not known" if folds is not None else f"a label needs {LEAST_GROUPS} patients with it and without"
        return _does_not_arise(probe, why)
    truth = sample.truth
    scores = out_of_fold(features, sample, folds)
    value = float(macro_auroc(scores, truth)[0])
    spread = macro_auroc(scores, truth, weights_RN=draws.weights_RN)
    chance = float(macro_auroc(scores, truth, shuffles_RN=draws.shuffles_RN).max())
    low, high = interval(spread)
    verdict = judge(low, value, chance, WARN_FROM, FAIL_FROM)
    details: dict[str, Any] = {"n": len(sample), "chance": round(chance, 4), "by_label": _by_label(scores, sample)}
    told = probe.advice if verdict != "ok" else "nothing to do"
    if probe.counterpart is not None and verdict != "ok":
        other = out_of_fold(probe.counterpart(sample), sample, folds)
        ahead = spread - macro_auroc(other, truth, weights_RN=draws.weights_RN)
        verdict = "fail" if interval(ahead)[0] > 0 else "warn"  # disease may show in both
        details["counterpart"] = {"what": probe.beside, "value": round(float(macro_auroc(other, truth)[0]), 4)}
        details["ahead_ci95"] = [round(end, 4) for end in interval(ahead)]
        told = _reading(probe, verdict, details["counterpart"]["value"])
    return Check(
        name=probe.name,
        title=probe.title,
        verdict=verdict,
        value=value,
        ci95=(low, high),
        unit="AUROC",
        threshold=WARN_FROM,
        advice=told,
        details=details,
    )


def _reading(probe: Probe, verdict: Verdict, other: float) -> str:
    if verdict == "fail":
        return f"it tells more than {probe.beside} ({other:.2f}), so it is no by-product of disease: {probe.advice}"
    return f"disease, pose and exposure may show here too ({other:.2f} from {probe.beside}), so this alone proves nothing; {probe.advice}"


def _by_label(scores: Floats, sample: Sample) -> dict[str, float]:
    return {
        name: round(float(macro_auroc(scores[:, [column]], sample.truth[:, [column]])[0]), 4)
        for column, name in enumerate(sample.labels.names)
        if not np.isnan(scores[:, column]).any()
    }


def _does_not_arise(probe: Probe, why: str) -> Check:
    return Check(name=probe.name, title=probe.title, verdict="ok", value=None, unit="AUROC", threshold=None, advice=why)
