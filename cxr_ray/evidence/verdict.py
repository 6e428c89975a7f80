"""From a figure with its interval to a check."""

from __future__ import annotations

from typing import Any

from cxr_ray.audit.record import Check, Verdict
from cxr_ray.evidence.sample import Floats, interval


def above(
    name: str,
    title: str,
    value: float,
    values_R: Floats,
    *,
    unit: str,
    warn_from: float,
    fail_from: float | None,
    advice: str,
    fine: str,
    details: dict[str, Any],
) -> Check:
    """A figure that ought to be small: not ok where its whole interval lies above a limit.

    Args:
        name: Of the check.
        title: For a person.
        value: The figure.
        values_R: Its resamples.
        unit: What it is.
        warn_from: Limit from which on it is a warning.
        fail_from: Limit from which on it is a failure; None: never.
        advice: What to do where it is not ok.
        fine: What it says where it is.
        details: Further figures.
    """
    spread = interval(values_R)
    low = spread[0] if spread is not None else value
    verdict: Verdict = "ok" if low <= warn_from else "fail" if fail_from is not None and low > fail_from else "warn"
    said = fine if verdict == "ok" else advice
    return Check(
        name=name, title=title, verdict=verdict, value=value, ci95=spread, unit=unit, threshold=warn_from, advice=said, details=details
    )


def not_asked(name: str, title: str, unit: str, why: str, details: dict[str, Any] | None = None) -> Check:
    """A question that does not arise."""
    return Check(name=name, title=title, verdict="ok", value=None, unit=unit, threshold=None, advice=why, details=details or {})
