"""A bundle that says it must not be used is served and scored all the same, with a line in the log and a field for clients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cxr_ray.bundle import MANIFEST, Bundle, read_bundle
from cxr_ray.errors import SourceError
from cxr_ray.serving.app import ServeSettings, build, model_info
from cxr_ray.serving.offline import predict_folder

REASON = "its folds leak"


@pytest.fixture
def unsound(bundle: Bundle) -> Bundle:
    place = Path(bundle.location) / MANIFEST
    place.write_text(json.dumps({**json.loads(place.read_text()), "unsound": REASON}))
    return read_bundle(bundle.location)


def test_serve_and_predict_log_it(unsound: Bundle, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    build(ServeSettings(bundle=unsound.location, key_sha256="0" * 64))
    assert REASON in caplog.text
    caplog.clear()
    with pytest.raises(SourceError):
        predict_folder(unsound.location, str(tmp_path / "nowhere"), str(tmp_path / "out.csv"))
    assert REASON in caplog.text


def test_clients_are_told(unsound: Bundle) -> None:
    told = model_info(unsound)
    assert told.unsound == REASON
    assert told.dataset_fingerprint == "d" * 64
    assert told.version == unsound.version


def test_nothing_is_said_of_others(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    build(ServeSettings(bundle=bundle.location, key_sha256="0" * 64))
    assert "must not be used" not in caplog.text
    assert model_info(bundle).unsound is None
