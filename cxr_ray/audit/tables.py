"""Is the label tied to something that is no disease: the source, the file, the projection, who the patient is?

Shapes: N images, K labels, L levels of a facet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cxr_ray.audit.chance import Draws, Floats, contingency, cramers_v, interval
from cxr_ray.audit.record import Check, Verdict
from cxr_ray.audit.sample import Sample

WARN_FROM, FAIL_FROM = 0.1, 0.5
"""Lower ends of the interval of Cramér's V: what Cohen (1988) calls a small and a large association."""
LEAST: Final = 5
"""Levels with fewer images are counted together, as ``other``."""
UNKNOWN: Final = "unknown"
ADULT_FROM: Final = 18
_AGES: Final = ((2, "0-1"), (12, "2-11"), (18, "12-17"), (40, "18-39"), (60, "40-59"), (80, "60-79"), (np.inf, "80 and over"))


@dataclass(frozen=True)
class Facet:
    """Something that is known of an image beside its pixels and its label."""

    name: str
    title: str
    levels: Callable[[Sample], Sequence[Any] | None]
    """(N) values, None where one is unknown; None: the DATASET does not say."""
    advice: str
    """What to do where the label hangs on it."""


def _column(name: str) -> Callable[[Sample], Sequence[Any] | None]:
    return lambda sample: sample.column(name)


def _size(sample: Sample) -> list[str] | None:
    """Height and width where there are few kinds, else quarters of the number of pixels."""
    heights, widths = sample.column("file_height"), sample.column("file_width")
    if heights is None or widths is None:
        return None
    exact = [f"{height}×{width}" for height, width in zip(heights, widths, strict=True)]
    if len(set(exact)) <= len(_AGES):
        return exact
    pixels = np.asarray(heights, dtype=np.int64) * np.asarray(widths, dtype=np.int64)
    edges = np.unique(np.quantile(pixels, [0.25, 0.5, 0.75]).astype(np.int64))
    names = [f"under {edges[0] / 1e6:.2f} Mpx"] + [f"from {edge / 1e6:.2f} Mpx" for edge in edges]
    return [names[place] for place in np.searchsorted(edges, pixels, side="right")]


def _age(sample: Sample) -> list[str | None] | None:
    ages = sample.column("age")
    return None if ages is None else [None if age is None else next(name for below, name in _AGES if age < below) for age in ages]


def _grown(sample: Sample) -> list[str | None] | None:
    ages = sample.column("age")
    return None if ages is None else [None if age is None else "adult" if age >= ADULT_FROM else "child" for age in ages]


_SAVED_ALIKE = "save all images alike before ingest (one format, one size, grey), and find out why the classes were saved in different ways"
FACETS: Final = (
    Facet(
        "label-by-source",
        "Label by source",
        _column("source"),
        "a model can answer by hospital: take each class from every source, or report figures within one source and test on another",
    ),
    Facet("label-by-format", "Label by file format", _column("file_format"), _SAVED_ALIKE),
    Facet("label-by-size", "Label by image size", _size, _SAVED_ALIKE),
    Facet("label-by-view", "Label by view", _column("view"), "keep to one view, or match the views of the classes"),
    Facet("label-by-age", "Label by age", _age, "match the classes by age, and report figures by age group"),
    Facet("label-by-sex", "Label by sex", _column("sex"), "match the classes by sex, and report figures by sex"),
    Facet(
        "label-by-adult-or-child",
        "Label by adult or child",
        _grown,
        "a model can answer by the size of the ribcage: take adults or children, or both in each class",
    ),
)


def check_facet(facet: Facet, sample: Sample, draws: Draws) -> Check:
    """Cramér's V of label and facet; of several labels that of the most strongly tied one."""
    found = facet.levels(sample)
    if found is None or not any(value is not None for value in found):
        return _does_not_arise(facet, "this is not known of the images")
    names, levels = _merged([UNKNOWN if value is None else str(value) for value in found])
    counts = _counts(sample, names, levels)
    if len(names) < 2:
        return _does_not_arise(facet, f"all images are {names[0]!r}; what a model learns here may not hold elsewhere", counts)
    measures = [_against(part, levels, len(names), draws) for part in _questions(sample)]
    value, spread, _ = max(measures, key=lambda measure: measure[0])
    limit = float(np.max([shuffled for _, _, shuffled in measures]))
    low, high = interval(spread, bias=float(spread.mean()) - value)  # resamples of few images look more tied than the images are
    verdict = judge(low, value, limit, WARN_FROM, FAIL_FROM)
    details = {"n": len(sample), "counts": counts, "chance": round(limit, 4)}
    if sample.labels.task == "multilabel":
        details["by_label"] = {name: round(measure[0], 4) for name, measure in zip(_asked(sample), measures, strict=True)}
    return Check(
        name=facet.name,
        title=facet.title,
        verdict=verdict,
        value=value,
        ci95=(low, high),
        unit="Cramér's V",
        threshold=WARN_FROM,
        advice=facet.advice if verdict != "ok" else "nothing to do",
        details=details,
    )


def judge(low: float, value: float, chance: float, warn_from: float, fail_from: float) -> Verdict:
    """``ok`` unless the whole interval lies above a limit, and the value above whatever a shuffle gave (p < 1/400)."""
    if value <= chance or low <= warn_from:
        return "ok"
    return "fail" if low > fail_from else "warn"


def _merged(values: list[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Names of the levels and (N,) the level of each image; rare levels are one."""
    frequent = {value for value, count in Counter(values).items() if count >= LEAST}
    names, levels = np.unique([value if value in frequent else "other" for value in values], return_inverse=True)
    return [str(name) for name in names], np.asarray(levels, dtype=np.int64)


def _asked(sample: Sample) -> list[str]:
    """Labels that some image has and some has not."""
    return [name for name, truth in zip(sample.labels.names, sample.truth.T, strict=True) if {0.0, 1.0} <= set(np.unique(truth))]


def _questions(sample: Sample) -> list[Floats]:
    """The truths to set against a facet: all classes at once, or each label with its absence. (N, K) or (N, 2) each."""
    if sample.labels.task == "multiclass":
        return [sample.truth]
    return [np.column_stack([sample.truth[:, column], 1 - sample.truth[:, column]]) for column in map(sample.labels.index, _asked(sample))]


def _against(truth_NK: Floats, levels: NDArray[np.int64], count: int, draws: Draws) -> tuple[float, Floats, Floats]:
    """V, that of each resample, and that of each shuffle."""
    point = cramers_v(contingency(truth_NK, levels, count, np.ones((1, len(levels)))))
    spread = cramers_v(contingency(truth_NK, levels, count, draws.weights_RN))
    place_NL = np.eye(count)[levels]
    has_KN = (truth_NK == 1).T.astype(np.float64)
    shuffled = cramers_v(np.stack([has_KN @ place_NL[one] for one in draws.shuffles_RN]))
    return float(point[0]), spread, shuffled


def _counts(sample: Sample, names: list[str], levels: NDArray[np.int64]) -> dict[str, dict[str, int]]:
    """Images of each label by level."""
    has = sample.truth == 1
    return {
        label: {name: int((has[:, column] & (levels == place)).sum()) for place, name in enumerate(names)}
        for column, label in enumerate(sample.labels.names)
    }


def _does_not_arise(facet: Facet, why: str, counts: dict[str, dict[str, int]] | None = None) -> Check:
    return Check(
        name=facet.name,
        title=facet.title,
        verdict="ok",
        value=None,
        unit="Cramér's V",
        threshold=None,
        advice=why,
        details={} if counts is None else {"counts": counts},
    )
