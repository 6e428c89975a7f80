"""A service without Ray and without a model: what it answers follows from the bytes it is sent."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from cxr_ray.errors import ImageError
from cxr_ray.serving.audit import OFF, AuditLog
from cxr_ray.serving.edge import Face, build_api
from cxr_ray.serving.engine import Explained, Scored
from cxr_ray.serving.guard import EdgeLimits
from cxr_ray.serving.keys import KeyRecord, KeyRing
from cxr_ray.serving.metrics import Metrics
from cxr_ray.serving.predictor import Prediction
from cxr_ray.serving.schema import ExplanationMethod, ModelInfo

KEY = "a-key-of-more-than-16-characters"
BEARER = {"Authorization": f"Bearer {KEY}"}
INFO = ModelInfo(
    name="m",
    version="0123456789ab",
    task="multiclass",
    labels=["covid", "normal"],
    thresholds=None,
    image_height=8,
    image_width=8,
    preprocessing_fingerprint="f" * 64,
    dataset_fingerprint="d" * 64,
    manifest_sha256="e" * 64,
    card="# m\n",
)


def verdict(refused: bool) -> Any:
    """What a gate says (the shape of ``cxr_ray.models.gate.GateVerdict``)."""
    said = "refused" if refused else "ok"
    check = SimpleNamespace(name="upright", verdict=said, value=0.9 if refused else 0.1, threshold=0.5, message="the image is turned")
    return SimpleNamespace(verdict=said, checks=(check,), refusal=check if refused else None, reason="not-upright" if refused else None)


class FakeEngine:
    """Answers by the first word of the bytes."""

    healthy = True

    async def score(self, data: bytes) -> Scored:
        if data == b"slow":
            await asyncio.sleep(5)
        if data == b"broken":
            raise ImageError("truncated", "the file ends too early")
        if data == b"text":
            raise ImageError("not-an-image", "the bytes are neither PNG, JPEG nor DICOM")
        if data == b"bug":
            raise RuntimeError("patient JOHN DOE")
        return self._scored(None if data == b"no gate" else verdict(refused=data == b"turned"))

    def _scored(self, judged: Any) -> Scored:
        return Scored(Prediction(("covid",), {"covid": 0.75, "normal": 0.25}), judged, np.zeros((8, 8), np.uint8))

    async def score_pixels(self, images: NDArray[np.uint8]) -> list[Scored]:
        return [self._scored(verdict(refused=bool((image == 255).all()))) for image in images]

    async def explain(self, data: bytes, label: str | None, method: ExplanationMethod) -> Explained:
        stream = io.BytesIO()
        Image.new("L", (8, 8)).save(stream, "PNG")
        picture = stream.getvalue()
        return Explained(await self.score(data), label or "covid", method, picture, picture, picture)

    async def ready(self) -> bool:
        return self.healthy


def face(**changes: Any) -> Face:
    """A service's face with short limits; ``changes`` are arguments of :class:`Face`."""
    ring = KeyRing([KeyRecord(id="default", sha256=hashlib.sha256(KEY.encode()).hexdigest())])
    limits = EdgeLimits(body_bytes=2**20, body_seconds=2.0, deadline_seconds=0.2)
    given = {"engine": FakeEngine(), "info": INFO, "keys": ring, "audit": AuditLog(OFF, model_sha256="e" * 64), "limits": limits}
    return Face(**{**given, "metrics": Metrics(), **changes})


@pytest.fixture
def make_face() -> Callable[..., Face]:
    """``make_face(**changes)``: what :func:`serve_face` serves, for a test that serves it otherwise."""
    return face


@pytest.fixture
def serve_face() -> Iterator[Callable[..., TestClient]]:
    """``serve_face(**changes)``: a client of a service in this process."""
    opened: list[TestClient] = []

    def build(**changes: Any) -> TestClient:
        opened.append(TestClient(build_api(face(**changes)), raise_server_exceptions=False))
        return opened[-1].__enter__()

    yield build
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def client(serve_face: Callable[..., TestClient]) -> TestClient:
    """A client of the usual service."""
    return serve_face()


@pytest.fixture
def fake_engine() -> FakeEngine:
    """The engine of the usual service, to be changed by a test."""
    return FakeEngine()


@pytest.fixture
def audit_file(tmp_path: Path) -> Path:
    """Where a test's audit log goes."""
    return tmp_path / "audit.jsonl"
