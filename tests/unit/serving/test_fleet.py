"""Several bundles in one service: each is asked by its name and answers in its name."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from cxr_ray.errors import ConfigError
from cxr_ray.serving.app import ServeSettings, checked, serve_bundle
from cxr_ray.serving.audit import AuditLog
from cxr_ray.serving.engine import Engine
from cxr_ray.serving.fleet import Fleet
from cxr_ray.serving.metrics import Metrics

KEY = {"Authorization": "Bearer a-key-of-more-than-16-characters"}


@pytest.fixture
def loaded() -> list[str]:
    """Names of the models that were asked for."""
    return []


@pytest.fixture
def client(
    serve_face: Callable[..., TestClient], make_face: Callable[..., Any], fake_engine: Engine, loaded: list[str], audit_file: Path
) -> TestClient:
    croup = make_face().info.model_copy(update={"name": "croup", "version": "ba9876543210", "labels": ["covid", "normal"]})
    croup = croup.model_copy(update={"manifest_sha256": "c" * 64})

    async def load(name: str) -> Engine:
        loaded.append(name)
        return fake_engine

    return serve_face(others={"croup": croup}, load=load, audit=AuditLog(str(audit_file), model_sha256="e" * 64))


def test_the_models_are_listed(client: TestClient) -> None:
    models = client.get("/v1/models", headers=KEY).json()["models"]
    assert [(model["name"], model["default"]) for model in models] == [("m", True), ("croup", False)]


def test_a_request_chooses_its_model(client: TestClient, loaded: list[str], audit_file: Path) -> None:
    for query, name in (("", "m"), ("?model=m", "m"), ("?model=croup", "croup")):
        assert client.post(f"/v1/predict{query}", content=b"image", headers=KEY).json()["model"] == name
        assert client.post(f"/v1/explain{query}", content=b"image", headers=KEY).json()["model"] == name
        assert client.get(f"/v1/model{query}", headers=KEY).json()["name"] == name
    assert loaded == ["croup", "croup"]
    answered = [json.loads(line) for line in audit_file.read_text().splitlines()]
    assert [line["model_sha256"][0] for line in answered if line["outcome"]] == ["e", "e", "e", "e", "c", "c"]


def test_the_protocol_names_it_in_the_path(client: TestClient, loaded: list[str]) -> None:
    tensor = {"name": "image", "shape": [1, 8, 8], "datatype": "UINT8", "data": [0] * 64}
    answer = client.post("/v2/models/croup/infer", json={"inputs": [tensor]}, headers=KEY).json()
    assert (answer["model_name"], answer["model_version"], loaded) == ("croup", "ba9876543210", ["croup"])
    assert client.get("/v2/models/croup/versions/ba9876543210", headers=KEY).status_code == 200
    assert client.get("/v2/models/croup/versions/0123456789ab", headers=KEY).status_code == 404


@pytest.mark.parametrize("path", ["/v1/predict?model=none", "/v1/explain?model=none", "/v2/models/none/infer"])
def test_an_unknown_name_is_not_found(client: TestClient, path: str) -> None:
    answer = client.post(path, content=b"image", headers=KEY)
    assert (answer.status_code, answer.json()["reason"]) == (404, "unknown-model")
    assert answer.json()["message"] == "the models of this service are m, croup"


def test_a_model_goes_on_loading_when_nobody_waits(make_face: Callable[..., Any], fake_engine: Engine) -> None:
    face, finished = make_face(), []

    async def load(name: str) -> Engine:
        await asyncio.sleep(0.05)
        finished.append(name)
        return fake_engine

    async def leave_early() -> None:
        info = face.info.model_copy(update={"name": "croup"})
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(Fleet(face.engine, face.info, {"croup": info}, load).asked(info), 0.01)
        await asyncio.sleep(0.1)

    asyncio.run(leave_early())
    assert finished == ["croup"]


def test_names_are_checked_before_anything_starts(bundle: Any) -> None:
    with pytest.raises(ValidationError):
        ServeSettings(bundle="b", models={"../up": "b"})
    with pytest.raises(ConfigError, match="has that name already"):
        checked(ServeSettings(bundle=bundle.location, models={"tiny": bundle.location}, key_sha256="0" * 64))


def test_a_model_that_leaves_takes_its_processes_along_and_not_before_its_last_request(bundle: Any) -> None:
    settings = ServeSettings(bundle=bundle.location, engine="torch", max_batch_size=1)
    engine = serve_bundle(settings, bundle, Metrics())[0]
    (child,) = engine._decoders._idle.queue
    under_way = [engine]
    del engine
    gc.collect()
    assert child._process.poll() is None
    under_way.clear()
    gc.collect()
    assert child._process.wait(10) is not None
