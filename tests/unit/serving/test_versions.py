"""The middleware of a rollout, before a service without Ray: a client gets an answer whatever the candidate does."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from cxr_ray.serving.audit import AuditLog
from cxr_ray.serving.edge import build_routes
from cxr_ray.serving.metrics import Metrics
from cxr_ray.serving.rollout import ModelVersion, Rollout, RolloutLimits
from cxr_ray.serving.traffic import Forwarded, Reply, Traffic, compare
from cxr_ray.serving.versions import answered

KEY = {"Authorization": "Bearer a-key-of-more-than-16-characters", "X-API-Key": "nor-is-this-one-shown", "Content-Type": "image/png"}
NEW = "ba9876543210"


class Candidate:
    """A candidate that answers as a service of its own would, or as a test wants it to."""

    def __init__(self, routes: Any) -> None:
        self.routes, self.asked, self.error = routes, list[Forwarded](), None
        self.delay = 0.0

    error: Exception | None

    async def __call__(self, application: str, request: Forwarded) -> Reply:
        assert application == "cxr-ray--0123abcd"
        self.asked.append(request)
        await asyncio.sleep(self.delay)
        if self.error is not None:
            raise self.error
        return await answered(self.routes, request)


@pytest.fixture
def candidate(make_face: Callable[..., Any]) -> Candidate:
    info = make_face().info.model_copy(update={"name": "new", "version": NEW, "manifest_sha256": "c" * 64})
    return Candidate(build_routes(make_face(info=info)))


@pytest.fixture
def traffic(make_face: Callable[..., Any], candidate: Candidate, audit_file: Path) -> Traffic:
    audit = AuditLog(str(audit_file), model_sha256="e" * 64)
    return Traffic(make_face().info, candidate, patience=0.2, metrics=Metrics(), audit=audit)


@pytest.fixture
def client(serve_face: Callable[..., TestClient], traffic: Traffic, audit_file: Path) -> Iterator[TestClient]:
    return serve_face(traffic=traffic, audit=AuditLog(str(audit_file), model_sha256="e" * 64))


def a_rollout(**changes: Any) -> Rollout:
    old = ModelVersion(bundle="/old", name="m", version="0123456789ab", manifest_sha256="e" * 64)
    new = ModelVersion(bundle="/new", name="new", version=NEW, manifest_sha256="c" * 64)
    given: dict[str, Any] = {"id": "0123abcd", "mode": "canary", "weight": 100.0, "state": "running", "since": 0.0}
    return Rollout(**{**given, "current": old, "candidate": new, "limits": RolloutLimits(least_requests=5), **changes})


def predict(client: TestClient, body: bytes = b"image", query: str = "") -> tuple[int, str, dict[str, Any]]:
    """Status, version by the header, answer."""
    response = client.post(f"/v1/predict{query}", content=body, headers=KEY)
    return response.status_code, response.headers["x-model-version"], response.json()


def test_a_canary_answers_in_its_own_name(client: TestClient, traffic: Traffic, candidate: Candidate, audit_file: Path) -> None:
    assert predict(client)[1] == "0123456789ab"
    traffic.update(a_rollout())
    status, version, answer = predict(client)
    assert (status, version, answer["model"], answer["model_version"]) == (200, NEW, "new", NEW)
    assert candidate.asked[0].body == b"image"
    assert dict(candidate.asked[0].headers).keys() <= {b"accept", b"content-type"}  # no key
    lines = [json.loads(line) for line in audit_file.read_text().splitlines()]
    assert [line["model_sha256"] for line in lines if "outcome" in line] == ["e" * 64, "c" * 64]
    assert lines[-1]["route"] == "/v1/predict"
    assert [(line["state"], line["candidate_sha256"]) for line in lines if "event" in line] == [("running", "c" * 64)]


def test_a_refusal_is_an_answer(client: TestClient, traffic: Traffic) -> None:
    traffic.update(a_rollout())
    status, version, answer = predict(client, b"broken")
    assert (status, version, answer["reason"]) == (422, NEW, "truncated")
    assert traffic.tally().failed == (False,)


@pytest.mark.parametrize("fault", ["raises", "gone", "late"])
def test_a_client_never_sees_a_candidate_fail(client: TestClient, traffic: Traffic, candidate: Candidate, fault: str) -> None:
    traffic.update(a_rollout())
    body = b"image"
    if fault == "raises":
        candidate.routes = None  # what is called is no application: an exception inside the candidate
    elif fault == "gone":
        candidate.error = ConnectionError("the actor died")
    else:
        candidate.delay = 0.5
    assert predict(client, body)[:2] == (200, "0123456789ab")
    assert traffic.tally().failed == (True,)


def test_a_replica_stops_asking_a_candidate_that_fails(client: TestClient, traffic: Traffic, candidate: Candidate) -> None:
    traffic.update(a_rollout())
    candidate.error = RuntimeError("not finite")
    assert {predict(client)[:2] for _ in range(12)} == {(200, "0123456789ab")}
    assert len(candidate.asked) == 5
    traffic.update(a_rollout(weight=50.0))  # another weight is no pardon
    predict(client)
    assert len(candidate.asked) == 5
    traffic.update(a_rollout(id="0123abcd", state="ended", cause="error-rate"))
    assert predict(client)[1] == "0123456789ab"


@pytest.mark.parametrize("state", ["starting", "promoting", "promoted", "ended"])
def test_only_a_running_rollout_concerns_requests(client: TestClient, traffic: Traffic, candidate: Candidate, state: str) -> None:
    traffic.update(a_rollout(state=state))
    assert predict(client)[1] == "0123456789ab"
    assert candidate.asked == []


def test_other_routes_are_answered_here_and_the_protocols_name_is_the_candidates(
    client: TestClient, traffic: Traffic, candidate: Candidate
) -> None:
    traffic.update(a_rollout())
    assert client.get("/v1/model", headers=KEY).json()["version"] == "0123456789ab"
    tensor = {"name": "image", "shape": [1, 8, 8], "datatype": "UINT8", "data": [0] * 64}
    answer = client.post("/v2/models/m/infer", json={"inputs": [tensor]}, headers={"Authorization": KEY["Authorization"]})
    assert (answer.status_code, answer.json()["model_name"]) == (200, "new")
    assert [request.path for request in candidate.asked] == ["/v2/models/new/infer"]
    assert predict(client, query="?model=m")[1] == "0123456789ab"  # who asks for it by name gets it


def test_a_shadow_answers_nobody(client: TestClient, traffic: Traffic, candidate: Candidate) -> None:
    traffic.update(a_rollout(mode="shadow"))
    for body in (b"image", b"image", b"broken"):
        assert predict(client, body)[1] == "0123456789ab"
    wait_for(lambda: traffic.tally().compared == 3)
    assert traffic.tally().agreed == 3
    candidate.error = RuntimeError("not finite")
    assert predict(client)[0] == 200
    wait_for(lambda: len(traffic.tally().failed) == 4)
    assert sum(traffic.tally().failed) == 1


def test_a_slow_shadow_is_not_asked_more_than_it_answers(client: TestClient, traffic: Traffic, candidate: Candidate) -> None:
    traffic.update(a_rollout(mode="shadow"))
    candidate.delay = 0.15
    for _ in range(20):
        predict(client)
    wait_for(lambda: len(traffic.tally().failed) + traffic.tally().skipped == 20)
    assert len(candidate.asked) < 20


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_new_rollout_starts_with_a_clean_slate(client: TestClient, traffic: Traffic, candidate: Candidate) -> None:
    traffic.update(a_rollout())
    predict(client)
    assert len(traffic.tally().failed) == 1
    traffic.update(a_rollout(id="89abcdef", state="starting"))
    assert traffic.tally().failed == ()
    traffic.update(None)
    assert predict(client)[1] == "0123456789ab"


def test_answers_are_compared_image_by_image() -> None:
    one = {"labels": ["covid"], "probabilities": {"covid": 0.75, "normal": 0.25}}
    other = {"labels": ["normal"], "probabilities": {"covid": 0.5, "normal": 0.5}}
    refused = {"reason": "truncated"}
    told = json.dumps
    assert compare(told(one).encode(), told(one).encode()) == (True, 0.0)
    assert compare(told(one).encode(), told(other).encode()) == (False, 0.25)
    assert compare(told(one).encode(), told(refused).encode()) == (False, 0.0)
    both, second = told({"answers": [one, refused]}).encode(), told({"answers": [one, {"reason": "corrupt"}]}).encode()
    assert compare(both, both) == (True, 0.0)
    assert compare(both, second) == (False, 0.0)
