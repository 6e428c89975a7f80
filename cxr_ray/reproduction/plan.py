"""A plan of reproductions: which systems, on which data, by which protocol, and what had to be changed for the machine at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Literal

from pydantic import Field

from cxr_ray.config import Claim, Recipe, load_recipe
from cxr_ray.errors import ConfigError
from cxr_ray.settings import Settings, parse_settings, read_yaml

PLAN_DIRECTORY = Path(__file__).parent / "plans"
Kind = Literal["honest", "control", "published", "released"]
KINDS: tuple[Kind, ...] = ("honest", "control", "published", "released")


class Arm(Settings):
    """One training, or one cross-validation, and how it is scored."""

    data: str
    """Key of a DATASET given with ``--data key=DATASET``."""
    protocol: Literal["cv", "test", "ensemble"] = "cv"
    """``cv``: all folds, their held-out images pooled. ``test``: trained on ``train``, chosen on ``val``, scored on ``test``.
    ``ensemble``: the weighted ensemble of all folds scored on ``test``, as the scripts of papers 001 and 003 do."""
    recipe: str | None = None
    """None: the entry's own."""
    overrides: tuple[str, ...] = ()
    """``key=value``; ``$name`` stands for what ``--let name=value`` gives."""


class Entry(Settings):
    """One system of a paper."""

    recipe: str
    """Whose claims stand in the row."""
    title: str | None = None
    """Of the row; None: the recipe's name."""
    claims_of: str | None = None
    """Another recipe whose claims stand beside this one; None: its own."""
    claim: int | None = Field(default=0, ge=0)
    """Which of the recipe's claims; None: the paper gives no figure for these data."""
    honest: Arm
    """Patients and near copies kept apart."""
    control: bool = True
    """Run ``honest`` again without the RNN and compare the two on the same images."""
    published: Arm | None = None
    """The paper's way to split: image by image."""
    released: Arm | None = None
    """What the authors' scripts do."""
    changes: str = ""
    """In what the runs differ from the paper beside the data, and why."""


class NotRun(Settings):
    """A system that this plan leaves out."""

    systems: str
    why: str


class Plan(Settings):
    """``plans/*.yaml``."""

    name: str
    description: str
    data: dict[str, str]
    """Key -> the commands that make the DATASET; ``DATA`` stands for the folder of public image sets."""
    entries: tuple[Entry, ...]
    not_run: tuple[NotRun, ...] = ()
    left_out: tuple[str, ...] = ()
    """Titles of entries that were not asked for."""


def plan_names() -> list[str]:
    """The built-in plans, sorted."""
    return sorted(path.stem for path in PLAN_DIRECTORY.glob("*.yaml"))


def load_plan(name_or_file: str, only: Sequence[str] = ()) -> Plan:
    """A built-in plan by name, or a YAML file, with all its recipes checked.

    Args:
        name_or_file: ``cpu``, or the path of a ``.yaml`` file.
        only: Titles or recipes of the entries to keep; empty: all.

    Raises:
        ConfigError: Unknown plan, faults in it, recipes that are not valid, or names that no entry has.
    """
    path = Path(name_or_file)
    if path.suffix not in {".yaml", ".yml"}:
        if name_or_file not in plan_names():
            raise ConfigError(
                [f"no plan of this name; there are: {', '.join(plan_names())}"],
                where=f"plan {name_or_file!r}",
                hint="--plan NAME, or the path of a .yaml file",
            )
        path = PLAN_DIRECTORY / f"{name_or_file}.yaml"
    plan = parse_settings(Plan, read_yaml(path), where=str(path))
    faults = []
    for entry in plan.entries:
        needed = {arm.data for arm in arms_of(entry).values()}
        faults += [f"{title(entry)}: data {key!r} is not under data:" for key in sorted(needed - plan.data.keys())]
        for arm in (*arms_of(entry).values(), *([Arm(data="", recipe=entry.claims_of)] if entry.claims_of else [])):
            try:
                load_recipe(arm.recipe or entry.recipe, [item for item in arm.overrides if "$" not in item])
            except ConfigError as error:
                faults += [f"{title(entry)}: {fault}" for fault in error.faults]
    names = {name for entry in plan.entries for name in (title(entry), entry.recipe)}
    faults += [f"{name!r} is no system of this plan; there are: {', '.join(sorted(names))}" for name in only if name not in names]
    if faults:
        raise ConfigError(faults, where=str(path))
    kept = tuple(entry for entry in plan.entries if not only or {title(entry), entry.recipe} & set(only))
    return plan.model_copy(update={"entries": kept, "left_out": tuple(title(entry) for entry in plan.entries if entry not in kept)})


def title(entry: Entry) -> str:
    """What the row is called."""
    return entry.title or entry.recipe


def arms_of(entry: Entry) -> dict[Kind, Arm]:
    """The trainings of an entry, the control as a copy of ``honest``."""
    found: dict[Kind, Arm] = {"honest": entry.honest}
    if entry.control:
        found["control"] = entry.honest
    if entry.published is not None:
        found["published"] = entry.published
    if entry.released is not None:
        found["released"] = entry.released
    return found


def claim_of(entry: Entry) -> Claim | None:
    """What the paper says, if it says anything for these data."""
    claims = load_recipe(entry.claims_of or entry.recipe).claims
    return claims[entry.claim] if entry.claim is not None and entry.claim < len(claims) else None


def recipe_of(entry: Entry, kind: Kind, arm: Arm, values: Mapping[str, str]) -> Recipe:
    """The recipe of an arm, resolved.

    Args:
        entry: Of the plan.
        kind: Which arm.
        arm: The same.
        values: What ``$name`` in the overrides stands for.

    Raises:
        ConfigError: A value is not given, or the recipe is not valid.
    """
    overrides = []
    for item in arm.overrides:
        try:
            overrides.append(Template(item).substitute(values))
        except (KeyError, ValueError) as error:
            name = str(error).strip("'")
            raise ConfigError([f"{title(entry)}: {item!r} needs a value for ${name}"], where="plan", hint=f"--let {name}=VALUE") from None
    recipe = load_recipe(arm.recipe or entry.recipe, overrides)
    return recipe.without_rnn() if kind == "control" else recipe
