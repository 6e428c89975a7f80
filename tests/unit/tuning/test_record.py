"""Whose a sweep's directory is."""

from __future__ import annotations

from pathlib import Path

import pytest

from cxr_ray.errors import RunError
from cxr_ray.tuning.record import SweepRecord, claim

RECORD = SweepRecord({"space": {"training.optimizer.lr": {"low": 0.001, "high": 0.1}}}, {"data": "1234"}, None)


def test_a_study_keeps_its_name(tmp_path: Path) -> None:
    name = claim(str(tmp_path), "lr", RECORD, resume=False)
    assert name.startswith("lr-")
    assert claim(str(tmp_path), "lr", RECORD, resume=True) == name
    with pytest.raises(RunError, match="holds a sweep already"):
        claim(str(tmp_path), "lr", RECORD, resume=False)


def test_what_differs_is_named(tmp_path: Path) -> None:
    claim(str(tmp_path), "lr", RECORD, resume=True)
    other = SweepRecord({"space": {"training.optimizer.lr": {"low": 0.001, "high": 1.0}}}, {"data": "1234"}, 2)
    with pytest.raises(RunError, match="another sweep") as refused:
        claim(str(tmp_path), "lr", other, resume=True)
    assert "fold" in str(refused.value)
    assert "high" in str(refused.value)


@pytest.mark.parametrize("file", ["run.json", "holiday.txt"])
def test_a_directory_of_something_else_is_left_alone(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text("{}")
    with pytest.raises(RunError, match=r"not a sweep|left alone"):
        claim(str(tmp_path), "lr", RECORD, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == [file]
