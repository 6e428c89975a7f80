"""A source is a tree of files; what is in an image does not matter here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

Tree = Callable[[Mapping[str, str]], str]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Write ``{relative path: text}`` and return the folder."""

    def write(files: Mapping[str, str]) -> str:
        for name, text in files.items():
            path = tmp_path / "source" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return str(tmp_path / "source")

    return write
