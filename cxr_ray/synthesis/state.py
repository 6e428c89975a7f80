"""The run directory of a GAN: ``gan.json``, ``history.jsonl``, ``checkpoints/``, ``samples/``, ``tensorboard/``; in the end ``report/``.

Checkpoints have the form of a RUN's (:mod:`cxr_ray.training.checkpoint`): ``model.safetensors`` (here the generator's moving
average) and ``state.pt``, and last their manifest with checksums; a torn one is passed over.
"""

from __future__ import annotations

import io
import json
import logging
import pickle
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import torch
from PIL import Image
from pydantic import Field
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from cxr_ray import storage
from cxr_ray.errors import ConfigError, RunError, StorageError
from cxr_ray.settings import Settings, parse_settings
from cxr_ray.synthesis.config import GanConfig
from cxr_ray.synthesis.gan import GanRecord, GanState, build_networks
from cxr_ray.synthesis.networks import Generator
from cxr_ray.synthesis.rare import Images
from cxr_ray.training.checkpoint import MANIFEST, STATE, WEIGHTS, checkpoint_location, epoch_of, list_epochs, newest_valid, read_checkpoint
from cxr_ray.training.checkpoint import SCHEMA as CHECKPOINT_SCHEMA
from cxr_ray.training.lease import LEASE, LOCK
from cxr_ray.training.run import differences

logger = logging.getLogger(__name__)

SCHEMA: Final = "cxr-ray/gan/1"
GAN, HISTORY, CHECKPOINTS, SAMPLES, TENSORBOARD, REPORT = "gan.json", "history.jsonl", "checkpoints", "samples", "tensorboard", "report"
KEEP = 2
"""Newest checkpoints that are kept."""
POLL_SECONDS = 0.5


class GanManifest(Settings):
    """``gan.json``."""

    schema_: Literal["cxr-ray/gan/1"] = Field(default=SCHEMA, alias="schema")
    label: str
    dataset: str
    """Its name."""
    dataset_fingerprint: str
    real_images: int
    size: int
    """Side of the square the GAN works on, in pixels."""
    config: GanConfig
    workers: int
    use_gpu: bool
    versions: dict[str, str]
    hardware: dict[str, Any]
    launches: int = 1
    """How often the command was run."""

    @property
    def identity(self) -> dict[str, Any]:
        """What must agree for a run to go on; more epochs may be asked for later."""
        config = self.config.model_dump(mode="json", exclude={"epochs", "checkpoint_every"})
        return {"label": self.label, "dataset": self.dataset_fingerprint, "size": self.size, "config": config}


@dataclass(frozen=True)
class GanRun:
    """A GAN on storage.

    Args:
        location: Its directory, a local path or a URI.
        manifest: Its ``gan.json``.
    """

    location: str
    manifest: GanManifest

    @property
    def checkpoints(self) -> str:
        """Where the checkpoints stand."""
        return storage.join(self.location, CHECKPOINTS)

    def newest(self) -> str | None:
        """Location of the newest whole checkpoint."""
        return newest_valid(self.checkpoints)

    @property
    def epochs(self) -> int:
        """Epochs that the newest whole checkpoint has behind it."""
        newest = self.newest()
        return epoch_of(newest) + 1 if newest is not None else 0

    def history(self) -> list[GanRecord]:
        """A record an epoch, ascending."""
        return read_history(self.location)

    def load_generator(self, device: str = "cpu") -> tuple[Generator, str]:
        """The moving average of the generator at the newest whole checkpoint, and the SHA-256 of its weights.

        Raises:
            RunError: There is none.
        """
        newest = self.newest()
        if newest is None:
            raise RunError(f"{self.location} has no whole checkpoint", hint="run the same `cxr-ray synthesize` again")
        data = read_checkpoint(newest)[WEIGHTS]
        generator, _ = build_networks(self.manifest.config, self.manifest.size)
        generator.load_state_dict(load_tensors(data))
        return generator.to(device).eval(), storage.sha256(data)


# --- the directory --------------------------------------------------------------------------------------------------------


def claim(location: str, wanted: GanManifest) -> GanRun:
    """Make ``location`` the run of ``wanted``, or find it there; the caller holds its lease.

    Raises:
        RunError: A GAN of other data, another label or other settings stands there, or one that was trained for longer.
    """
    where = storage.join(location, GAN)
    if storage.exists(where) and list_epochs(storage.join(location, CHECKPOINTS)):
        there = _read_manifest(where)
        if there.identity != wanted.identity:
            lines = "".join(f"\n  - {line}" for line in differences(there.identity, wanted.identity))
            raise RunError(f"{location} is of another GAN:{lines}", hint="another --run")
        done = GanRun(location, there).epochs
        if done > wanted.config.epochs:
            hint = f"--epochs {done}, or another --run"
            raise RunError(f"{location} was trained for {done} epochs, more than {wanted.config.epochs}", hint=hint)
        wanted = wanted.model_copy(update={"launches": there.launches + 1})
    storage.write_json(where, wanted.model_dump(mode="json", by_alias=True))
    return GanRun(location, wanted)


def refuse_foreign(location: str) -> None:
    """Make sure that nothing but a GAN's run stands at ``location``, before anything is written there.

    Raises:
        RunError: Files of something else stand there.
    """
    there = set(storage.list_files(location)) - {LEASE, LOCK}
    if there and GAN not in there:
        raise RunError(f"{location} holds other files than a GAN's run; it is left alone", hint="another --run")


def _read_manifest(where: str) -> GanManifest:
    try:
        data = storage.read_json(where)
        return parse_settings(GanManifest, data if isinstance(data, dict) else {}, where=where)
    except (StorageError, ConfigError) as error:
        raise RunError(error.message, hint="another --run, or the version of cxr_ray that wrote it") from None


# --- checkpoints ----------------------------------------------------------------------------------------------------------


def save_state(folder: str, state: GanState) -> str:
    """Write the checkpoint of ``state`` below ``folder``; when it is durable, remove all but the newest :data:`KEEP`.

    Returns:
        Its location.

    Raises:
        StorageError: It cannot be written.
    """
    location = checkpoint_location(folder, state.epoch)
    storage.remove(location)  # what a killed run may have left there
    rest = {
        "generator": state.generator,
        "discriminator": state.discriminator,
        "optimizers": state.optimizers,
        "history": [asdict(record) for record in state.history],
    }
    buffer = io.BytesIO()
    torch.save(rest, buffer)
    contents = {WEIGHTS: save_tensors({name: value.contiguous() for name, value in state.average.items()}), STATE: buffer.getvalue()}
    for name, data in contents.items():
        storage.write_bytes(storage.join(location, name), data)
    files = {name: {"sha256": storage.sha256(data), "bytes": len(data)} for name, data in contents.items()}
    storage.write_json(storage.join(location, MANIFEST), {"schema": CHECKPOINT_SCHEMA, "epoch": state.epoch, "files": files})
    for epoch in list_epochs(folder)[:-KEEP]:
        storage.remove(checkpoint_location(folder, epoch))
    return location


def load_state(location: str) -> GanState:
    """What :func:`save_state` wrote.

    Raises:
        RunError: The checkpoint is torn, or of something else.
    """
    contents = read_checkpoint(location)
    try:
        rest = torch.load(io.BytesIO(contents[STATE]), map_location="cpu", weights_only=True)
        return GanState(
            generator=rest["generator"],
            discriminator=rest["discriminator"],
            average=load_tensors(contents[WEIGHTS]),
            optimizers=rest["optimizers"],
            history=tuple(GanRecord(**record) for record in rest["history"]),
        )
    except (pickle.UnpicklingError, KeyError, TypeError) as error:
        raise RunError(f"{location} is not a checkpoint of a GAN", hint="another --run") from error


# --- how it goes ----------------------------------------------------------------------------------------------------------


def write_history(location: str, history: Sequence[GanRecord]) -> None:
    """Write all lines anew, whole or not at all: after a resume each epoch stands there once."""
    lines = "".join(json.dumps(asdict(record)) + "\n" for record in history)
    storage.write_bytes(storage.join(location, HISTORY), lines.encode())


def read_history(location: str) -> list[GanRecord]:
    """The epochs of the run, ascending; empty before the first checkpoint."""
    where = storage.join(location, HISTORY)
    if not storage.exists(where):
        return []
    return [GanRecord(**json.loads(line)) for line in storage.read_bytes(where).decode().splitlines()]


def to_png(pixels_HW: Images) -> bytes:
    """A grey PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels_HW).save(stream, "PNG", optimize=True)
    return stream.getvalue()


class Diary:
    """Losses and grids of samples, for people: TensorBoard (local directories only) and ``samples/epoch-*.png``.

    Args:
        location: The run.
        start: First epoch that will be written; what an interrupted run wrote from there on is hidden.
    """

    def __init__(self, location: str, start: int) -> None:
        self._location = location
        self._board: Any = None
        if not storage.is_uri(location):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(storage.join(location, TENSORBOARD), purge_step=start)

    def losses(self, record: GanRecord) -> None:
        """Add an epoch's."""
        if self._board is not None:
            for name, value in asdict(record).items():
                if name not in {"epoch", "seconds"}:
                    self._board.add_scalar(f"gan/{name}", value, record.epoch)

    def samples(self, epoch: int, sheet_HW: Images) -> None:
        """Add a grid of images."""
        storage.write_bytes(storage.join(self._location, SAMPLES, f"epoch-{epoch:04d}.png"), to_png(sheet_HW))
        if self._board is not None:
            self._board.add_image("samples", sheet_HW, epoch, dataformats="HW")
            self._board.flush()

    def close(self) -> None:
        """Write what is left."""
        if self._board is not None:
            self._board.close()


class Watch:
    """Calls back in a thread of the driver with the newest epoch of ``history.jsonl`` whenever it grew. A context manager.

    Args:
        location: The run.
        report: None: nothing is watched.
    """

    def __init__(self, location: str, report: Callable[[GanRecord], None] | None) -> None:
        self._location, self._report = location, report
        self._seen = -1
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cxr-ray-gan", daemon=True)

    def __enter__(self) -> Watch:
        if self._report is not None:
            self._seen = max((record.epoch for record in read_history(self._location)), default=-1)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._report is not None:
            self._done.set()
            self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            self._look()
        self._look()

    def _look(self) -> None:
        try:
            history = read_history(self._location)
        except (StorageError, ValueError) as error:
            logger.warning("the history could not be read: %s", error)
            return
        if history and history[-1].epoch > self._seen and self._report is not None:
            self._seen = history[-1].epoch
            self._report(history[-1])
