"""Middleware of Ray Serve's HTTP servers, before a request takes a replica's place: bodies are complete, and kept until they are answered.

Ray Serve's proxy has no limit on heads and bodies, obeys headers of the client that lift its own time limit, and gives up a request
whose replica dies. Ray calls :func:`middlewares` where ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` names it, in the process of its
proxy and, behind HAProxy (``cxr_ray.front``), of each replica (``cxr_ray.cluster`` sets it for clusters started here;
``serve/README.md`` says where to set it on others). The guard of each replica holds the same limits on bodies without it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final, NamedTuple

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cxr_ray.serving import heads
from cxr_ray.serving.bodies import FORM_OVERHEAD, BodyRefused, ClientGone, Memory, read_body, replay
from cxr_ray.serving.guard import EdgeLimits, refuse, request_id_of

logger = logging.getLogger(__name__)

_RAYS_OWN: Final = frozenset(
    {b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"x-request-id", b"serve-multiplexed-model-id", b"x-session-id"}
)
"""Headers that would let a client steer Ray Serve, or write into its log."""
_ROUTES: Final = "/-/routes"
_REASONS: Final = {
    404: ("no-route", "there is no such route; /docs lists them"),
    408: ("unavailable", "no answer within the service's time limit; try again later"),
    429: ("busy", "the service has more requests than it can hold; see Retry-After"),
    503: ("unavailable", "no replica can answer now; try again later"),
}


_ASKED_AGAIN: Final = frozenset({500, 503})
"""What Ray answers for a replica that died, and while none is there."""
_PAUSES: Final = (0.05, 0.25, 1.0)
"""Seconds before a request is asked again."""


def middlewares() -> list[Middleware]:
    """What Ray Serve wraps its HTTP servers in, called before they start."""
    heads.use_everywhere()
    return [Middleware(ProxyGuard)]


class ProxyGuard:
    """ASGI middleware: strips what steers Ray, reads the body under limits, asks again where a replica died, and turns Ray's own errors
    into refusals.

    Args:
        app: Ray Serve's proxy; with HAProxy before the replicas, the HTTP server of a replica.
        limits: Bounds of a request.
    """

    def __init__(self, app: ASGIApp, limits: EdgeLimits | None = None) -> None:
        self.app, self.limits = app, limits or EdgeLimits()
        self._memory = Memory(self.limits.memory_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Guard one connection; other protocols than HTTP are closed."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        request_id = request_id_of(Headers(scope=scope))
        if scope["path"] == _ROUTES:
            await refuse(request_id, 404, *_REASONS[404])(scope, receive, send)
            return
        headers = [(name, value) for name, value in scope["headers"] if _plain(name) not in _RAYS_OWN]
        scope = {**scope, "headers": [*headers, (b"x-request-id", request_id.encode())]}
        try:
            body = await self._read(scope, receive)
        except BodyRefused as error:
            await refuse(request_id, error.status, error.reason, error.message, error.headers)(scope, receive, send)
            return
        except ClientGone:
            return
        try:
            await self._ask(scope, body, receive, send, request_id)
        finally:
            self._memory.release(len(body))

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        limits = self.limits
        return await read_body(
            receive,
            Headers(scope=scope),
            most_bytes=limits.body_bytes + FORM_OVERHEAD,
            seconds=limits.body_seconds,
            pause=limits.pause_seconds,
            memory=self._memory,
        )

    async def _ask(self, scope: Scope, body: bytes, receive: Receive, send: Send, request_id: str) -> None:
        """Ask Ray, again if it failed for want of a replica: answers depend on the request alone, so that asking twice does no harm."""
        end = time.monotonic() + self.limits.deadline_seconds
        for pause in (*_PAUSES, None):
            answer = _RaysAnswer(receive, send, request_id)
            try:
                await self.app({**scope, "headers": list(scope["headers"])}, replay(body, answer.receive), answer)
            except (Exception, asyncio.CancelledError) as error:  # Ray's replica raises the latter once it has said that it is late
                task = asyncio.current_task()
                if answer.failure is None or (task is not None and task.cancelling()):
                    raise
                logger.warning("request %s: Ray's own %s", request_id, type(error).__name__)
            if answer.failure is None or answer.gone:
                return
            ended = pause is None or time.monotonic() + pause > end
            if ended or not answer.again or scope["path"].startswith("/-/"):
                await refuse(request_id, *answer.failure)(scope, receive, send)
                return
            await asyncio.sleep(pause or 0.0)


class _Failure(NamedTuple):
    """An error of Ray's own, as arguments of :func:`refuse`."""

    status: int
    reason: str
    message: str
    headers: dict[str, str]


def _failure(status: int, headers: dict[str, str] | None = None) -> _Failure:
    reason, message = _REASONS.get(status, ("internal", "a fault of the service; its log has this request_id"))
    if status == 408:  # Ray's word for its own lateness
        status, headers = 503, {"Retry-After": "1"}
    return _Failure(status, reason, message, headers or {})


def _plain(name: bytes) -> bytes:
    return name.lower().replace(b"_", b"-")


class _RaysAnswer:
    """A ``send`` that lets a replica's answers pass, with one request id, and keeps Ray's own errors back.

    Attributes:
        failure: What to answer, as long as nothing has passed: Ray's error, or that there was none and no answer either.
        again: Whether another replica may do better.
        gone: Whether the client has left.
    """

    def __init__(self, receive: Receive, send: Send, request_id: str) -> None:
        self._receive, self._send, self._request_id = receive, send, request_id
        self._start: Message | None = None
        self.failure: _Failure | None = _failure(500)
        self.again = True
        self.gone = False

    async def receive(self) -> Message:
        """What the connection says after the body."""
        message = await self._receive()
        self.gone |= message["type"] == "http.disconnect"
        return message

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = Headers(raw=message.get("headers", []))
            if message["status"] >= 400 and "x-content-type-options" not in headers:  # the guard of a replica always sets it
                self.again = message["status"] in _ASKED_AGAIN
                self.failure = _failure(message["status"], {"Retry-After": headers["retry-after"]} if "retry-after" in headers else {})
                return
            rest = [(name, value) for name, value in headers.raw if name.lower() != b"x-request-id"]
            self._start = {**message, "headers": [*rest, (b"x-request-id", self._request_id.encode())]}
        elif self._start is not None:  # the first of a body: a replica may have died in between
            self.failure, start, self._start = None, self._start, None
            await self._send(start)
            await self._send(message)
        elif self.failure is None:
            await self._send(message)
