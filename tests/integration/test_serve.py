"""The Ray Serve application: batches, limits, refusals, health; and prediction over a folder with Ray Data."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest

from cxr_ray.errors import BundleError, ClusterError, ConfigError, SourceError
from cxr_ray.serving.app import ServeSettings, build, running
from cxr_ray.serving.keys import obtain_key
from cxr_ray.serving.offline import predict_folder
from cxr_ray.serving.predictor import Predictor

KEY = "a-key-for-the-serve-tests"


def ask(url: str, data: bytes, key: str = KEY) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/octet-stream"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/predict", data=data, headers=headers), timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture
def service(ray_cluster: None, bundle: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("CXR_RAY_API_KEY", KEY)
    settings = ServeSettings(bundle=bundle.location, cpus=0.5, key_sha256=obtain_key().digest)
    with running(settings, port=0) as url:
        yield url


def test_the_service(service: str, bundle: Any, png: bytes, hostile: ModuleType) -> None:
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

    with (
        pytest.raises(ClusterError, match="cannot listen"),
        running(ServeSettings(bundle=bundle.location), port=int(service.rsplit(":", 1)[1])),
    ):
        pass


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
