"""Files are whole or absent; local paths and URIs behave alike."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cxr_ray import storage
from cxr_ray.errors import StorageError


@pytest.fixture(params=["path", "uri"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "path" else f"file://{tmp_path}"


def test_a_file_comes_back(root: str) -> None:
    place = storage.join(root, "a", "b.bin")
    storage.write_bytes(place, b"pixels")
    assert storage.read_bytes(place) == b"pixels"
    assert storage.sha256_file(place) == storage.sha256(b"pixels")
    assert storage.list_files(root) == ["a/b.bin"]
    storage.remove(root)
    assert not storage.exists(place)


def test_json_refuses_nan(root: str) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        storage.write_json(storage.join(root, "m.json"), {"value": float("nan")})
    assert not storage.exists(storage.join(root, "m.json"))


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "m.json"
    storage.write_bytes(place, b"old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        storage.write_bytes(place, b"new")
    assert place.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("action", [storage.read_bytes, storage.sha256_file, storage.read_json])
def test_what_is_missing_is_said(root: str, action: object) -> None:
    with pytest.raises(StorageError, match="cannot read"):
        action(storage.join(root, "absent"))  # type: ignore[operator]


def test_torn_json_is_said(root: str) -> None:
    storage.write_bytes(storage.join(root, "m.json"), b'{"a": ')
    with pytest.raises(StorageError, match="cut short"):
        storage.read_json(storage.join(root, "m.json"))


def test_an_unknown_scheme_is_said() -> None:
    with pytest.raises(StorageError, match="cannot open"):
        storage.open_location("nosuch://bucket/x")


def test_join_keeps_the_query_of_a_uri() -> None:
    assert storage.join("s3://bucket/data?region=x", "a.json") == "s3://bucket/data/a.json?region=x"
