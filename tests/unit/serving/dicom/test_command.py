"""``dicom-report`` and what asks for it: a BUNDLE in this process, or a service."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from cxr_ray.bundle import Bundle
from cxr_ray.cli import dicom as commands
from cxr_ray.cli import run
from cxr_ray.client import ServiceError
from cxr_ray.errors import CxrRayError, ImageError
from cxr_ray.models.gate import GateCheck, GateVerdict
from cxr_ray.serving.dicom.reading import local_reader, remarks
from cxr_ray.serving.predictor import Predictor

Xray = Callable[..., bytes]


def test_a_bundle_writes_both_objects(bundle: Bundle, xray: Xray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.dcm").write_bytes(xray())
    assert run(["dicom-report", bundle.location, str(tmp_path / "x.dcm"), "--out", str(tmp_path / "answer"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["files"] == ["report.dcm", "heat-map.dcm"]
    report, capture = (dcmread(tmp_path / "answer" / name) for name in said["files"])
    assert report.StudyInstanceUID == capture.StudyInstanceUID == dcmread(tmp_path / "x.dcm").StudyInstanceUID
    assert report.DeviceSerialNumber == said["model_version"] == bundle.version


def test_without_picture_there_is_only_the_report(bundle: Bundle, xray: Xray, tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_bytes(xray())
    assert run(["dicom-report", bundle.location, str(tmp_path / "x.dcm"), "--out", str(tmp_path), "--no-picture"]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.dcm")) == ["report.dcm", "x.dcm"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dicom-report", "BUNDLE", "absent.dcm", "--out", "."], "absent.dcm cannot be read"),
        (["dicom-listen", "BUNDLE", "--answer-to", "archive"], "is not HOST:PORT/AET"),
        (["dicom-listen", "BUNDLE", "--answer-to", "a:104/B", "--host", "0.0.0.0"], "must be named"),
        (["dicom-listen", "BUNDLE", "--answer-to", "a:104/B", "--aet", "x" * 17], "ae_title"),
    ],
)
def test_a_mistake_is_one_message(bundle: Bundle, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert run([bundle.location if argument == "BUNDLE" else argument for argument in arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_gate_of_a_bundle_is_followed(bundle: Bundle, xray: Xray, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(bundle)
    verdict = GateVerdict("refused", (GateCheck("upright", "refused", 0.9, 0.5, "turned upside down"),))
    monkeypatch.setattr(predictor, "predict_checked", lambda images: (np.array([[0.5, 0.5]], np.float32), [verdict]))
    with pytest.raises(ImageError, match="upside down") as caught:
        local_reader(predictor, picture=False)(xray())
    assert caught.value.reason == "not-upright"


def test_remarks_of_models_that_must_not_be_used() -> None:
    assert remarks(None) == ()
    assert remarks("folds leak", ["faint"]) == ("This model must not be used: folds leak", "The input gate flags this image: faint")


class Service:
    """A client whose service calls one of two labels."""

    def __init__(self, explained_by: str = "0123456789ab", error: ServiceError | None = None) -> None:
        self.explained_by, self.error = explained_by, error

    def model(self) -> Any:
        return SimpleNamespace(unsound="folds leak")

    def predict(self, _: bytes) -> Any:
        if self.error:
            raise self.error
        checks = [SimpleNamespace(verdict="flagged", message="faint"), SimpleNamespace(verdict="ok", message="fine")]
        decision = {label: SimpleNamespace(probability=p, threshold=0.5, called=p > 0.5) for label, p in (("covid", 0.9), ("normal", 0.1))}
        return SimpleNamespace(decision=decision, gate=SimpleNamespace(checks=checks), model="m", model_version="0123456789ab")

    def explain(self, _: bytes) -> Any:
        buffer = io.BytesIO()
        Image.new("RGB", (32, 24), "red").save(buffer, "PNG")
        return SimpleNamespace(label="covid", overlay=base64.b64encode(buffer.getvalue()).decode(), model_version=self.explained_by)


def reader(service: Any, *, picture: bool = True) -> Any:
    return commands._remote_reader(service, picture=picture)


def test_a_service_is_asked_for_both(xray: Xray) -> None:
    said = reader(Service())(xray())
    assert [(finding.label, finding.called) for finding in said.findings] == [("covid", True), ("normal", False)]
    assert said.remarks == remarks("folds leak", ["faint"])
    assert said.heat_map.overlay_HW3.shape == (24, 32, 3)
    assert reader(Service(), picture=False)(xray()).heat_map is None


def test_a_service_that_refuses_the_image_is_told_apart_from_one_that_is_away(xray: Xray) -> None:
    with pytest.raises(ImageError, match="upside down"):
        reader(Service(error=ServiceError("upside down", reason="not-upright", status=422)))(xray())
    with pytest.raises(ServiceError, match="busy"):
        reader(Service(error=ServiceError("busy", reason="busy", status=429)))(xray())
    with pytest.raises(CxrRayError, match="changed its model"):
        reader(Service(explained_by="another"))(xray())


def test_a_missing_extra_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands.importlib.util, "find_spec", lambda name: None)
    assert run(["dicom-listen", "bundle", "--answer-to", "a:104/B"]) == 2
    assert "cxr-ray[dicom]" in capsys.readouterr().err
