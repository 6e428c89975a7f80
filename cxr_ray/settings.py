"""What every group of settings is made of: frozen typed models, YAML in, dotted overrides, all faults reported at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cxr_ray.errors import ConfigError


class Settings(BaseModel):
    """Base of all settings: frozen, and an unknown key is a fault."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)


S = TypeVar("S", bound=BaseModel)


def parse_settings(model: type[S], data: Mapping[str, Any], *, where: str) -> S:
    """Validate ``data`` as ``model`` and report every fault at once.

    Raises:
        ConfigError: With one line a fault: the dotted key, what is wrong, and for an unknown key the valid ones.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            key = ".".join(str(part) for part in fault["loc"]) or "(whole)"
            text = str(fault["msg"]).removeprefix("Value error, ")
            if fault["type"] == "extra_forbidden":
                valid = _keys_beside(model, fault["loc"])
                text = "unknown key" + (f"; valid here: {', '.join(valid)}" if valid else "")
            elif "input" in fault and not isinstance(fault["input"], (Mapping, list, tuple)):
                text += f" (got {fault['input']!r})"
            faults.append(f"{key}: {text}")
        raise ConfigError(faults, where=where) from None


def _keys_beside(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The valid keys at the place where an unknown one was found."""
    current: Any = model
    for part in location[:-1]:
        field = current.model_fields.get(part) if isinstance(part, str) else None
        current = field.annotation if field else None
        if not (isinstance(current, type) and issubclass(current, BaseModel)):
            return []
    return sorted(current.model_fields)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping.

    Raises:
        ConfigError: The file is missing, is not YAML (with line and column), or holds something else.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        data = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror}"], where=str(path)) from None
    except UnicodeDecodeError:
        raise ConfigError(["is not UTF-8 text"], where=str(path)) from None
    except yaml.YAMLError as error:
        raise ConfigError([f"is not YAML: {' '.join(str(error).split())}"], where=str(path)) from None
    if not isinstance(data, dict):
        raise ConfigError([f"expected a mapping at the top level, got {type(data).__name__}"], where=str(path))
    return data


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """``data`` with each ``a.b.c=VALUE`` of ``overrides`` set; VALUE is read as YAML.

    Raises:
        ConfigError: An override has no ``=``, no key, or steps into a value that is not a mapping.
    """
    result = _copy(data)
    faults = []
    for override in overrides:
        key, equals, value = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            faults.append(f"{override!r}: expected key=value, such as training.optimizer.lr=3e-4")
            continue
        place: Any = result
        for part in parts[:-1]:
            place = place.setdefault(part, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            faults.append(f"{override!r}: {'.'.join(parts[:-1])} is not a group of settings")
            continue
        try:
            place[parts[-1]] = scalar(yaml.safe_load(value))
        except yaml.YAMLError:
            faults.append(f"{override!r}: the value is not YAML")
    if faults:
        raise ConfigError(faults, where="overrides")
    return result


def _copy(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in data.items()}


def scalar(value: Any) -> Any:
    """``value``, or the number that a person means by ``3e-4``, which YAML 1.1 reads as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below``: mappings are merged key by key, everything else is replaced."""
    result = _copy(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
