"""What ``metrics.json`` says, in sentences that need no statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def in_words(metrics: Mapping[str, Any]) -> list[str]:
    """One sentence on the images, one on the whole, and one a label; a figure that is undefined is left out."""
    found = [
        f"The model was shown {metrics['n']} X-rays of {metrics['patients']} patients and its answers were compared with the labels given."
    ]
    accuracy = metrics["accuracy"]
    if accuracy["value"] is not None:
        unit = "X-rays" if metrics.get("task", "multiclass") == "multiclass" else "answers (one for each label of each X-ray)"
        found.append(f"Of 100 {unit}, it gets about {_share(accuracy)} right.")
    found += [sentence for label in metrics["labels"] if (sentence := _label(label, metrics["per_label"][label])) is not None]
    ece = metrics.get("ece") or {"value": None}
    if ece["value"] is not None:
        found.append(f"Its probabilities are off by {100 * ece['value']:.0f} percentage points on average.")
    found.append("In brackets: where the true figure lies with 95 % confidence, were other patients of the same kind looked at.")
    return found


def _label(label: str, figures: Mapping[str, Any]) -> str | None:
    sensitivity, specificity, precision = (figures[name] for name in ("sensitivity", "specificity", "precision"))
    if sensitivity["value"] is None or specificity["value"] is None:
        return f"{label}: it occurs in {figures['n']} of these X-rays, which is too few, or all, to say how well it is found."
    said = f"{label}: of 100 X-rays that show it, the model finds {_share(sensitivity)}; of 100 that do not, "
    said += f"it raises a false alarm in {_share(specificity, complement=True)}."
    if precision["value"] is not None:
        said += f" Where it says {label}, it is right in {_share(precision)} of 100 cases, at the share of {label} among these X-rays."
    return said


def _share(figure: Mapping[str, Any], *, complement: bool = False) -> str:
    """``93 [87 to 97]`` of 100."""
    low, high = figure["ci95"] or (None, None)
    value = figure["value"]
    if complement:
        value, low, high = 1 - value, None if high is None else 1 - high, None if low is None else 1 - low
    return f"{100 * value:.0f}" + (f" [{100 * low:.0f} to {100 * high:.0f}]" if low is not None and high is not None else "")


def methods(metrics: Mapping[str, Any]) -> list[str]:
    """How the figures were made."""
    draws = metrics["bootstrap"]
    found = [
        f"Intervals are percentiles of {draws['resamples']} resamples of patients (seed {draws['seed']}), not of images: those of one "
        "patient are not independent.",
        "Sensitivity, specificity and precision of a label are those of the label against all others, "
        + ("the most probable label being called." if metrics.get("task") != "multilabel" else "at the threshold given in the table."),
    ]
    calibration, points = metrics.get("calibration"), metrics.get("operating_points")
    if calibration:
        found.append(f"Probabilities are calibrated: {calibration['method']}.")
    if points and points.get("policy"):
        found.append(f"Thresholds: {points['policy']}.")
    if metrics.get("subgroups"):
        groups = metrics["subgroups"]
        found.append(
            f"Groups of patients are given where a group, and the rest, have at least {groups['least_images']} images of "
            f"{groups['least_patients']} patients with and without each label. One difference in twenty leaves out 0 by chance."
        )
    return found
