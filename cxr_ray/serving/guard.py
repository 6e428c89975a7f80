"""What every request passes first: its id, its key, the key's rate, its body's size and time; and what is written down of it afterwards."""

from __future__ import annotations

import base64
import binascii
import logging
import math
import re
import time
import traceback
import uuid
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cxr_ray.serving.audit import AuditLog, RequestFacts
from cxr_ray.serving.bodies import FORM_OVERHEAD, BodyRefused, ClientGone, read_body, replay
from cxr_ray.serving.keys import KeyRing
from cxr_ray.serving.metrics import Metrics
from cxr_ray.serving.schema import Refusal

logger = logging.getLogger(__name__)

OPEN_ROUTES = frozenset({"/healthz", "/readyz"})
_CHALLENGE = {"WWW-Authenticate": 'Basic realm="cxr-ray", Bearer realm="cxr-ray"'}
"""Basic first: Chromium reads no further than the first scheme, and would not ask for the key."""


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """What one request may cost.

    Args:
        body_bytes: Of all its images together.
        body_seconds: From the head of the request to the last byte of its body.
        pause_seconds: The longest wait for a part of the body.
        deadline_seconds: From its last byte to the answer.
        memory_bytes: Of the bodies that are read and held at once before they reach a replica, in one process.
    """

    body_bytes: int = 20 * 2**20
    body_seconds: float = 20.0
    pause_seconds: float = 10.0
    deadline_seconds: float = 10.0
    memory_bytes: int = 512 * 2**20


def refuse(request_id: str, status: int, reason: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """A refusal as JSON."""
    body = Refusal(reason=reason, message=message, request_id=request_id).model_dump()
    return JSONResponse(body, status_code=status, headers={**(headers or {}), "X-Request-ID": request_id})


def request_id_of(headers: Headers) -> str:
    """The request's id: the one a proxy gave it, if it has the form of ours (32 hex digits: nothing can be smuggled in), else a new one."""
    given = headers.get("x-request-id", "")
    return given if re.fullmatch("[0-9a-f]{32}", given) else uuid.uuid4().hex


def facts_of(scope: Scope) -> RequestFacts:
    """What the guard knows of the request, for routes to add to."""
    facts: RequestFacts = scope["state"]["facts"]
    return facts


class Guard:
    """ASGI middleware: nothing passes without a key, within bounds; every request is counted and audited; no fault of ours is told.

    Args:
        app: What is guarded.
        keys: Who may ask.
        limits: Bounds of a request.
        metrics: Counters.
        audit: Audit log.
    """

    def __init__(self, app: ASGIApp, *, keys: KeyRing, limits: EdgeLimits, metrics: Metrics, audit: AuditLog) -> None:
        self.app, self.keys, self.limits, self.metrics, self.audit = app, keys, limits, metrics, audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Guard one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        facts = RequestFacts(request_id_of(Headers(scope=scope)))
        scope.setdefault("state", {})["facts"] = facts
        answer = _Answer(send, facts.request_id)
        try:
            await self._guarded(scope, receive, answer, facts)
        except ClientGone:
            return
        except Exception as error:
            # Its text may hold what a client sent: the log gets its kind and where it was raised, the client neither.
            places = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(traceback.extract_tb(error.__traceback__)))
            logger.error("request %s: %s in %s", facts.request_id, type(error).__name__, places)
            if answer.status == 0:
                await refuse(facts.request_id, 500, "internal", "a fault of the service; its log has this request_id")(
                    scope, receive, answer
                )
        finally:
            facts.route = getattr(scope.get("route"), "path", facts.route)
            self._write_down(facts, answer.status, time.perf_counter() - start)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send, facts: RequestFacts) -> None:
        headers = Headers(scope=scope)
        if scope["path"] not in OPEN_ROUTES:
            await self.keys.refresh()
            record = self.keys.find(_key_in(headers))
            if record is None:
                await refuse(facts.request_id, 401, "no-key", "the API key is missing, wrong or expired", _CHALLENGE)(scope, receive, send)
                return
            facts.key_id = record.id
            wait = self.keys.wait(record) if scope["method"] == "POST" else 0.0  # what asks the model; a page is many files
            if wait:
                after = {"Retry-After": str(math.ceil(wait))}
                message = f"this key may ask {record.requests_per_minute} times a minute; see Retry-After"
                await refuse(facts.request_id, 429, "too-many-requests", message, after)(scope, receive, send)
                return
        try:
            most = self.limits.body_bytes + FORM_OVERHEAD
            body = await read_body(receive, headers, most_bytes=most, seconds=self.limits.body_seconds, pause=self.limits.pause_seconds)
        except BodyRefused as error:
            await refuse(facts.request_id, error.status, error.reason, error.message, error.headers)(scope, receive, send)
            return
        await self.app(scope, replay(body, receive), send)

    def _write_down(self, facts: RequestFacts, status: int, seconds: float) -> None:
        self.metrics.requests.labels(facts.route, str(status)).inc()
        self.metrics.latency.labels(facts.route).observe(seconds)
        for _, outcome in facts.inputs:
            self.metrics.images.labels(outcome).inc()
        if facts.route in OPEN_ROUTES:
            return
        failures = self.audit.failures
        self.audit.write(facts, status, 1000 * seconds)
        self.metrics.audit_failures.inc(self.audit.failures - failures)


def _key_in(headers: Headers) -> str:
    """The key a request came with: of ``Authorization`` (Bearer, or the password of Basic), else of ``X-API-Key``; or nothing."""
    scheme, _, rest = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return headers.get("x-api-key", "")


class _Answer:
    """Sends an answer with the headers that every one has, and remembers its status (0: none was sent)."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self._request_id, self.status = send, request_id, 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", []))
            there = {name.lower() for name, _ in headers}
            ours = {b"x-request-id": self._request_id.encode(), b"cache-control": b"no-store", b"x-content-type-options": b"nosniff"}
            message["headers"] = headers + [(name, value) for name, value in ours.items() if name not in there]
        await self._send(message)
