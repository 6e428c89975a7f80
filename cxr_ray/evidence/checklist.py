"""CLAIM 2024 and TRIPOD+AI, filled from what the artefacts say. What software cannot know is left visibly blank.

The items lie in ``checklists/*.yaml``, in our words; an item's ``known`` names a fact of :func:`cxr_ray.evidence.facts.facts`. A fact that
the artefacts at hand do not hold is blank, too: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cxr_ray import storage
from cxr_ray.audit.record import AuditRecord
from cxr_ray.evidence.facts import Known, facts
from cxr_ray.page import template
from cxr_ray.settings import Settings, read_yaml

FOLDER: Final = "checklists"
BLANK: Final = "to be filled in by the authors"
FILES: Final = {"claim": "claim.yaml", "tripod-ai": "tripod_ai.yaml"}


class Item(Settings):
    """One line of a list."""

    number: str
    section: str
    asks: str
    known: str | None = None
    """Name of the fact that answers it; None: no software can."""


class Checklist(Settings):
    """A published list."""

    title: str
    source: str
    items: tuple[Item, ...]


def read_checklist(name: str) -> Checklist:
    """A list of :data:`FILES`."""
    return Checklist.model_validate(read_yaml(Path(__file__).parent / "checklists" / FILES[name]))


def write_checklists(out: str, known: Known, metrics: Mapping[str, Any], audits: Sequence[AuditRecord]) -> None:
    """Write ``checklists/claim.html``, ``.md`` and the same of TRIPOD+AI below ``out``, a local path or a URI.

    Raises:
        StorageError: It cannot be written.
    """
    told = facts(known, metrics, audits)
    for name in FILES:
        checklist = read_checklist(name)
        answers = [(item, told[item.known] if item.known is not None else None) for item in checklist.items]
        filled = sum(answer is not None for _, answer in answers)
        page = template(__file__, "checklist.html").render(
            checklist=checklist, answers=answers, filled=filled, blank=BLANK, model=known.name, data=known.dataset.name
        )
        storage.write_bytes(storage.join(out, FOLDER, f"{name}.html"), page.encode())
        storage.write_bytes(storage.join(out, FOLDER, f"{name}.md"), _markdown(checklist, answers, known).encode())


def _markdown(checklist: Checklist, answers: Sequence[tuple[Item, str | None]], known: Known) -> str:
    lines = [
        f"# {checklist.title}: {known.name} on {known.dataset.name}",
        "",
        checklist.source,
        "",
        "| item | asks | says |",
        "|---|---|---|",
    ]
    for item, answer in answers:
        said = (answer or f"**{BLANK}**").replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {item.number} | {item.asks} | {said} |")
    return "\n".join(lines) + "\n"
