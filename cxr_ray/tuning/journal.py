"""Optuna's journal on an object store, where nothing can be appended to: an object for each append, read once when it is opened."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from cxr_ray import storage

WHOLE = "study.journal"
"""Objects of earlier calls, put together: the file that ``JournalFileBackend`` and ``optuna-dashboard`` read."""
PARTS = "study"


class ObjectStoreJournal(BaseJournalBackend):
    """Lines of JSON in ``OUT/study.journal`` and, since the journal was opened, in ``OUT/study/00000001.jsonl`` and so on.

    One writer at a time: the sweep's lease sees to that. Whoever reads beside it sees the journal as it was when they opened it.

    Args:
        out: The sweep's directory, a URI.
    """

    def __init__(self, out: str) -> None:
        self._parts = storage.join(out, PARTS)
        whole = storage.join(out, WHOLE)
        data = storage.read_bytes(whole) if storage.exists(whole) else b""
        parts = sorted(storage.list_files(self._parts)) if storage.exists(self._parts) else []
        new = b"".join(storage.read_bytes(storage.join(self._parts, part)) for part in parts)
        lines = (data + new).decode().splitlines()
        # a call killed between writing the whole and removing the parts leaves lines in both; each has its writer and time
        self._logs: list[dict[str, Any]] = [json.loads(line) for line in dict.fromkeys(lines)]
        if parts:
            storage.write_bytes(whole, _lines(self._logs))
            storage.remove(self._parts)
        self._next = 0

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Entries from this one on."""
        return self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Make some more durable."""
        storage.write_bytes(storage.join(self._parts, f"{self._next:08d}.jsonl"), _lines(logs))
        self._next += 1
        self._logs += json.loads(json.dumps(logs))


def _lines(logs: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(entry) + "\n" for entry in logs).encode()
