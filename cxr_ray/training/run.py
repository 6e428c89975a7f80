"""The RUN directory: what was trained, on what, how it went, and where its weights are.

``run.json`` (this module), ``config.yaml`` (the resolved recipe), ``history.jsonl`` (a line an epoch), ``checkpoints/``,
``tensorboard/``, ``tracking.json`` where there are trackers, and ``ray/``, which is Ray's own and never needed to read or resume a run.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final, Literal

import yaml
from pydantic import Field

from cxr_ray import __version__, storage
from cxr_ray.config import Recipe
from cxr_ray.errors import ConfigError, RunError, StorageError
from cxr_ray.imaging.preprocess import PreprocessSpec
from cxr_ray.labels import LabelSet, Task
from cxr_ray.settings import Settings, parse_settings
from cxr_ray.training.checkpoint import Best, EpochRecord, checkpoint_location, is_whole, list_epochs, load_exported, newest_valid
from cxr_ray.training.lease import LEASE, LOCK
from cxr_ray.training.progress import HISTORY, TENSORBOARD, read_history

if TYPE_CHECKING:
    from cxr_ray.data.shards import Dataset
    from cxr_ray.models.classifier import Classifier

SCHEMA: Final = "cxr-ray/run/1"
RUN, CONFIG, TRACKING, CHECKPOINTS, RAY = "run.json", "config.yaml", "tracking.json", "checkpoints", "ray"
_SECRET = re.compile(r"://[^/@]*@")  # a URI may carry an access key
_VERSIONS_OF = ("torch", "torchvision", "ray", "numpy", "pyarrow", "albumentations", "safetensors")


class DataRecord(Settings):
    """The DATASET as the run saw it: enough to rebuild the network without it."""

    location: str
    name: str
    fingerprint: str
    task: Task
    labels: tuple[str, ...]
    train: tuple[str, ...]
    """Partitions."""
    validation: tuple[str, ...]
    fold: int | None
    """The fold that was held out; None: no folds."""
    height: int
    width: int
    mean: float
    """Of the training part's pixels, 0..1."""
    std: float
    preprocess: PreprocessSpec


class AuditNote(Settings):
    """What the audit of the DATASET had said when the run was begun."""

    verdict: Literal["ok", "warn", "fail", "skipped"]
    """``skipped``: by the user, with ``--audit skip``."""
    findings: tuple[str, ...] = ()
    """The checks that were not ok, worst first, a sentence each."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of any figure must know first; nothing where nothing failed."""
        if self.verdict == "skipped":
            return ("The audit of the training data was skipped by the user: nobody looked for shortcuts in them.",)
        if self.verdict == "fail":
            return (f"The audit of the training data failed: {' '.join(self.findings)}",)
        return ()


class BestRecord(Settings):
    """The epoch that the monitor chose."""

    epoch: int
    metric: str
    value: float | None
    checkpoint: str
    """Relative to the RUN."""


class RunManifest(Settings):
    """``run.json``."""

    schema_: Literal["cxr-ray/run/1"] = Field(default=SCHEMA, alias="schema")
    status: Literal["running", "finished"]
    fingerprint: str
    """SHA-256 of the resolved recipe, the data and the start: what must agree for a run to go on."""
    initial: str | None = None
    """Fingerprint of the run whose weights it started from; None: from scratch, or from the recipe's weight file."""
    recipe: Recipe
    dataset: DataRecord
    seed: int
    workers: int
    """Training processes; of an elastic training the most of them."""
    least_workers: int | None = None
    """Of an elastic training; None: always ``workers``."""
    use_gpu: bool
    versions: dict[str, str]
    hardware: dict[str, Any]
    audit: AuditNote | None = None
    """None: begun by a program that asked for none."""
    started: str
    """UTC, of the first launch."""
    launches: int
    """How often the command was run until it was finished."""
    finished: str | None = None
    epochs: int = 0
    """Epochs trained."""
    stopped_early: bool = False
    best: BestRecord | None = None


@dataclass(frozen=True)
class Run:
    """A RUN on storage.

    Args:
        location: Directory, a local path or a URI.
        manifest: Its ``run.json``.
    """

    location: str
    manifest: RunManifest

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return self.manifest.recipe

    @cached_property
    def labels(self) -> LabelSet:
        """Names in the order of the outputs."""
        return LabelSet(self.manifest.dataset.labels, self.manifest.dataset.task)

    @property
    def checkpoints(self) -> str:
        """Where the checkpoints stand."""
        return storage.join(self.location, CHECKPOINTS)

    def history(self) -> list[EpochRecord]:
        """A record an epoch, ascending."""
        return read_history(self.location)

    def best(self) -> Best:
        """The epoch that the monitor chose, among those whose checkpoint is whole.

        Raises:
            RunError: No whole checkpoint is left.
        """
        chosen = self.manifest.best
        if chosen is not None and is_whole(storage.join(self.location, chosen.checkpoint)):
            return Best(chosen.epoch, chosen.metric, chosen.value)
        found = best_of_whole(self.checkpoints, self.history(), self.recipe.training.monitor)
        if found is None:
            raise RunError(f"{self.location} has no whole checkpoint", hint="run the same `cxr-ray train` again")
        return found

    def best_checkpoint(self) -> str:
        """Location of the checkpoint of :meth:`best`, which is verified."""
        return checkpoint_location(self.checkpoints, self.best().epoch)

    def load_model(self, device: str = "cpu") -> Classifier:
        """The network with the weights of :meth:`best_checkpoint`, in evaluation mode on ``device``.

        Raises:
            RunError: No whole checkpoint is left, or its weights are of another network.
        """
        from cxr_ray.models.classifier import build_classifier

        data = self.manifest.dataset
        size = (data.height, data.width)
        model = build_classifier(self.recipe.model, len(data.labels), mean=data.mean, std=data.std, image_size=size, load_weights=False)
        location = self.best_checkpoint()
        try:
            model.load_state_dict(load_exported(location))
        except RuntimeError:
            raise RunError(f"{location}: the weights do not fit the network that {RUN} describes") from None
        return model.to(device).eval()


def open_run(location: str) -> Run:
    """Open a RUN, finished or not.

    Raises:
        RunError: No RUN there, or of another schema.
    """
    location = storage.absolute(location)
    if not storage.exists(storage.join(location, RUN)):
        raise RunError(f"{location} is not a RUN: it has no {RUN}", hint="cxr-ray train --recipe NAME --data DATASET --out RUN")
    try:
        data = storage.read_json(storage.join(location, RUN))
    except StorageError as error:
        raise RunError(error.message) from None
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA:
        raise RunError(f"{location}: schema {found!r}; cxr_ray {__version__} reads {SCHEMA!r}")
    try:
        return Run(location, parse_settings(RunManifest, data, where=storage.join(location, RUN)))
    except ConfigError as error:
        raise RunError(error.message, hint="another --out, or the version of cxr_ray that wrote it") from None


def write_run(location: str, manifest: RunManifest) -> None:
    """Write ``run.json`` and ``config.yaml``."""
    recipe = yaml.safe_dump(manifest.recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    storage.write_bytes(storage.join(location, CONFIG), recipe.encode())
    storage.write_json(storage.join(location, RUN), manifest.model_dump(mode="json", by_alias=True))


def best_of_whole(checkpoints: str, history: list[EpochRecord], monitor: str) -> Best | None:
    """The best epoch, by the monitor, of those whose checkpoint is whole. None where there is none."""
    by_epoch = {record.epoch: record for record in history}
    whole = [epoch for epoch in list_epochs(checkpoints) if epoch in by_epoch and is_whole(checkpoint_location(checkpoints, epoch))]
    if not whole:
        return None
    if monitor == "last":
        return Best(whole[-1], monitor, None)
    values = {epoch: getattr(by_epoch[epoch], monitor) for epoch in whole}
    defined = {epoch: value for epoch, value in values.items() if value is not None}
    if not defined:
        return Best(whole[0], monitor, None)
    sign = 1 if monitor == "val_loss" else -1
    epoch = min(defined, key=lambda candidate: (sign * defined[candidate], candidate))
    return Best(epoch, monitor, defined[epoch])


def refuse_foreign(location: str) -> None:
    """Make sure that nothing but a RUN stands at ``location``, before anything is written there.

    Raises:
        RunError: Files of something else stand there.
    """
    there = set(storage.list_files(location)) - {LEASE, LOCK}
    if there and RUN not in there:
        raise RunError(f"{location} holds other files than a RUN's; it is left alone", hint="another --out")


def claim(location: str, wanted: RunManifest, *, overwrite: bool) -> RunManifest:
    """Make ``location`` the RUN of ``wanted``, or find it there; the caller holds its lease.

    Args:
        location: Empty, absent, or a RUN: see :func:`refuse_foreign`.
        wanted: A new manifest.
        overwrite: Remove a RUN that stands there.

    Returns:
        What to go on with: ``wanted``, or the manifest that stands there with one launch more; ``finished`` if nothing is left to do.

    Raises:
        RunError: A RUN of another recipe or other data stands there, and it has trained.
    """
    if overwrite:  # the manifest first: without it, what is left does not read as a RUN
        for name in (RUN, CONFIG, TRACKING, HISTORY, CHECKPOINTS, TENSORBOARD, RAY):
            storage.remove(storage.join(location, name))
    if not storage.exists(storage.join(location, RUN)):
        write_run(location, wanted)
        return wanted
    there = open_run(location).manifest
    if not list_epochs(storage.join(location, CHECKPOINTS)) and there.fingerprint != wanted.fingerprint:
        write_run(location, wanted)  # an attempt that failed before its first epoch: nothing is lost
        return wanted
    if there.fingerprint != wanted.fingerprint:
        was = identity(there.recipe, there.dataset, there.initial)
        now = identity(wanted.recipe, wanted.dataset, wanted.initial)
        lines = "".join(f"\n  - {line}" for line in differences(was, now))
        raise RunError(f"{location} is a RUN of another recipe or other data:{lines}", hint="another --out, or --overwrite")
    if there.status == "finished" and newest_valid(storage.join(location, CHECKPOINTS)) is not None:
        return there
    going_on = wanted.model_copy(update={"launches": there.launches + 1, "started": there.started, "audit": there.audit or wanted.audit})
    write_run(location, going_on)
    return going_on


# --- what identifies a run ------------------------------------------------------------------------------------------------


def describe_data(dataset: Dataset, fold: int | None) -> DataRecord:
    """What of ``dataset`` goes into ``run.json``."""
    train, validation = dataset.training_partitions(fold)
    mean, std = dataset.normalization_of(train)  # with a fold held out, of the others alone
    return DataRecord(
        location=_SECRET.sub("://", dataset.location),
        name=dataset.manifest.name,
        fingerprint=dataset.manifest.fingerprint,
        task=dataset.labels.task,
        labels=dataset.labels.names,
        train=tuple(train),
        validation=tuple(validation),
        fold=fold,
        height=dataset.preprocess.height,
        width=dataset.preprocess.width,
        mean=mean,
        std=std,
        preprocess=dataset.preprocess,
    )


def identity(recipe: Recipe, data: DataRecord, initial: str | None = None) -> dict[str, Any]:
    """What must agree for a run to go on: the recipe but for its prose, the data wherever they lie, and the run it started from."""
    facts = data.model_dump(mode="json", include={"fingerprint", "train", "validation"})
    start = {} if initial is None else {"initial": initial}
    return {"recipe": recipe.model_dump(mode="json", exclude=recipe.prose), "data": facts, **start}


def run_fingerprint(recipe: Recipe, data: DataRecord, initial: str | None = None) -> str:
    """SHA-256 of :func:`identity`."""
    return storage.sha256(json.dumps(identity(recipe, data, initial), sort_keys=True).encode())


def differences(was: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where two nested mappings differ, a line each: ``key: old -> new``."""
    lines = []
    for key in sorted({*was, *now}):
        old, new = was.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old} -> {new}")
    return lines


def versions() -> dict[str, str]:
    """Of cxr_ray, Python and the libraries that a result may depend on."""
    found = {"cxr_ray": __version__, "python": platform.python_version()}
    for name in _VERSIONS_OF:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Of this machine: processor architecture, cores that this process may use, memory in GiB, GPUs."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory, 1), "gpus": gpus}
