"""Local paths and object-store URIs behind one face; every write is whole or absent.

A location is a local path or any URI that ``pyarrow.fs`` can open (``s3://…``, ``gs://…``, ``file:///…``). Artefacts
(DATASET, RUN checkpoint, BUNDLE) are written with their manifest last: a directory without its manifest does not exist
as far as readers are concerned.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import posixpath
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyarrow import fs as pafs

from cxr_ray.errors import StorageError


def is_uri(location: str | Path) -> bool:
    """Whether ``location`` names an object store (or any other ``scheme://``) rather than a local path."""
    return "://" in str(location)


def open_location(location: str | Path) -> tuple[pafs.FileSystem, str]:
    """The file system of ``location`` and the path inside it.

    Raises:
        StorageError: The URI's scheme is unknown or it is malformed.
    """
    if not is_uri(location):
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(str(location)))
    try:
        filesystem, path = pafs.FileSystem.from_uri(str(location))
    except (OSError, ValueError) as error:
        raise StorageError(
            f"cannot open {location!s}: {type(error).__name__}", hint="a local path, s3://bucket/path or gs://bucket/path"
        ) from error
    return filesystem, path


def join(location: str | Path, *parts: str) -> str:
    """``location`` with ``parts`` below it; works for paths and URIs (whose query, if any, stays at the end)."""
    text = str(location)
    if is_uri(text):
        base, mark, query = text.partition("?")
        return posixpath.join(base.rstrip("/"), *parts) + mark + query
    return os.path.join(text, *parts)


def absolute(location: str | Path) -> str:
    """``location`` as another process, with another working directory, finds it: an absolute local path, or the URI as it is."""
    return str(location) if is_uri(location) else os.path.abspath(os.path.expanduser(str(location)))


def exists(location: str | Path) -> bool:
    """Whether a file or directory stands at ``location``."""
    filesystem, path = open_location(location)
    return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)


def read_bytes(location: str | Path) -> bytes:
    """The whole file.

    Raises:
        StorageError: It is missing or cannot be read.
    """
    filesystem, path = open_location(location)
    try:
        with filesystem.open_input_stream(path) as stream:
            return bytes(stream.read())
    except OSError as error:
        raise StorageError(f"cannot read {location!s}: {_cause(error)}") from error


def write_bytes(location: str | Path, data: bytes) -> None:
    """Write a file whole or not at all: temporary name, fsync, rename (object stores put whole objects anyway).

    Raises:
        StorageError: It cannot be written.
    """
    filesystem, path = open_location(location)
    try:
        if isinstance(filesystem, pafs.LocalFileSystem):
            _write_local(Path(path), data)
        else:
            with filesystem.open_output_stream(path) as stream:
                stream.write(data)
    except OSError as error:
        raise StorageError(f"cannot write {location!s}: {_cause(error)}") from error


def _write_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(location: str | Path) -> Any:
    """A JSON file.

    Raises:
        StorageError: It is missing or is not JSON.
    """
    try:
        return json.loads(read_bytes(location))
    except ValueError:
        raise StorageError(f"{location!s} is not JSON; it may have been cut short") from None


def write_json(location: str | Path, data: Mapping[str, Any]) -> None:
    """Write ``data`` as indented JSON, whole or not at all. NaN is refused: it is not JSON."""
    write_bytes(location, (json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def list_files(location: str | Path, *, recursive: bool = True) -> list[str]:
    """Paths of the files below ``location``, relative to it, sorted. Empty where nothing stands there."""
    filesystem, path = open_location(location)
    infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=recursive, allow_not_found=True))
    return sorted(posixpath.relpath(info.path, path) for info in infos if info.type == pafs.FileType.File)


def remove(location: str | Path) -> None:
    """Remove a file or a directory with all it holds; nothing happens where nothing stands."""
    filesystem, path = open_location(location)
    kind = filesystem.get_file_info(path).type
    with contextlib.suppress(FileNotFoundError):
        if kind == pafs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind == pafs.FileType.File:
            filesystem.delete_file(path)


def sha256(data: bytes) -> str:
    """Hex SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(location: str | Path) -> str:
    """Hex SHA-256 of a file, read in pieces of 1 MiB.

    Raises:
        StorageError: It is missing or cannot be read.
    """
    filesystem, path = open_location(location)
    digest = hashlib.sha256()
    try:
        with filesystem.open_input_stream(path) as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise StorageError(f"cannot read {location!s}: {_cause(error)}") from error
    return digest.hexdigest()


def _cause(error: OSError) -> str:
    return error.strerror or type(error).__name__
