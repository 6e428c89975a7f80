"""CSV tables as they come, and the words in them."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest

from cxr_ray.data.sources import Folder, SourceOptions, tables
from cxr_ray.errors import SourceError


def table(tmp_path: Path, data: bytes, name: str = "t.csv") -> tables.Table:
    (tmp_path / name).write_bytes(data)
    return tables.read_table(Folder(str(tmp_path), (name,)), name)


@pytest.mark.parametrize(
    "data",
    [
        b"Path,Finding Labels\nx.png,A|B\n",
        b"\xef\xbb\xbfPath,Finding Labels\r\nx.png,A|B\r\n\r\n",
        b"Path;Finding Labels\nx.png;A|B\n",
        b"Path\tFinding Labels\nx.png\tA|B",
        b'"Path" , "Finding Labels"\n"x.png","A|B"\n'.replace(b' , "', b',"'),
        gzip.compress(b"Path,Finding Labels\nx.png,A|B\n"),
    ],
    ids=["plain", "bom-crlf", "semicolon", "tab", "quoted", "gzip"],
)
def test_one_table_in_many_dresses(tmp_path: Path, data: bytes) -> None:
    read = table(tmp_path, data)
    assert read.header == ("Path", "Finding Labels")
    assert read.rows == (("x.png", "A|B"),)
    assert read.find(("nothing", "finding_labels")) == 1
    assert read.find(("nothing",)) is None


def test_ragged_rows_and_old_encodings(tmp_path: Path) -> None:
    read = table(tmp_path, b"a,b,c\n1\n1,2,3,4\n38\xb0,x,y\n")
    assert read.rows == (("1", "", ""), ("1", "2", "3"), ("38°", "x", "y"))


@pytest.mark.parametrize("data", [b"a,b\n", b"", b"\x1f\x8bnot gzip at all"])
def test_no_table(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(SourceError, match=r"t\.csv"):
        table(tmp_path, data)


def test_a_column_the_user_named_must_be_there(tmp_path: Path) -> None:
    read = table(tmp_path, b"a,b\n1,2\n")
    assert read.named("B") == 1
    with pytest.raises(SourceError, match="no column 'diagnosis'; it has: a, b"):
        read.named("diagnosis")


def test_a_table_the_user_named_must_be_there(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path), ("a.csv", "b.csv"))
    with pytest.raises(SourceError, match=r"no table 'c\.csv'; it has: a\.csv, b\.csv"):
        tables.chosen_table(folder, SourceOptions(label_csv="c.csv"), (), what="x")
    assert tables.chosen_table(folder, SourceOptions(label_csv="./b.csv"), (), what="x") == "b.csv"


@pytest.mark.parametrize(
    ("text", "years"),
    [("58", 58.0), ("058Y", 58.0), ("55.0", 55.0), ("006M", 0.5), ("26W", 0.498), ("010D", 0.0274), ("0", 0.0), (" 41y ", 41.0)],
)
def test_age_in_years(text: str, years: float) -> None:
    assert tables.age(text) == pytest.approx(years, abs=1e-3)


@pytest.mark.parametrize("text", [None, "", "50+", "early 40s", "-3", "414", "nan", "inf", "1e3", "Y"])
def test_no_age(text: str | None) -> None:
    assert tables.age(text) is None


def test_words() -> None:
    assert [tables.sex(text) for text in ("M", " female ", "Male", "f", "O", "", None)] == ["M", "F", "M", "F", None, None, None]
    assert [tables.split_of(text) for text in ("Training", "valid", "dev", "TEST", "train_val", "trainval", "fold-1", None)] == [
        "train", "val", "val", "test", "train_val", "train_val", None, None,
    ]  # fmt: skip
    assert [tables.cell([text], 0) for text in (" x ", "", "NaN", "unknown", "todo", "None")] == ["x", None, None, None, None, "None"]
    assert tables.cell(["x"], None) is None
    assert tables.split_findings(" Edema| Mass |Edema|") == ("Edema", "Mass")
    assert tables.split_findings("No Finding") == ()


@pytest.mark.parametrize(("uncertain", "value"), [("ignore", math.nan), ("zeros", 0.0), ("ones", 1.0)])
@pytest.mark.parametrize("text", ["-1", "-1.0"])
def test_uncertain_follows_the_policy(text: str, uncertain: str, value: float) -> None:
    assert tables.finding(text, uncertain=uncertain, blank="unknown") == pytest.approx(value, nan_ok=True)


def test_findings() -> None:
    assert tables.finding("1.0", uncertain="ignore", blank="zeros") == 1.0
    assert tables.finding(" 0 ", uncertain="ones", blank="unknown") == 0.0
    assert tables.finding("", uncertain="ones", blank="zeros") == 0.0
    assert math.isnan(tables.finding("", uncertain="ones", blank="unknown") or 0.0)
    assert tables.finding("2", uncertain="ignore", blank="zeros") is None
    assert tables.finding("yes", uncertain="ignore", blank="zeros") is None
