"""A service with a made-up model behind its real HTTP face, and a browser to look at its page with."""

from __future__ import annotations

import asyncio
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
from numpy.typing import NDArray
from PIL import Image
from readme_line import running_line
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from cxr_ray.errors import ImageError
from cxr_ray.imaging.preprocess import PreprocessSpec, load_image
from cxr_ray.models.gate import GateCheck, GateVerdict
from cxr_ray.serving import web
from cxr_ray.serving.audit import OFF, AuditLog
from cxr_ray.serving.edge import Face, build_api
from cxr_ray.serving.engine import Explained, Scored
from cxr_ray.serving.keys import KeyRecord, KeyRing
from cxr_ray.serving.predictor import Prediction
from cxr_ray.serving.schema import ExplanationMethod, ModelInfo

KEY = "a-key-for-the-page"
SPEC = PreprocessSpec(height=160, width=160)
CHECKS = (
    GateCheck("radiograph", "ok", 0.94, 1.62, "laid out like the radiographs of the training"),
    GateCheck("polarity", "ok", 0.003, 0.5, "black and white as in the training"),
    GateCheck("upright", "ok", 0.012, 0.5, "upright"),
    GateCheck("familiar", "ok", 1.07, 1.48, "the network responds as to its training images"),
)
TURNED = GateCheck("upright", "refused", 0.997, 0.5, "the image looks turned by 90° to the left")


@dataclass
class FakeEngine:
    """A model's answers, made up: what it says next, and what it was sent."""

    info: ModelInfo
    probabilities: dict[str, float] = field(default_factory=lambda: {"pneumonia": 0.832, "covid": 0.127, "normal": 0.041})
    turned: bool = False
    """The input gate refuses."""
    held: bool = False
    """Answers are held back until it is False again."""
    explains: bool = True
    statuses: list[int] = field(default_factory=list)
    """Of the next requests to ``/v1/predict``, before any is answered."""
    bodies: list[bytes] = field(default_factory=list)
    headers: list[list[tuple[bytes, bytes]]] = field(default_factory=list)
    url: str = ""
    others: dict[str, ModelInfo] = field(default_factory=dict)
    """Further models of the service; all of them are sure of covid."""

    async def load(self, name: str) -> FakeEngine:
        return FakeEngine(self.others[name], {"pneumonia": 0.02, "covid": 0.97, "normal": 0.01})

    def find(self, findings: dict[str, float], thresholds: dict[str, float]) -> None:
        """Become a multilabel model."""
        self.probabilities = findings
        self.info.task, self.info.labels, self.info.thresholds = "multilabel", list(findings), list(thresholds.values())

    async def score(self, data: bytes) -> Scored:
        self.bodies.append(data)
        while self.held:
            await asyncio.sleep(0.01)
        return self._scored(load_image(data, SPEC)[0])

    def _scored(self, pixels: NDArray[np.uint8]) -> Scored:
        thresholds = self.info.thresholds
        if thresholds is None:
            called = (max(self.probabilities, key=lambda name: self.probabilities[name]),)
        else:
            called = tuple(name for (name, value), cut in zip(self.probabilities.items(), thresholds, strict=True) if value >= cut)
        checks = (*CHECKS[:2], TURNED, CHECKS[3]) if self.turned else CHECKS
        return Scored(Prediction(called, self.probabilities), GateVerdict("refused" if self.turned else "ok", checks), pixels)

    async def score_pixels(self, images: NDArray[np.uint8]) -> list[Scored]:
        return [self._scored(image) for image in images]

    async def explain(self, data: bytes, label: str | None, method: ExplanationMethod) -> Explained:
        """A warm spot whose place depends on the label, and whose size on the method."""
        if not self.explains or label is None:
            raise ImageError("no-heat-map", "no heat map today")
        scored = self._scored(load_image(data, SPEC)[0])
        center = (52, 112, 82)[self.info.labels.index(label) % 3]
        y, x = np.mgrid[0:160, 0:160]
        size = 20 if method == "gradcam" else 8
        heat = np.exp(-(((x - center) / size) ** 2) - ((y - 66) / size) ** 2)
        image = grey_png(scored.pixels)
        return Explained(scored, label, method, image, grey_png(np.uint8(np.rint(255 * heat))), image)

    async def ready(self) -> bool:
        return True


def grey_png(pixels: Any) -> bytes:
    """(H, W) uint8 -> a PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def troubled(engine: FakeEngine, api: ASGIApp) -> ASGIApp:
    """What may stand between the page and the service: notes the headers, and answers in its own words while ``statuses`` says so."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        engine.headers.append(scope["headers"])
        if scope["path"] != "/v1/predict" or not engine.statuses:
            return await api(scope, receive, send)
        status = engine.statuses.pop(0)
        body = {"reason": "failed", "message": "the service is at fault", "request_id": "0" * 32}
        await JSONResponse(body, status, {"Retry-After": "1"} if status == 429 else {})(scope, receive, send)

    return app


@pytest.fixture
def service() -> Iterator[FakeEngine]:
    """The real HTTP face around made-up answers; its ``url`` holds the key, as a user's browser would after asking for it."""
    info = ModelInfo(
        name="cnn-lstm",
        version="3f9a1c0b77de",
        task="multiclass",
        labels=["pneumonia", "covid", "normal"],
        thresholds=None,
        image_height=160,
        image_width=160,
        preprocessing_fingerprint=SPEC.fingerprint,
        dataset_fingerprint="d" * 64,
        calibrated=True,
        manifest_sha256="a" * 64,
        card="# cnn-lstm\n\nMade up, for the tests of the page.\n",
        metrics={"n": 120, "patients": 71, "accuracy": {"value": 0.9, "ci95": [0.84, 0.95]}},
    )
    engine = FakeEngine(info)
    ring = KeyRing([KeyRecord(id="page", sha256=hashlib.sha256(KEY.encode()).hexdigest())])
    api = build_api(
        Face(engine=engine, info=info, keys=ring, audit=AuditLog(OFF, model_sha256="a" * 64), others=engine.others, load=engine.load)
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # what comes before the server runs waits for it
        server = uvicorn.Server(uvicorn.Config(troubled(engine, api), log_level="warning", ws="none", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        engine.url = f"http://page:{KEY}@127.0.0.1:{listener.getsockname()[1]}/"
        yield engine
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


@pytest.fixture(scope="session")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the README's commands left (``folder``) and said; its service stays up until the tests are done."""
    with running_line(tmp_path_factory.mktemp("readme")) as done:
        yield done


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
