"""What the command refuses before it starts anything, and the page it writes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cxr_ray import cli
from cxr_ray.data.shards import Dataset
from cxr_ray.errors import DatasetError
from cxr_ray.synthesis.extractor import build_extractor
from cxr_ray.synthesis.gan import GanRecord
from cxr_ray.synthesis.memorisation import find_memorised
from cxr_ray.synthesis.quality import measure_quality
from cxr_ray.synthesis.rare import read_class
from cxr_ray.synthesis.report import write_report
from cxr_ray.synthesis.synthesize import default_run, synthesize


def test_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["synthesize", "--help"]) == 0
    assert "Example: cxr-ray synthesize" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"--count": "0"}, "expected at least 1 image"),
        ({"--label": "croup"}, "unknown label 'croup'"),
        ({"--epochs": "0"}, "epochs: "),
        ({"--seed": "-1"}, "seed: "),
        ({"--extractor": "nothing"}, "neither a BUNDLE, nor a RUN"),
        ({"--out": "thesis"}, "holds other files"),
        ({"--run": "out/gan"}, "lies in --out"),
    ],
)
def test_a_users_mistake_is_one_message(
    changes: dict[str, str],
    expected: str,
    dataset: Dataset,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "one.txt").write_text("mine")
    options = {"--label": "rare", "--count": "5", "--out": "out", **changes}
    assert cli.run(["synthesize", dataset.location, *(word for pair in options.items() for word in pair), "batch_size=8"]) == 2
    said = capsys.readouterr().err
    assert "error:" in said
    assert expected in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_setting_that_is_none(dataset: Dataset, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.run(["synthesize", dataset.location, "--label", "rare", "--count", "5", "--out", str(tmp_path / "out"), "width=3"]) == 2
    assert "width: unknown key; valid here: batch_size" in capsys.readouterr().err


def test_images_too_small(tmp_path: Path, write_dataset: Callable[..., Dataset]) -> None:
    small = write_dataset(tmp_path / "dataset", height=20, width=24)
    with pytest.raises(DatasetError, match="20x24"):
        synthesize(small.location, "rare", 5, str(tmp_path / "out"))


def test_where_the_run_goes() -> None:
    assert default_run("/data/out") == "/data/out.gan"
    assert default_run("s3://bucket/out/?region=x") == "s3://bucket/out.gan?region=x"


def test_the_report_needs_no_network(dataset: Dataset, tmp_path: Path) -> None:
    rare = read_class(dataset, "rare")
    made = np.random.default_rng(9).integers(0, 256, (12, 32, 36), dtype=np.uint8)
    extractor = build_extractor(None, rare.images_NHW, dataset.preprocess)
    memorisation = find_memorised(made, rare.images_NHW, rare.groups, extractor.measure(made), extractor.measure(rare.images_NHW))
    facts = {
        "label": "<rare>",
        "count": 12,
        "real_images": 20,
        "size": 32,
        "epochs": 2,
        "base": {"name": "tiny", "fingerprint": "f"},
        "generator": "g",
        "config": {"seed": 0},
        "kid": measure_quality(rare.images_NHW, made, extractor).as_dict(),
        "memorisation": memorisation.as_dict(),
        "cxr_ray": "0",
    }
    history = [GanRecord(epoch, 1.0, 1.1, 0.6, 0.4, 0.1) for epoch in range(2)]
    write_report(str(tmp_path), title="t", facts=facts, made=made, real=rare.images_NHW, memorisation=memorisation, history=history)
    page = (tmp_path / "report.html").read_text()
    outside = [address for address in re.findall(r'(?:src|href)="([^"]*)"', page) if not address.startswith(("data:", "#"))]
    assert outside == []
    assert re.findall(r"url\((?!#)", page) == []
    assert page.count("data:image/png") == 4
    assert "&lt;rare&gt;" in page
    assert "random weights" in page
    assert json.loads((tmp_path / "report.json").read_text()) == facts
    for name in ("samples.png", "real.png", "closest.png", "drawn.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG"), name
