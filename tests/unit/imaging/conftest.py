"""The good and the hostile files, made once for all tests of this folder."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def good(hostile: ModuleType) -> dict[str, bytes]:
    """Name -> file that shows ``hostile.picture()``."""
    return dict(hostile.good_files())


@pytest.fixture(scope="session")
def bad(hostile: ModuleType) -> dict[str, bytes]:
    """Name -> file that must be refused."""
    return dict(hostile.hostile_files())


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture(scope="session")
def silent() -> Callable[[], AbstractContextManager[None]]:
    """A context in which nothing may be logged: the net of ``decode`` logs each fault of ours that it catches."""

    @contextlib.contextmanager
    def watch() -> Iterator[None]:
        kept = _Kept()
        logger = logging.getLogger()
        logger.addHandler(kept)
        try:
            yield
        finally:
            logger.removeHandler(kept)
        assert kept.lines == []

    return watch
