"""How epochs become known: ``history.jsonl``, TensorBoard, and the driver that watches the former."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cxr_ray import storage
from cxr_ray.errors import StorageError
from cxr_ray.training.checkpoint import EpochRecord

logger = logging.getLogger(__name__)

HISTORY, TENSORBOARD = "history.jsonl", "tensorboard"
LOCAL_POLL_SECONDS, REMOTE_POLL_SECONDS = 0.5, 5.0


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """What is told to the caller of ``train`` after each epoch."""

    record: EpochRecord
    epochs: int
    """Epochs asked for; an early stop may come before."""
    seconds_left: float
    """Estimate: the epochs left, at the mean pace of the last three."""


def write_history(out: str, history: Sequence[EpochRecord]) -> None:
    """Write all lines anew, whole or not at all: after a resume each epoch stands there once."""
    lines = "".join(json.dumps(asdict(record)) + "\n" for record in history)
    storage.write_bytes(storage.join(out, HISTORY), lines.encode())


def read_history(out: str) -> list[EpochRecord]:
    """The epochs of the RUN at ``out``, ascending; empty before the first has ended."""
    location = storage.join(out, HISTORY)
    if not storage.exists(location):
        return []
    return [EpochRecord(**json.loads(line)) for line in storage.read_bytes(location).decode().splitlines()]


class TensorBoard:
    """Scalars of each epoch below ``OUT/tensorboard``; a local directory only, an object store is passed over with a line in the log.

    Args:
        out: The RUN.
        start: First epoch that will be written; what an interrupted run wrote from there on is hidden.
    """

    def __init__(self, out: str, start: int) -> None:
        self._writer: Any = None
        if storage.is_uri(out):
            logger.info("no TensorBoard logs: they need a local directory, and the run is at %s", out)
            return
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(storage.join(out, TENSORBOARD), purge_step=start)

    def write(self, record: EpochRecord) -> None:
        """Add one epoch."""
        if self._writer is None:
            return
        names = {"train_loss": "loss/train", "val_loss": "loss/val"}
        for key, value in asdict(record).items():
            if value is not None and key not in {"epoch", "seconds"}:
                name = names.get(key, key.replace("val_", "val/", 1))
                self._writer.add_scalar(name, value, record.epoch)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


class HistoryWatch:
    """Calls back in a thread of the driver for each epoch that appears in ``history.jsonl``. A context manager.

    The history is what the workers make durable, so the terminal says nothing that a resumed run would not find.

    Args:
        out: The RUN.
        epochs: Epochs asked for.
        reports: Each called with each epoch that was not there when the watch began. None of them: nothing is watched.
    """

    def __init__(self, out: str, epochs: int, *reports: Callable[[TrainProgress], None]) -> None:
        self._out = out
        self._epochs = epochs
        self._reports = reports
        self._seen = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cxr-ray-history", daemon=True)

    def __enter__(self) -> HistoryWatch:
        if self._reports:
            self._seen = len(read_history(self._out))
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._reports:
            self._done.set()
            self._thread.join()

    def _watch(self) -> None:
        pause = REMOTE_POLL_SECONDS if storage.is_uri(self._out) else LOCAL_POLL_SECONDS
        while not self._done.wait(pause):
            self._look()
        self._look()

    def _look(self) -> None:
        try:
            history = read_history(self._out)
        except (StorageError, ValueError) as error:
            logger.warning("the history could not be read: %s", error)
            return
        for index in range(self._seen, len(history)):
            record = history[index]
            pace = [past.seconds for past in history[max(0, index - 2) : index + 1]]
            left = (self._epochs - record.epoch - 1) * sum(pace) / len(pace)
            for report in self._reports:
                report(TrainProgress(record, self._epochs, left))
        self._seen = max(self._seen, len(history))
