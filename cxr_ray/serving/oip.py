"""The Open Inference Protocol, version 2, over HTTP: for clients that already speak to Triton, KServe or MLServer.

One input ``image``: UINT8 of shape [N, H, W], preprocessed as the bundle says; or BYTES of shape [N], whole files, base64 in JSON or raw by
the binary tensor data extension (``Inference-Header-Content-Length``). Outputs: ``probabilities`` FP32 [N, K] and ``labels`` BYTES [N], the
called labels of each image joined by ``|``. Answers are JSON. Source: the Open Inference Protocol's ``inference_rest.md``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import math
import struct
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from cxr_ray import __version__
from cxr_ray.errors import ImageError
from cxr_ray.serving.answers import ANSWERED, GatePolicy, judged
from cxr_ray.serving.audit import RequestFacts
from cxr_ray.serving.bodies import MOST_IMAGES
from cxr_ray.serving.engine import Scored
from cxr_ray.serving.fleet import Fleet
from cxr_ray.serving.guard import EdgeLimits, facts_of
from cxr_ray.serving.schema import ModelInfo, Refusal

INPUT = "image"
OUTPUTS = ("probabilities", "labels")
HEADER = "inference-header-content-length"
_MOST_WORDS = 1000
"""Of a request, beside the numbers of its tensor."""
_REFUSALS: dict[int | str, dict[str, Any]] = {status: {"model": Refusal} for status in (401, 404, 422, 429, 500, 504)}


class Live(BaseModel):
    """``/v2/health/live``."""

    live: bool


class Ready(BaseModel):
    """``/v2/health/ready`` and ``/v2/models/NAME/ready``."""

    ready: bool


class ServerMetadata(BaseModel):
    """``/v2``."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """What a tensor must look like; -1: any number."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """``/v2/models/NAME``."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class InferInput(BaseModel):
    """An input tensor; ``data`` is absent where it follows the JSON in binary."""

    name: str
    shape: list[int]
    datatype: Literal["UINT8", "BYTES"]
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class RequestedOutput(BaseModel):
    """An output that is asked for."""

    name: Literal["probabilities", "labels"]
    parameters: dict[str, Any] | None = None


class InferRequest(BaseModel):
    """Body of ``/v2/models/NAME/infer``."""

    id: str | None = Field(default=None, max_length=64)
    parameters: dict[str, Any] | None = None
    inputs: list[InferInput] = Field(min_length=1, max_length=1)
    outputs: list[RequestedOutput] | None = None


class OutputTensor(BaseModel):
    """An output tensor, row by row."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float] | list[str]


class InferResponse(BaseModel):
    """Answer of ``/v2/models/NAME/infer``."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


def bad(message: str) -> ImageError:
    """A request that is not of the protocol."""
    return ImageError("bad-request", message)


def parse(body: bytes, header: str | None, info: ModelInfo) -> tuple[InferRequest, bytes]:
    """The JSON of a request and the binary that follows it.

    Args:
        body: Of the request.
        header: ``Inference-Header-Content-Length``, the length of the JSON. None: all of it.
        info: The model, which says how many numbers there can be: a list of them takes many times their bytes.

    Raises:
        ImageError: ``bad-request``.
    """
    if header is not None and not (header.isascii() and header.isdigit() and int(header) <= len(body)):
        raise bad("Inference-Header-Content-Length is not a length of this body")
    end = len(body) if header is None else int(header)
    if body.count(b",", 0, end) > MOST_IMAGES * info.image_height * info.image_width + _MOST_WORDS:
        raise bad("more numbers than the largest tensor has")
    try:
        return InferRequest.model_validate_json(body[:end]), body[end:]
    except ValidationError as error:
        places = sorted({".".join(str(part) for part in fault["loc"][:3]) or "the body" for fault in error.errors()})
        raise bad(f"not an inference request of this model: {', '.join(places)}") from None


def images_in(tensor: InferInput, binary: bytes, info: ModelInfo) -> NDArray[np.uint8] | list[bytes]:
    """The tensor's content: (N, H, W) uint8, or N files.

    Raises:
        ImageError: ``bad-request``, or ``too-many-files``.
    """
    if tensor.name != INPUT:
        raise bad(f"the input is called {INPUT}")
    files = tensor.datatype == "BYTES"
    if any(side < 0 for side in tensor.shape) or len(tensor.shape) != (1 if files else 3) or not math.prod(tensor.shape):
        raise bad("expected a shape [N] of BYTES or [N, H, W] of UINT8")
    if tensor.shape[0] > MOST_IMAGES:
        raise ImageError("too-many-files", f"more images than are taken at once: {MOST_IMAGES}")
    if not files and tensor.shape[1:] != [info.image_height, info.image_width]:
        raise bad(f"the model takes images of {info.image_height} x {info.image_width}")
    if tensor.data is None and (tensor.parameters or {}).get("binary_data_size") != len(binary):
        raise bad("the input has neither data nor a binary_data_size that fits the body")
    if files:
        found = _split(binary) if tensor.data is None else _from_base64(tensor.data)
        if len(found) != tensor.shape[0]:
            raise bad("the data do not fill the shape")
        return found
    pixels = np.frombuffer(binary, np.uint8) if tensor.data is None else _from_numbers(tensor.data)
    if pixels.size != math.prod(tensor.shape):
        raise bad("the data do not fill the shape")
    return pixels.reshape(tensor.shape)


def _split(binary: bytes) -> list[bytes]:
    """Elements of a binary BYTES tensor: each behind its length, four bytes, little endian."""
    found, at = [], 0
    while at < len(binary):
        if at + 4 > len(binary):
            raise bad("the binary data end within a length")
        (length,) = struct.unpack_from("<I", binary, at)
        at += 4 + length
        if at > len(binary):
            raise bad("the binary data end within an element")
        found.append(binary[at - length : at])
    return found


def _from_base64(data: list[Any]) -> list[bytes]:
    try:
        return [base64.b64decode(element, validate=True) for element in data]
    except (TypeError, ValueError, binascii.Error):
        raise bad("elements of a BYTES tensor are files in base64") from None


def _from_numbers(data: list[Any]) -> NDArray[np.uint8]:
    try:
        values = np.asarray(data)
    except ValueError:
        raise bad("the rows of the data differ in length") from None
    if values.dtype.kind not in "iuf" or not values.size or values.min() < 0 or values.max() > 255 or (values % 1).any():
        raise bad("elements of a UINT8 tensor are whole numbers in 0..255")  # JSON does not tell 7 from 7.0; some clients write the latter
    return values.astype(np.uint8).ravel()


def infer_response(request: InferRequest, scored: list[Scored], info: ModelInfo) -> InferResponse:
    """The outputs that were asked for (all, where none was named)."""
    wanted = [output.name for output in request.outputs] if request.outputs else list(OUTPUTS)
    values = [value for one in scored for value in one.prediction.probabilities.values()]
    tensors = {
        "probabilities": OutputTensor(name="probabilities", shape=[len(scored), len(info.labels)], datatype="FP32", data=values),
        "labels": OutputTensor(
            name="labels", shape=[len(scored)], datatype="BYTES", data=["|".join(one.prediction.labels) for one in scored]
        ),
    }
    outputs = [tensors[name] for name in wanted]
    return InferResponse(model_name=info.name, model_version=info.version, id=request.id, outputs=outputs)


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """A JSON schema without references, for a place in OpenAPI where ``$defs`` may not stand."""
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items() if key != "$defs"}


_SCHEMA = InferRequest.model_json_schema()
_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": _inlined(_SCHEMA, _SCHEMA["$defs"])}}}}


def add_routes(api: FastAPI, fleet: Fleet, *, limits: EdgeLimits, policy: GatePolicy) -> None:
    """Add the routes below ``/v2``."""
    known = "/v2/models/{name}/versions/{version}"

    def about(name: str, version: str | None, facts: RequestFacts | None = None) -> ModelInfo:
        info = fleet.about(name, facts)
        if version not in (None, info.version):
            raise HTTPException(404)
        return info

    @api.get("/v2/health/live", tags=["v2"], responses={401: _REFUSALS[401]})
    async def live() -> Live:
        return Live(live=True)

    @api.get("/v2/health/ready", tags=["v2"], responses={401: _REFUSALS[401]})
    async def ready() -> Ready:
        return Ready(ready=await fleet.engine.ready())

    @api.get("/v2", tags=["v2"], responses={401: _REFUSALS[401]})
    async def server() -> ServerMetadata:
        return ServerMetadata(name="cxr_ray", version=__version__, extensions=["binary_tensor_data"])

    @api.get("/v2/models/{name}", tags=["v2"], responses=_REFUSALS)
    @api.get(known, tags=["v2"], responses=_REFUSALS)
    async def metadata(name: str, version: str | None = None) -> ModelMetadata:
        info = about(name, version)
        images = TensorMetadata(name=INPUT, datatype="UINT8", shape=[-1, info.image_height, info.image_width])
        probabilities = TensorMetadata(name="probabilities", datatype="FP32", shape=[-1, len(info.labels)])
        labels = TensorMetadata(name="labels", datatype="BYTES", shape=[-1])
        return ModelMetadata(name=info.name, versions=[info.version], platform="cxr_ray", inputs=[images], outputs=[probabilities, labels])

    @api.get("/v2/models/{name}/ready", tags=["v2"], responses=_REFUSALS)
    @api.get(f"{known}/ready", tags=["v2"], responses=_REFUSALS)
    async def model_ready(name: str, version: str | None = None) -> Ready:
        about(name, version)  # another model than the service's own is loaded when it is asked
        return Ready(ready=await fleet.engine.ready())

    @api.post("/v2/models/{name}/infer", tags=["v2"], responses=_REFUSALS, openapi_extra=_BODY)
    @api.post(f"{known}/infer", tags=["v2"], responses=_REFUSALS, openapi_extra=_BODY)
    async def infer(request: Request, name: str, version: str | None = None) -> InferResponse:
        facts = facts_of(request.scope)
        info = about(name, version, facts)
        asked, binary = await asyncio.to_thread(parse, await request.body(), request.headers.get(HEADER), info)
        images = await asyncio.to_thread(images_in, asked.inputs[0], binary, info)
        digests = [hashlib.sha256(image if isinstance(image, bytes) else image.tobytes()).hexdigest() for image in images]
        try:
            async with asyncio.timeout(limits.deadline_seconds):
                engine = await fleet.asked(info)
                if isinstance(images, list):
                    scored = list(await asyncio.gather(*map(engine.score, images)))
                else:
                    scored = await engine.score_pixels(images)
            for one in scored:
                judged(one.verdict, policy)
        except ImageError as error:
            facts.inputs += [(digest, error.reason) for digest in digests]
            raise
        facts.inputs += [(digest, ANSWERED) for digest in digests]
        return infer_response(asked, scored, info)
