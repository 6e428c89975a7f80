"""What the model's pooled features know beside the label: the source, and whether they serve on a source they have not met.

Logistic regressions on the frozen features of the part under test; none of them is the model itself.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cxr_ray.audit.record import Check
from cxr_ray.evaluation.metrics import bootstrap
from cxr_ray.evidence.sample import RESAMPLES, Floats, Sample, interval
from cxr_ray.evidence.verdict import above, not_asked
from cxr_ray.labels import LabelSet

FOLDS: Final = 5
LEAST: Final = 20
"""Images that a source, and each of its labels, must have to be looked at."""
TIED: Final = 0.1
"""Cramér's V of label and source from which on a readable source is a failure: what Cohen (1988) calls a small association."""


def source_in_features(sample: Sample) -> Check:
    """Can the source be read from the features? Cross-validated by group."""
    name, title, unit = "source-in-features", "Source read from the model's features", "AUROC"
    counts = dict(Counter(sample.sources.tolist()))
    kept = sorted(source for source, count in counts.items() if count >= LEAST)
    if len(kept) < 2:
        return not_asked(name, title, unit, "fewer than two sources of 20 images: the question cannot be asked here", {"images": counts})
    rows = np.isin(sample.sources, kept)
    labels, groups = LabelSet(tuple(kept), "multiclass"), sample.groups[rows]
    truth = np.searchsorted(kept, sample.sources[rows])
    scores = cross_validated(sample.pooled[rows], truth, groups, len(kept), sample.seed)
    point, spread = bootstrap(scores, truth, groups, labels, seed=sample.seed, resamples=RESAMPLES)
    tied = _association(classes_of(sample)[rows], truth)
    return above(
        name,
        title,
        float(point["macro_auroc"][0]),
        spread["macro_auroc"],
        unit=unit,
        warn_from=0.75,
        fail_from=0.75 if tied > TIED else None,
        advice="the network tells the sources apart"
        + (f", and the labels are spread unevenly over them (Cramér's V {tied:.2f}): it can answer by source" if tied > TIED else "")
        + "; report figures within each source, and test on one it has not met",
        fine="the sources look much alike to the network",
        details={"images": {source: counts[source] for source in kept}, "cramers_v_of_label_and_source": round(tied, 4)},
    )


def leave_one_source_out(sample: Sample) -> Check:
    """How much does a new head on the frozen features lose on a source that it was not trained on?"""
    name, title, unit = "leave-one-source-out", "A source left out of the head's training", "AUROC lost"
    classes = classes_of(sample)
    usable = {source: _enough(classes[sample.sources == source]) for source in np.unique(sample.sources).tolist()}
    kept = [source for source, labels in usable.items() if len(labels) >= 2]
    if len(kept) < 2:
        return not_asked(name, title, unit, "fewer than two sources hold 20 images each of two labels: none can be left out", {})
    rows = np.isin(sample.sources, kept) & np.isin(classes, sorted(set.intersection(*(usable[source] for source in kept))))
    names, truth = np.unique(classes[rows], return_inverse=True)
    if len(names) < 2:
        return not_asked(name, title, unit, "the sources share fewer than two labels", {})
    features, groups, sources = sample.pooled[rows], sample.groups[rows], sample.sources[rows]
    labels = LabelSet(tuple(names.tolist()), "multiclass")
    within = cross_validated(features, truth, groups, len(names), sample.seed)
    table, drops = [], []
    for source in kept:
        held = sources == source
        apart = _head(sample.seed).fit(features[~held], truth[~held]).predict_proba(features[held])
        figures = [bootstrap(s, truth[held], groups[held], labels, seed=sample.seed, resamples=RESAMPLES) for s in (within[held], apart)]
        (known, known_R), (unknown, unknown_R) = ((float(p["macro_auroc"][0]), r["macro_auroc"]) for p, r in figures)
        drops.append((known - unknown, known_R - unknown_R))
        table.append(
            {"source": source, "images": int(held.sum()), "trained_with_it": round(known, 4), "trained_without_it": round(unknown, 4)}
            | {"lost": round(known - unknown, 4), "ci95": interval(known_R - unknown_R)}
        )
    worst, worst_R = max(drops, key=lambda drop: drop[0])
    return above(
        name,
        title,
        worst,
        worst_R,
        unit=unit,
        warn_from=0.05,
        fail_from=0.15,
        advice="what the head learned at the other sources does not serve at this one: train on more sources, and expect less elsewhere",
        fine="a head trained at the other sources does as well, as far as the features go",
        details={"table": table, "note": "a logistic head on the trained network's frozen features, which have met all sources"},
    )


def cross_validated(features: NDArray[Any], truth: NDArray[Any], groups: NDArray[np.str_], classes: int, seed: int) -> Floats:
    """(N, classes) probabilities of each image by a logistic regression that has not seen its group; a class not in training has 0."""
    scores = np.zeros((len(truth), classes))
    for train, held in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(features, truth, groups):
        head = _head(seed).fit(features[train], truth[train])
        scores[np.ix_(held, head.classes_)] = head.predict_proba(features[held])
    return scores


def _head(seed: int) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000, random_state=seed))


def classes_of(sample: Sample) -> NDArray[np.str_]:
    """(N,) names: the label; of several labels the rarest one that the image has, or ``none``."""
    names = np.array([*sample.labels.names, "none"], dtype=str)
    if sample.labels.task == "multiclass":
        return np.asarray(names[sample.targets])
    has = sample.targets == 1
    rarity = np.where(has, has.sum(0), np.inf)
    return np.asarray(names[np.where(has.any(1), rarity.argmin(1), len(sample.labels))])


def _enough(classes: NDArray[np.str_]) -> set[str]:
    return {name for name, count in Counter(classes.tolist()).items() if count >= LEAST}


def _association(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Cramér's V, corrected for bias (Bergsma 2013)."""
    _, rows = np.unique(one, return_inverse=True)
    _, columns = np.unique(other, return_inverse=True)
    table = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(table, (rows, columns), 1)
    n, (r, c) = table.sum(), table.shape
    expected = np.outer(table.sum(1), table.sum(0)) / n
    square = max(0.0, float(((table - expected) ** 2 / expected).sum()) / n - (r - 1) * (c - 1) / (n - 1))
    least = min(r - (r - 1) ** 2 / (n - 1), c - (c - 1) ** 2 / (n - 1)) - 1
    return float(np.sqrt(square / least)) if least > 0 else 0.0
