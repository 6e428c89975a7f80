"""Which engine serves: the faster one that answers alike; whatever goes wrong, torch. And graphs that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxr_ray.errors import ModelError
from cxr_ray.serving import graphs, selection
from cxr_ray.serving.predictor import Predictor
from cxr_ray.serving.selection import select_engine


class Like:
    """An engine that answers as another, but for a fault."""

    name = "onnx"

    def __init__(self, other: Any, *, apart: float = 0.0, features: float = 1.0) -> None:
        self.other, self.apart, self.features = other, apart, features

    def __call__(self, images: Any) -> Any:
        probabilities, pooled = self.other(images)
        return probabilities + np.float32(self.apart), pooled * np.float32(self.features)


@pytest.fixture
def predictor(bundle: Any) -> Predictor:
    return Predictor(bundle)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cxr_ray" / "onnx"


def offer(monkeypatch: pytest.MonkeyPatch, engine: Any, times: dict[str, float]) -> None:
    monkeypatch.setattr(selection, "_build", lambda *_: engine)
    monkeypatch.setattr(selection, "find_spec", lambda _: True)
    monkeypatch.setattr(selection, "_times", lambda *_: {name: {1: value} for name, value in times.items()})


@pytest.mark.parametrize(("torch_time", "chosen"), [(2.0, "onnx"), (0.5, "torch")])
def test_auto_takes_the_faster(predictor: Predictor, monkeypatch: pytest.MonkeyPatch, torch_time: float, chosen: str) -> None:
    offer(monkeypatch, Like(predictor.forward), {"torch": torch_time, "onnx": 1.0})
    info = select_engine(predictor, "auto", batch_size=4, threads=1)
    assert (info.name, predictor.forward.name) == (chosen, chosen)
    assert info.milliseconds["torch"] == {1: torch_time}


def test_what_is_asked_for_serves_though_it_be_slower(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, Like(predictor.forward), {"torch": 0.5, "onnx": 1.0})
    assert select_engine(predictor, "onnx", batch_size=4, threads=1).name == "onnx"
    assert predictor.forward.name == "onnx"


@pytest.mark.parametrize("fault", [{"apart": 2e-4}, {"apart": float("nan")}, {"features": 1.01}], ids=str)
@pytest.mark.parametrize("wanted", ["auto", "onnx"])
def test_an_engine_that_disagrees_does_not_serve(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: dict[str, float], wanted: Any
) -> None:
    offer(monkeypatch, Like(predictor.forward, **fault), {"torch": 2.0, "onnx": 1.0})
    info = select_engine(predictor, wanted, batch_size=4, threads=1)
    assert (info.name, predictor.forward.name) == ("torch", "torch")
    assert "from torch's" in info.reason
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("error", [ModelError("no such operator"), RuntimeError("of a compiler")], ids=repr)
def test_an_engine_that_fails_does_not_serve(predictor: Predictor, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def build(*_: Any) -> Any:
        raise error

    offer(monkeypatch, None, {})
    monkeypatch.setattr(selection, "_build", build)
    assert select_engine(predictor, "compile", batch_size=4, threads=1).name == "torch"
    assert predictor.forward.name == "torch"


def test_without_onnx_runtime_torch_serves_without_a_word(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(selection, "find_spec", lambda _: None)
    assert select_engine(predictor, "auto", batch_size=4, threads=1).reason == "onnxruntime is not installed"
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def test_onnx_serves_a_bundle_and_its_graph_is_made_once(predictor: Predictor, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32), dtype=np.uint8)
    expected = predictor.predict_arrays(images)
    info = select_engine(predictor, "onnx", batch_size=4, threads=1)
    assert info.name == "onnx"
    assert set(info.milliseconds) == {"torch", "onnx"}
    np.testing.assert_allclose(predictor.predict_arrays(images), expected, atol=1e-5)
    assert len(list(cache.iterdir())) == 1
    import cxr_ray.models.onnx_graph as onnx_graph

    monkeypatch.setattr(onnx_graph, "to_onnx", lambda *_: pytest.fail("made twice"))
    assert select_engine(Predictor(predictor.bundle), "onnx", batch_size=4, threads=1).name == "onnx"


def test_graphs_are_private_and_the_oldest_go(bundle: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST", 2)
    made = []
    for release in ("1", "2", "3"):
        monkeypatch.setattr(graphs, "__version__", release)
        assert graphs.graph_of(bundle, lambda: release.encode()) == release.encode()  # noqa: B023
        assert graphs.graph_of(bundle, lambda: b"again") == release.encode()
        made = list(cache.iterdir())
    assert sorted(file.read_bytes() for file in made) == [b"2", b"3"]
    assert cache.stat().st_mode & 0o777 == 0o700
    cache.chmod(0o777)
    assert graphs.graph_of(bundle, lambda: b"not theirs") == b"not theirs"
