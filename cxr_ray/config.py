"""Every setting as one field of a frozen, typed model; YAML in, dotted overrides, all faults reported at once.

A **recipe** is one YAML file = one experiment: network, augmentation, feed and training. The resolved recipe is kept
in the RUN and in the BUNDLE. Rules that tie fields together live in the models here, not in the training loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cxr_ray.errors import ConfigError

RECIPE_DIRECTORY = Path(__file__).parent / "models" / "recipes"


class Settings(BaseModel):
    """Base of all settings: frozen, and an unknown key is a fault."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)


# --- the network ------------------------------------------------------------------------------------------------------


class BackboneConfig(Settings):
    """The convolutional part: image -> feature map."""

    name: str = "mobilenet_v2"
    """A name of ``cxr_ray.models.backbones`` (``cxr-ray recipes --json`` lists them)."""
    weights: str = "none"
    """``none`` (random), ``default`` (the published ImageNet weights, downloaded), or a path/URI of ``.safetensors`` or ``.pth``."""
    in_channels: Literal[1, 3] = 1
    """1 folds three-channel first-layer weights into one grey channel (same output, a third of the memory); 3 repeats the grey image."""
    freeze_stages: int = Field(default=0, ge=-1)
    """How many stages, from the image side, do not learn (run without gradient, batch norm in evaluation mode); -1: all of them."""
    unfreeze_epoch: int | None = Field(default=None, ge=1)
    """From this epoch on (0 is the first) the frozen stages learn too. None: never."""


class SequenceConfig(Settings):
    """How the feature map is read as a sequence of its pixels (paper 003, "pixel sequence")."""

    order: Literal["horizontal", "vertical", "snake", "spiral"] = "horizontal"
    """Row by row, column by column, rows in alternating direction, or inward clockwise from the top left."""


class RnnConfig(Settings):
    """The recurrent part: sequence -> features. ``kind: none`` is the control without it."""

    kind: Literal["lstm", "gru", "none"] = "lstm"
    hidden_size: int = Field(default=128, ge=1)
    """Units a direction and layer. Unused with ``kind: none``."""
    layers: int = Field(default=1, ge=1)
    bidirectional: bool = False
    input_norm: bool = False
    """Layer norm over the channels of each step, before the RNN (ours; none of the papers has it)."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Applied to the output sequence, and between layers."""
    readout: Literal["last", "mean", "attention", "sequence"] = "last"
    """Last step; mean over steps; attention pooling; or the whole sequence flattened (papers 001 and 003)."""

    @model_validator(mode="after")
    def _no_last_without_rnn(self) -> Self:
        if self.kind == "none" and self.readout == "last":
            raise ValueError("readout 'last' needs an RNN; with kind 'none' use 'mean', 'attention' or 'sequence'")
        return self


class HeadConfig(Settings):
    """The fully connected part: features -> logits."""

    sizes: tuple[int, ...] = ()
    """Hidden layers (each Linear + ReLU). Empty: one linear layer to the logits."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Before every linear layer."""
    batch_norm: bool = False
    """After every hidden linear layer."""


class ModelConfig(Settings):
    """backbone -> sequence -> RNN -> head."""

    backbone: BackboneConfig = BackboneConfig()
    sequence: SequenceConfig = SequenceConfig()
    rnn: RnnConfig = RnnConfig()
    head: HeadConfig = HeadConfig()


# --- training -----------------------------------------------------------------------------------------------------------


class AugmentOp(Settings):
    """One augmentation: ``{op: affine, p: 0.5, rotate: 15}``. Parameters are checked when the set is built."""

    model_config = ConfigDict(frozen=True, extra="allow")

    op: str
    """A name of ``cxr_ray.data.augment``."""
    p: float = Field(default=0.5, ge=0.0, le=1.0)
    """Probability that it is applied to an image."""


class FeedConfig(Settings):
    """How images reach the workers."""

    mode: Literal["auto", "materialized", "streamed"] = "auto"
    """``materialized``: read once into the object store, every epoch from shared memory. ``streamed``: read from the shards
    each epoch. ``auto``: materialized where the partitions fit in a third of the object store."""
    shuffle_window: int = Field(default=4096, ge=1)
    """Streamed only: how many images are shuffled together in the worker (materialized data is shuffled globally)."""
    augment_threads: int = Field(default=2, ge=1)
    """Threads a worker that augment batches ahead of the training step."""


class OptimizerConfig(Settings):
    """How a gradient becomes a step."""

    name: Literal["adam", "adamw", "rmsprop", "sgd"] = "adamw"
    lr: float = Field(default=1e-3, gt=0.0)
    """Learning rate of the RNN and the head."""
    backbone_lr_scale: float = Field(default=1.0, ge=0.0)
    """The backbone learns at ``lr * backbone_lr_scale``."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Not applied to biases and normalisation layers."""
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    """SGD (Nesterov) and RMSprop only."""


class ScheduleConfig(Settings):
    """How the learning rate changes, step by step."""

    name: Literal["constant", "cosine", "step", "one_cycle", "exponential"] = "cosine"
    warmup_epochs: float = Field(default=0.0, ge=0.0)
    """Linear rise from 0 to the learning rate, before the schedule begins. Not with ``one_cycle``, which has its own."""
    final_lr_ratio: float = Field(default=0.0, ge=0.0, le=1.0)
    """Cosine: the learning rate at the end as a part of ``lr``."""
    gamma: float = Field(default=0.95, gt=0.0, le=1.0)
    """Step and exponential: factor a step."""
    step_epochs: int = Field(default=10, ge=1)
    """Step: epochs between two steps. Exponential steps every epoch."""


class ClipConfig(Settings):
    """How large a gradient may be."""

    by: Literal["none", "norm", "value"] = "none"
    limit: float = Field(default=1.0, gt=0.0)
    """Largest global L2 norm, or largest absolute value, of the gradient."""


class TrainingConfig(Settings):
    """Optimisation and selection."""

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=32, ge=1)
    """Images an optimiser step **over all workers together**: results do not depend on the number of workers."""
    seed: int = Field(default=0, ge=0)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip: ClipConfig = ClipConfig()
    class_weights: Literal["none", "balanced"] = "none"
    """``balanced``: n / (classes * n_class) for multiclass, negatives / positives (at most 20) for multilabel."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    mixup_alpha: float = Field(default=0.0, ge=0.0)
    """Beta(alpha, alpha) mixing of image pairs within a batch; 0: off. Multiclass only."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """``auto``: bf16 autocast on a GPU, fp32 on a CPU."""
    compile: bool = False
    """``torch.compile`` the network."""
    ema_decay: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Keep an exponential moving average of the weights, a step at a time; it is what is validated and exported. None: off."""
    monitor: str = "val_loss"
    """The metric that chooses the best epoch (``val_loss``, ``val_macro_f1``, ``val_macro_auroc``, ``val_accuracy``), or
    ``last``: no choice is made."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many epochs without a better ``monitor``. None: never."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints kept beside the best one."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        known = {"last", "val_loss", "val_macro_f1", "val_macro_auroc", "val_accuracy"}
        if self.monitor not in known:
            raise ValueError(f"monitor {self.monitor!r} is unknown; valid: {', '.join(sorted(known))}")
        if self.monitor == "last" and self.patience is not None:
            raise ValueError("patience needs a metric to watch; monitor is 'last'")
        if self.schedule.name == "one_cycle" and self.schedule.warmup_epochs:
            raise ValueError("one_cycle has its own warm-up; set schedule.warmup_epochs to 0")
        if self.schedule.warmup_epochs >= self.epochs and self.schedule.warmup_epochs:
            raise ValueError(f"schedule.warmup_epochs {self.schedule.warmup_epochs:g} leaves nothing of {self.epochs} epochs")
        return self

    @property
    def monitor_mode(self) -> Literal["min", "max"]:
        """Whether a smaller or a larger ``monitor`` is better."""
        return "min" if self.monitor == "val_loss" else "max"


class Recipe(Settings):
    """One experiment. ``cxr_ray/models/recipes/*.yaml`` are the built-in ones."""

    name: str
    paper: str | None = None
    """Key of the paper it implements (000 … 004); None: a default of ours."""
    description: str = ""
    model: ModelConfig = ModelConfig()
    augment: str | tuple[AugmentOp, ...] = "none"
    """A named set of ``cxr_ray.data.augment`` or a list of operations in order."""
    feed: FeedConfig = FeedConfig()
    training: TrainingConfig = TrainingConfig()


# --- reading -----------------------------------------------------------------------------------------------------------

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
            place[parts[-1]] = _scalar(yaml.safe_load(value))
        except yaml.YAMLError:
            faults.append(f"{override!r}: the value is not YAML")
    if faults:
        raise ConfigError(faults, where="overrides")
    return result


def _copy(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in data.items()}


def _scalar(value: Any) -> Any:
    """YAML 1.1 reads ``3e-4`` as text; a person means the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def recipe_names() -> list[str]:
    """The built-in recipes, sorted."""
    return sorted(path.stem for path in RECIPE_DIRECTORY.glob("*.yaml"))


def load_recipe(name_or_file: str, overrides: Sequence[str] = ()) -> Recipe:
    """A built-in recipe by name, or a YAML file, with overrides applied.

    Raises:
        ConfigError: Unknown name (the message lists the known ones) or faults in the file or the overrides.
    """
    path = Path(name_or_file)
    if path.suffix not in {".yaml", ".yml"}:
        path = RECIPE_DIRECTORY / f"{name_or_file}.yaml"
        if name_or_file not in recipe_names():
            raise ConfigError(
                [f"no recipe of this name; there are: {', '.join(recipe_names())}"],
                where=f"recipe {name_or_file!r}",
                hint="cxr-ray recipes, or the path of a .yaml file",
            )
    data = apply_overrides(read_yaml(path), overrides)
    data.setdefault("name", path.stem)
    return parse_settings(Recipe, data, where=name_or_file)
