"""Many models on the same images: each against the first, with p values adjusted for how many are asked about.

Holm's adjustment (Scandinavian Journal of Statistics 6:65-70, 1979) holds the chance of any false alarm among a family of tests at 5 %.
A family is one figure, or one McNemar test, over all models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cxr_ray import storage
from cxr_ray.errors import DatasetError
from cxr_ray.evaluation.paired import FIGURES, compare
from cxr_ray.page import template

COMPARISON, PAGE = "comparison.json", "comparison.html"


def compare_many(reports: Sequence[str], *, seed: int = 0, resamples: int = 1000) -> dict[str, Any]:
    """REPORTs, or cross-validations, of the same images.

    Args:
        reports: At least two; the first is what the others are compared with.
        seed: Of the bootstrap.
        resamples: How many samples of patients are drawn, the same for all models.

    Returns:
        ``{reference, n, patients, task, labels, models: [{location, figures, difference, delong, mcnemar}], bootstrap, warnings}``. A
        ``difference`` is the model minus the first, with ``p`` and ``p_holm``; so has each test of ``mcnemar``. The first has none.

    Raises:
        DatasetError: Fewer than two, one twice, or not of the same images.
    """
    if len(reports) < 2:
        raise DatasetError("a comparison needs two REPORTs at least")
    if len(set(reports)) < len(reports):
        raise DatasetError("a REPORT was named twice")
    reference, others = reports[0], reports[1:]
    pairs = [compare(other, reference, seed=seed, resamples=resamples) for other in others]
    models: list[dict[str, Any]] = [{"location": reference, "figures": {name: pairs[0]["figures"][name]["b"] for name in FIGURES}}]
    for other, pair in zip(others, pairs, strict=True):
        figures = pair["figures"]
        models.append(
            {
                "location": other,
                "figures": {name: figures[name]["a"] for name in FIGURES},
                "difference": {name: figures[name]["difference"] for name in FIGURES},
                "delong": pair["delong"],
                "mcnemar": pair["mcnemar"],
            }
        )
    for kind in ("difference", "mcnemar"):
        for name in models[1][kind]:
            tests = [model[kind][name] for model in models[1:]]
            for test, adjusted in zip(tests, holm([test["p"] for test in tests]), strict=True):
                test["p_holm"] = adjusted
    first = pairs[0]
    return {
        "reference": reference,
        **{name: first[name] for name in ("n", "patients", "task", "labels")},
        "models": models,
        "bootstrap": first["bootstrap"],
        "warnings": list(dict.fromkeys(warning for pair in pairs for warning in pair["warnings"])),
    }


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p values in the order given; None stays None and counts for nothing."""
    ordered = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    found: list[float | None] = [None] * len(p_values)
    worst = 0.0
    for rank, (p, place) in enumerate(ordered):
        worst = max(worst, min(1.0, (len(ordered) - rank) * p))
        found[place] = worst
    return found


def write_comparison(found: dict[str, Any], out: str) -> None:
    """``comparison.json`` and ``comparison.html`` in the folder ``out``."""
    page = template(__file__, "comparison.html", figure=told).render(found=found, figures=FIGURES)
    storage.write_bytes(storage.join(out, PAGE), page.encode())
    storage.write_json(storage.join(out, COMPARISON), found)


def told(figure: dict[str, Any]) -> str:
    """``0.912 [0.870, 0.948]``, or ``undefined``."""
    if figure["value"] is None:
        return "undefined"
    interval = figure["ci95"]
    return f"{figure['value']:.4f}" + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")
