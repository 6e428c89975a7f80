"""The Ray Serve application: batches, limits, refusals, health; and prediction over a folder with Ray Data."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest

from cxr_ray.client import Client
from cxr_ray.errors import BundleError, ClusterError, ConfigError, SourceError
from cxr_ray.serving.app import ServeSettings, build
from cxr_ray.serving.keys import obtain_key
from cxr_ray.serving.offline import predict_folder
from cxr_ray.serving.predictor import Predictor
from cxr_ray.serving.start import running

KEY = "a-key-for-the-serve-tests"


def request(url: str, data: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    given = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/octet-stream", **headers}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=data, headers=given), timeout=60) as response:
            return response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def ask(url: str, data: bytes, key: str = KEY) -> tuple[int, dict[str, Any]]:
    status, _, body = request(f"{url}/v1/predict", data, Authorization=f"Bearer {key}")
    return status, json.loads(body)


@pytest.fixture
def service(ray_cluster: None, bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("CXR_RAY_API_KEY", KEY)
    audit = str(tmp_path / "audit.jsonl")
    settings = ServeSettings(bundle=bundle.location, cpus=0.5, replicas=2, key_sha256=obtain_key().digest, audit=audit, body_s=60)
    with running(settings, port=0) as url:
        yield url


def test_the_service(service: str, bundle: Any, png: bytes, hostile: ModuleType, tmp_path: Path) -> None:
    """One service for all of it: each start costs seconds."""
    expected = Predictor(bundle).predict_bytes([png])[0]
    status, answer = ask(service, png)
    assert status == 200
    assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)  # type: ignore[union-attr]
    assert answer["model_version"] == bundle.version
    assert ask(service, png, key="not-the-key-of-this-service")[0] == 401

    good = hostile.good_files()
    with ThreadPoolExecutor(16) as pool:  # at once, so that they share batches with the hostile ones
        bad = list(hostile.hostile_files().items())
        mixed = [*good.items(), *bad, *good.items()]
        answers = list(pool.map(lambda item: ask(service, item[1]), mixed))
    for (name, _), (status, answer) in zip(mixed, answers, strict=True):
        if name in good:
            assert status == 200, (name, answer)
        else:
            assert 400 <= status < 500, (name, answer)
            assert answer["reason"]
    again = ask(service, png)[1]["probabilities"]
    assert again == pytest.approx(expected.probabilities, abs=1e-5)  # type: ignore[union-attr]

    several_and_where_the_model_looked(service, png)
    counters_of_both_replicas_are_gathered(service)
    rays_proxy_is_guarded(service, png)
    slow_clients_take_nobodys_place(service, png)
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert sum(line["outcome"] == "answered" for line in lines) > 2 * len(good)

    with (
        pytest.raises(ClusterError, match="cannot listen"),
        running(ServeSettings(bundle=bundle.location), port=int(service.rsplit(":", 1)[1])),
    ):
        pass


def several_and_where_the_model_looked(url: str, png: bytes) -> None:
    client = Client(url, KEY)
    first, second = client.predict_many([png, png[:40]])
    assert first.labels  # type: ignore[union-attr]
    assert second.reason == "truncated"  # type: ignore[union-attr]
    explained = client.explain(png)
    assert (explained.heat_map.width, explained.heat_map.height) == (32, 32)
    assert client.model().card == "# tiny\n"


def counters_of_both_replicas_are_gathered(url: str) -> None:
    text = request(f"{url}/metrics")[2].decode()
    assert len(set(re.findall(r'cxr_ray_infer_seconds_count{replica="([^"]+)"}', text))) == 2


def rays_proxy_is_guarded(url: str, png: bytes) -> None:
    """Clients do not steer Ray, its own routes are shut, and a body that is too large is refused by the proxy."""
    hurry = {"X-Request-Timeout-Seconds": "0.000001", "X-Request-Disconnect-Disabled": "?1", "X-Request-ID": "DOE^JANE"}
    status, headers, _ = request(f"{url}/v1/predict", png, **hurry)
    assert status == 200
    assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])
    assert request(f"{url}/-/routes")[0] == 404
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30) as client:
        client.sendall(f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"100000\r\n" + bytes(2**20) + b"\r\n"
        with contextlib.suppress(ConnectionError):  # the answer comes before the last of them
            for _ in range(22):
                client.sendall(chunk)
        assert b" 413 " in client.recv(4096)


def slow_clients_take_nobodys_place(url: str, png: bytes) -> None:
    """Fifty half heads and fifty half bodies, and the next client is answered as before."""
    head = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n"
    with contextlib.ExitStack() as stack:
        for start in [head, f"{head}Content-Length: 1000\r\n\r\nhalf"] * 50:
            client = stack.enter_context(socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30))
            client.sendall(start.encode())
        begin = time.monotonic()
        assert [ask(url, png)[0] for _ in range(5)] == [200] * 5
        assert time.monotonic() - begin < 10


def test_a_service_without_a_key_or_bundle_is_not_built(bundle: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXR_RAY_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="CXR_RAY_API_KEY"):
        build(ServeSettings(bundle=bundle.location))
    with pytest.raises(BundleError):
        build(ServeSettings(bundle=str(tmp_path / "absent"), key_sha256="0" * 64))


def test_a_folder_is_scored_file_by_file(ray_cluster: None, bundle: Any, png: bytes, hostile: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    good, bad = list(hostile.good_files().values())[:10], list(hostile.hostile_files().values())[:10]
    for number, data in enumerate(good):
        (folder / f"good-{number}.png").write_bytes(data)
    for number, data in enumerate(bad):
        (folder / "deep" / f"bad-{number}.dcm").write_bytes(data)
    (folder / "notes.txt").write_text("not an image, not offered")
    summary = predict_folder(bundle.location, str(folder), str(tmp_path / "out.parquet"), batch_size=4)
    assert (summary.scored, summary.refused) == (10, 10)
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["file"] for row in rows] == sorted(row["file"] for row in rows)
    direct = Predictor(bundle).predict_bytes(good)
    for row in rows:
        if row["file"].startswith("good"):
            expected = direct[int(row["file"].removeprefix("good-").removesuffix(".png"))]
            assert {"covid": row["p_covid"], "normal": row["p_normal"]} == pytest.approx(expected.probabilities, abs=1e-5)  # type: ignore[union-attr]
        else:
            assert row["error"]
            assert row["p_covid"] is None
    with pytest.raises(SourceError):
        predict_folder(bundle.location, str(tmp_path / "absent"), str(tmp_path / "o.csv"))
    with pytest.raises(ConfigError):
        predict_folder(bundle.location, str(folder), str(tmp_path / "o.xlsx"))
