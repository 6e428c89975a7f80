"""The HTTP face: key on every route, answers, limits, refusals as JSON, nothing on disk. No model, no Ray."""

from __future__ import annotations

import base64
import hashlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

KEY = "a-key-of-more-than-16-characters"  # of the fixtures' service
BEARER = {"Authorization": f"Bearer {KEY}"}


def test_health_is_open(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}


def routes(client: TestClient) -> list[str]:
    paths = [route.path for route in client.app.routes]  # type: ignore[attr-defined]
    return sorted({path.replace("{name}", "swagger-ui.css").replace("{version}", "1") for path in paths} - {"/healthz"})


def test_every_other_route_wants_the_key(client: TestClient) -> None:
    assert {"/v1/predict", "/v1/explain", "/v1/model", "/metrics", "/v2", "/docs", "/openapi.json", "/docs/swagger-ui.css"} <= set(
        routes(client)
    )
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
    assert body["decision"]["covid"] == {"probability": 0.75, "threshold": None, "called": True}
    assert body["decision"]["normal"]["called"] is False
    assert body["gate"]["verdict"] == "ok"
    assert body["calibrated"] is False
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
        ({"files": [("image", ("a", b"x"))] * 17}, 422, "too-many-files"),
        ({"files": [("image", ("a", b"x"))] * 1001}, 422, "too-many-files"),
        ({"files": {str(number): (None, "field") for number in range(1001)}}, 422, "bad-form"),
        ({"content": b"x", "headers": {"Content-Length": "-1"}}, 413, "too-large"),
        ({"content": b"turned"}, 422, "not-upright"),
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


def test_several_images_are_answered_in_their_order(client: TestClient) -> None:
    contents = [b"one", b"broken", b"turned", b"two"]
    answer = client.post("/v1/predict", files=[(f"field{n}", ("x", data)) for n, data in enumerate(contents)], headers=BEARER)
    assert answer.status_code == 200
    body = answer.json()
    assert [entry.get("image_sha256") for entry in body["answers"]] == [
        hashlib.sha256(b"one").hexdigest(),
        None,
        None,
        hashlib.sha256(b"two").hexdigest(),
    ]
    assert [(entry["index"], entry["reason"]) for entry in body["answers"] if "reason" in entry] == [(1, "truncated"), (2, "not-upright")]
    assert body["answers"][2]["gate"]["checks"][0]["verdict"] == "refused"
    assert {entry["request_id"] for entry in body["answers"]} == {body["request_id"]}


@pytest.mark.parametrize(
    ("setting", "query", "status", "verdict"),
    [
        ("refuse", "", 422, "refused"),
        ("refuse", "?gate=flag", 200, "flagged"),
        ("flag", "", 200, "flagged"),
        ("flag", "?gate=refuse", 422, "refused"),
        ("off", "", 200, None),
        ("off", "?gate=refuse", 200, None),
    ],
)
def test_the_gate_refuses_flags_or_is_off(
    serve_face: Callable[..., TestClient], setting: str, query: str, status: int, verdict: str | None
) -> None:
    answer = serve_face(gate=setting).post(f"/v1/predict{query}", content=b"turned", headers=BEARER)
    assert answer.status_code == status
    gate = answer.json()["gate"]
    assert gate == verdict if gate is None else gate["verdict"] == verdict


def test_a_bundle_without_a_gate_says_so(client: TestClient) -> None:
    assert client.post("/v1/predict", content=b"no gate", headers=BEARER).json()["gate"] is None


def test_an_explanation(client: TestClient) -> None:
    answer = client.post("/v1/explain?label=normal", content=b"pixels", headers=BEARER)
    assert answer.status_code == 200
    body = answer.json()
    assert (body["label"], body["probability"], body["method"]) == ("normal", 0.25, "gradcam")
    assert (body["heat_map"]["width"], body["heat_map"]["height"]) == (8, 8)
    for png in (body["heat_map"]["png"], body["overlay"], body["image"]):
        assert base64.b64decode(png).startswith(b"\x89PNG")
    assert client.post("/v1/explain", content=b"pixels", headers=BEARER).json()["label"] == "covid"
    assert client.post("/v1/explain?method=integrated", content=b"pixels", headers=BEARER).json()["method"] == "integrated"
    picture = client.post("/v1/explain?format=png", content=b"pixels", headers=BEARER)
    assert picture.headers["content-type"] == "image/png"
    assert picture.content == base64.b64decode(body["overlay"])


@pytest.mark.parametrize(
    ("path", "arguments", "reason"),
    [
        ("/v1/explain?label=nosuch", {"content": b"x"}, "unknown-label"),
        ("/v1/explain?format=gif", {"content": b"x"}, "bad-request"),
        ("/v1/explain?method=occlusion", {"content": b"x"}, "bad-request"),
        ("/v1/explain", {"content": b"turned"}, "not-upright"),
        ("/v1/explain", {"files": [("a", ("a", b"x")), ("b", ("b", b"y"))]}, "too-many-files"),
        ("/v1/predict?gate=never", {"content": b"x"}, "bad-request"),
    ],
)
def test_refusals_of_queries(client: TestClient, path: str, arguments: dict[str, Any], reason: str) -> None:
    answer = client.post(path, headers=BEARER, **arguments)
    assert (answer.status_code, answer.json()["reason"]) == (422, reason)


def test_readiness_follows_the_engine(serve_face: Callable[..., TestClient], fake_engine: Any) -> None:
    client = serve_face(engine=fake_engine)
    client.headers = BEARER  # type: ignore[assignment]
    assert client.get("/readyz").json() == {"status": "ready"}
    fake_engine.healthy = False
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"status": "not-ready"})


@pytest.mark.parametrize("headers", [{"X-Padding": "x" * 2**15}, {f"X-Padding-{number}": "x" for number in range(3000)}])
def test_a_large_head_is_refused(client: TestClient, headers: dict[str, str]) -> None:
    answer = client.get("/v1/model", headers={**BEARER, **headers})
    assert (answer.status_code, answer.json()["reason"]) == (431, "too-large")


def test_wrong_methods_and_routes_are_json_too(client: TestClient) -> None:
    assert client.get("/v1/predict", headers=BEARER).json()["reason"] == "no-method"
    assert client.get("/nowhere", headers=BEARER).json()["reason"] == "no-route"
    assert client.get("/docs/../edge.py", headers=BEARER).status_code == 404


def test_our_own_fault_tells_neither_the_client_nor_the_log_what_was_sent(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    answer = client.post("/v1/predict", content=b"bug", headers=BEARER)
    assert answer.status_code == 500
    assert answer.json()["reason"] == "internal"
    assert "JOHN" not in answer.text + caplog.text
    assert f"request {answer.json()['request_id']}: RuntimeError in score:" in caplog.text


def test_an_upload_never_touches_the_disk(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_disk(*_: Any, **__: Any) -> None:
        raise AssertionError("an upload was given a temporary file")

    for maker in ("SpooledTemporaryFile", "NamedTemporaryFile", "TemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, maker, no_disk)
    assert client.post("/v1/predict", files={"image": ("x.png", b"p" * (2**20 - 1000))}, headers=BEARER).status_code == 200


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


def hostile_forms() -> dict[str, bytes]:
    """Bodies of 1 MiB that look like forms, with the boundary ``b``."""
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="../../etc/passwd"\r\n\r\n'
    return {
        "near-boundaries": part + b"\r\n--" * 2**17,
        "no-end": part + b"x" * 2**19,
        "many-headers": b"--b\r\n" + b"x: y\r\n" * 2**17,
        "long-header": b"--b\r\nContent-Disposition: " + b"a" * 2**19,
        "many-parts": (part + b"\r\n") * 5000,
        "parameters": b"--b\r\nContent-Disposition: form-data" + b'; name="a"' * 2**16 + b"\r\n\r\n\r\n--b--",
    }


@pytest.mark.parametrize("name", hostile_forms())
def test_hostile_forms_are_refused_quickly(client: TestClient, name: str) -> None:
    start = time.process_time()
    headers = {**BEARER, "Content-Type": "multipart/form-data; boundary=b"}
    answer = client.post("/v1/predict", content=hostile_forms()[name], headers=headers)
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["reason"]
    assert time.process_time() - start < 2.0


def test_names_of_files_go_nowhere(client: TestClient) -> None:
    answer = client.post("/v1/predict", files={"image": ("../../etc/cron.d/x", b"pixels")}, headers=BEARER)
    assert answer.status_code == 200
    assert "cron" not in answer.text


def test_no_page_of_another_origin_may_ask_unless_it_is_named(serve_face: Callable[..., TestClient]) -> None:
    asking = {"Origin": "https://viewer.example", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    closed = serve_face().options("/v1/predict", headers=asking)
    assert closed.status_code == 401
    assert "access-control-allow-origin" not in closed.headers
    opened = serve_face(cors_origins=["https://viewer.example"])
    assert opened.options("/v1/predict", headers=asking).headers["access-control-allow-origin"] == "https://viewer.example"
    other = opened.options("/v1/predict", headers={**asking, "Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers
    assert opened.get("/v1/model", headers={"Origin": "https://viewer.example"}).status_code == 401


def test_a_request_id_is_taken_over_only_in_our_own_form(client: TestClient) -> None:
    ours = "0123456789abcdef" * 2
    assert client.get("/v1/model", headers={**BEARER, "X-Request-ID": ours}).headers["x-request-id"] == ours
    assert client.get("/v1/model", headers={**BEARER, "X-Request-ID": "DOE^JANE"}).headers["x-request-id"] != "DOE^JANE"
