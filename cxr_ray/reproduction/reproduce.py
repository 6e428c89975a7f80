"""``reproduce``: run a plan and write the table. Give the same command again and only what is missing is run."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cxr_ray import storage
from cxr_ray.cluster import connected
from cxr_ray.config import Recipe
from cxr_ray.errors import ConfigError, CxrRayError
from cxr_ray.evaluation.paired import compare
from cxr_ray.reproduction.arms import Machine, run_arm
from cxr_ray.reproduction.plan import Arm, Entry, Kind, NotRun, Plan, arms_of, claim_of, recipe_of, title
from cxr_ray.reproduction.table import Row, html, markdown, sections
from cxr_ray.training.progress import TrainProgress
from cxr_ray.training.run import hardware, versions

logger = logging.getLogger(__name__)

ROWS, MARKDOWN, PAGE = "reproduction.json", "reproduction.md", "reproduction.html"
Show = Callable[[str, str, TrainProgress], None]
"""Called with the system, the arm (and fold) and the progress after each epoch."""


def reproduce(
    plan: Plan,
    data: Mapping[str, str],
    out: str,
    *,
    values: Mapping[str, str] | None = None,
    machine: Machine | None = None,
    address: str | None = None,
    command: str = "",
    show: Show | None = None,
) -> dict[str, Any]:
    """Run every arm of ``plan`` whose data are given, and write ``reproduction.{json,md,html}`` into ``out``.

    An arm that fails is recorded with its reason and does not end the others. The pages are written anew after every system.

    Args:
        plan: What to run.
        data: Key -> DATASET.
        out: Directory, a local path or a URI.
        values: What ``$name`` in overrides stands for.
        machine: Workers and GPUs.
        address: Ray cluster; see :func:`cxr_ray.cluster.connect`.
        command: What the user typed, for the page.
        show: See :data:`Show`.

    Returns:
        What ``reproduction.json`` holds.

    Raises:
        ConfigError: A key of ``data`` that the plan does not know, or a value that is missing.
    """
    _check_keys(plan, data)
    out = storage.absolute(out)
    prepared = [
        (entry, {kind: (arm, recipe_of(entry, kind, arm, values or {})) for kind, arm in _given(entry, data)}) for entry in plan.entries
    ]
    lacking = [NotRun(systems=name, why="in the plan, but not asked for in this run") for name in plan.left_out]
    lacking += [
        NotRun(systems=title(entry), why=f"no --data {entry.honest.data}=DATASET was given")
        for entry in plan.entries
        if entry.honest.data not in data
    ]
    rows: list[Row] = []
    result: dict[str, Any] = {}
    with connected(address):
        for entry, arms in prepared:
            if not arms:
                continue
            rows.append(_row(entry, arms, data, storage.join(out, _folder(entry)), machine or Machine(), show))
            result = _write(out, plan, rows, [*plan.not_run, *lacking], command)
    if not rows:
        raise ConfigError(["no system of the plan has its data"], where="--data", hint="--data KEY=DATASET, with the keys of the plan")
    return result


def _folder(entry: Entry) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", title(entry))


def _check_keys(plan: Plan, data: Mapping[str, str]) -> None:
    unknown = [key for key in data if key not in plan.data]
    if unknown:
        raise ConfigError([f"the plan has no data called {key!r}; it has {', '.join(plan.data)}" for key in unknown], where="--data")


def _given(entry: Entry, data: Mapping[str, str]) -> list[tuple[Kind, Arm]]:
    return [(kind, arm) for kind, arm in arms_of(entry).items() if arm.data in data]


def _row(
    entry: Entry, arms: Mapping[Kind, tuple[Arm, Recipe]], data: Mapping[str, str], out: str, machine: Machine, show: Show | None
) -> Row:
    facts: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for kind, (arm, recipe) in arms.items():

        def told(where: str, progress: TrainProgress, kind: str = kind) -> None:
            if show is not None:
                show(title(entry), f"{kind} {where}".strip(), progress)

        try:
            facts[kind] = run_arm(recipe, arm, data[arm.data], storage.join(out, kind), machine, told)
        except CxrRayError as error:
            logger.warning("%s, %s: %s", title(entry), kind, error.message)
            failed[kind] = error.message
    difference = None
    if "honest" in facts and "control" in facts:
        difference = compare(facts["honest"]["predictions"], facts["control"]["predictions"])
    recipe = next(iter(arms.values()))[1]
    return Row(title(entry), recipe.paper, claim_of(entry), facts, failed, difference, entry.changes)


def _write(out: str, plan: Plan, rows: Sequence[Row], not_run: Sequence[NotRun], command: str) -> dict[str, Any]:
    machine = hardware()
    result = {
        "plan": plan.name,
        "command": command,
        "machine": machine,
        "versions": versions(),
        "rows": [{**asdict(row), "claim": row.claim.model_dump() if row.claim else None} for row in rows],
        "not_run": [item.model_dump() for item in not_run],
    }
    used, gpus = versions(), ", ".join(machine["gpus"]) or "no GPU"
    notes = [
        " ".join(plan.description.split()),
        f"Made by `{command or 'cxr-ray reproduce'}` with cxr_ray {used['cxr_ray']}, torch {used['torch']}, "
        f"on {machine['cores']} cores, {machine['memory_gib']} GiB, {gpus}. Not edited by hand.",
    ]
    found = sections(rows, not_run, plan.data)
    heading = f"Reproduction: {plan.name}"
    storage.write_bytes(storage.join(out, ROWS), json.dumps(result, indent=2, default=str).encode())
    storage.write_bytes(storage.join(out, MARKDOWN), markdown(heading, notes, found).encode())
    storage.write_bytes(storage.join(out, PAGE), html(heading, notes, found).encode())
    return result
