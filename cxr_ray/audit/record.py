"""``audit.json``: a verdict a check, with the number behind it and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal, get_args

from pydantic import Field

from cxr_ray.settings import Settings

SCHEMA: Final = "cxr-ray/audit/1"
Verdict = Literal["ok", "warn", "fail"]
_ORDER: Final[tuple[str, ...]] = get_args(Verdict)


class Check(Settings):
    """One question and its answer."""

    name: str
    """Stable, in lower case with hyphens, such as ``label-by-source``."""
    title: str
    """For a person."""
    verdict: Verdict
    value: float | None
    """The number that decides; None: the question does not arise here, and ``advice`` says why."""
    ci95: tuple[float, float] | None = None
    unit: str
    """What ``value`` is: ``Cramér's V``, ``AUROC``, ``pairs`` …"""
    threshold: float | None
    """From where on ``value`` is no longer ok; None: nothing was to be compared."""
    advice: str
    """What to do, or why nothing has to be done."""
    details: dict[str, Any] = Field(default_factory=dict)
    """Tables and further figures, plain JSON."""


class AuditRecord(Settings):
    """All checks of one subject."""

    schema_: Literal["cxr-ray/audit/1"] = Field(default=SCHEMA, alias="schema")
    subject: Literal["dataset", "bundle"]
    name: str
    fingerprint: str
    """Of the DATASET; of a bundle the SHA-256 of its ``bundle.json``."""
    dataset_fingerprint: str
    """Of the DATASET that was looked at."""
    seed: int
    images: int | None = None
    """Images that the probes looked at; None: the checks say so themselves."""
    of_images: int | None = None
    """Images they were drawn from."""
    quick: bool = False
    """A quick audit of a DATASET: fewer images, copies as ingest counted them."""
    verdict: Verdict
    """The worst of the checks'."""
    checks: tuple[Check, ...]


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of some verdicts; ``ok`` of none."""
    return max(verdicts, key=_ORDER.index, default="ok")
