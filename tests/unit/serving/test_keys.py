"""Key files, the ring of keys, and the rates of keys."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from cxr_ray import cli
from cxr_ray.errors import ConfigError
from cxr_ray.serving.keys import KeyRecord, KeyRing, digest, new_key, obtain_key, read_keys, write_keys

KEY = "a-key-of-more-than-16-characters"


def record(key: str, **fields: Any) -> KeyRecord:
    return KeyRecord(**{"id": "one", "sha256": digest(key), **fields})


class TestOneKey:
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


class TestRing:
    def test_every_digest_is_compared_in_constant_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        compared: list[tuple[str, str]] = []
        real = hmac.compare_digest

        def watched(first: str, second: str) -> bool:
            compared.append((first, second))
            return real(first, second)

        records = [record(f"key-{number}", id=f"id-{number}") for number in range(5)]
        ring = KeyRing(records)
        monkeypatch.setattr(hmac, "compare_digest", watched)
        for given, found in (("key-0", "id-0"), ("key-4", "id-4"), ("nobody", None)):
            compared.clear()
            match = ring.find(given)
            assert (match.id if match else None) == found
            assert compared == [(digest(given), known.sha256) for known in records]

    def test_a_key_is_taken_to_the_end_of_its_last_day(self) -> None:
        today = datetime.now(UTC).date()
        assert KeyRing([record(KEY, expires=today)]).find(KEY) is not None
        assert KeyRing([record(KEY, expires=today - timedelta(days=1))]).find(KEY) is None

    def test_no_more_than_its_rate_in_any_minute(self) -> None:
        now = [1000.0]
        limited = record(KEY, requests_per_minute=3)
        ring = KeyRing([limited], clock=lambda: now[0])
        assert [ring.wait(limited) for _ in range(3)] == [0.0, 0.0, 0.0]
        now[0] += 20
        assert ring.wait(limited) == pytest.approx(40.0)
        now[0] += 40
        assert [ring.wait(limited) == 0 for _ in range(4)] == [True, True, True, False]

    def test_replicas_share_a_rate(self) -> None:
        limited = record(KEY, requests_per_minute=10)
        rings = [KeyRing([limited], share=0.5) for _ in range(2)]
        assert sum(ring.wait(limited) == 0 for ring in rings for _ in range(10)) == 10

    def test_the_file_is_read_again_and_a_faulty_one_changes_nothing(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        file, now = str(tmp_path / "keys.yaml"), [0.0]
        write_keys(file, [record(KEY)])
        ring = KeyRing(read_keys(file), location=file, clock=lambda: now[0])
        write_keys(file, [record("another", id="two")])
        asyncio.run(ring.refresh())
        assert ring.find(KEY) is not None, "not due yet"
        now[0] += 31
        asyncio.run(ring.refresh())
        assert ring.find(KEY) is None
        assert ring.find("another") is not None
        Path(file).write_text("keys: [{id: A B}]")
        now[0] += 31
        asyncio.run(ring.refresh())
        assert ring.find("another") is not None
        assert "keys.0.id" in caplog.text

    def test_no_key_no_ring(self) -> None:
        with pytest.raises(ConfigError, match="without a key"):
            KeyRing([])


@pytest.mark.parametrize("name", ["keys.yaml", "keys.json"])
def test_a_file_comes_back_and_is_of_its_kind(tmp_path: Path, name: str) -> None:
    file = str(tmp_path / name)
    written = (record(KEY, requests_per_minute=5, expires=datetime(2030, 1, 31).date()), record("other", id="two"))
    write_keys(file, written)
    assert read_keys(file) == written
    if name.endswith("json"):
        assert len(json.loads(Path(file).read_text())["keys"]) == 2
    assert KEY not in Path(file).read_text()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("keys: [{id: A, sha256: x}]", ["keys.0.id", "keys.0.sha256"]),
        (f"keys: [{{id: a, sha256: '{'0' * 64}'}}, {{id: a, sha256: '{'1' * 64}'}}]", ["its own id"]),
        (f"keys: [{{id: a, sha256: '{'0' * 64}'}}, {{id: b, sha256: '{'0' * 64}'}}]", ["its own sha256"]),
        ("key: []", ["unknown key"]),
        ("- a", ["expected a mapping"]),
        ("{", ["cannot be read"]),
    ],
)
def test_faults_of_a_file_are_told_at_once(tmp_path: Path, text: str, told: list[str]) -> None:
    (tmp_path / "keys.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_keys(str(tmp_path / "keys.yaml"))
    for part in told:
        assert part in str(error.value)


def test_a_key_beyond_its_rate_is_told_when_to_come_back(serve_face: Callable[..., TestClient]) -> None:
    ring = KeyRing([record(KEY, requests_per_minute=2), record("another-key-for-the-test", id="two")])
    client = serve_face(keys=ring)
    assert {client.get("/v1/model", headers={"X-API-Key": KEY}).status_code for _ in range(5)} == {200}, "only what asks the model counts"
    answers = [client.post("/v1/predict", content=b"x", headers={"X-API-Key": KEY}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json()["reason"] == "too-many-requests"
    assert 0 < int(answers[2].headers["retry-after"]) <= 60
    assert client.post("/v1/predict", content=b"x", headers={"X-API-Key": "another-key-for-the-test"}).status_code == 200


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "keys.yaml")

    def run(*arguments: str) -> dict[str, Any]:
        assert cli.run(["keys", *arguments, "--json"]) == 0
        return dict(json.loads(capsys.readouterr().out))

    made = run("new", file, "--id", "ward-3", "--requests-per-minute", "60", "--expires", "2030-01-31")
    run("new", file, "--id", "ward-4")
    assert KeyRing(read_keys(file)).find(made["key"]) == read_keys(file)[0]
    assert run("list", file)["keys"] == [
        {"id": "ward-3", "requests_per_minute": 60, "expires": "2030-01-31"},
        *run("list", file)["keys"][1:],
    ]
    assert run("revoke", file, "--id", "ward-3")["left"] == 1
    assert KeyRing(read_keys(file)).find(made["key"]) is None
    assert cli.run(["keys", "revoke", file, "--id", "ward-3"]) == 2
    assert cli.run(["keys", "new", file, "--id", "ward-4"]) == 2
    assert cli.run(["keys", "new", file, "--id", "Dr. Who"]) == 2


def test_a_new_key_is_long_and_random() -> None:
    assert len({new_key() for _ in range(100)}) == 100
    assert all(len(new_key()) == 32 for _ in range(10))
