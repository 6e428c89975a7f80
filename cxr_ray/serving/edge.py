"""The HTTP face of a model: its routes, what each takes and answers. A plain FastAPI application, no Ray, no torch.

Every route but ``/healthz`` wants an API key, as ``Authorization: Bearer``, as ``X-API-Key``, or as the password of HTTP Basic (so
that a browser can ask for it); ``serving.guard`` sees to that, and to limits. Bodies are held in memory only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from prometheus_client.metrics_core import Metric

from cxr_ray import __version__
from cxr_ray.errors import ImageError
from cxr_ray.serving import docs_page, metrics, oip, web
from cxr_ray.serving.answers import GatePolicy, GateRefused, Images
from cxr_ray.serving.audit import AuditLog
from cxr_ray.serving.bodies import IMAGE_TYPES, MOST_IMAGES, images_of
from cxr_ray.serving.engine import Engine
from cxr_ray.serving.fleet import Fleet, Load
from cxr_ray.serving.guard import EdgeLimits, Guard, facts_of
from cxr_ray.serving.keys import KeyRing
from cxr_ray.serving.schema import (
    Answer,
    Answers,
    Explanation,
    ExplanationMethod,
    Health,
    ImageRefusal,
    IndexedRefusal,
    ModelInfo,
    ModelList,
    ModelSummary,
    Readiness,
    Refusal,
)
from cxr_ray.serving.traffic import Traffic
from cxr_ray.serving.versions import Versions

Gather = Callable[[], Awaitable[dict[str, list[Metric]]]]

_STATUS_OF_REASON = {"too-large": 413, "too-many-pixels": 413, "not-an-image": 415, "unsupported": 415, "unsupported-format": 415}
_STATUS_OF_REASON |= {"unknown-model": 404}
_REFUSALS: dict[int | str, dict[str, Any]] = {status: {"model": Refusal} for status in (401, 404, 408, 413, 415, 429, 500, 504)}
_IMAGE_REFUSALS = {**_REFUSALS, 422: {"model": ImageRefusal}}


@dataclass(frozen=True)
class Face:
    """All that the routes need to know.

    Args:
        engine: Answers.
        info: What ``GET /v1/model`` says.
        keys: Who may ask.
        audit: Where requests are written down.
        limits: Bounds of one request.
        gate: What becomes of images that the input gate refuses.
        cors_origins: Pages of other origins that may ask; none by default.
        metrics: Counters of this replica.
        gather: Counters of all replicas, by name. None: of this one alone.
        others: Models beside ``info``, by name.
        load: The engine of one of them.
        traffic: What becomes of requests during a rollout. None: there are no rollouts here.
    """

    engine: Engine
    info: ModelInfo
    keys: KeyRing
    audit: AuditLog
    limits: EdgeLimits = field(default_factory=EdgeLimits)
    gate: GatePolicy = "refuse"
    cors_origins: Sequence[str] = ()
    metrics: metrics.Metrics = field(default_factory=metrics.Metrics)
    gather: Gather | None = None
    others: Mapping[str, ModelInfo] = field(default_factory=dict)
    load: Load | None = None
    traffic: Traffic | None = None


def build_api(face: Face) -> FastAPI:
    """The service: its routes behind the guard."""
    api = build_routes(face)
    if face.traffic is not None:
        api.add_middleware(Versions, traffic=face.traffic)
    api.add_middleware(Guard, keys=face.keys, limits=face.limits, metrics=face.metrics, audit=face.audit)
    if face.cors_origins:  # outermost: a preflight comes without a key
        api.add_middleware(
            CORSMiddleware,
            allow_origins=list(face.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key"],
            expose_headers=["Retry-After", "X-Model-Version", "X-Request-ID"],
        )
    return api


def build_routes(face: Face) -> FastAPI:
    """The routes alone, for requests that another replica's guard has let in."""
    api = FastAPI(
        title="cxr_ray",
        version=__version__,
        description="Chest X-ray classifier. For research; not a medical device.",
        docs_url=None,
        redoc_url=None,
    )
    api.openapi_version = "3.0.3"  # what the bundled documentation page reads
    _add_refusals(api, face.limits)
    _add_service_routes(api, face)
    fleet = Fleet(face.engine, face.info, face.others, face.load)
    _add_model_routes(api, face, fleet)
    oip.add_routes(api, fleet, limits=face.limits, policy=face.gate)
    docs_page.mount(api)
    web.mount(api)
    return api


def _add_refusals(api: FastAPI, limits: EdgeLimits) -> None:
    """Every error as a Refusal; below ``/v2`` with the field ``error`` of that protocol."""

    def told(request: Request, status: int, refusal: Refusal, headers: Mapping[str, str] | None = None) -> JSONResponse:
        as_protocol = {"error": refusal.message} if request.url.path.startswith("/v2") else {}
        return JSONResponse({**refusal.model_dump(), **as_protocol}, status_code=status, headers=headers)

    def refusal(status: int, reason: str, message: str) -> Callable[[Request, Exception], Awaitable[JSONResponse]]:
        async def answer(request: Request, error: Exception) -> JSONResponse:
            body = Refusal(reason=reason, message=message, request_id=facts_of(request.scope).request_id)
            return told(request, status, body, getattr(error, "headers", None))

        return answer

    api.add_exception_handler(404, refusal(404, "no-route", "there is no such route; /docs lists them"))
    api.add_exception_handler(405, refusal(405, "no-method", "this route does not take that method; /docs lists them"))
    api.add_exception_handler(RequestValidationError, refusal(422, "bad-request", "a parameter is not one that /docs lists"))
    late = f"no answer within {limits.deadline_seconds:g} s; try again later"
    api.add_exception_handler(TimeoutError, refusal(504, "deadline", late))

    @api.exception_handler(ImageError)
    async def _image(request: Request, error: ImageError) -> JSONResponse:
        gate = error.gate if isinstance(error, GateRefused) else None
        body = ImageRefusal(reason=error.reason, message=error.message, request_id=facts_of(request.scope).request_id, gate=gate)
        return told(request, _STATUS_OF_REASON.get(error.reason, 422), body)


def _add_service_routes(api: FastAPI, face: Face) -> None:
    @api.get("/healthz", tags=["service"])
    async def healthz() -> Health:
        """The service answers. Needs no key."""
        return Health()

    @api.get("/readyz", tags=["service"], responses={401: _REFUSALS[401], 503: {"model": Readiness}}, response_model=Readiness)
    async def readyz() -> Readiness | JSONResponse:
        """Whether this replica can classify now."""
        if await face.engine.ready():
            return Readiness(status="ready")
        return JSONResponse(Readiness(status="not-ready").model_dump(), status_code=503)

    @api.get("/metrics", tags=["service"], responses={401: _REFUSALS[401]}, response_class=Response)
    async def prometheus() -> Response:
        """Counters of all replicas, for Prometheus."""
        replicas = await face.gather() if face.gather else {"0": face.metrics.families()}
        return Response(metrics.exposition(replicas), media_type=metrics.CONTENT_TYPE)


def _add_model_routes(api: FastAPI, face: Face, fleet: Fleet) -> None:
    gate_query = Query(default=None, description="flag: answer what the input gate refuses all the same. Default: the service's setting.")
    method_query = Query(
        default="gradcam", description="integrated: integrated gradients, which find small lesions far better and take longer."
    )
    model_query = Query(default=None, description="A model of /v1/models. Default: the one that the service is named for.")

    def images_for(request: Request, gate: Literal["refuse", "flag"] | None, model: str | None) -> Images:
        policy = face.gate if gate is None or face.gate == "off" else gate
        facts = facts_of(request.scope)
        return Images(fleet.about(model, facts), policy, facts, time.perf_counter())

    @api.get("/v1/models", tags=["model"], responses={401: _REFUSALS[401]})
    async def models() -> ModelList:
        """The models that can be asked for."""
        fields = {"name", "version", "task", "labels", "manifest_sha256"}
        return ModelList(models=[ModelSummary(**info.model_dump(include=fields), default=info is fleet.info) for info in fleet.all()])

    @api.get("/v1/model", tags=["model"], responses={status: _REFUSALS[status] for status in (401, 404)})
    async def model(model: str | None = model_query) -> ModelInfo:
        """What is being served: labels, thresholds, the model card, its figures."""
        return fleet.about(model)

    @api.post(
        "/v1/predict",
        tags=["model"],
        responses=_IMAGE_REFUSALS,
        response_model=Answer | Answers,
        openapi_extra={"requestBody": _request_body(several=True)},
    )
    async def predict(request: Request, gate: Literal["refuse", "flag"] | None = gate_query, model: str | None = model_query) -> Response:
        """Classify one chest X-ray (PNG, JPEG or DICOM), sent as a form's file or as the body itself; or up to 16, as files of a form.

        Several are answered in the order of the form, each with its answer or the reason why not.
        """
        images = images_for(request, gate, model)
        uploads = await images_of(request.headers, await request.body())

        async def one(engine: Engine, data: bytes) -> Answer | ImageError:
            try:
                return images.answer(data, await engine.score(data))
            except ImageError as error:
                images.refused(data, error)
                return error

        async with asyncio.timeout(face.limits.deadline_seconds):
            engine = await fleet.asked(images.info)
            answers = await asyncio.gather(*(one(engine, data) for data in uploads))
        if len(answers) == 1:
            if isinstance(answers[0], ImageError):
                raise answers[0]
            return _json(answers[0])
        request_id = images.facts.request_id
        told = [_indexed(answer, index, request_id) if isinstance(answer, ImageError) else answer for index, answer in enumerate(answers)]
        return _json(Answers(answers=told, request_id=request_id))

    @api.post(
        "/v1/explain",
        tags=["model"],
        responses={**_IMAGE_REFUSALS, 200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}},
        response_model=Explanation,
        openapi_extra={"requestBody": _request_body(several=False)},
    )
    async def explain(
        request: Request,
        label: str | None = Query(default=None, description="A label of the model. Default: the most probable one."),
        method: ExplanationMethod = method_query,
        format: Literal["json", "png"] = Query(default="json", description="png: the overlay as a picture."),
        gate: Literal["refuse", "flag"] | None = gate_query,
        model: str | None = model_query,
    ) -> Explanation | Response:
        """Where in one chest X-ray the model looked: a heat map, and the same over the image."""
        images = images_for(request, gate, model)
        if label is not None and label not in images.info.labels:
            raise ImageError("unknown-label", f"the model's labels are {', '.join(images.info.labels)}")
        uploads = await images_of(request.headers, await request.body(), most=1)
        try:
            async with asyncio.timeout(face.limits.deadline_seconds):
                found = await (await fleet.asked(images.info)).explain(uploads[0], label, method)
            answer = images.explanation(uploads[0], found)
        except ImageError as error:
            images.refused(uploads[0], error)
            raise
        return Response(found.overlay, media_type="image/png") if format == "png" else answer


def _json(answer: Answer | Answers) -> Response:
    """As FastAPI would send it, but for checking once more what was just built."""
    return Response(answer.model_dump_json(), media_type="application/json")


def _indexed(error: ImageError, index: int, request_id: str) -> IndexedRefusal:
    gate = error.gate if isinstance(error, GateRefused) else None
    return IndexedRefusal(reason=error.reason, message=error.message, request_id=request_id, gate=gate, index=index)


def _request_body(*, several: bool) -> dict[str, Any]:
    file = {"type": "string", "format": "binary"}
    image = {"type": "array", "items": file, "minItems": 1, "maxItems": MOST_IMAGES} if several else file
    form = {"schema": {"type": "object", "required": ["image"], "properties": {"image": image}}}
    return {"required": True, "content": {"multipart/form-data": form, **{kind: {"schema": file} for kind in IMAGE_TYPES}}}
