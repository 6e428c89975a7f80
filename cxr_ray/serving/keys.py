"""API keys: who may ask, how often and until when. A service holds SHA-256 digests only; a key is shown once, when it is made.

A key file is YAML (or JSON, which is YAML), written by ``cxr-ray keys``::

    keys:
      - {id: ward-3, sha256: 5e88…, requests_per_minute: 60, expires: 2027-01-31}
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Self

import yaml
from pydantic import Field, model_validator

from cxr_ray import storage
from cxr_ray.errors import ConfigError, StorageError
from cxr_ray.settings import Settings, parse_settings

logger = logging.getLogger(__name__)

KEY_VARIABLE = "CXR_RAY_API_KEY"
LEAST_CHARACTERS = 16
SHA256 = "^[0-9a-f]{64}$"
_WINDOW_SECONDS = 60.0
_REFRESH_SECONDS = 30.0


class KeyRecord(Settings):
    """One key, as the service knows it."""

    id: str = Field(pattern="^[a-z0-9][a-z0-9._-]{0,63}$")
    """Stands in the audit log; name a system or a ward, not a person."""
    sha256: str = Field(pattern=SHA256)
    """Hex SHA-256 of the key."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """POST requests in any 60 seconds, over all replicas. None: as many as the service can answer."""
    expires: date | None = None
    """The last day (UTC) on which the key is taken. None: never expires."""


class KeyFile(Settings):
    """A key file."""

    keys: tuple[KeyRecord, ...] = ()

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for what, values in (("id", [key.id for key in self.keys]), ("sha256", [key.sha256 for key in self.keys])):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"each key needs its own {what}; given more than once: {', '.join(twice)}")
        return self


@dataclass(frozen=True, slots=True)
class ApiKey:
    """The one key of a service without a key file.

    Args:
        digest: Hex SHA-256 of the key; all that the service is given.
        shown: The key itself where it was made just now and must be shown once, else None.
    """

    digest: str
    shown: str | None


def obtain_key(key_file: str | None = None) -> ApiKey:
    """The key from ``key_file``, else from the environment (``CXR_RAY_API_KEY``), else a new one.

    Raises:
        ConfigError: The file cannot be read, or the key has fewer than 16 characters.
    """
    if key_file is not None:
        try:
            key = Path(key_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([f"cannot be read: {type(error).__name__}"], where=key_file) from None
        return ApiKey(digest(_long_enough(key, key_file)), None)
    if KEY_VARIABLE in os.environ:
        return ApiKey(digest(_long_enough(os.environ[KEY_VARIABLE].strip(), KEY_VARIABLE)), None)
    key = new_key()
    return ApiKey(digest(key), key)


def _long_enough(key: str, where: str) -> str:
    if len(key) < LEAST_CHARACTERS:
        raise ConfigError([f"the key has {len(key)} characters; at least {LEAST_CHARACTERS} are wanted"], where=where)
    return key


def new_key() -> str:
    """32 characters from 192 random bits."""
    return secrets.token_urlsafe(24)


def digest(key: str) -> str:
    """Hex SHA-256. No salt and no stretching: keys are random, not words."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(location: str) -> tuple[KeyRecord, ...]:
    """The records of a key file, a local path or a URI.

    Raises:
        ConfigError: The file cannot be read, or has faults; all are told at once.
    """
    try:
        data = yaml.safe_load(storage.read_bytes(location))
    except (StorageError, yaml.YAMLError) as error:
        raise ConfigError(
            [f"cannot be read: {type(error).__name__}"], where=location, hint=f"cxr-ray keys new {location} --id ID"
        ) from None
    if not isinstance(data, dict):
        raise ConfigError(["expected a mapping with the key 'keys'"], where=location)
    return parse_settings(KeyFile, data, where=location).keys


def write_keys(location: str, records: Sequence[KeyRecord]) -> None:
    """Write a key file whole or not at all.

    Raises:
        ConfigError: Two records share an id or a digest.
        StorageError: It cannot be written.
    """
    data = {"keys": [record.model_dump(mode="json", exclude_none=True) for record in records]}
    parse_settings(KeyFile, data, where=location)
    text = json.dumps(data, indent=2) + "\n" if location.endswith(".json") else yaml.safe_dump(data, sort_keys=False)
    storage.write_bytes(location, text.encode())


class KeyRing:
    """The keys a service takes, and how often each was used in the last minute.

    Args:
        records: Its keys; at least one.
        location: Key file that is read again every 30 s, so that new and revoked keys count without a restart. None: never.
        share: The part of every key's rate that this replica grants.
        clock: Seconds.

    Raises:
        ConfigError: No keys.
    """

    def __init__(
        self,
        records: Sequence[KeyRecord],
        *,
        location: str | None = None,
        share: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not records:
            raise ConfigError(["holds no key: a service without a key is not started"], where=location or "serve")
        self._records, self._location, self._share, self._clock = tuple(records), location, share, clock
        self._read_at = clock()
        self._used: dict[str, deque[float]] = {}

    def find(self, given: str) -> KeyRecord | None:
        """The record of a key, or None. Every digest is compared, each in constant time, whichever fits."""
        found = None
        of_given = digest(given)
        for record in self._records:
            if hmac.compare_digest(of_given, record.sha256):
                found = record
        if found is not None and found.expires is not None and datetime.now(UTC).date() > found.expires:
            return None
        return found

    def wait(self, record: KeyRecord) -> float:
        """Count one request of a key. Returns 0, or the seconds until it may ask again (then nothing is counted)."""
        if record.requests_per_minute is None:
            return 0.0
        allowed = max(1, round(record.requests_per_minute * self._share))
        now, used = self._clock(), self._used.setdefault(record.id, deque())
        while used and now - used[0] >= _WINDOW_SECONDS:
            used.popleft()
        if len(used) >= allowed:
            return _WINDOW_SECONDS - (now - used[0])
        used.append(now)
        return 0.0

    async def refresh(self) -> None:
        """Read the key file again where that is due. A file with faults changes nothing but the log."""
        if self._location is None or self._clock() - self._read_at < _REFRESH_SECONDS:
            return
        self._read_at = self._clock()
        try:
            records = await asyncio.to_thread(read_keys, self._location)
        except ConfigError as error:
            logger.error("the key file is not taken, the keys read before stay: %s", "; ".join(error.faults))
            return
        self._records = records
