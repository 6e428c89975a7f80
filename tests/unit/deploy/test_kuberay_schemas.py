"""The Kubernetes manifests hold no secret, and KubeRay's own schemas accept them.

Those schemas are not ours to keep here: CXR_RAY_CRDS names a folder of them (ray.io_rayjobs.yaml … of a KubeRay release).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[3] / "deploy" / "kuberay"
FILES = sorted(FOLDER.glob("*.yaml"))
CUSTOM = ("train.yaml", "tune.yaml", "serve.yaml")


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a document with the key it stands under."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield from strings(below, name)
    elif isinstance(value, list):
        for below in value:
            yield from strings(below, key)
    elif isinstance(value, str):
        yield key, value


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_secret_is_written_down(file: Path) -> None:
    for document in documents(file.name):
        assert document["kind"] != "Secret"
        for key, text in strings(document):
            assert not re.search(r"[0-9a-fA-F]{32}|AKIA|BEGIN ", text), key
    for variable in re.findall(r"\{name: (\w*(?:TOKEN|KEY|PASSWORD)\w*), value:", file.read_text()):
        raise AssertionError(f"{variable} has a value")


def closed(schema: Any) -> Any:
    """``schema`` in which an object takes the properties it lists and no others, as strict validation in the API server does."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if "properties" in schema and isinstance(schema["properties"], dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


@pytest.mark.parametrize("name", CUSTOM)
def test_kuberays_schemas_accept_it(name: str) -> None:
    import jsonschema

    folder = os.environ.get("CXR_RAY_CRDS")
    if not folder:
        pytest.skip("CXR_RAY_CRDS names no folder of KubeRay's CRDs")
    (document,) = documents(name)
    crd = yaml.safe_load((Path(folder) / f"ray.io_{document['kind'].lower()}s.yaml").read_text())
    (version,) = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own
    faults = [f"{error.json_path}: {error.message}" for error in jsonschema.Draft7Validator(schema).iter_errors(document)]
    assert faults == []
    document["spec"]["noSuchField"] = 1
    assert not jsonschema.Draft7Validator(schema).is_valid(document)
