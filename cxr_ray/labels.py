"""The label set of a task: names in a fixed order, and whether one or many apply at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cxr_ray.errors import DatasetError

Task = Literal["multiclass", "multilabel"]


@dataclass(frozen=True, slots=True)
class LabelSet:
    """Names in the order of the model's outputs.

    Args:
        names: At least two names for ``multiclass``, at least one for ``multilabel``; unique, none empty.
        task: ``multiclass``: exactly one applies. ``multilabel``: each may be 1, 0 or unknown (NaN).

    Raises:
        DatasetError: Too few names, a name twice, or an empty name.
    """

    names: tuple[str, ...]
    task: Task

    def __post_init__(self) -> None:
        least = 2 if self.task == "multiclass" else 1
        if len(self.names) < least:
            raise DatasetError(f"a {self.task} task needs at least {least} labels, got {list(self.names)}")
        if len(set(self.names)) != len(self.names) or not all(name.strip() for name in self.names):
            raise DatasetError(f"labels must be unique and not empty, got {list(self.names)}")

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Position of ``name`` in the model's outputs.

        Raises:
            DatasetError: No such label; the message lists those there are.
        """
        try:
            return self.names.index(name)
        except ValueError:
            raise DatasetError(f"unknown label {name!r}; this data set has {', '.join(self.names)}") from None
