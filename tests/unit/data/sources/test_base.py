"""The listing and the promises that hold for every adapter."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from cxr_ray.data.sources import Folder
from cxr_ray.data.sources.base import Collector, suffix
from cxr_ray.errors import SourceError


def folder(*files: str, location: str = "/data/set") -> Folder:
    return Folder(location, tuple(sorted(files)))


def reason(listed: Folder, text: str, base: str = "") -> str:
    with pytest.raises(LookupError) as caught:
        listed.resolve(text, base)
    return str(caught.value.args[0])


def test_resolve_finds_what_a_table_means() -> None:
    listed = folder("labels/table.csv", "images/a.png", "images/deep/b.png", "c.png")
    assert listed.resolve("images/a.png") == "images/a.png"
    assert listed.resolve("./images//a.png") == "images/a.png"
    assert listed.resolve("images\\a.png") == "images/a.png"
    assert listed.resolve("../images/a.png", "labels") == "images/a.png"
    assert listed.resolve("set/images/a.png") == "images/a.png"  # the table begins with the source's own name
    assert listed.resolve("b.png") == "images/deep/b.png"  # a bare name
    assert listed.resolve(" c.png ", "labels") == "c.png"


@pytest.mark.parametrize(
    "text",
    ["../a.png", "images/../../a.png", "/etc/passwd", "~/a.png", "C:\\a.png", "s3://bucket/a.png", "file:///etc/passwd", "..\\a.png", ".."],
)
def test_resolve_refuses_what_leaves_the_source(text: str) -> None:
    assert reason(folder("a.png", "images/a.png"), text) == "path leaves the source folder"


def test_resolve_says_why_there_is_no_file() -> None:
    listed = folder("a/x.png", "b/x.png", "x.csv")
    assert reason(listed, "  ") == "no file name"
    assert reason(listed, "y.png") == "missing file"
    assert reason(listed, "c/x.png") == "missing file"  # a path is not a bare name: another folder's file is another file
    assert reason(listed, "x.png") == "file name is ambiguous"


def test_scan_leaves_hidden_files_out(tmp_path: Path) -> None:
    for name in ("A/x.png", "A/.y.png", "__MACOSX/A/._x.png", ".git/z.png", "A/UPPER.JPEG", "A/1.2.840.10008", "A/notes.txt", "README"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    listed = Folder.scan(str(tmp_path))
    assert listed.files == ("A/1.2.840.10008", "A/UPPER.JPEG", "A/notes.txt", "A/x.png", "README")
    assert listed.images == ("A/1.2.840.10008", "A/UPPER.JPEG", "A/x.png")
    assert listed.hidden == 3


def test_scan_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no folder at"):
        Folder.scan(str(tmp_path / "absent"))
    with pytest.raises(SourceError, match="holds no files"):
        Folder.scan(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "expected"), [("a.PNG", ".png"), ("1.2.840.5", ""), ("CR-MONO1", ""), ("a.tar.gz", ".gz"), ("x/y.dcm", ".dcm")]
)
def test_suffix(name: str, expected: str) -> None:
    assert suffix(name) == expected


def test_where_quotes_in_uris_only() -> None:
    assert folder("a").where("Viral Pneumonia/é.png") == "/data/set/Viral Pneumonia/é.png"
    assert folder("a", location="s3://b/set?region=x").where("Viral Pneumonia/a.png") == "s3://b/set/Viral%20Pneumonia/a.png?region=x"


def test_rows_that_repeat_or_contradict() -> None:
    collector = Collector(folder("a.png", "b.png", "c.png", "d.png", "e.png", "loose.png"), "csv", source="s")
    for file, label, patient in (
        ("a.png", "x", "1"),
        ("a.png", "x", "1"),
        ("b.png", "x", "1"),
        ("b.png", "y", "1"),
        ("b.png", "x", "1"),
        ("c.png", "y", "1"),
        ("c.png", "y", "2"),
        ("d.png", "y", None),
    ):
        collector.add(file, label=label, patient=patient)
    collector.reject("e.png", "no label")
    source = collector.finish(where="t.csv")
    assert [row.location for row in source.rows] == ["/data/set/a.png", "/data/set/d.png"]
    assert source.rejected == (("b.png", "conflicting labels"), ("c.png", "conflicting patients"), ("e.png", "no label"))
    notes = " | ".join(source.notes)
    assert "1 image file(s) have no row in t.csv" in notes
    assert "1 row(s) repeat" in notes
    assert "3 row(s) rejected" in notes


def test_unknown_equals_unknown_in_repeated_rows() -> None:
    collector = Collector(folder("a.png", "b.png"), "csv", source="s")
    collector.add("a.png", labels=(1.0, float("nan")))
    collector.add("a.png", labels=(1.0, math.nan))
    collector.add("b.png", labels=(1.0, math.nan))
    collector.add("b.png", labels=(1.0, 0.0))
    source = collector.finish(("p", "q"), task="multilabel")
    assert len(source.rows) == 1
    assert source.rejected == (("b.png", "conflicting labels"),)


def test_a_source_without_an_image_or_with_one_class_says_what_was_seen() -> None:
    collector = Collector(folder("a.png", "t.csv"), "csv", source="s")
    collector.reject("a.png", "no label")
    with pytest.raises(SourceError, match=r"no usable image when read as 'csv'; rejected: no label \(1\).*1 \.png"):
        collector.finish()
    collector.add("a.png", label="x")
    with pytest.raises(SourceError, match="only one class, 'x'"):
        collector.finish()
