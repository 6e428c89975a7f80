"""What one setting may be in a search: a range of numbers, or one of several options."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cxr_ray.errors import ConfigError
from cxr_ray.settings import Settings, parse_settings, scalar

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

Scalar = str | int | float | bool | None
"""What Optuna can keep of a choice."""


class _Parameter(Settings):
    """What every kind has."""

    when: Mapping[str, tuple[Scalar, ...]] = Field(default_factory=dict)
    """Key of another setting -> its values for which this parameter exists; all keys must hold. A setting that is not searched counts
    with the recipe's own value. Empty: always."""

    @field_validator("when", mode="before")
    @classmethod
    def _one_value_is_a_list_of_one(cls, when: Any) -> Any:
        if not isinstance(when, Mapping):
            return when
        return {key: [scalar(one) for one in (value if isinstance(value, (list, tuple)) else [value])] for key, value in when.items()}

    def value_of(self, label: Scalar) -> Any:
        """What the recipe is given for what Optuna chose."""
        return label


class _Range(_Parameter):
    @model_validator(mode="after")
    def _sound(self) -> Self:
        low, high, step, log = (getattr(self, name) for name in ("low", "high", "step", "log"))
        if low >= high:
            raise ValueError(f"low {low:g} must be below high {high:g}; one value alone belongs under set:")
        if log and low <= 0:
            raise ValueError(f"a logarithmic range must begin above 0, low is {low:g}")
        if log and step not in (None, 1):
            raise ValueError("a logarithmic range has no step")
        if step is not None and (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step)):
            raise ValueError(f"high {high:g} is not reached from low {low:g} in steps of {step:g}")
        return self


class FloatParameter(_Range):
    """A real number, both ends included."""

    type: Literal["float"]
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    log: bool = False
    """Even in the logarithm: what learning rates want."""
    step: float | None = Field(default=None, gt=0.0)
    """Only ``low``, ``low + step`` … None: any number between."""

    def suggest(self, trial: BaseTrial, key: str) -> float:
        """Ask Optuna for a value."""
        return trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)

    @property
    def ends(self) -> tuple[float, ...]:
        """The extremes."""
        return self.low, self.high

    @property
    def grid(self) -> tuple[float, ...] | None:
        """Every value, ascending; None: there are too many to list."""
        if self.step is None:
            return None
        low, high, step = (Decimal(str(number)) for number in (self.low, self.high, self.step))
        return tuple(float(low + index * step) for index in range(int((high - low) / step) + 1))

    def holds(self, value: Any) -> bool:
        """Whether it may have this value."""
        return isinstance(value, (int, float)) and self.low <= value <= self.high


class IntParameter(_Range):
    """A whole number, both ends included."""

    type: Literal["int"]
    low: int
    high: int
    log: bool = False
    """Even in the logarithm."""
    step: int = Field(default=1, ge=1)

    def suggest(self, trial: BaseTrial, key: str) -> int:
        """Ask Optuna for a value."""
        return trial.suggest_int(key, self.low, self.high, step=self.step, log=self.log)

    @property
    def ends(self) -> tuple[int, ...]:
        """The extremes."""
        return self.low, self.high

    @property
    def grid(self) -> tuple[int, ...] | None:
        """Every value, ascending; None: a logarithmic range, whose values are not meant to be tried one by one."""
        return None if self.log else tuple(range(self.low, self.high + 1, self.step))

    def holds(self, value: Any) -> bool:
        """Whether it may have this value."""
        return isinstance(value, int) and value in range(self.low, self.high + 1, self.step)


class ChoiceParameter(_Parameter):
    """One of several options. Optuna, tables and pictures know each by its label: the option itself, or its name."""

    type: Literal["choice"]
    options: list[Any] | dict[str, Any]
    """A list of texts, numbers, true, false and null; or name -> anything, such as a list of augmentations. A mapping is laid over the
    recipe's group of settings, so that settings which belong together change together."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if not self.options:
            raise ValueError("there are no options")
        for position, option in enumerate(self.labels):
            if not isinstance(option, Scalar):
                raise ValueError(f"option {position} is a {type(option).__name__}: give it a name, options: {{NAME: {option}, …}}")
            if option in self.labels[:position]:
                raise ValueError(f"option {option!r} stands there twice")
        return self

    @property
    def labels(self) -> tuple[Any, ...]:
        """What Optuna chooses among."""
        return tuple(self.options) if isinstance(self.options, dict) else tuple(map(scalar, self.options))

    ends = grid = labels

    def value_of(self, label: Scalar) -> Any:
        """What a label stands for."""
        return self.options[str(label)] if isinstance(self.options, dict) else label

    def suggest(self, trial: BaseTrial, key: str) -> Any:
        """Ask Optuna for a label."""
        return trial.suggest_categorical(key, self.labels)

    def holds(self, value: Any) -> bool:
        """Whether it may have this label."""
        return value in self.labels


Parameter = Annotated[FloatParameter | IntParameter | ChoiceParameter, Field(discriminator="type")]
_KINDS: Mapping[str, type[FloatParameter] | type[IntParameter] | type[ChoiceParameter]] = {
    "float": FloatParameter,
    "int": IntParameter,
    "choice": ChoiceParameter,
}


def parse_parameter(key: str, data: Any) -> Parameter:
    """One entry of ``space``.

    Raises:
        ConfigError: All its faults, each with the key in front.
    """
    if not isinstance(data, Mapping) or data.get("type") not in _KINDS:
        found = f"got {data.get('type')!r}" if isinstance(data, Mapping) else f"in a mapping, got {data!r}"
        raise ConfigError([f"space.{key}.type: expected {', '.join(_KINDS)}, {found}"], where="space")
    try:
        return parse_settings(_KINDS[data["type"]], data, where="space")
    except ConfigError as error:
        faults = [f"space.{key}.{fault}".replace(".(whole):", ":") for fault in error.faults]
        raise ConfigError(faults, where="space") from None
