"""The HTTP face of a model: key, limits, refusals. A plain FastAPI application, no Ray, no model.

Every route but ``/healthz`` wants the API key, as ``Authorization: Bearer``, as ``X-API-Key``, or as the password of
HTTP Basic (so that a browser can ask for it). Bodies are held in memory only, counted as they arrive, and never
written to a temporary file.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import os
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cxr_ray import __version__
from cxr_ray.errors import ConfigError, ImageError
from cxr_ray.serving.predictor import Prediction
from cxr_ray.serving.schema import Answer, Health, ModelInfo, Refusal

logger = logging.getLogger(__name__)

OPEN_ROUTES = frozenset({"/healthz"})
KEY_VARIABLE = "CXR_RAY_API_KEY"
IMAGE_TYPES = ("image/png", "image/jpeg", "application/dicom", "application/octet-stream")
_STATUS_OF_REASON = {"too-large": 413, "too-many-pixels": 413, "not-an-image": 415, "unsupported": 415}
_FORM_OVERHEAD = 16 * 1024


@dataclass(frozen=True, slots=True)
class ApiKey:
    """The key of a service.

    Args:
        digest: Hex SHA-256 of the key; all that the service is given.
        shown: The key itself where it was made just now and must be shown once, else None.
    """

    digest: str
    shown: str | None


def obtain_key(key_file: str | None = None) -> ApiKey:
    """The key from ``key_file``, else from the environment (``CXR_RAY_API_KEY``), else a new one.

    Raises:
        ConfigError: The file cannot be read, or the key has fewer than 16 characters.
    """
    if key_file is not None:
        try:
            key = Path(key_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([f"cannot be read: {type(error).__name__}"], where=key_file) from None
        return ApiKey(_digest(_long_enough(key, key_file)), None)
    if KEY_VARIABLE in os.environ:
        return ApiKey(_digest(_long_enough(os.environ[KEY_VARIABLE].strip(), KEY_VARIABLE)), None)
    key = secrets.token_urlsafe(24)
    return ApiKey(_digest(key), key)


def _long_enough(key: str, where: str) -> str:
    if len(key) < 16:
        raise ConfigError([f"the key has {len(key)} characters; at least 16 are wanted"], where=where)
    return key


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """What one request may cost.

    Args:
        body_bytes: Largest image.
        deadline_seconds: From the last byte of the body to the answer.
    """

    body_bytes: int = 20 * 2**20
    deadline_seconds: float = 10.0


class _BodyTooLarge(Exception):
    """More bytes arrived than the limit allows."""


class Guard:
    """ASGI middleware: request id, key, and a count of the body's bytes; nothing passes without them.

    Args:
        app: What is guarded.
        key_digest: Hex SHA-256 of the key.
        body_bytes: Bytes a body may have, form overhead included.
    """

    def __init__(self, app: ASGIApp, *, key_digest: str, body_bytes: int) -> None:
        self.app, self.key_digest, self.body_bytes = app, key_digest, body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Guard one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if scope["path"] not in OPEN_ROUTES and not self._knows(headers):
            challenge = {"WWW-Authenticate": 'Bearer realm="cxr-ray", Basic realm="cxr-ray"'}
            await refuse(request_id, 401, "no-key", "the API key is missing or wrong", challenge)(scope, receive, send)
            return
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self.body_bytes:
            await self._too_large(request_id)(scope, receive, send)
            return
        try:
            await self.app(scope, self._counting(receive), self._signing(send, request_id))
        except _BodyTooLarge:
            await self._too_large(request_id)(scope, receive, send)

    def _knows(self, headers: dict[str, str]) -> bool:
        scheme, _, rest = headers.get("authorization", "").partition(" ")
        given = headers.get("x-api-key", "")
        if scheme.lower() == "bearer":
            given = rest.strip()
        elif scheme.lower() == "basic":
            try:
                given = base64.b64decode(rest, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                given = ""
        return hmac.compare_digest(_digest(given), self.key_digest)

    def _counting(self, receive: Receive) -> Receive:
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.body_bytes:
                raise _BodyTooLarge
            return message

        return counted

    @staticmethod
    def _signing(send: Send, request_id: str) -> Send:
        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode()), (b"cache-control", b"no-store")]
            await send(message)

        return signed

    def _too_large(self, request_id: str) -> Response:
        return refuse(request_id, 413, "too-large", f"the body is larger than {(self.body_bytes - _FORM_OVERHEAD) // 2**20} MiB")


def refuse(request_id: str, status: int, reason: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """A refusal as JSON."""
    return JSONResponse(Refusal(reason=reason, message=message, request_id=request_id).model_dump(), status_code=status, headers=headers)


class _InMemoryParser(MultiPartParser):
    """Starlette's parser, kept from spooling uploads to disk: the guard has bounded them."""

    spool_max_size = 2**31 - 1


async def _image_of(request: Request) -> bytes:
    """The image: the first file of a multipart form, whatever its field, or the whole body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        if kind and kind not in IMAGE_TYPES:
            raise ImageError("unsupported", f"send multipart/form-data with a file, or a body of type {', '.join(IMAGE_TYPES)}")
        return await request.body()
    try:
        form = await _InMemoryParser(request.headers, request.stream(), max_files=1, max_fields=8).parse()
    except (MultiPartException, KeyError, ValueError):
        raise ImageError("bad-form", "the multipart form is malformed, or holds more than one file") from None
    try:
        for value in form.values():
            if not isinstance(value, str):
                return await value.read()
    finally:
        await form.close()
    raise ImageError("no-file", "the form holds no file; send the image as the field 'image'")


def build_api(
    predict: Callable[[bytes], Awaitable[Prediction]], info: ModelInfo, *, key_digest: str, limits: EdgeLimits | None = None
) -> FastAPI:
    """The service's routes around ``predict``.

    Args:
        predict: File bytes -> answer; raises ImageError for bytes that are no usable image.
        info: What ``GET /v1/model`` says.
        key_digest: Hex SHA-256 of the API key.
        limits: Bounds of one request.
    """
    bounds = limits or EdgeLimits()
    api = FastAPI(
        title="cxr_ray",
        version=__version__,
        description="Chest X-ray classifier. For research; not a medical device.",
        docs_url=None,
        redoc_url=None,
    )
    api.openapi_version = "3.0.3"  # what the bundled documentation page reads
    api.add_middleware(Guard, key_digest=key_digest, body_bytes=bounds.body_bytes + _FORM_OVERHEAD)

    @api.exception_handler(ImageError)
    async def _refuse_image(request: Request, error: ImageError) -> JSONResponse:
        return refuse(request.state.request_id, _STATUS_OF_REASON.get(error.reason, 422), error.reason, error.message)

    @api.exception_handler(404)
    async def _no_route(request: Request, _: Exception) -> JSONResponse:
        return refuse(request.state.request_id, 404, "no-route", "there is no such route; /docs lists them")

    @api.exception_handler(405)
    async def _no_method(request: Request, _: Exception) -> JSONResponse:
        return refuse(request.state.request_id, 405, "no-method", "this route does not take that method; /docs lists them")

    @api.get("/healthz", tags=["service"])
    async def healthz() -> Health:
        """The service answers. The only route without a key."""
        return Health()

    @api.get("/v1/model", tags=["model"])
    async def model() -> ModelInfo:
        """What is being served."""
        return info

    refusals: dict[int | str, dict[str, Any]] = {status: {"model": Refusal} for status in (401, 413, 415, 422, 429, 504)}

    @api.post("/v1/predict", tags=["model"], responses=refusals, response_model=Answer, openapi_extra={"requestBody": _REQUEST_BODY})
    async def predict_image(request: Request) -> Answer | JSONResponse:
        """Classify one chest X-ray (PNG, JPEG or DICOM), sent as a form's file or as the body itself."""
        data = await _image_of(request)
        start = time.perf_counter()
        try:
            async with asyncio.timeout(bounds.deadline_seconds):
                prediction = await predict(data)
        except TimeoutError:
            return refuse(request.state.request_id, 504, "deadline", f"no answer within {bounds.deadline_seconds:g} s; try again later")
        return Answer(
            labels=list(prediction.labels),
            probabilities=prediction.probabilities,
            model=info.name,
            model_version=info.version,
            image_sha256=hashlib.sha256(data).hexdigest(),
            request_id=request.state.request_id,
            milliseconds=round(1000 * (time.perf_counter() - start), 2),
        )

    _add_docs(api)
    return api


_REQUEST_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "required": ["image"], "properties": {"image": {"type": "string", "format": "binary"}}}
        },
        **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in IMAGE_TYPES},
    },
}

_DOCS_FILES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon-32x32.png": "image/png"}


def _add_docs(api: FastAPI) -> None:
    """``/docs`` from files of this installation: a hospital's network reaches no content delivery network."""
    folder = next(path for path in (files("swagger_ui_bundle") / "vendor").iterdir() if path.name.startswith("swagger-ui"))

    @api.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="cxr_ray",
            swagger_js_url="/docs/swagger-ui-bundle.js",
            swagger_css_url="/docs/swagger-ui.css",
            swagger_favicon_url="/docs/favicon-32x32.png",
        )

    @api.get("/docs/{name}", include_in_schema=False)
    async def docs_file(name: str, request: Request) -> Response:
        if name not in _DOCS_FILES:
            return refuse(request.state.request_id, 404, "no-route", "there is no such route; /docs lists them")
        return Response((folder / name).read_bytes(), media_type=_DOCS_FILES[name])
