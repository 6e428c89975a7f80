"""``cxr-ray explain``: two pictures and a line of explain.json an image, readable or not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import pytest

from cxr_ray import cli
from cxr_ray.bundle import Bundle
from cxr_ray.serving.predictor import Predictor


def test_pictures_and_record(bundle: Bundle, png: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.png", tmp_path / "text.png"]
    for place, data in zip(places, [png, png, b"no image"], strict=True):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(data)
    out = tmp_path / "out"
    assert cli.run(["explain", bundle.location, *map(str, places), "--out", str(out), "--label", "normal", "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    record = json.loads((out / "explain.json").read_text())
    assert answer == {"out": str(out), **record}
    assert (record["model"], record["model_version"], record["method"]) == ("tiny", bundle.version, "integrated")
    assert record["images"][2] == {"file": str(places[2]), "error": "not-an-image"}
    expected = Predictor(bundle).predict_bytes([png])[0]
    for row, place in zip(record["images"][:2], places, strict=False):
        assert (row["file"], row["label"], row["gate"]) == (str(place), "normal", None)
        assert row["sha256"] == hashlib.sha256(png).hexdigest()
        assert row["probability"] == pytest.approx(expected.probabilities["normal"], abs=1e-6)  # type: ignore[union-attr]
        assert cv2.imread(str(out / row["overlay"]), cv2.IMREAD_UNCHANGED).shape == (32, 32, 3)
        assert cv2.imread(str(out / row["heat_map"]), cv2.IMREAD_UNCHANGED).shape == (32, 32)
    assert sorted(path.name for path in out.iterdir()) == [
        *("000-x-heat.png", "000-x-overlay.png", "001-x-heat.png", "001-x-overlay.png", "explain.json")
    ]


def test_without_a_label_the_most_probable_one(bundle: Bundle, png: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.png").write_bytes(png)
    arguments = ["explain", bundle.location, str(tmp_path / "x.png"), "--out", str(tmp_path / "out"), "--method", "eigencam", "--json"]
    assert cli.run(arguments) == 0
    (row,) = json.loads(capsys.readouterr().out)["images"]
    expected = Predictor(bundle).predict_bytes([png])[0]
    assert (row["label"],) == expected.labels  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("flags", "expected"), [(["--label", "flu"], "covid, normal"), (["--method", "lime"], "gradcam, gradcam++, hirescam")]
)
def test_a_users_mistake_is_one_message(
    bundle: Bundle, png: bytes, tmp_path: Path, flags: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.png").write_bytes(png)
    assert cli.run(["explain", bundle.location, str(tmp_path / "x.png"), "--out", str(tmp_path / "out"), *flags]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
