"""Sweep files: which recipe, what varies, what is best, how the search goes on and when a trial is stopped."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, SkipValidation, model_validator

from cxr_ray import storage
from cxr_ray.config import ModelConfig, Recipe, TrainingConfig, load_recipe
from cxr_ray.errors import ConfigError, ModelError
from cxr_ray.settings import Settings, apply_overrides, merge, parse_settings, read_yaml
from cxr_ray.tuning.parameters import ChoiceParameter, Parameter, parse_parameter
from cxr_ray.tuning.space import Space, has, nested

COSTS = ("parameters", "flops", "latency_ms")
"""Known before a trial is trained: parameters in all; operations of one image's forward pass; its milliseconds, where they are measured."""
MOST_CORNERS = 512
T = TypeVar("T")


class Objective(Settings):
    """A measure of a trial. In a file its name alone will do."""

    metric: Literal["val_loss", "val_accuracy", "val_macro_f1", "val_macro_auroc", "parameters", "flops", "latency_ms"]
    mode: Literal["min", "max"]
    """Follows from the metric; a file may say it for its readers."""

    @model_validator(mode="before")
    @classmethod
    def _mode_of_metric(cls, data: Any) -> Any:
        data = {"metric": data} if isinstance(data, str) else data
        if not isinstance(data, Mapping):
            return data
        metric = data.get("metric")
        return {"mode": "min" if metric == "val_loss" or metric in COSTS else "max", **data}

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        smaller = self.metric == "val_loss" or self.is_cost
        if (self.mode == "min") != smaller:
            raise ValueError(f"mode of {self.metric} is {'min' if smaller else 'max'}: {'smaller' if smaller else 'larger'} is better")
        return self

    @property
    def is_cost(self) -> bool:
        """Whether it is known without training."""
        return self.metric in COSTS


class Search(Settings):
    """Which points are tried."""

    algorithm: Literal["tpe", "cmaes", "random", "grid"] = "tpe"
    """``tpe`` learns from the trials before, with any space; ``cmaes`` too, for numbers alone; ``grid`` tries every combination."""
    seed: int = Field(default=0, ge=0)
    startup_trials: int = Field(default=10, ge=1)
    """``tpe`` and ``cmaes``: the first trials, drawn at random."""


class Stopping(Settings):
    """Which trials end before their last epoch. With several objectives: none."""

    kind: Literal["none", "asha", "median"] = "none"
    """``asha``: the best 1 / ``reduction_factor`` go on at each rung. ``median``: ends a trial that is below the median of the others."""
    grace_epochs: int = Field(default=2, ge=1)
    """Epochs that every trial gets."""
    reduction_factor: int = Field(default=3, ge=2)
    """``asha``: rungs are ``grace_epochs`` times its powers."""
    brackets: int = Field(default=1, ge=1)
    """``asha``: with several, some trials begin at a later rung."""
    min_samples: int = Field(default=3, ge=1)
    """``median``: trials that must have reached an epoch before any ends there."""


class Sweep(Settings):
    """A sweep file, resolved."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    recipe: Recipe
    """In the file a name, or a recipe file beside it; here with ``set`` laid over it."""
    set: Mapping[str, Any] = Field(default_factory=dict)
    """Dotted key -> value, for all trials."""
    space: Annotated[Space, SkipValidation]
    """In the file dotted key -> what it may be (:mod:`cxr_ray.tuning.parameters`)."""
    objectives: tuple[Objective, ...]
    """One to three. The first chooses the epoch, the winner and what is stopped; costs come after it. Default: the recipe's own
    ``training.monitor``."""
    search: Search = Search()
    stopping: Stopping = Stopping()
    trials: int | None = Field(default=None, ge=1)
    """None: all combinations of a grid."""
    retrain_seeds: int = Field(default=0, ge=0)
    """The winner is trained again from so many other seeds: how far its figure is luck."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        faults = [*self._faults_of_objectives(), *self._faults_of_search()]
        if faults:
            raise ConfigError(faults, where=self.name)  # each of them a line; a ValueError would be one
        return self

    def _faults_of_objectives(self) -> list[str]:
        metrics = [objective.metric for objective in self.objectives]
        if not 1 <= len(metrics) <= 3:
            return [f"objectives: expected one to three, got {len(metrics)}"]
        faults = []
        if self.objectives[0].is_cost:
            faults.append(f"objectives: the first must be of validation, got {metrics[0]}; name val_macro_f1 or the like before it")
        if any(metric in metrics[:place] for place, metric in enumerate(metrics)):
            faults.append(f"objectives: one stands there twice: {', '.join(metrics)}")
        monitor = nested(self.set).get("training", {}).get("monitor", "last")
        if monitor not in ("last", metrics[0]):
            faults.append(
                f"set.training.monitor: {monitor}, but the first objective, {metrics[0]}, chooses the epoch; set last for no choice"
            )
        if len(metrics) > 1 and self.stopping.kind != "none":
            faults.append(f"stopping.kind: {self.stopping.kind} compares one number; with several objectives use none")
        if len(metrics) > 1 and self.search.algorithm == "cmaes":
            faults.append("search.algorithm: cmaes knows one objective; use tpe, random or grid")
        return faults

    def _faults_of_search(self) -> list[str]:
        algorithm, parameters = self.search.algorithm, self.space.parameters
        learns = algorithm in ("tpe", "cmaes")
        faults = []
        if self.trials is None and algorithm != "grid":
            faults.append(f"trials: how many? Only a grid ends by itself, and search.algorithm is {algorithm}")
        if learns and self.trials is not None and self.search.startup_trials >= self.trials:
            faults.append(f"search.startup_trials: {self.search.startup_trials} leaves nothing of {self.trials} trials to {algorithm}")
        faults += [f"set.{key}: is also searched" for key in parameters if has(nested(self.set), key)]
        if algorithm == "cmaes" and parameters:
            choices = [key for key, parameter in parameters.items() if isinstance(parameter, ChoiceParameter)]
            if choices or self.space.conditional or len(parameters) < 2:
                faults.append("search.algorithm: cmaes needs two or more ranges without conditions or choices; use tpe")
        epochs = self.recipe.training.epochs
        if self.stopping.kind != "none" and "training.epochs" not in parameters and self.stopping.grace_epochs >= epochs:
            faults.append(f"stopping.grace_epochs: {self.stopping.grace_epochs} leaves nothing of {epochs} epochs to stop")
        return faults

    def resolve(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe of a trial.

        The epoch that counts is the best by the first objective, whatever the recipe's own ``training.monitor``; with ``last`` it stays
        the last one. Claims of a paper are not handed on.

        Args:
            values: A point of the space; ``data`` is not looked at.

        Raises:
            ConfigError: It is no point of the space, or the recipe is not valid there.
        """
        data = {**self.space.apply(values), "claims": ()}
        if self.recipe.training.monitor != "last":
            data = merge(data, {"training": {"monitor": self.objectives[0].metric}})
        return parse_settings(Recipe, data, where=self.name)

    @property
    def planned(self) -> int:
        """How many trials there are to be."""
        points = len(self.space.combinations()) if self.search.algorithm == "grid" else None
        return min(number for number in (points, self.trials) if number is not None)

    def identity(self) -> dict[str, Any]:
        """All that decides which trials are comparable: not names, prose, ``trials`` and ``retrain_seeds``."""
        return {
            "recipe": self.recipe.model_dump(mode="json", exclude={"name", *self.recipe.prose}),
            "space": {key: parameter.model_dump(mode="json") for key, parameter in self.space.parameters.items()},
            **self.model_dump(mode="json", include={"objectives", "search", "stopping"}),
        }

    def fingerprint(self) -> str:
        """SHA-256 of :meth:`identity`."""
        return storage.sha256(json.dumps(self.identity(), sort_keys=True).encode())


# --- reading -----------------------------------------------------------------------------------------------------------


def load_sweep(file: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """A sweep file with overrides (``trials=5``, ``set.training.epochs=2``) applied.

    Raises:
        ConfigError: All faults at once: of the recipe, of each parameter, of the search, and where a combination of options and ends
            of ranges gives no valid recipe.
    """
    path = Path(file)
    data = {"name": path.stem, **apply_overrides(read_yaml(path), overrides)}
    faults: list[str] = []
    recipe = _attempt(faults, lambda: _base(data.pop("recipe", None), data.get("set"), path.parent))
    parameters = _parameters(data.pop("space", None), faults)
    space = _attempt(faults, lambda: Space(parameters, recipe.model_dump())) if recipe is not None else None
    monitor = recipe.training.monitor if recipe is not None else "last"
    data.setdefault("objectives", ["val_loss" if monitor == "last" else monitor])
    # what could not be read is stood in for by what has no faults of its own, so that the rest is still looked at
    whole = {**data, "recipe": recipe or Recipe(name="unread", training=TrainingConfig(epochs=2**31)), "space": space or Space({}, {})}
    sweep = _attempt(faults, lambda: parse_settings(Sweep, whole, where=str(path)))
    if not faults and sweep is not None:
        faults += _faults_of_points(sweep)
    if faults or sweep is None:
        raise ConfigError(faults, where=str(path))
    return sweep


def check_networks(sweep: Sweep, labels: int, image_size: tuple[int, int]) -> None:
    """Build the network of every endpoint on torch's meta device: shapes alone, no weights and no memory.

    Args:
        sweep: Of :func:`load_sweep`.
        labels: Outputs of the network.
        image_size: (height, width) of the images in pixels.

    Raises:
        ConfigError: Some cannot be built; each with why and where in the space.
    """
    import torch

    from cxr_ray.models.classifier import build_classifier

    faults: dict[str, str] = {}
    seen: list[ModelConfig] = []
    for point in sweep.space.endpoints():
        model = sweep.resolve(point).model
        if model in seen:
            continue
        seen.append(model)
        try:
            with torch.device("meta"):
                build_classifier(model, labels, mean=0.5, std=0.25, image_size=image_size, load_weights=False)
        except ModelError as error:
            faults.setdefault(error.message, f"{error.message} (with {in_words(point)})")
    if faults:
        raise ConfigError(list(faults.values()), where=f"networks of {sweep.name}")


def in_words(point: Mapping[str, Any]) -> str:
    """``a=0.001, b=x``; numbers to four figures."""
    return ", ".join(f"{key}={f'{value:.4g}' if isinstance(value, float) else value}" for key, value in point.items())


def _attempt(faults: list[str], make: Callable[[], T]) -> T | None:
    """What ``make`` makes, or None and its faults added to the others."""
    try:
        return make()
    except ConfigError as error:
        faults += error.faults
        return None


def _base(recipe: Any, changes: Any, folder: Path) -> Recipe:
    """The recipe with ``set`` laid over it."""
    if not isinstance(recipe, str):
        raise ConfigError([f"recipe: expected the name of a recipe or a file beside this one, got {recipe!r}"], where="recipe")
    try:
        found = load_recipe(str(folder / recipe) if recipe.endswith((".yaml", ".yml")) else recipe)
    except ConfigError as error:
        raise ConfigError([f"recipe {recipe}: {fault}" for fault in error.faults], where="recipe") from None
    if not isinstance(changes, Mapping):
        return found
    try:
        return parse_settings(Recipe, merge(found.model_dump(), nested(changes)), where="set")
    except ConfigError as error:
        raise ConfigError([f"set.{fault}" for fault in error.faults], where="set") from None


def _parameters(entries: Any, faults: list[str]) -> dict[str, Parameter]:
    """Those entries of ``space`` that have no faults of their own."""
    if not isinstance(entries, Mapping) or not entries:
        faults.append("space: nothing varies; expected KEY: {type: float, int or choice, …}, such as training.optimizer.lr")
        return {}
    read = {str(key): _attempt(faults, functools.partial(parse_parameter, str(key), entry)) for key, entry in entries.items()}
    return {key: parameter for key, parameter in read.items() if parameter is not None}


def _faults_of_points(sweep: Sweep) -> list[str]:
    """Why the recipe is not valid at an endpoint or a corner, each reason once."""
    from cxr_ray.data.augment import build_augmentation

    faults: dict[str, str] = {}
    for point in [*sweep.space.endpoints(), *sweep.space.corners(MOST_CORNERS)]:
        try:
            build_augmentation(sweep.resolve(point).augment)
        except ConfigError as error:
            for fault in error.faults:
                faults.setdefault(fault, f"{fault} (with {in_words(point)})")
    if sweep.search.algorithm == "grid":
        try:
            sweep.space.combinations()
        except ConfigError as error:
            faults |= {fault: fault for fault in error.faults}
    return list(faults.values())
