"""The page's files: right types, closed to everything outside, small, in the wheel. What it does is tested in tests/e2e/test_page.py."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from cxr_ray.imaging.decode import decode
from cxr_ray.serving import web

FOLDER = Path(web.__file__).parent
STATIC = sorted((FOLDER / "static").iterdir())
SAMPLES = sorted((FOLDER / "samples").iterdir())


@pytest.fixture
def client() -> Iterator[TestClient]:
    api = FastAPI()
    web.mount(api)
    with TestClient(api) as opened:
        yield opened


def test_the_page_and_all_that_it_names_are_served(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    named = re.findall(r'(?:src|href)="(web/[^"]+)"', page.text)
    assert {"web/style.css", "web/main.js", "web/theme.js", "web/icon.svg"} == set(named)
    for path in named:
        assert client.get(f"/{path}").status_code == 200


@pytest.mark.parametrize("path", STATIC, ids=lambda path: path.name)
def test_a_file_is_served_with_its_type_and_a_strict_policy(client: TestClient, path: Path) -> None:
    answer = client.get(f"/web/{path.name}")
    assert answer.content == path.read_bytes()
    assert answer.headers["content-type"].partition(";")[0] in {"text/html", "text/css", "text/javascript", "image/svg+xml"}
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy


@pytest.mark.parametrize("path", STATIC, ids=lambda path: path.name)
def test_a_file_asks_nothing_of_others_and_is_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert re.findall(r"(?:https?:)?//[a-z0-9-]+\.[a-z]+|@import|@font-face", text) == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|<style|style=\"|\son[a-z]+=\"", text) == []
    assert len(text.splitlines()) < 300


def test_every_module_is_reached_from_the_first() -> None:
    seen, open_ = set(), ["main.js"]
    while open_:
        name = open_.pop()
        seen.add(name)
        found = re.findall(r'from "\./([^"]+)"', (FOLDER / "static" / name).read_text(encoding="utf-8"))
        open_ += [other for other in found if other not in seen]
    assert seen == {path.name for path in STATIC if path.suffix == ".js"} - {"theme.js"}


@pytest.mark.parametrize("name", ["nothing.js", "..%2F__init__.py", "%2e%2e%2f__init__.py", "__init__.py"])
def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/web/{name}").status_code == 404
    assert client.get(f"/v1/samples/{name}").status_code == 404


def test_samples_are_listed_served_and_readable(client: TestClient) -> None:
    names = client.get("/v1/samples").json()
    assert names == [path.name for path in SAMPLES]
    formats = []
    for name in names:
        answer = client.get(f"/v1/samples/{name}")
        image = decode(answer.content)
        assert min(image.pixels.shape) > 200
        formats.append((answer.headers["content-type"], image.format))
    assert sorted(formats) == [
        ("application/dicom", "dicom"),
        ("image/jpeg", "jpeg"),
        ("image/jpeg", "jpeg"),
        ("image/png", "png"),
    ]


def test_samples_are_small_and_say_that_they_are_phantoms() -> None:
    assert sum(path.stat().st_size for path in SAMPLES) <= 150 * 1024
    assert all(path.name.startswith("phantom-") for path in SAMPLES)


def test_all_of_it_is_in_the_wheel() -> None:
    described = tomllib.loads((FOLDER.parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = described["tool"]["setuptools"]["package-data"]["cxr_ray"]
    packed = {path for pattern in patterns for path in FOLDER.parents[1].glob(pattern)}
    assert packed >= {*STATIC, *SAMPLES}
