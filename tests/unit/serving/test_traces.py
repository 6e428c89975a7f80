"""What a service leaves behind: audit lines, counters, logs. None of it says anything about a patient."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from cxr_ray.errors import ConfigError
from cxr_ray.imaging.preprocess import PreprocessSpec
from cxr_ray.serving.audit import AuditLog
from cxr_ray.serving.decoding import DecodePool
from cxr_ray.serving.engine import LocalEngine
from cxr_ray.serving.guard import EdgeLimits
from cxr_ray.serving.metrics import Metrics, exposition
from cxr_ray.serving.predictor import Prediction

KEY = "a-key-of-more-than-16-characters"
BEARER = {"Authorization": f"Bearer {KEY}"}


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_line_for_each_image_and_for_each_other_request(serve_face: Callable[..., TestClient], audit_file: Path) -> None:
    client = serve_face(audit=AuditLog(str(audit_file), model_sha256="e" * 64))
    several = client.post("/v1/predict?gate=refuse", files=[("a", ("x", b"one")), ("b", ("y", b"turned"))], headers=BEARER)
    client.post("/v1/predict", content=b"broken", headers=BEARER)
    client.get("/v1/model")
    client.get("/healthz")
    written = lines(audit_file)
    assert [set(line) for line in written] == [
        {"time", "key_id", "request_id", "route", "input_sha256", "outcome", "model_sha256", "status", "milliseconds"}
    ] * 4
    assert {line["request_id"] for line in written[:2]} == {several.headers["x-request-id"]}
    digests = {content: hashlib.sha256(content).hexdigest() for content in (b"one", b"turned", b"broken")}
    assert {(line["input_sha256"], line["outcome"], line["status"]) for line in written[:3]} == {
        (digests[b"one"], "answered", 200),
        (digests[b"turned"], "not-upright", 200),
        (digests[b"broken"], "truncated", 422),
    }
    assert {line["key_id"] for line in written[:3]} == {"default"}
    assert {line["route"] for line in written[:3]} == {"/v1/predict"}
    assert {line["model_sha256"] for line in written} == {"e" * 64}
    assert (written[3]["key_id"], written[3]["status"], written[3]["input_sha256"]) == (None, 401, None)


def test_a_log_that_cannot_be_opened_stops_the_service(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="audit log"):
        AuditLog(str(tmp_path / "absent" / "audit.jsonl"), model_sha256="")


def test_a_log_that_cannot_be_written_is_counted(serve_face: Callable[..., TestClient], caplog: pytest.LogCaptureFixture) -> None:
    counters = Metrics()
    client = serve_face(audit=AuditLog("/dev/full", model_sha256=""), metrics=counters)
    assert client.get("/v1/model", headers=BEARER).status_code == 200
    assert "audit log cannot be written" in caplog.text
    assert "cxr_ray_audit_failures_total" in client.get("/metrics", headers=BEARER).text
    assert value(counters, "cxr_ray_audit_failures_total") == 2


def value(counters: Metrics, name: str, **labels: str) -> float:
    found = [sample.value for family in counters.families() for sample in family.samples if sample.name == name and sample.labels == labels]
    assert len(found) == 1, name
    return float(found[0])


def test_requests_are_counted_by_route_and_status(serve_face: Callable[..., TestClient]) -> None:
    counters = Metrics()
    client = serve_face(metrics=counters)
    for content in (b"one", b"two", b"broken"):
        client.post("/v1/predict", content=content, headers=BEARER)
    client.get("/v1/../nowhere/DOE-JANE", headers=BEARER)
    client.get("/v2/models/DOE-JANE", headers=BEARER)
    assert value(counters, "cxr_ray_requests_total", route="/v1/predict", status="200") == 2
    assert value(counters, "cxr_ray_requests_total", route="/v1/predict", status="422") == 1
    assert value(counters, "cxr_ray_images_total", outcome="truncated") == 1
    assert value(counters, "cxr_ray_request_seconds_count", route="/v1/predict") == 3
    assert value(counters, "cxr_ray_requests_total", route="/v2/models/{name}", status="404") == 1
    text = client.get("/metrics", headers=BEARER)
    assert text.headers["content-type"].startswith("text/plain")
    assert 'cxr_ray_requests_total{replica="0",route="/v1/predict",status="200"} 2.0' in text.text
    assert "DOE" not in text.text


def test_counters_of_replicas_stand_side_by_side() -> None:
    one, two = Metrics(), Metrics()
    one.requests.labels("/v1/predict", "200").inc(3)
    two.requests.labels("/v1/predict", "200").inc(4)
    text = exposition({"a": one.families(), "b": two.families()}).decode()
    assert text.count("# TYPE cxr_ray_requests_total counter") == 1
    assert 'cxr_ray_requests_total{replica="a",route="/v1/predict",status="200"} 3.0' in text
    assert 'cxr_ray_requests_total{replica="b",route="/v1/predict",status="200"} 4.0' in text


class Model:
    """A predictor without a network (the face of ``serving.predictor.Predictor`` that the engine uses)."""

    def predict_checked(self, images: Any) -> tuple[Any, list[None]]:
        return np.tile(np.array([0.25, 0.75], np.float32), (len(images), 1)), [None] * len(images)

    def call(self, probabilities: Any) -> Prediction:
        return Prediction(("normal",), dict(zip(("covid", "normal"), map(float, probabilities), strict=True)))


@pytest.fixture
def engine() -> Iterator[tuple[LocalEngine, Metrics]]:
    counters, pool = Metrics(), DecodePool(PreprocessSpec(height=8, width=8), seconds=60)
    yield LocalEngine(Model(), pool, counters), counters  # type: ignore[arg-type]
    pool.close()


def test_the_engine_counts_what_it_does(engine: tuple[LocalEngine, Metrics], png: bytes) -> None:
    scored = asyncio.run(engine[0].score(png))
    assert scored.prediction.labels == ("normal",)
    assert scored.pixels.shape == (8, 8)
    for name in ("cxr_ray_decode_seconds_count", "cxr_ray_infer_seconds_count", "cxr_ray_batch_images_sum"):
        assert value(engine[1], name) == 1


def test_twenty_markers_and_none_is_found(
    serve_face: Callable[..., TestClient],
    engine: tuple[LocalEngine, Metrics],
    hostile: ModuleType,
    audit_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Names and numbers of a patient in the header, in file names, fields, queries and headers: none in answers, logs, counters, files."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.WARNING, "httpx2")  # the test's own client, which names the URLs that it asks for
    marks = [f"MARKER{number:02d}QX" for number in range(20)]
    mark = iter(marks)
    header = {
        name: next(mark)
        for name in (
            "PatientName",
            "PatientID",
            "AccessionNumber",
            "InstitutionName",
            "ReferringPhysicianName",
            "StudyDescription",
            "PatientComments",
            "StudyID",
            "StationName",
            "OperatorsName",
        )
    }
    good = hostile.dicom(hostile.picture(), **header)
    bad = hostile.dicom(hostile.picture(), PixelData=bytes(10), **header)
    audit = AuditLog(str(audit_file), model_sha256="e" * 64)
    client = serve_face(engine=engine[0], metrics=engine[1], audit=audit, limits=EdgeLimits(deadline_seconds=60))
    said = [
        client.post(
            f"/v1/predict?patient={next(mark)}",
            files=[("image", (f"{next(mark)}.dcm", good)), (next(mark), (f"{next(mark)}.dcm", bad)), (next(mark), (None, next(mark)))],
            headers={**BEARER, "X-Request-ID": next(mark), "User-Agent": next(mark), "Referer": f"http://x/{next(mark)}"},
        ),
        client.get(f"/v1/{next(mark)}", headers=BEARER),
        client.post("/v1/predict", content=bad, headers=BEARER),
        client.post("/v1/predict", content=good, headers=BEARER),
        client.get("/metrics", headers=BEARER),
    ]
    assert next(mark, None) is None, "not all markers were planted"
    assert [answer.status_code for answer in said] == [200, 404, 422, 200, 200]
    assert [entry.get("reason") for entry in said[0].json()["answers"]] == [None, "wrong-pixel-length"]
    left = [answer.text + str(answer.headers) for answer in said]
    left += [caplog.text, *capfd.readouterr(), audit_file.read_text()]
    assert list(temporary.rglob("*")) == []
    for text in left:
        assert [marker for marker in marks if marker in text] == []
