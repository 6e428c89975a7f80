"""The space of a search: which settings vary, under what conditions, and the points that stand for all of it.

A **point** is dotted key -> what Optuna knows: a number, or the label of an option. It holds the parameters that exist there and no others.
"""

from __future__ import annotations

import graphlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cxr_ray.config import Recipe
from cxr_ray.errors import ConfigError
from cxr_ray.settings import Settings, merge
from cxr_ray.tuning.parameters import ChoiceParameter, Parameter, Scalar

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

DATA = "data"
"""Chooses among the DATASETs of the command line instead of changing the recipe."""
SEARCHED = ("model", "augment", "feed", "training")
"""The groups of a recipe that change what is trained."""
MOST_COMBINATIONS = 10_000

Point = dict[str, Any]


@dataclass(frozen=True)
class Space:
    """Parameters over a recipe.

    Args:
        parameters: Dotted key of the recipe, or :data:`DATA` -> what it may be.
        base: The recipe as nested mappings; settings that are not searched have its values.

    Raises:
        ConfigError: Keys that the recipe lacks, that overlap, or whose conditions go round in a circle or never hold: all of them.
    """

    parameters: Mapping[str, Parameter]
    base: Mapping[str, Any]

    def __post_init__(self) -> None:
        faults = [fault for key, parameter in self.parameters.items() for fault in self._faults_of(key, parameter)]
        try:
            order = self._order
        except graphlib.CycleError as error:
            faults.append(f"space: the conditions go round in a circle: {' -> '.join(error.args[1])}")
        else:
            if not faults:
                faults += [
                    f"space.{key}.when: never holds, so it is never searched"
                    for key in order
                    if self._with(key, self._ends[key][0]) is None
                ]
        if faults:
            raise ConfigError(faults, where="space")

    @property
    def conditional(self) -> bool:
        """Whether some parameters exist only under conditions."""
        return any(parameter.when for parameter in self.parameters.values())

    def suggest(self, trial: BaseTrial) -> Point:
        """Ask Optuna for a point; a parameter's name there is its dotted key."""
        point: Point = {}
        for key in self._order:
            if self._exists(key, point):
                point[key] = self.parameters[key].suggest(trial, key)
        return point

    def apply(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe, as nested mappings, at a point. What stands deeper is set later.

        Raises:
            ConfigError: The point has keys or labels that this space has not.
        """
        strange = [
            f"{key}: {label!r}" for key, label in point.items() if key not in self.parameters or not self.parameters[key].holds(label)
        ]
        if strange:
            raise ConfigError([f"{one} is not in the space" for one in strange], where="values of a trial")
        data = dict(self.base)
        for key in sorted(point.keys() - {DATA}, key=lambda key: (key.count("."), key)):
            data = merge(data, nested({key: self.parameters[key].value_of(point[key])}))
        return data

    def combinations(self) -> list[Point]:
        """Every point of the grid: the values of ranges in their steps, all options; conditions hold.

        Raises:
            ConfigError: A range has no steps, or there are more than :data:`MOST_COMBINATIONS`.
        """
        faults = [
            f"space.{key}: a grid needs {'step' if parameter.type == 'float' else 'a range that is not logarithmic'}, or a choice of values"
            for key, parameter in self.parameters.items()
            if parameter.grid is None
        ]
        if faults:
            raise ConfigError(faults, where="space")
        found = list(itertools.islice(self._walk(lambda key: self.parameters[key].grid or ()), MOST_COMBINATIONS + 1))
        if len(found) > MOST_COMBINATIONS:
            raise ConfigError([f"space: the grid has more than {MOST_COMBINATIONS:,} points"], where="space")
        return found

    def endpoints(self) -> list[Point]:
        """Few points that together touch every option and both ends of every range, conditions respected."""
        found: list[Point] = []
        missing = [(key, end) for key in self._order for end in self._ends[key]]
        while missing:
            point = self._with(*missing[0], turn=len(found))
            assert point is not None, "found to exist when the space was made"
            found.append(point)
            missing = [(key, end) for key, end in missing if key not in point or point[key] != end]
        return found

    def corners(self, most: int) -> list[Point]:
        """The first ``most`` combinations of options and ends."""
        return list(itertools.islice(self._walk(lambda key: self._ends[key]), most))

    # --- conditions ---------------------------------------------------------------------------------------------------

    def _exists(self, key: str, point: Point) -> bool:
        """Whether a parameter exists beside what was chosen before it."""
        return all(self._current(other, point) in wanted for other, wanted in self.parameters[key].when.items())

    def _current(self, key: str, point: Point) -> Any:
        return point[key] if key in point else _get(self.apply(point), key)

    def _needs(self, key: str) -> list[str]:
        """Parameters that its conditions look at: themselves searched, or set by an option of a group above."""
        return [other for other in self.parameters if any(_within(wanted, other) for wanted in self.parameters[key].when)]

    @cached_property
    def _order(self) -> list[str]:
        """Every key after those that its conditions look at."""
        return list(graphlib.TopologicalSorter({key: self._needs(key) for key in self.parameters}).static_order())

    @cached_property
    def _ends(self) -> dict[str, Sequence[Any]]:
        """Options, or the ends of a range with what conditions elsewhere name within it."""
        named = [(other, value) for parameter in self.parameters.values() for other, values in parameter.when.items() for value in values]
        return {
            key: list(dict.fromkeys([*parameter.ends, *(value for other, value in named if other == key and parameter.holds(value))]))
            for key, parameter in self.parameters.items()
        }

    def _with(self, key: str, end: Any, turn: int = 0) -> Point | None:
        """A point in which ``key`` exists and is ``end``; the rest takes its options and ends in turn. None: there is none."""
        needed = self._needs(key)
        for other in needed:  # grows: what they need in their turn
            needed += [further for further in self._needs(other) if further not in needed]
        for chosen in itertools.product(*(self._ends[other] for other in needed)):
            fixed = dict(zip(needed, chosen, strict=True)) | {key: end}
            point: Point = {}
            for other in self._order:
                if self._exists(other, point):
                    ends = self._ends[other]
                    point[other] = fixed.get(other, ends[turn % len(ends)])
            if key in point:
                return point
        return None

    def _walk(self, values: Callable[[str], Sequence[Any]], point: Point | None = None, position: int = 0) -> Iterator[Point]:
        """All points over these values, the last parameter changing fastest."""
        point = point or {}
        if position == len(self._order):
            yield point
            return
        key = self._order[position]
        if not self._exists(key, point):
            yield from self._walk(values, point, position + 1)
            return
        for value in values(key):
            yield from self._walk(values, {**point, key: value}, position + 1)

    # --- faults -------------------------------------------------------------------------------------------------------

    def _faults_of(self, key: str, parameter: Parameter) -> Iterator[str]:
        if key == DATA:
            if not isinstance(parameter, ChoiceParameter) or not all(isinstance(label, str) for label in parameter.labels):
                yield "space.data: expected a choice among names that --data NAME=DATASET gives"
        elif fault := _fault_of_key(key):
            yield f"space.{key}: {fault}"
        elif isinstance(_get(self.base, key), Mapping) and not _changes_a_group(parameter):
            yield f"space.{key}: is a group of settings; expected options: {{NAME: {{KEY: VALUE}}}}, or the key of one setting"
        for other, wanted in parameter.when.items():
            yield from (f"space.{key}.when.{other}: {fault}" for fault in self._faults_of_condition(other, wanted))
        if not isinstance(parameter, ChoiceParameter):
            return
        for inner in self.parameters:
            for label in parameter.labels:
                if inner != key and _within(inner, key) and has(nested({key: parameter.value_of(label)}), inner):
                    yield f"space.{inner}: is also set by option {label!r} of {key}"

    def _faults_of_condition(self, other: str, wanted: Sequence[Scalar]) -> Iterator[str]:
        if other in self.parameters:
            strange = [value for value in wanted if not self.parameters[other].holds(value)]
            if strange:
                yield f"{', '.join(map(repr, strange))} is nothing that {other} may be"
        elif fault := "not searched" if other == DATA else _fault_of_key(other, monitor=True):
            yield fault
        elif isinstance(_get(self.base, other), Mapping):
            yield "is a group of settings; name one of them"


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a.b": 1}`` -> ``{"a": {"b": 1}}``, at any depth; later entries are laid over earlier ones."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        inner = nested(value) if isinstance(value, Mapping) else value
        for part in reversed(str(key).split(".")):
            inner = {part: inner}
        result = merge(result, inner)
    return result


def _changes_a_group(parameter: Parameter) -> bool:
    return isinstance(parameter, ChoiceParameter) and all(isinstance(parameter.value_of(label), Mapping) for label in parameter.labels)


def _within(key: str, group: str) -> bool:
    return key == group or key.startswith(f"{group}.")


def _get(data: Mapping[str, Any], key: str) -> Any:
    value: Any = data
    for part in key.split("."):
        value = value[part]
    return value


def has(data: Any, key: str) -> bool:
    """Whether a dotted key leads anywhere in nested mappings."""
    for part in key.split("."):
        if not isinstance(data, Mapping) or part not in data:
            return False
        data = data[part]
    return True


def _fault_of_key(key: str, *, monitor: bool = False) -> str | None:
    """Why a dotted key is no setting that may be searched (or, with ``monitor``, asked after); None: it is one."""
    if key == "training.monitor" and not monitor:
        return "follows from the first objective"
    group: Any = Recipe
    for depth, part in enumerate(key.split(".")):
        if not (isinstance(group, type) and issubclass(group, Settings)):
            return f"{'.'.join(key.split('.')[:depth])} is no group of settings"
        valid = sorted(group.model_fields if depth else (DATA, *SEARCHED))
        if part not in valid or part == DATA:
            return f"unknown key; valid here: {', '.join(valid)}"
        group = group.model_fields[part].annotation
    return None
