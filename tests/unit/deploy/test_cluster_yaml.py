"""`cluster.yaml` is what `ray up` accepts, says what it can grow to, and holds no secret."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return found


def test_ray_up_accepts_it(config: dict[str, Any]) -> None:
    """Ray's own schema on the file as it stands, then what `ray up` does before it asks the cloud for anything."""
    import jsonschema
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    workers = prepared["available_node_types"]["gpu_worker"]
    assert (workers["min_workers"], workers["max_workers"]) == (0, 4)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config | {"max_workers": "four"}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config | {"no_such_key": 1}, schema)


def test_jobs_may_ask_for_what_it_can_grow_to(config: dict[str, Any]) -> None:
    total: dict[str, int] = {}
    for kind in config["available_node_types"].values():
        for name, amount in kind["resources"].items():
            total[name] = total.get(name, 0) + amount * kind.get("max_workers", 1)
    (start,) = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    (limit,) = re.findall(r"CXR_RAY_CLUSTER_LIMIT=(\S+)", start)
    assert dict(part.split("=") for part in limit.split(",")) == {name: str(amount) for name, amount in total.items()}


def test_tokens_are_on_and_none_is_written_down(config: dict[str, Any]) -> None:
    starts = [command for key in ("head", "worker") for command in config[f"{key}_start_ray_commands"] if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0], "the dashboard is reached through ssh alone"
    assert "/home/ray/.ray/auth_token" in config["file_mounts"]
    text = (ROOT / "cluster.yaml").read_text()
    assert not re.search(r"RAY_AUTH_TOKEN=|AKIA|aws_secret|BEGIN [A-Z ]*PRIVATE KEY|[0-9a-f]{32}", text)


def test_this_package_is_installed_with_the_tested_versions(config: dict[str, Any]) -> None:
    (mounted,) = [place for place, local in config["file_mounts"].items() if local == "."]
    command = next(command for command in config["setup_commands"] if "pip install" in command)
    assert mounted.replace("/home/ray", "~") in command
    assert "--constraint" in command
    pinned = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert [config["docker"]["image"].split(":")[1].split("-")[0]] == pinned
