"""The Open Inference Protocol, asked by a public client and by hand."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from open_inference.openapi.client import OpenInferenceClient
from open_inference.openapi.errors import NotFoundError
from open_inference.openapi.types import InferenceRequest, RequestInput, TensorData
from starlette.testclient import TestClient

KEY = "a-key-of-more-than-16-characters"
BEARER = {"Authorization": f"Bearer {KEY}"}
URL = "/v2/models/m/infer"


class Bridge(httpx.BaseTransport):
    """httpx requests answered by a service in this process."""

    def __init__(self, client: TestClient) -> None:
        self.client = client

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self.client.request(request.method, request.url.raw_path.decode(), content=request.read(), headers=dict(request.headers))
        return httpx.Response(answer.status_code, headers={"content-type": "application/json"}, content=answer.content)


@pytest.fixture
def public(client: TestClient) -> Iterator[OpenInferenceClient]:
    """The generated client of the protocol's working group."""
    with httpx.Client(transport=Bridge(client), headers=BEARER) as transport:
        yield OpenInferenceClient(base_url="http://service", httpx_client=transport)


def test_a_public_client_is_answered(public: OpenInferenceClient) -> None:
    public.check_server_liveness()
    public.check_server_readiness()
    assert public.read_server_metadata().extensions == ["binary_tensor_data"]
    metadata = public.read_model_metadata("m")
    assert [(tensor.name, tensor.datatype, tensor.shape) for tensor in metadata.inputs] == [("image", "UINT8", [-1, 8, 8])]
    public.check_model_version_readiness("m", "0123456789ab")
    pixels = np.arange(2 * 8 * 8).reshape(2, 8, 8) % 256
    tensor = RequestInput(name="image", shape=[2, 8, 8], datatype="UINT8", data=TensorData.parse_obj(pixels.tolist()))
    answer = public.model_infer("m", request=InferenceRequest(id="7", inputs=[tensor]))
    assert answer.model_version == "0123456789ab"
    outputs = {output.name: output for output in answer.outputs}
    assert outputs["probabilities"].shape == [2, 2]
    assert outputs["probabilities"].data.__root__ == [0.75, 0.25, 0.75, 0.25]
    assert outputs["labels"].data.__root__ == ["covid", "covid"]
    with pytest.raises(NotFoundError):
        public.check_model_readiness("another")


def asked(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "image", "shape": [1, 8, 8], "datatype": "UINT8", "data": [0] * 64}
    return {"inputs": [{**tensor, **changes}]}


def test_files_in_base64(client: TestClient) -> None:
    data = [base64.b64encode(content).decode() for content in (b"one", b"two")]
    body = {**asked(shape=[2], datatype="BYTES", data=data), "outputs": [{"name": "labels"}]}
    answer = client.post(URL, json=body, headers=BEARER)
    assert answer.status_code == 200, answer.text
    assert [output["name"] for output in answer.json()["outputs"]] == ["labels"]


@pytest.mark.parametrize("kind", ["BYTES", "UINT8"])
def test_binary_tensor_data(client: TestClient, kind: str) -> None:
    content = b"".join(struct.pack("<I", len(file)) + file for file in (b"one", b"two")) if kind == "BYTES" else bytes(2 * 64)
    head = asked(shape=[2] if kind == "BYTES" else [2, 8, 8], datatype=kind, parameters={"binary_data_size": len(content)})
    del head["inputs"][0]["data"]
    text = json.dumps(head).encode()
    answer = client.post(URL, content=text + content, headers={**BEARER, "Inference-Header-Content-Length": str(len(text))})
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["shape"] == [2, 2]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "bad-request"),
        ({"inputs": []}, "bad-request"),
        (asked(name="x"), "bad-request"),
        (asked(datatype="FP32"), "bad-request"),
        (asked(shape=[1, 9, 9]), "bad-request"),
        (asked(shape=[-1, 8, 8]), "bad-request"),
        (asked(shape=[0, 8, 8], data=[]), "bad-request"),
        (asked(shape=[10**30, 8, 8]), "too-many-files"),
        (asked(shape=[17, 8, 8]), "too-many-files"),
        (asked(data=[0] * 63), "bad-request"),
        (asked(data=[256] * 64), "bad-request"),
        (asked(data=[0.5] * 64), "bad-request"),
        (asked(data=["x"] * 64), "bad-request"),
        (asked(data=[[1], [2, 3]]), "bad-request"),
        (asked(data=[None] * 64), "bad-request"),
        (asked(data=[10**30] * 64), "bad-request"),
        (asked(data=None), "bad-request"),
        (asked(shape=[1], datatype="BYTES", data=["%%%"]), "bad-request"),
        (asked(shape=[1], datatype="BYTES", data=[7]), "bad-request"),
        (asked(shape=[2], datatype="BYTES", data=["b25l"]), "bad-request"),
        (asked(shape=[1], datatype="BYTES", data=[base64.b64encode(b"broken").decode()]), "truncated"),
        (asked(data=[255] * 64), "not-upright"),
        ({**asked(), "outputs": [{"name": "nosuch"}]}, "bad-request"),
    ],
)
def test_refusals(client: TestClient, body: dict[str, Any], reason: str) -> None:
    answer = client.post(URL, json=body, headers=BEARER)
    assert (answer.status_code, answer.json()["reason"]) == (422, reason)
    assert answer.json()["error"] == answer.json()["message"]


def test_a_list_that_no_tensor_can_fill_is_not_read(client: TestClient) -> None:
    answer = client.post(URL, json=asked(data=[0] * 3000), headers=BEARER)
    assert "more numbers" in answer.json()["message"]
    whole = client.post(URL, json=asked(shape=[16, 8, 8], data=[0] * 1024), headers=BEARER)
    assert whole.status_code == 200


@pytest.mark.parametrize("length", ["-1", "x", "99999999", "²"])
def test_a_wrong_length_of_the_json_is_refused(client: TestClient, length: str) -> None:
    headers = {**BEARER, "Inference-Header-Content-Length": length.encode("latin-1")}
    assert client.post(URL, content=b"{}", headers=headers).status_code == 422  # type: ignore[arg-type]


@pytest.mark.parametrize("binary", [b"\x01", b"\xff\xff\xff\xff", struct.pack("<I", 9) + b"one"])
def test_torn_binary_data_are_refused(client: TestClient, binary: bytes) -> None:
    head = asked(shape=[1], datatype="BYTES", parameters={"binary_data_size": len(binary)}, data=None)
    text = json.dumps(head).encode()
    answer = client.post(URL, content=text + binary, headers={**BEARER, "Inference-Header-Content-Length": str(len(text))})
    assert (answer.status_code, answer.json()["reason"]) == (422, "bad-request")


def test_what_is_asked_is_audited(serve_face: Callable[..., TestClient], audit_file: Any) -> None:
    from cxr_ray.serving.audit import AuditLog

    client = serve_face(audit=AuditLog(str(audit_file), model_sha256="e" * 64))
    client.post(URL, json=asked(), headers=BEARER)
    (line,) = map(json.loads, audit_file.read_text().splitlines())
    assert (line["input_sha256"], line["outcome"]) == (hashlib.sha256(bytes(64)).hexdigest(), "answered")
