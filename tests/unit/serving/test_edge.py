"""The HTTP face: key on every route, limits, refusals as JSON, nothing on disk. No model, no Ray."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from cxr_ray.errors import ConfigError, ImageError
from cxr_ray.serving.edge import EdgeLimits, build_api, obtain_key
from cxr_ray.serving.predictor import Prediction
from cxr_ray.serving.schema import ModelInfo

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
)


async def predict(data: bytes) -> Prediction:
    if data == b"slow":
        await asyncio.sleep(5)
    if data == b"broken":
        raise ImageError("truncated", "the file ends too early")
    if data == b"text":
        raise ImageError("not-an-image", "the bytes are neither PNG, JPEG nor DICOM")
    if data == b"bug":
        raise RuntimeError("patient JOHN DOE")
    return Prediction(("covid",), {"covid": 0.75, "normal": 0.25})


@pytest.fixture
def client() -> Iterator[TestClient]:
    limits = EdgeLimits(body_bytes=2**20, deadline_seconds=0.2)
    api = build_api(predict, INFO, key_digest=hashlib.sha256(KEY.encode()).hexdigest(), limits=limits)
    with TestClient(api, raise_server_exceptions=False) as opened:
        yield opened


def test_health_is_open(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}


def routes(client: TestClient) -> list[str]:
    paths = [route.path for route in client.app.routes]  # type: ignore[attr-defined]
    return sorted({path.replace("{name}", "swagger-ui.css") for path in paths} - {"/healthz"})


def test_every_other_route_wants_the_key(client: TestClient) -> None:
    assert {"/v1/predict", "/v1/model", "/docs", "/openapi.json", "/docs/swagger-ui.css"} <= set(routes(client))
    for path in [*routes(client), "/nowhere"]:
        for method in ("GET", "POST", "HEAD", "OPTIONS"):
            answer = client.request(method, path)
            assert answer.status_code == 401, (method, path)
            assert "Bearer" in answer.headers["www-authenticate"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic !!"},
        {"Authorization": "Basic " + base64.b64encode(b"\xff\xfe").decode()},
        {"X-API-Key": ""},
        {"Authorization": "Bearer wrong", "X-API-Key": KEY},
    ],
)
def test_a_wrong_key_is_refused(client: TestClient, headers: dict[str, str]) -> None:
    answer = client.get("/v1/model", headers=headers)
    assert answer.status_code == 401
    assert answer.json()["reason"] == "no-key"


@pytest.mark.parametrize(
    "headers", [BEARER, {"X-API-Key": KEY}, {"Authorization": "Basic " + base64.b64encode(f"anyone:{KEY}".encode()).decode()}]
)
def test_three_ways_to_give_the_key(client: TestClient, headers: dict[str, str]) -> None:
    assert client.get("/v1/model", headers=headers).json()["version"] == "0123456789ab"


@pytest.mark.parametrize("field", ["image", "file"])
def test_a_form_is_answered(client: TestClient, field: str) -> None:
    answer = client.post("/v1/predict", files={field: ("x.png", b"pixels")}, headers=BEARER)
    assert answer.status_code == 200
    body = answer.json()
    assert body["labels"] == ["covid"]
    assert body["probabilities"] == {"covid": 0.75, "normal": 0.25}
    assert body["model_version"] == "0123456789ab"
    assert body["image_sha256"] == hashlib.sha256(b"pixels").hexdigest()
    assert body["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "application/dicom", "application/octet-stream"])
def test_a_bare_body_is_answered(client: TestClient, kind: str) -> None:
    assert client.post("/v1/predict", content=b"pixels", headers={**BEARER, "Content-Type": kind}).status_code == 200


@pytest.mark.parametrize(
    ("request_arguments", "status", "reason"),
    [
        ({"content": b"broken"}, 422, "truncated"),
        ({"content": b"text"}, 415, "not-an-image"),
        ({"content": b"{}", "headers": {"Content-Type": "application/json"}}, 415, "unsupported"),
        ({"data": {"note": "no file here"}, "files": {}}, 415, "unsupported"),
        ({"files": {"note": (None, "text, not a file")}}, 422, "no-file"),
        ({"files": [("image", ("a", b"x")), ("image", ("b", b"y"))]}, 422, "bad-form"),
        ({"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, 422, "bad-form"),
        ({"content": b"no boundary here", "headers": {"Content-Type": "multipart/form-data; boundary=zz"}}, 422, "bad-form"),
        ({"content": b"x" * (2**20 + 2**15)}, 413, "too-large"),
        ({"content": (b"x" * 2**16 for _ in range(40))}, 413, "too-large"),
        ({"content": b"slow"}, 504, "deadline"),
    ],
)
def test_refusals(client: TestClient, request_arguments: dict[str, Any], status: int, reason: str) -> None:
    headers = {**BEARER, **request_arguments.pop("headers", {})}
    answer = client.post("/v1/predict", headers=headers, **request_arguments)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert answer.json()["message"]


def test_wrong_methods_and_routes_are_json_too(client: TestClient) -> None:
    assert client.get("/v1/predict", headers=BEARER).json()["reason"] == "no-method"
    assert client.get("/nowhere", headers=BEARER).json()["reason"] == "no-route"
    assert client.get("/docs/../edge.py", headers=BEARER).status_code == 404


def test_our_own_fault_tells_the_client_nothing(client: TestClient) -> None:
    answer = client.post("/v1/predict", content=b"bug", headers=BEARER)
    assert answer.status_code == 500
    assert "JOHN" not in answer.text
    assert "Traceback" not in answer.text


def test_an_upload_never_touches_the_disk(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tempfile.SpooledTemporaryFile.rollover

    def no_disk(self: Any) -> None:
        raise AssertionError("an upload was written to a temporary file")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", no_disk)
    assert client.post("/v1/predict", files={"image": ("x.png", b"p" * (2**20 - 1000))}, headers=BEARER).status_code == 200
    assert real is not no_disk


def test_docs_come_without_any_other_host(client: TestClient) -> None:
    page = client.get("/docs", headers=BEARER).text
    assert "http://" not in page
    assert "https://" not in page
    for file in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"):
        assert f"/docs/{file}" in page
        assert client.get(f"/docs/{file}", headers=BEARER).status_code == 200


def test_openapi_describes_the_upload(client: TestClient) -> None:
    schema = client.get("/openapi.json", headers=BEARER).json()
    body = schema["paths"]["/v1/predict"]["post"]["requestBody"]["content"]
    assert {"multipart/form-data", "application/dicom"} <= set(body)


class TestKey:
    def test_a_new_key_is_shown_once_and_only_its_digest_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CXR_RAY_API_KEY", raising=False)
        key = obtain_key()
        assert key.shown is not None
        assert key.digest == hashlib.sha256(key.shown.encode()).hexdigest()
        assert obtain_key().shown != key.shown

    def test_from_a_file_or_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "key").write_text(KEY + "\n")
        monkeypatch.setenv("CXR_RAY_API_KEY", KEY)
        assert obtain_key(str(tmp_path / "key")) == obtain_key()
        assert obtain_key().shown is None

    def test_a_short_or_missing_key_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXR_RAY_API_KEY", "short")
        with pytest.raises(ConfigError, match="at least 16"):
            obtain_key()
        with pytest.raises(ConfigError, match="cannot be read"):
            obtain_key(str(tmp_path / "absent"))
