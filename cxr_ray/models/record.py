"""What is recorded of a model that leaves its RUN: its network, where it comes from, how its thresholds were chosen."""

from __future__ import annotations

from typing import Final, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from cxr_ray.config import ModelConfig
from cxr_ray.errors import ConfigError
from cxr_ray.models.decision import parse_policy
from cxr_ray.settings import Settings

WEIGHT_FILE: Final = r"model(-\d+)?\.safetensors"
"""Pattern of the names that files of weights have."""
GATE_FILE: Final = "gate.safetensors"


class Normalization(Settings):
    """Mean and standard deviation of the training part's pixels, in 0..1 (pixel / 255)."""

    mean: float = Field(ge=0.0, le=1.0)
    std: float = Field(gt=0.0)


class Provenance(Settings):
    """Where the model comes from: enough to find the run and the data again."""

    cxr_ray: str
    recipe: str
    seed: int
    epoch: int
    """The epoch whose weights these are (0 is the first)."""
    dataset: str
    dataset_fingerprint: str
    run_fingerprint: str
    """SHA-256 of the run's resolved recipe and data."""
    versions: dict[str, str]
    trained_on: tuple[str, ...] = ("train", "val")
    """Partitions of the dataset that it learned from or was chosen on: what it may not be judged by."""
    cautions: tuple[str, ...] = ()
    """What the audit of the training data warns every reader of."""


class Member(Settings):
    """One model of the bundle."""

    weights: str = Field(pattern=f"^{WEIGHT_FILE}$")
    """File of its weights, beside ``bundle.json``."""
    model: ModelConfig
    normalization: Normalization
    weight: float = Field(gt=0.0, allow_inf_nan=False)
    """Its say in the mean of the members' probabilities; only the ratios of the weights matter."""
    provenance: Provenance


class ThresholdOrigin(Settings):
    """How the thresholds of a bundle were chosen."""

    policy: str
    """As it was asked for, such as ``f1`` or ``sensitivity=0.95``: see :mod:`cxr_ray.models.decision`."""
    part: str | None = None
    """What they were fitted on, such as ``val of chest14``. None: nothing (``fixed``)."""
    n: int = Field(default=0, ge=0)
    """Images of that part."""
    not_fitted: tuple[str, ...] = ()
    """Labels that never, or always, occur there: they keep 0.5."""
    positive: str | None = None
    """Multiclass: the one label that has a threshold."""

    @field_validator("policy")
    @classmethod
    def _known(cls, policy: str) -> str:
        try:
            parse_policy(policy)
        except ConfigError as error:
            raise ValueError("; ".join(error.faults)) from None
        return policy

    def told(self) -> str:
        """In a sentence, for the model card and the report."""
        which = self.positive or "every label"
        if self.policy == "fixed":
            return f"0.5 for {which}, not fitted"
        kept = f"; kept at 0.5, for they never or always occur there: {', '.join(self.not_fitted)}" if self.not_fitted else ""
        return f"{parse_policy(self.policy).told()} of {self.positive or 'each label'} on {self.part} ({self.n} images){kept}"


CheckName = Literal["radiograph", "polarity", "upright", "familiar"]
"""See :mod:`cxr_ray.models.gate`."""


class GateRecord(Settings):
    """The input gate of a bundle but for its tensors: thresholds, what they were fitted on, and what was measured there."""

    channels: int = Field(ge=1)
    """Of the first member's feature map."""
    thresholds: dict[CheckName, float]
    """An image is refused where a check's value is above its threshold."""
    fitted_on: str
    """In words, such as ``train of chest14``."""
    n: int = Field(ge=1)
    """Images it was fitted on."""
    held_out: str
    """What the thresholds were set on, such as ``val of chest14``."""
    n_held_out: int = Field(ge=1)
    false_alarms: dict[CheckName | Literal["any"], float]
    """Share of the held-out images that each check, and any of them, refuses."""
    turned_found: float
    """Share of the held-out images' copies turned by 90, 180 and 270 degrees of which ``upright`` says so."""
    inverted_found: float
    """Share of their inverted copies of which ``polarity`` says so."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if set(self.thresholds) != set(get_args(CheckName)):
            raise ValueError(f"one threshold is needed for each of {', '.join(get_args(CheckName))}")
        return self
