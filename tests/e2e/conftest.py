"""A service with made-up answers behind the real page, and a browser to look at it with."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image

from cxr_ray.errors import ImageError
from cxr_ray.imaging.preprocess import PreprocessSpec, load_image
from cxr_ray.serving import web

KEY = "a-key-for-the-page"
SPEC = PreprocessSpec(height=160, width=160)
CHECKS = {
    "like-training-data": ("the image lies as near to the training images as they do to each other", 11.2, 17.9),
    "upright": ("the image stands upright", 0.996, 0.5),
    "not-inverted": ("dense tissue is bright", 0.981, 0.5),
}


@dataclass
class FakeService:
    """What the service says next, and what it was sent."""

    probabilities: dict[str, float] = field(default_factory=lambda: {"pneumonia": 0.832, "covid": 0.127, "normal": 0.041})
    thresholds: dict[str, float] | None = None
    verdict: str = "ok"
    """Of the input gate."""
    statuses: list[int] = field(default_factory=list)
    """Of the next requests to ``/v1/predict``, before any is answered."""
    held: bool = False
    """Answers are held back until it is False again."""
    explains: bool = True
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    def gate(self, mode: str | None) -> dict[str, Any]:
        """The verdict, and its checks: the one that fails comes first by value."""
        verdict = "flagged" if self.verdict == "refused" and mode == "flag" else self.verdict
        checks = [
            {"name": name, "verdict": "ok", "value": value, "threshold": threshold, "message": message}
            for name, (message, value, threshold) in CHECKS.items()
        ]
        if verdict != "ok":
            checks[1] |= {"verdict": verdict, "value": 0.024, "message": "the image looks turned: its top is not where a chest's top is"}
        return {"verdict": verdict, "checks": checks}

    def answer(self, data: bytes, mode: str | None) -> Response:
        """``POST /v1/predict`` by the contract."""
        self.bodies.append(data)
        if self.statuses:
            status = self.statuses.pop(0)
            message = "too many requests" if status == 429 else "the service is at fault"
            body = {"reason": "busy" if status == 429 else "failed", "message": message, "request_id": "r" * 32}
            return JSONResponse(body, status, {"Retry-After": "1"} if status == 429 else {})
        try:
            load_image(data, SPEC)
        except ImageError as error:
            return JSONResponse({"reason": error.reason, "message": error.message, "request_id": "r" * 32}, 415)
        gate = self.gate(mode)
        if gate["verdict"] == "refused":
            message = "the image is not upright: turn it and send it again"
            return JSONResponse({"reason": "not-upright", "message": message, "request_id": "r" * 32, "gate": gate}, 422)
        if self.thresholds is None:
            labels = [max(self.probabilities, key=lambda name: self.probabilities[name])]
        else:
            labels = [name for name, value in self.probabilities.items() if value >= self.thresholds[name]]
        thresholds = self.thresholds or dict.fromkeys(self.probabilities)
        return JSONResponse(
            {
                "labels": labels,
                "probabilities": self.probabilities,
                "decision": {
                    name: {"probability": value, "threshold": thresholds[name], "called": name in labels}
                    for name, value in self.probabilities.items()
                },
                "gate": gate,
                "calibrated": True,
                "model": "cnn-lstm",
                "model_version": "3f9a1c0b77de",
                "image_sha256": hashlib.sha256(data).hexdigest(),
                "request_id": "0" * 32,
                "milliseconds": 48.3,
            }
        )

    def explanation(self, data: bytes, label: str) -> Response:
        """``POST /v1/explain``: a warm spot whose place depends on the label."""
        if not self.explains:
            return JSONResponse({"reason": "deadline", "message": "no heat map in time", "request_id": "r" * 32}, 504)
        image, _ = load_image(data, SPEC)
        center = (52, 112, 82)[list(self.probabilities).index(label) % 3]
        y, x = np.mgrid[0:160, 0:160]
        heat = np.exp(-(((x - center) / 20) ** 2) - ((y - 66) / 24) ** 2)
        return JSONResponse(
            {
                "label": label,
                "probability": self.probabilities[label],
                "method": "gradcam",
                "heat_map": {"width": 160, "height": 160, "png": encoded(np.uint8(np.rint(255 * heat)))},
                "overlay": encoded(image),
                "image": encoded(image),
            }
        )

    def model(self) -> dict[str, Any]:
        """``GET /v1/model``."""
        return {
            "name": "cnn-lstm",
            "version": "3f9a1c0b77de",
            "task": "multilabel" if self.thresholds else "multiclass",
            "labels": list(self.probabilities),
            "thresholds": list(self.thresholds.values()) if self.thresholds else None,
            "image_height": 160,
            "image_width": 160,
            "preprocessing_fingerprint": "f" * 64,
            "dataset_fingerprint": "d" * 64,
            "unsound": None,
            "calibrated": True,
            "manifest_sha256": "a" * 64,
            "gate": None,
            "card": "# cnn-lstm\n\nMade up, for the tests of the page.\n",
            "metrics": {"n": 120, "patients": 71, "accuracy": {"value": 0.9, "ci95": [0.84, 0.95]}},
        }


def encoded(pixels: Any) -> str:
    """Grey pixels -> base64 of a PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def build(fake: FakeService) -> FastAPI:
    """The fake behind the routes that the page knows, and behind HTTP Basic."""
    api = FastAPI()

    @api.middleware("http")
    async def guard(request: Request, pass_on: Callable[[Request], Any]) -> Response:
        expected = "Basic " + base64.b64encode(f"page:{KEY}".encode()).decode()
        if request.headers.get("authorization") != expected:
            return JSONResponse({"reason": "no-key", "message": "no key"}, 401, {"WWW-Authenticate": 'Basic realm="cxr-ray"'})
        fake.headers.append(dict(request.headers))
        answer: Response = await pass_on(request)
        return answer

    @api.post("/v1/predict")
    async def predict(request: Request, gate: str | None = None) -> Response:
        while fake.held:
            await asyncio.sleep(0.01)
        return fake.answer(await request.body(), gate)

    @api.post("/v1/explain")
    async def explain(request: Request, label: str) -> Response:
        return fake.explanation(await request.body(), label)

    @api.get("/v1/model")
    async def model() -> dict[str, Any]:
        return fake.model()

    web.mount(api)
    return api


@pytest.fixture
def service() -> Iterator[FakeService]:
    """A fake service that listens; its ``url`` holds the key, as a user's browser would after asking for it."""
    fake = FakeService()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(build(fake), log_level="warning", ws="none", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        fake.url = f"http://page:{KEY}@127.0.0.1:{listener.getsockname()[1]}/"
        yield fake
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium; downloads go to ``chromium.downloads``. Skipped where it or its driver is absent."""
    from selenium import webdriver

    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no chromium and chromedriver on the path (Debian: apt-get install chromium chromium-driver)")
    profile, downloads = tmp_path_factory.mktemp("profile"), tmp_path_factory.mktemp("downloads")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    quiet = ("background-networking", "component-update", "sync", "default-apps", "gpu", "quic", "dev-shm-usage")
    for flag in ("headless=new", "no-sandbox", "no-first-run", f"user-data-dir={profile}", *(f"disable-{name}" for name in quiet)):
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    opened.downloads = downloads  # type: ignore[attr-defined]
    try:
        yield opened
    finally:
        opened.quit()


@pytest.fixture
def samples() -> dict[str, bytes]:
    """The bundled samples by name."""
    folder = Path(web.__file__).parent / "samples"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, from the file CXR_RAY_AXE or from ``node_modules``; the test is skipped where it is absent."""
    path = Path(os.environ.get("CXR_RAY_AXE") or Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js")
    if not path.is_file():
        pytest.skip(f"no axe-core: set CXR_RAY_AXE to its axe.min.js, or `npm install --no-save axe-core` ({path.name} not found)")
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], Any]], Any]:
    """``eventually(condition)``: its first true value within 15 s."""

    def wait(condition: Callable[[], Any]) -> Any:
        end = time.monotonic() + 15
        while not (value := condition()):
            assert time.monotonic() < end, "it did not come true within 15 s"
            time.sleep(0.02)
        return value

    return wait
