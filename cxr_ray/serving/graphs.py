"""ONNX graphs of bundles, kept on this machine so that only its first replica converts.

Each is named by a SHA-256 over the ``bundle.json`` it was made from, which holds the checksum of every weight, and over the versions that
made it. They lie in a folder that is this user's alone; one that others can write to is not used.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from cxr_ray import __version__, storage
from cxr_ray.bundle import MANIFEST, Bundle
from cxr_ray.errors import StorageError

logger = logging.getLogger(__name__)

MOST: Final = 8
"""Graphs that are kept; the one that was longest not used goes first."""
_MAKERS: Final = ("torch", "onnxscript", "onnx")


def folder() -> Path:
    """Where they are kept: below ``XDG_CACHE_HOME``, or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cxr_ray" / "onnx"


def graph_of(bundle: Bundle, convert: Callable[[], bytes]) -> bytes:
    """The kept graph of a bundle, else a new one, which is then kept where that can be done."""
    try:
        home = _private(folder())
        path = home / f"{_name(bundle)}.onnx"
        if path.is_file():
            os.utime(path)
            return path.read_bytes()
    except OSError as error:
        logger.warning("no ONNX graph is kept on this machine: %s", error.strerror or type(error).__name__)
        return convert()
    graph = convert()
    try:
        storage.write_bytes(path, graph)
        for old in sorted(home.glob("*.onnx"), key=lambda file: file.stat().st_mtime)[:-MOST]:
            old.unlink(missing_ok=True)
    except (OSError, StorageError) as error:
        logger.warning("the ONNX graph is not kept: %s", error)
    return graph


def _private(home: Path) -> Path:
    """The folder, made if need be; refused where it is another's or others may write to it."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = home.stat()
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise PermissionError(f"others may write to {home}")
    return home


def _name(bundle: Bundle) -> str:
    manifest = storage.read_bytes(storage.join(bundle.location, MANIFEST))
    makers = [f"{package} {_version(package)}" for package in _MAKERS]
    return storage.sha256(b"\0".join([manifest, __version__.encode(), *(maker.encode() for maker in makers)]))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
