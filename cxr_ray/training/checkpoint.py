"""Checkpoints: one directory an epoch, ``manifest.json`` last, every file checked against its SHA-256 on loading.

``epoch-0007/`` holds ``model.safetensors`` (the weights that are exported: the moving average where there is one), ``state.pt``
(what else a resumed run needs: tensors and plain types only) and the manifest. A directory without a manifest, or with a file that does
not match it, is torn: it is passed over, with a line in the log, for the newest good one. Epochs count from 0.
"""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from cxr_ray import storage
from cxr_ray.errors import RunError, StorageError

logger = logging.getLogger(__name__)

SCHEMA = "cxr-ray/checkpoint/1"
MANIFEST, WEIGHTS, STATE = "manifest.json", "model.safetensors", "state.pt"

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One line of ``history.jsonl``."""

    epoch: int
    """From 0."""
    train_loss: float
    """Mean over the epoch's images (multilabel: known labels), while the network learned."""
    lr: float
    """Learning rate of the epoch's last step."""
    seconds: float
    """Of the epoch, validation included."""
    images_per_second: float
    """Training images over all workers, validation not included."""
    val_loss: float | None = None
    val_accuracy: float | None = None
    val_macro_f1: float | None = None
    val_macro_auroc: float | None = None
    workers: int | None = None
    """Training processes of the epoch; None: written before this was kept."""


@dataclass(frozen=True, slots=True)
class Best:
    """The epoch that the monitor chose."""

    epoch: int
    metric: str
    """The monitor; ``last``: the newest epoch, without a choice."""
    value: float | None


@dataclass(frozen=True, slots=True)
class TrainState:
    """All that a run needs to go on after an epoch, on the CPU."""

    model: Tensors
    """The weights that learn."""
    average: Tensors | None
    """Their moving average; None: off."""
    optimizer: dict[str, Any]
    history: tuple[EpochRecord, ...]
    best: Best | None
    finished: bool
    """No epoch is left, or patience has run out."""

    @property
    def epoch(self) -> int:
        """The last epoch."""
        return self.history[-1].epoch


def copy_to_cpu(tree: Any) -> Any:
    """``tree`` of dicts, lists and tensors with every tensor copied to the CPU in its own memory format (or sums may round otherwise)."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: copy_to_cpu(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(copy_to_cpu(value) for value in tree)
    return tree


# --- writing --------------------------------------------------------------------------------------------------------------


def checkpoint_location(folder: str, epoch: int) -> str:
    """Where the checkpoint of ``epoch`` stands."""
    return storage.join(folder, f"epoch-{epoch:04d}")


def epoch_of(location: str) -> int:
    """The epoch of the checkpoint at ``location``, from its name."""
    return int(location.partition("?")[0].rsplit("epoch-", 1)[1])


def save_checkpoint(folder: str, state: TrainState, *, keep: int) -> str:
    """Write the checkpoint of ``state`` below ``folder``; when it is durable, remove those no longer kept.

    Args:
        folder: ``checkpoints`` of a RUN, a local path or a URI.
        state: After an epoch.
        keep: Newest checkpoints to keep beside the best one.

    Returns:
        Its location.

    Raises:
        StorageError: It cannot be written.
    """
    location = checkpoint_location(folder, state.epoch)
    storage.remove(location)  # what a killed run may have left there
    exported = state.model if state.average is None else state.average
    rest = {
        "raw": None if state.average is None else state.model,
        "optimizer": state.optimizer,
        "history": [asdict(record) for record in state.history],
        "best": asdict(state.best) if state.best else None,
        "finished": state.finished,
    }
    buffer = io.BytesIO()
    torch.save(rest, buffer)
    exported = {name: value.contiguous() for name, value in exported.items()}
    contents = {WEIGHTS: save_tensors(exported), STATE: buffer.getvalue()}
    for name, data in contents.items():
        storage.write_bytes(storage.join(location, name), data)
    files = {name: {"sha256": storage.sha256(data), "bytes": len(data)} for name, data in contents.items()}
    storage.write_json(storage.join(location, MANIFEST), {"schema": SCHEMA, "epoch": state.epoch, "files": files})
    kept = {state.epoch} if state.best is None else {state.epoch, state.best.epoch}
    older = [epoch for epoch in list_epochs(folder) if epoch < state.epoch]
    kept.update(older[len(older) - (keep - 1) :] if keep > 1 else [])
    for epoch in older:
        if epoch not in kept:
            storage.remove(checkpoint_location(folder, epoch))
    return location


# --- reading --------------------------------------------------------------------------------------------------------------


def list_epochs(folder: str) -> list[int]:
    """Epochs that have a directory below ``folder``, whole or torn, ascending."""
    names = [path.split("/") for path in storage.list_files(folder)]
    found = {parts[0].removeprefix("epoch-") for parts in names if len(parts) == 2 and parts[0].startswith("epoch-")}
    return sorted(int(text) for text in found if text.isdigit())


def read_checkpoint(location: str) -> dict[str, bytes]:
    """The files of a checkpoint, each checked against the manifest.

    Raises:
        RunError: The manifest or a file is missing, cut short or changed.
    """
    manifest = _read_manifest(location)
    contents = {}
    for name, facts in manifest["files"].items():
        try:
            data = storage.read_bytes(storage.join(location, name))
        except StorageError as error:
            raise RunError(f"{location} is torn: {error.message}") from None
        if len(data) != facts["bytes"] or storage.sha256(data) != facts["sha256"]:
            raise RunError(f"{location} is torn: {name} does not match its checksum ({len(data)} of {facts['bytes']} bytes)")
        contents[name] = data
    return contents


def _read_manifest(location: str) -> Mapping[str, Any]:
    try:
        manifest = storage.read_json(storage.join(location, MANIFEST))
    except StorageError as error:
        raise RunError(f"{location} is torn: {error.message}") from None
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA or not {WEIGHTS, STATE} <= set(manifest.get("files", {})):
        raise RunError(f"{location}: {MANIFEST} is not of schema {SCHEMA!r}")
    return manifest


def newest_valid(folder: str) -> str | None:
    """Location of the newest whole checkpoint below ``folder``; torn ones are logged. None where there is none."""
    for epoch in reversed(list_epochs(folder)):
        location = checkpoint_location(folder, epoch)
        if is_whole(location):
            return location
    return None


def is_whole(location: str) -> bool:
    """Whether a checkpoint stands there with all its bytes; why not is logged."""
    try:
        read_checkpoint(location)
    except RunError as error:
        logger.warning("checkpoint passed over: %s", error.message)
        return False
    return True


def load_exported(location: str) -> Tensors:
    """The weights that are validated and exported.

    Raises:
        RunError: The checkpoint is torn.
    """
    return load_tensors(read_checkpoint(location)[WEIGHTS])


def load_state(location: str) -> TrainState:
    """What :func:`save_checkpoint` wrote.

    Raises:
        RunError: The checkpoint is torn, or holds something else than tensors and plain types.
    """
    contents = read_checkpoint(location)
    try:
        rest = torch.load(io.BytesIO(contents[STATE]), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RunError(f"{location}: {STATE} holds more than tensors and plain types; it is not one of ours") from error
    exported, raw = load_tensors(contents[WEIGHTS]), rest["raw"]
    return TrainState(
        model=exported if raw is None else raw,
        average=None if raw is None else exported,
        optimizer=rest["optimizer"],
        history=tuple(EpochRecord(**record) for record in rest["history"]),
        best=Best(**rest["best"]) if rest["best"] else None,
        finished=rest["finished"],
    )
