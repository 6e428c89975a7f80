"""Every setting as one field of a frozen, typed model; YAML in, dotted overrides, all faults reported at once.

A **recipe** is one YAML file = one experiment: network, augmentation, feed and training. The resolved recipe is kept
in the RUN and in the BUNDLE. Rules that tie fields together live in the models here, not in the training loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from cxr_ray.errors import ConfigError
from cxr_ray.settings import Settings, apply_overrides, merge, parse_settings, read_yaml

RECIPE_DIRECTORY = Path(__file__).parent / "models" / "recipes"


# --- the network ------------------------------------------------------------------------------------------------------


class BackboneConfig(Settings):
    """The convolutional part: image -> feature map."""

    name: str = "mobilenet_v2"
    """A name of ``cxr_ray.models.backbones``, or ``torchvision:NAME`` or ``timm:NAME`` for any other network of theirs."""
    weights: str = "none"
    """``none`` (random), ``default`` (the published ImageNet weights, downloaded), or a path/URI of ``.safetensors`` or ``.pth``."""
    in_channels: Literal[1, 3] = 1
    """1 folds three-channel first-layer weights into one grey channel (same output, a third of the memory); 3 repeats the grey image."""
    freeze_stages: int = Field(default=0, ge=-1)
    """How many stages, from the image side, do not learn (run without gradient, batch norm in evaluation mode); -1: all of them."""
    train_norms: bool = False
    """The batch norms of frozen stages learn and follow their batches all the same (the scripts of papers 001 and 003 do so)."""
    unfreeze_epoch: int | None = Field(default=None, ge=1)
    """From this epoch on (0 is the first) the frozen stages learn too. None: never."""


class SequenceConfig(Settings):
    """How the feature map is read as a sequence of its pixels (paper 003, "pixel sequence")."""

    order: Literal["horizontal", "vertical", "snake", "spiral", "flatten"] = "horizontal"
    """Row by row, column by column, rows in alternating direction, or inward clockwise from the top left. ``flatten``: no
    sequence of pixels but one step that holds the whole map (paper 000)."""


class RnnConfig(Settings):
    """The recurrent part: sequence -> features. ``kind: none`` is the control without it."""

    kind: Literal["lstm", "gru", "none"] = "lstm"
    hidden_size: int = Field(default=128, ge=1)
    """Units a direction and layer. Unused with ``kind: none``."""
    layers: int = Field(default=1, ge=1)
    bidirectional: bool = False
    activation: Literal["tanh", "relu"] = "tanh"
    """Of the candidate state and, for the LSTM, of the output. ``relu`` (the scripts of papers 001 and 003) has no fast kernel."""
    trainable: bool = True
    """False keeps the RNN at its random start (the scripts of papers 001 and 003 do so)."""
    batch_norm: bool = False
    """Of the output sequence, channel by channel (the scripts of papers 001 and 003 have it). Unused with ``kind: none``."""
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
    """SGD (Nesterov) and RMSprop only. Keras's RMSprop, which the papers used, has 0."""
    rms_decay: float = Field(default=0.99, gt=0.0, lt=1.0)
    """RMSprop only: how much of the mean square is kept each step. torch's default; Keras's is 0.9."""


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


class CrossValidationConfig(Settings):
    """How ``--cv`` goes from fold to fold."""

    start: Literal["scratch", "previous"] = "scratch"
    """``previous``: each fold goes on from the weights of the fold before, which has trained on its held-out images. Unsound: such
    figures say nothing about new patients. Here so that what the scripts of papers 001 and 003 do can be shown."""
    weights: tuple[float, ...] | None = None
    """Of the folds in the ensemble that ``export`` makes of a cross-validation, one a fold. None: all alike."""


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
    """``torch.compile`` the backbone."""
    cache_features: bool = False
    """Compute the feature map of each image once and keep it in the worker's memory. Only for a backbone that is wholly frozen,
    without augmentation: the result is the same, every epoch after the first takes a fraction of the time."""
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


class ExpectedData(Settings):
    """The images that the paper's figures are of. Other images train just as well; the log says how they differ."""

    size: int = 224
    """Height and width in pixels."""
    equalize: Literal["none", "hist", "clahe"] = "none"
    blur: Literal[0, 5] = 0


class Claim(Settings):
    """What a paper says it reached."""

    data: str
    """Images, classes and protocol in a few words."""
    figures: dict[str, float]
    """Name of the figure -> value, 0 … 1 (``seconds_per_epoch``, ``best_epoch`` and ``images_per_second`` as they are)."""
    note: str = ""


class Recipe(Settings):
    """One experiment. ``cxr_ray/models/recipes/*.yaml`` are the built-in ones."""

    name: str
    paper: str | None = None
    """Key of the paper it implements (000 … 004); None: a default of ours."""
    description: str = ""
    unsound: str | None = None
    """Why a model trained so must not be used; ``export`` then asks for ``--allow-unsound``."""
    expects: ExpectedData | None = None
    claims: tuple[Claim, ...] = ()
    model: ModelConfig = ModelConfig()
    augment: str | tuple[AugmentOp, ...] = "none"
    """A named set of ``cxr_ray.data.augment`` or a list of operations in order."""
    feed: FeedConfig = FeedConfig()
    training: TrainingConfig = TrainingConfig()
    cross_validation: CrossValidationConfig = CrossValidationConfig()

    @model_validator(mode="after")
    def _only_what_is_constant_is_kept(self) -> Self:
        if not self.training.cache_features:
            return self
        backbone = self.model.backbone
        if backbone.freeze_stages != -1 or backbone.unfreeze_epoch is not None or backbone.train_norms:
            raise ValueError("training.cache_features needs model.backbone.freeze_stages -1, without unfreeze_epoch and train_norms")
        if self.augment not in ("none", ()) or self.training.mixup_alpha:
            raise ValueError("training.cache_features needs augment 'none' and no mixup: each epoch must see the same images")
        return self

    def without_rnn(self) -> Recipe:
        """The control: the same network and budget, its sequence read without an RNN (``last`` becomes the mean over steps)."""
        readout = "mean" if self.model.rnn.readout == "last" else self.model.rnn.readout
        rnn = self.model.rnn.model_copy(update={"kind": "none", "readout": readout})
        model = self.model.model_copy(update={"rnn": rnn})
        return self.model_copy(update={"name": f"{self.name}-without-rnn", "model": model, "claims": ()})

    @property
    def prose(self) -> set[str]:
        """The fields that change nothing of what is trained."""
        return {"description", "unsound", "expects", "claims"}


# --- reading -----------------------------------------------------------------------------------------------------------


def recipe_names() -> list[str]:
    """The built-in recipes, sorted."""
    return sorted(path.stem for path in RECIPE_DIRECTORY.glob("*.yaml"))


def load_recipe(name_or_file: str, overrides: Sequence[str] = ()) -> Recipe:
    """A built-in recipe by name, or a YAML file, with overrides applied.

    A file with ``extends: NAME`` is what stands in it laid over that recipe, group by group; ``claims`` and ``unsound`` are not handed on.

    Raises:
        ConfigError: Unknown name (the message lists the known ones) or faults in the file or the overrides.
    """
    data = apply_overrides(_read_extended(name_or_file, ()), overrides)
    data.setdefault("name", Path(name_or_file).stem)
    return parse_settings(Recipe, data, where=name_or_file)


def _read_extended(name_or_file: str, below: tuple[str, ...]) -> dict[str, Any]:
    path = Path(name_or_file)
    if path.suffix not in {".yaml", ".yml"}:
        path = RECIPE_DIRECTORY / f"{name_or_file}.yaml"
        if name_or_file not in recipe_names():
            raise ConfigError(
                [f"no recipe of this name; there are: {', '.join(recipe_names())}"],
                where=f"recipe {name_or_file!r}",
                hint="cxr-ray recipes, or the path of a .yaml file",
            )
    data = read_yaml(path)
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str) or base in below:
        raise ConfigError([f"extends: expected the name of another recipe, got {base!r}"], where=name_or_file)
    inherited = _read_extended(base, (*below, name_or_file))
    return merge({key: value for key, value in inherited.items() if key not in {"name", "claims", "unsound"}}, data)
