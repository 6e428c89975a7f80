"""The page before the model that the README's commands have trained: real answers, real heat maps, real refusals by its input gate."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from page_driver import Condition, Page, watched
from PIL import Image
from readme_line import KEY, URL
from sklearn.datasets import load_sample_image


@pytest.fixture
def page(chromium: Any, line: dict[str, Any], eventually: Callable[[Condition], Any]) -> Iterator[Page]:
    """The page of the README's service, not opened yet."""
    service = SimpleNamespace(url=URL.replace("//", f"//anyone:{KEY}@"))
    with watched(chromium, service, eventually) as opened:
        yield opened


@pytest.fixture
def films(line: dict[str, Any]) -> dict[Path, dict[str, str]]:
    """Six X-rays of the README's folder that pass the input gate, with what ``cxr-ray predict`` has said of them."""
    folder = line["folder"]
    with open(folder / "predictions.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("gate") == "ok"]
    return {folder / "xrays" / row["file"]: row for row in rows[:6]}


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """A flower."""
    path = tmp_path / "flower.jpg"
    Image.fromarray(load_sample_image("flower.jpg")).save(path)
    return path


@pytest.fixture
def upside_down(tmp_path: Path, samples: dict[str, bytes]) -> Path:
    """A sample, turned by half."""
    path = tmp_path / "upside-down.png"
    Image.open(io.BytesIO(samples["phantom-normal.png"])).rotate(180).save(path)
    return path


def test_a_batch_is_answered_as_predict_answers(
    page: Page, films: dict[Path, dict[str, str]], photograph: Path, upside_down: Path, tmp_path: Path, samples: dict[str, bytes]
) -> None:
    film = tmp_path / "phantom.dcm"
    film.write_bytes(samples["phantom-pneumonia.dcm"])
    page.open().upload(*films, film, photograph, upside_down)
    page.sees("#tally", "7 answered, 2 refused")
    page.one("#csv").click()
    saved = page.browser.downloads / "cxr_ray.csv"
    page.eventually(saved.is_file)
    rows = list(csv.DictReader(io.StringIO(saved.read_text())))
    saved.unlink()
    assert [row["error"] for row in rows] == [""] * 7 + ["not-a-radiograph", "not-upright"]
    assert [row["file"] for row in rows[:6]] == [path.name for path in films]
    for row, expected in zip(rows, films.values(), strict=False):
        assert row["labels"] == expected["labels"]
        for name in (name for name in expected if name.startswith("p_")):
            assert float(row[name]) == pytest.approx(float(expected[name]), abs=1e-5)
    page.sees("#heat-note", f"for {rows[0]['labels']}:")
    page.browser.execute_script("scrollTo(0, document.body.scrollHeight)")
    page.keep("batch")


@pytest.mark.parametrize("sample", ["phantom-pneumonia.jpg", "phantom-pneumonia.dcm"])
def test_a_film_has_a_heat_map_for_each_label(page: Page, tmp_path: Path, samples: dict[str, bytes], sample: str) -> None:
    path = tmp_path / sample
    path.write_bytes(samples[sample])
    page.open().upload(path)
    page.sees(".call", "pneumonia")
    page.sees("#heat-note", "for pneumonia:")
    painted = page.pixels()
    assert painted[1] > 1, "no heat is to be seen"
    if sample.endswith("jpg"):
        page.keep("answer")
    page.one(".bar:nth-of-type(1) input").click()
    page.sees("#heat-note", "for covid:")
    assert page.pixels() != painted


def test_a_photograph_is_refused(page: Page, photograph: Path) -> None:
    page.open().upload(photograph)
    page.sees("#result .notice.bad", "Refused: not a radiograph")
    page.sees(".checks", "radiograph")
    assert page.all(".bar") == []


def test_an_image_that_is_upside_down_is_refused_and_can_be_overruled(page: Page, upside_down: Path) -> None:
    page.open().upload(upside_down)
    page.sees("#result .notice.bad", "Refused: not upright The image looks turned upside down")
    assert page.all(".bar") == []
    page.keep("refusal")
    page.one("#result .notice button").click()
    page.sees("#result .notice", "Read with care")
    assert len(page.all(".bar.called")) == 1


def test_the_model_tells_its_figures(page: Page, line: dict[str, Any]) -> None:
    figures = json.loads((line["folder"] / "report" / "metrics.json").read_text())
    page.open().one("#about summary").click()
    page.sees("#about", f"On {figures['n']} images of {figures['patients']} patients")
    page.one(".card summary").click()
    page.sees(".card", f"macro_f1 {figures['macro_f1']['value']:.4f}")
    assert "|" not in page.text(".card")


def test_a_phone_is_wide_enough(page: Page, films: dict[Path, dict[str, str]]) -> None:
    page.open(width=390, height=844).upload(next(iter(films)))
    page.sees("#heat-note", f"for {next(iter(films.values()))['labels']}:")
    page.keep("phone")
    page.browser.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
    assert page.overflow() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page: Page, axe: str, films: dict[Path, dict[str, str]], upside_down: Path, scheme: str) -> None:
    page.open(scheme=scheme).upload(*films, upside_down)
    page.sees("#tally", "6 answered, 1 refused")
    page.browser.execute_script(axe)
    page.browser.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
    found = page.browser.execute_async_script("axe.run().then(arguments[0])")["violations"]
    assert [f"{finding['id']}: {node['html'][:120]}" for finding in found for node in finding["nodes"]] == []
