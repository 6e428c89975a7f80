"""The client and ``cxr-ray ask``, over a real socket, against answers of the service's own schema."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cxr_ray import cli
from cxr_ray.client import Client, ServiceError
from cxr_ray.serving.schema import Answer, Answers, Explanation, IndexedRefusal, ModelInfo, Picture, Refusal

KEY = "a-key-of-more-than-16-characters"
PROVENANCE: dict[str, Any] = {"model": "m", "model_version": "0123456789ab", "request_id": "r", "milliseconds": 1.0}


def answer(data: bytes) -> Answer:
    decision = {"covid": {"probability": 1.0, "threshold": None, "called": True}}
    return Answer.model_validate(
        {
            **PROVENANCE,
            "image_sha256": hashlib.sha256(data).hexdigest(),
            "labels": ["covid"],
            "probabilities": {"covid": 1.0},
            "decision": decision,
            "calibrated": False,
        }
    )


class Service(http.server.BaseHTTPRequestHandler):
    """Says what the real one would; busy for the first ``busy`` requests."""

    busy = 0
    seen: list[tuple[str, str | None]]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        info = dict.fromkeys(("name", "version", "preprocessing_fingerprint", "dataset_fingerprint", "manifest_sha256", "card"), "x")
        self.say(200, ModelInfo(**info, task="multiclass", labels=["covid"], thresholds=None, image_height=8, image_width=8))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).seen.append((self.path, self.headers["Content-Type"]))
        if self.headers["Authorization"] != f"Bearer {KEY}":
            self.say(401, Refusal(reason="no-key", message="the API key is missing, wrong or expired", request_id="r"))
        elif type(self).busy > 0:
            type(self).busy -= 1
            self.say(429, Refusal(reason="busy", message="later", request_id="r"))
        elif b"broken" in body and not self.headers["Content-Type"].startswith("multipart"):
            self.say(422, Refusal(reason="truncated", message="the file ends too early", request_id="r"))
        elif self.path.startswith("/v1/explain"):
            png = base64.b64encode(b"\x89PNG").decode()
            picture = Picture(width=8, height=8, png=png)
            told = {**PROVENANCE, "image_sha256": "0", "label": "covid", "probability": 1.0, "method": "gradcam"}
            self.say(200, Explanation(**told, heat_map=picture, overlay=png, image=png))
        elif self.headers["Content-Type"].startswith("multipart"):
            refusal = IndexedRefusal(reason="truncated", message="the file ends too early", request_id="r", index=1)
            assert b"patient" not in body, "a file's name left the machine"
            self.say(200, Answers(answers=[answer(b"one"), refusal], request_id="r"))
        else:
            self.say(200, answer(body))

    def say(self, status: int, said: Any) -> None:
        body = said.model_dump_json().encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 429:
            self.send_header("Retry-After", "0.01")
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def url() -> Iterator[str]:
    Service.seen, Service.busy = [], 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_paths_and_contents(url: str, tmp_path: Path) -> None:
    (tmp_path / "patient.png").write_bytes(b"one")
    client = Client(url, KEY)
    assert client.predict(tmp_path / "patient.png") == client.predict(b"one") == answer(b"one")
    first, second = client.predict_many([tmp_path / "patient.png", b"broken"])
    assert isinstance(first, Answer)
    assert isinstance(second, IndexedRefusal)
    client.predict(b"one", gate="flag")
    assert Service.seen[-1][0] == "/v1/predict?gate=flag"
    assert client.explain(b"one", label="covid").overlay
    assert Service.seen[-1][0] == "/v1/explain?label=covid"
    assert client.explain(b"one", method="integrated").overlay
    assert Service.seen[-1][0] == "/v1/explain?method=integrated"
    assert client.model().labels == ["covid"]


def test_a_busy_service_is_asked_again(url: str) -> None:
    Service.busy = 2
    assert Client(url, KEY).predict(b"one").labels == ["covid"]
    assert len(Service.seen) == 3
    Service.busy = 10**6
    with pytest.raises(ServiceError) as error:
        Client(url, KEY, timeout=3).predict(b"one")
    assert (error.value.reason, error.value.status) == ("busy", 429)


def test_refusals_are_told(url: str, tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="ends too early") as error:
        Client(url, KEY).predict(b"broken")
    assert (error.value.reason, error.value.status) == ("truncated", 422)
    with pytest.raises(ServiceError, match="API key") as error:
        Client(url, "wrong").predict(b"one")
    assert error.value.hint is not None
    with pytest.raises(ServiceError, match="cannot be read"):
        Client(url, KEY).predict(tmp_path / "absent")


def test_no_service_there(url: str) -> None:
    port = url.rpartition(":")[2]
    for wrong, reason in (("ftp://x", "unreachable"), (f"http://127.0.0.2:{port}", "unreachable")):
        with pytest.raises(ServiceError) as error:
            Client(wrong, KEY).predict(b"one")
        assert error.value.reason == reason


def test_the_command(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXR_RAY_API_KEY", KEY)
    (tmp_path / "good.png").write_bytes(b"one")
    (tmp_path / "bad.png").write_bytes(b"broken")
    assert cli.run(["ask", url, "good.png", "--explain", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["answers"][0]["labels"] == ["covid"]
    assert Path("good.png.heat.png").read_bytes() == b"\x89PNG"
    assert cli.run(["ask", url, "bad.png", "good.png", "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert [entry.get("reason") for entry in told["answers"]] == ["truncated", None]
    (tmp_path / "key").write_text("wrong-key-of-more-than-16-characters")
    assert cli.run(["ask", url, "good.png", "--key-file", "key"]) == 2
    assert "API key" in capsys.readouterr().err
    monkeypatch.delenv("CXR_RAY_API_KEY")
    assert cli.run(["ask", url, "good.png"]) == 2
