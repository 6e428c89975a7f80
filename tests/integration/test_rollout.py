"""Versions side by side on Ray Serve: canary, promotion, a candidate that fails, shadow; and several bundles in one service."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from process_tree import processes

from cxr_ray.errors import RolloutError
from cxr_ray.serving.app import ServeSettings
from cxr_ray.serving.conductor import order, settled
from cxr_ray.serving.deployed import read, reports
from cxr_ray.serving.keys import obtain_key
from cxr_ray.serving.rollout import Rollout, RolloutLimits, total
from cxr_ray.serving.start import running

KEY = "a-key-for-the-rollout-tests"
LIMITS = RolloutLimits(least_requests=10, latency_factor=1000, start_s=240)


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Any]:
    """``make_bundle(name, seed)``: a tiny bundle; a poisoned one answers blank images alone with finite numbers."""
    import torch

    from cxr_ray.bundle import Provenance, write_bundle
    from cxr_ray.config import BackboneConfig, ModelConfig, RnnConfig
    from cxr_ray.imaging.preprocess import PreprocessSpec
    from cxr_ray.labels import LabelSet
    from cxr_ray.models.classifier import build_classifier

    def make(name: str, seed: int, *, poisoned: bool = False, labels: tuple[str, ...] = ("covid", "normal")) -> Any:
        config = ModelConfig(backbone=BackboneConfig(name="small_cnn"), rnn=RnnConfig(hidden_size=8))
        mean = 0.0 if poisoned else 0.5
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = build_classifier(config, len(labels), mean=mean, std=0.25, image_size=(32, 32))
        if poisoned:
            with torch.no_grad():
                next(layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d)).weight.fill_(3e38)
        fingerprints = {"dataset_fingerprint": "d" * 64, "run_fingerprint": "r" * 64}
        provenance = Provenance(cxr_ray="0", recipe=name, seed=seed, epoch=0, dataset="none", versions={}, **fingerprints)
        return write_bundle(
            str(tmp_path / name),
            model=model,
            name="tiny",
            model_config=config,
            labels=LabelSet(labels, "multiclass"),
            preprocess=PreprocessSpec(height=32, width=32),
            mean=mean,
            std=0.25,
            provenance=provenance,
            card=f"# {name}\n",
        )

    return make


class Service:
    """A running service, asked under ids that say beforehand which version will answer."""

    def __init__(self, url: str, png: bytes) -> None:
        self.url, self._png = url, png

    def ask(self, query: str = "", *, request_id: str = "") -> tuple[int, str, dict[str, Any]]:
        """Status, version by the header, answer."""
        given = {"Authorization": f"Bearer {KEY}", "Content-Type": "image/png", "X-Request-ID": request_id or secrets.token_hex(16)}
        request = urllib.request.Request(f"{self.url}/v1/predict{query}", data=self._png, headers=given)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.headers["X-Model-Version"], json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, error.headers["X-Model-Version"], json.load(error)

    def get(self, path: str) -> bytes:
        """Body of a GET."""
        request = urllib.request.Request(f"{self.url}{path}", headers={"Authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(request, timeout=60) as response:
            body: bytes = response.read()
        return body

    def many(self, count: int) -> dict[str, str]:
        """Request id -> version that answered; every one is answered."""
        ids = [secrets.token_hex(16) for _ in range(count)]
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda one: self.ask(request_id=one), ids))
        assert {status for status, _, _ in answers} == {200}
        assert [version for _, version, _ in answers] == [answer["model_version"] for _, _, answer in answers]
        return dict(zip(ids, (version for _, version, _ in answers), strict=True))

    @contextlib.contextmanager
    def load(self) -> Iterator[Counter[tuple[int, str]]]:
        """Requests one after the other from two clients; (status, version) -> how many."""
        seen: Counter[tuple[int, str]] = Counter()
        stop = threading.Event()

        def client() -> None:
            while not stop.is_set():
                status, version, _ = self.ask()
                seen[status, version] += 1

        threads = [threading.Thread(target=client) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            yield seen
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def wait(until: Callable[[Rollout], bool], seconds: float = 240) -> Rollout:
    """The rollout, once it is as wanted."""
    end = time.monotonic() + seconds
    while True:
        rollout = read().rollout
        if rollout is not None and until(rollout):
            return rollout
        assert time.monotonic() < end, rollout
        time.sleep(0.2)


def over(rollout: Rollout) -> bool:
    """Whether every replica knows that it is over, and nothing of the candidate is left."""
    return rollout.over and settled(read(), reports())


def started(bundle: Any, mode: str, weight: float) -> Rollout:
    """A rollout whose candidate is in every replica's mind, or that ended before."""
    order("start", bundle.location, mode, weight, 1, LIMITS)
    rollout = wait(lambda rollout: rollout.state != "starting")
    return wait(lambda now: now.over or (bool(heard := reports()) and all(report.rollout == rollout for report in heard)))


def test_versions_side_by_side(
    ray_cluster: None, make_bundle: Callable[..., Any], png: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One service for all of it: each start costs seconds."""
    monkeypatch.setenv("CXR_RAY_API_KEY", KEY)
    first, second, third = (make_bundle(name, seed) for seed, name in enumerate(("first", "second", "third")))
    audit = tmp_path / "audit.jsonl"
    given = {"bundle": first.location, "models": {"other": third.location}, "audit": str(audit), "key_sha256": obtain_key().digest}
    settings = ServeSettings(**given, cpus=0.25, replicas=2, deadline_s=60, engine="torch")  # a busy machine is not what is tested
    with running(settings, port=0) as url:
        service = Service(url, png)
        other_models_are_loaded_before_they_are_asked_for()
        other_models_answer_when_asked_for(service, first, third)
        with pytest.raises(RolloutError, match="no rollout"):
            order("promote")
        with pytest.raises(RolloutError, match="clients would read one for the other"):
            order("start", make_bundle("labels", 5, labels=("croup", "normal")).location, "canary", 5.0, 1, LIMITS)
        a_canary_answers_its_share_and_is_promoted(service, first, second)
        a_candidate_that_fails_is_taken_back(service, second, make_bundle("poisoned", 6, poisoned=True))
        a_shadow_is_compared_and_answers_nobody(service, second, first)
        text = service.get("/metrics").decode()
    assert 'cxr_ray_compared_total{outcome="' in text
    assert 'cause="by-hand"' in text
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert {line["state"] for line in lines if line.get("event") == "rollout"} == {"starting", "running", "promoting", "promoted", "ended"}
    answered = {line["model_sha256"] for line in lines if line.get("outcome") == "answered"}
    assert len(answered) == 3  # first, second and the other model; the poisoned one and the shadow answered nobody


def other_models_are_loaded_before_they_are_asked_for() -> None:
    """Two replicas, two models each, and each model has a decoding process of its own."""
    end = time.monotonic() + 120
    while len(processes("cxr_ray.serving.decode_child", os.getpid())) < 4:
        assert time.monotonic() < end
        time.sleep(0.1)


def other_models_answer_when_asked_for(service: Service, first: Any, third: Any) -> None:
    status, version, answer = service.ask("?model=other")
    assert status == 200, answer
    assert (version, answer["model"], answer["model_version"]) == (third.version, "other", third.version)
    assert service.ask()[1] == first.version
    status, _, answer = service.ask("?model=none")
    assert (status, answer["reason"]) == (404, "unknown-model")
    listed = json.loads(service.get("/v1/models"))["models"]
    assert [(model["name"], model["default"]) for model in listed] == [("tiny", True), ("other", False)]
    assert json.loads(service.get("/v2/models/other"))["versions"] == [third.version]


def a_canary_answers_its_share_and_is_promoted(service: Service, first: Any, second: Any) -> None:
    rollout = started(second, "canary", 50)
    assert rollout.state == "running", rollout.message
    with pytest.raises(RolloutError, match="running"):
        order("start", first.location, "canary", 5.0, 1, LIMITS)
    answers = service.many(80)
    assert answers == {one: second.version if rollout.picks(one) else first.version for one in answers}
    assert 20 < Counter(answers.values())[second.version] < 60
    order("weight", 0.0)
    wait(lambda now: bool(heard := reports()) and all(report.rollout == now for report in heard))
    assert set(service.many(20).values()) == {first.version}
    with service.load() as seen:
        order("promote")
        assert wait(over).state == "promoted"
    assert {status for status, _ in seen} == {200}
    assert {version for _, version in seen} == {first.version, second.version}
    assert set(service.many(20).values()) == {second.version}


def a_candidate_that_fails_is_taken_back(service: Service, second: Any, poisoned: Any) -> None:
    """It passes its health check on a blank image and fails on every real one: nobody sees that, and it leaves by itself."""
    with service.load() as seen:
        started(poisoned, "canary", 50)
        ended = wait(over)
    assert (ended.state, ended.cause) == ("ended", "error-rate")
    assert "requests failed" in ended.message
    assert set(seen) == {(200, second.version)}


def a_shadow_is_compared_and_answers_nobody(service: Service, second: Any, first: Any) -> None:
    assert started(first, "shadow", 100).state == "running"
    assert set(service.many(40).values()) == {second.version}
    end = time.monotonic() + 60
    while (tally := total(report.tally for report in reports())).compared == 0:  # the shadow answers after the client has its answer
        assert time.monotonic() < end, tally
        time.sleep(0.1)
    assert tally.compared <= 40
    assert tally.largest_difference > 0
    order("back")
    assert wait(over).cause == "by-hand"
    assert set(service.many(10).values()) == {second.version}
