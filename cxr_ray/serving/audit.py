"""The audit log: one JSON line for each image that was asked about, and one for each other request. Holds nothing about a patient.

A line says when, with which key, for which bytes (by SHA-256), by which model, and what came of it. File names, form fields,
DICOM headers, addresses and query strings are never in it, so it can be kept as long as the law asks.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cxr_ray.errors import ConfigError

logger = logging.getLogger(__name__)

STDOUT, OFF = "stdout", "off"


@dataclass(slots=True)
class RequestFacts:
    """What is known of one request; routes add what they learn.

    Args:
        request_id: Also in the answer and in its header.
        key_id: Of the key it came with; None: no valid one.
        route: Template of the route, such as ``/v1/predict``; never the path that was asked for.
        inputs: (SHA-256 of the bytes, ``answered`` or the reason of the refusal) of each image.
        model_version: Of the bundle that was asked, where it is not the one that the service is named for.
        model_sha256: Of its ``bundle.json``.
    """

    request_id: str
    key_id: str | None = None
    route: str = "none"
    inputs: list[tuple[str, str]] = field(default_factory=list)
    model_version: str | None = None
    model_sha256: str | None = None


class AuditLog:
    """Writes the lines. Each is one ``write`` to a file opened for appending, so several replicas of a machine can share it.

    Args:
        target: A local file, ``stdout`` or ``off``.
        model_sha256: Hex SHA-256 of the ``bundle.json`` being served, which holds the checksum of every weight.

    Raises:
        ConfigError: The file cannot be opened.
    """

    def __init__(self, target: str = OFF, *, model_sha256: str) -> None:
        self._model = model_sha256
        self.failures = 0
        self._descriptor: int | None = None
        if target == STDOUT:
            self._descriptor = sys.stdout.fileno()
        elif target != OFF:
            try:
                self._descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
            except OSError as error:
                raise ConfigError([f"the audit log cannot be opened: {error.strerror}"], where=target) from None

    def write(self, facts: RequestFacts, status: int, milliseconds: float) -> None:
        """Append the lines of one request. A log that cannot be written costs no answer: it is counted, and told to the operator."""
        inputs: Sequence[tuple[str | None, str | None]] = facts.inputs or [(None, None)]
        common = {"time": _now(), "key_id": facts.key_id, "request_id": facts.request_id}
        end = {"model_sha256": facts.model_sha256 or self._model, "status": status, "milliseconds": round(milliseconds, 1)}
        self._append([{**common, "route": facts.route, "input_sha256": digest, "outcome": outcome, **end} for digest, outcome in inputs])

    def note(self, event: str, **what: str | float | None) -> None:
        """Append a line about the service itself, such as which versions answer."""
        self._append([{"time": _now(), "event": event, "model_sha256": self._model, **what}])

    def _append(self, records: Sequence[Mapping[str, Any]]) -> None:
        if self._descriptor is None:
            return
        lines = [json.dumps(record) for record in records]
        try:
            os.write(self._descriptor, ("\n".join(lines) + "\n").encode())
        except OSError as error:
            self.failures += 1
            logger.error("the audit log cannot be written: %s", error.strerror)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
