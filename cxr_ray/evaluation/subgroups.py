"""How a model does on parts of the images: by sex, age, view and source, each against all other images.

Small groups say little and tempt to conclusions: a figure is given where a group, and the rest, have at least so many images of so many
patients of every class it needs; else counts alone. Many groups are looked at, so that one in twenty differences leaves out 0 by chance.
Shapes: N images, K labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cxr_ray.evaluation.delong import Patients
from cxr_ray.evaluation.metrics import one_hot, statistics
from cxr_ray.evaluation.weighted import Floats, bootstrap_of, figure
from cxr_ray.labels import LabelSet
from cxr_ray.models.decision import Cuts

ATTRIBUTES: Final = ("sex", "age", "view", "source")
BANDS: Final = (
    ("under 1 year", 0, 1),
    ("1 to 5 years", 1, 6),
    ("6 to 17 years", 6, 18),
    ("18 to 39 years", 18, 40),
    ("40 to 64 years", 40, 65),
    ("65 years and older", 65, 200),
)
"""Name, from, and up to but not including, in years."""
LEAST_IMAGES: Final = 20
LEAST_PATIENTS: Final = 5
WHOLE, EACH = ("accuracy", "macro_auroc"), ("auroc", "sensitivity", "specificity")


def attributes(table: Mapping[str, Sequence[Any]]) -> dict[str, NDArray[np.str_]]:
    """Attribute -> (N,) group of each image, of the columns ``sex``, ``age`` (years), ``view`` and ``source``; empty where not known."""
    found = {name: np.array([str(value or "") for value in table[name]]) for name in ATTRIBUTES if name != "age"}
    return found | {"age": np.array([_band(value) for value in table["age"]])}


def _band(years: float | None) -> str:
    if years is None or years != years:
        return ""
    return next((name for name, low, high in BANDS if low <= years < high), "")


def subgroups(
    probabilities: NDArray[Any],
    targets: NDArray[Any],
    patients: Patients,
    labels: LabelSet,
    groups: Mapping[str, NDArray[np.str_]],
    *,
    thresholds: Cuts | None = None,
    least_images: int = LEAST_IMAGES,
    least_patients: int = LEAST_PATIENTS,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Figures of each group, and how far they are from those of the rest.

    Args:
        probabilities: (N, K)
        targets: (N,) label index, or (N, K) of 1, 0 and NaN.
        patients: (N,)
        labels: The K names and the task.
        groups: From :func:`attributes`. One with fewer than two groups is left out.
        thresholds: As of :func:`cxr_ray.evaluation.metrics.compute_metrics`, one a label.
        least_images: Of positives and of negatives of a label, in the group and in the rest.
        least_patients: The same of patients.
        seed: Of the bootstrap.
        resamples: How many samples of patients are drawn.

    Returns:
        ``{"least_images", "least_patients", "attributes": {A: [{"group", "n", "patients", "figures", "per_label": {L: {"n", …}}}]}}``.
        ``figures`` (accuracy, macro AUROC) and a label's (AUROC, sensitivity, specificity) are ``{"value", "ci95", "difference":
        {"value", "ci95"}}``, the difference to all other images; absent, or None, where the group is too small.
    """
    said, truth, people = np.asarray(probabilities), one_hot(targets, labels), np.asarray(patients, dtype=str)
    found: dict[str, list[dict[str, Any]]] = {}
    for name, values in groups.items():
        kinds = [kind for kind in np.unique(values) if kind]
        if len(kinds) < 2:
            continue
        found[name] = []
        for kind in kinds:
            inside = values == kind
            here, there = (_enough(truth, people, rows, least_images, least_patients) for rows in (inside, ~inside))
            enough = here & there
            row: dict[str, Any] = {"group": str(kind), "n": int(inside.sum()), "patients": len(np.unique(people[inside])), "figures": None}
            row["per_label"] = {label: {"n": int(np.nansum(truth[inside, k]))} for k, label in enumerate(labels.names)}
            if enough.any():
                sides = _Sides(said, np.asarray(targets), labels, inside, thresholds)
                point, spread = bootstrap_of(sides, people, seed=seed, resamples=resamples)
                row["figures"] = _figures(point, spread, "", WHOLE) if enough.all() else None
                for k, label in enumerate(labels.names):
                    if enough[k]:
                        row["per_label"][label] |= _figures(point, spread, "label_", EACH, k)
            found[name].append(row)
    return {"least_images": least_images, "least_patients": least_patients, "attributes": found}


class _Sides:
    """Row weights -> every statistic of the group (``in_``) and of the rest (``out_``), by the same weights."""

    def __init__(
        self, said: NDArray[Any], targets: NDArray[Any], labels: LabelSet, inside: NDArray[np.bool_], thresholds: Cuts | None
    ) -> None:
        self.rows = {"in_": np.flatnonzero(inside), "out_": np.flatnonzero(~inside)}
        self.of = {side: statistics(said[rows], targets[rows], labels, thresholds=thresholds) for side, rows in self.rows.items()}

    def __call__(self, weights: Floats) -> dict[str, Floats]:
        wanted = {*WHOLE, *(f"label_{name}" for name in EACH)}
        return {
            f"{side}{name}": values
            for side, rows in self.rows.items()
            for name, values in self.of[side](weights[:, rows]).items()
            if name in wanted
        }


def _enough(truth: Floats, people: NDArray[np.str_], rows: NDArray[np.bool_], images: int, patients: int) -> NDArray[np.bool_]:
    """Which labels have enough positives and negatives among the rows."""

    def kind(label: int, answer: int) -> bool:
        those = rows & (truth[:, label] == answer)
        return int(those.sum()) >= images and len(np.unique(people[those])) >= patients

    return np.array([kind(label, 1) and kind(label, 0) for label in range(truth.shape[1])])


def _figures(
    point: Mapping[str, Floats], spread: Mapping[str, Floats], prefix: str, names: Sequence[str], label: int | None = None
) -> dict[str, Any]:
    found = {}
    for name in names:
        (value, rest), (drawn, others) = (
            [side[f"{which}{prefix}{name}"] if label is None else side[f"{which}{prefix}{name}"][:, label] for which in ("in_", "out_")]
            for side in (point, spread)
        )
        found[name] = {**figure(value, drawn), "difference": figure(value - rest, drawn - others)}
    return found
