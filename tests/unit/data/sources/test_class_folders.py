"""Class folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from cxr_ray.data.sources import read_source
from cxr_ray.errors import SourceError

Tree = Callable[[Mapping[str, str]], str]


def test_the_top_folder_is_the_class(tree: Tree) -> None:
    source = read_source(
        tree({"sick/deep/a.png": "", "sick/b": "", "well/c.JPG": "", "loose.png": "", "sick/notes.txt": "", "well/.d.png": ""})
    )
    assert [(row.label, row.patient, row.split) for row in source.rows] == [
        ("sick", None, None),
        ("sick", None, None),
        ("well", None, None),
    ]
    assert source.labels.names == ("sick", "well")
    assert source.rejected == (("loose.png", "not in a class folder"),)
    assert "classes from the folders: sick (2), well (1)" in source.notes
    assert "1 hidden file(s) are ignored" in source.notes
    assert source.rows[0].source == "source"


def test_folders_of_a_split(tree: Tree) -> None:
    source = read_source(tree({"train/A/1.png": "", "train/B/2.png": "", "valid/A/3.png": "", "test/B/4.png": "", "README": ""}))
    assert source.labels.names == ("A", "B")
    assert [(row.label, row.split) for row in source.rows] == [("B", "test"), ("A", "train"), ("B", "train"), ("A", "val")]


def test_a_class_that_is_called_test_is_a_class(tree: Tree) -> None:
    source = read_source(tree({"test/1.png": "", "control/2.png": ""}))
    assert source.labels.names == ("control", "test")


def test_one_class_is_no_task(tree: Tree) -> None:
    with pytest.raises(SourceError, match="only one class, 'images'"):
        read_source(tree({"images/1.png": "", "images/2.png": ""}), "folder")
