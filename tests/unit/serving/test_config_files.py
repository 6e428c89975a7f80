"""The Serve config files hold only keys that Ray Serve and the application know (Ray Serve ignores the others)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[3] / "serve"
FILES = sorted(FOLDER.glob("*.yaml"))


def unknown_keys(data: Any, model: Any, where: str = "") -> list[str]:
    """Keys of ``data`` that are no field of the pydantic ``model``."""
    fields = dict(model.model_fields)
    found = []
    for key in data:
        if key not in fields and key not in {field.alias for field in fields.values()}:
            found.append(f"{where}{key}")
    return found


def test_both_files_are_there() -> None:
    assert [file.name for file in FILES] == ["config.yaml", "local.yaml"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_key_is_known(file: Path) -> None:
    from ray.serve.schema import HTTPOptionsSchema, LoggingConfig, ServeApplicationSchema, ServeDeploySchema

    from cxr_ray.serving.app import ServeSettings

    data = yaml.safe_load(file.read_text())
    ServeDeploySchema(**data)
    faults = unknown_keys(data, ServeDeploySchema)
    faults += unknown_keys(data["http_options"], HTTPOptionsSchema, "http_options.")
    faults += unknown_keys(data.get("logging_config", {}), LoggingConfig, "logging_config.")
    for application in data["applications"]:
        faults += unknown_keys(application, ServeApplicationSchema, "applications.")
        ServeSettings(**application["args"])
        assert application["import_path"] == "cxr_ray.serving.app:build"
    assert faults == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_nothing_listens_beyond_this_machine_and_no_key_is_written_down(file: Path) -> None:
    text = file.read_text()
    assert yaml.safe_load(text)["http_options"]["host"] == "127.0.0.1"
    assert "key_sha256:" not in text


def test_ray_serve_builds_the_application_from_a_files_arguments(bundle: Any) -> None:
    """As its controller does: it sees no type behind a postponed annotation, and hands over a plain mapping."""
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

    from cxr_ray.errors import ConfigError
    from cxr_ray.serving.app import build

    arguments = {"bundle": bundle.location, "key_sha256": "0" * 64, "replicas": 2}
    application = call_user_app_builder_with_args_if_necessary(build, arguments)
    assert application._bound_deployment.num_replicas == 2
    with pytest.raises(ConfigError, match="unknown key; valid here"):
        call_user_app_builder_with_args_if_necessary(build, {**arguments, "replicsa": 2})
