"""Two versions behind one face: ASGI middleware that shows some requests to a rollout's candidate as well, or to it alone. No Ray.

It stands inside the guard: what a candidate is shown has a key, a place and a whole body. Whatever goes wrong with the candidate, the
current version answers; a client only ever waits longer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cxr_ray.serving.audit import RequestFacts
from cxr_ray.serving.bodies import replay
from cxr_ray.serving.guard import facts_of
from cxr_ray.serving.rollout import Rollout
from cxr_ray.serving.traffic import Forwarded, Reply, Traffic

logger = logging.getLogger(__name__)

_HEADERS: Final = frozenset({b"accept", b"content-type", b"inference-header-content-length"})
"""What a candidate is told of a request's head: never a key."""


async def answered(app: ASGIApp, request: Forwarded) -> Reply:
    """What ``app`` (routes without a guard) answers; 500 where it raises."""
    facts = RequestFacts(request.request_id)
    scope: dict[str, Any] = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http"}
    scope |= {"path": request.path, "raw_path": request.path.encode(), "query_string": request.query, "root_path": ""}
    scope |= {"headers": list(request.headers), "client": None, "server": None, "state": {"facts": facts}}
    answer = _Kept(_nowhere)
    try:
        await app(scope, replay(request.body, _silence), answer)
    except Exception as error:  # its text may hold what a client sent
        logger.error("request %s, of another version's replica: %s", request.request_id, type(error).__name__)
        return Reply(500, (), b"", _route(scope), tuple(facts.inputs))
    return Reply(answer.status, answer.headers, bytes(answer.body), _route(scope), tuple(facts.inputs))


class Versions:
    """The middleware; every answer says which version it is of, as ``X-Model-Version``.

    Args:
        app: The current version's routes.
        traffic: Who decides.
    """

    def __init__(self, app: ASGIApp, *, traffic: Traffic) -> None:
        self.app, self.traffic = app, traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        facts = facts_of(scope)
        send = _signed(send, facts, self.traffic.info.version)
        rollout = self.traffic.concerns(scope)
        if rollout is None:
            await self.app(scope, receive, send)
            return
        body = (await receive())["body"]  # the guard hands it over whole
        headers = tuple((name, value) for name, value in scope["headers"] if name in _HEADERS)
        request = Forwarded(scope["path"], scope["query_string"], headers, body, facts.request_id)
        picked = rollout.picks(facts.request_id)
        if picked and rollout.mode == "canary" and (reply := await self.traffic.forward(rollout, request)) is not None:
            await _pass_on(reply, rollout, facts, send)
            return
        start, answer = time.monotonic(), _Kept(send)
        await self.app(scope, replay(body, receive), answer)
        if answer.status < 500:
            self.traffic.answered_here(time.monotonic() - start)
            if picked and rollout.mode == "shadow":
                self.traffic.show(rollout, request, bytes(answer.body))


async def _pass_on(reply: Reply, rollout: Rollout, facts: RequestFacts, send: Send) -> None:
    facts.route, facts.inputs = reply.route, list(reply.inputs)
    facts.model_version, facts.model_sha256 = rollout.candidate.version, rollout.candidate.manifest_sha256
    await send({"type": "http.response.start", "status": reply.status, "headers": list(reply.headers)})
    await send({"type": "http.response.body", "body": reply.body})


def _signed(send: Send, facts: RequestFacts, version: str) -> Send:
    async def signed(message: Message) -> None:
        if message["type"] == "http.response.start":
            signature = (b"x-model-version", (facts.model_version or version).encode())
            message = {**message, "headers": [*message.get("headers", []), signature]}
        await send(message)

    return signed


class _Kept:
    """A ``send`` that remembers what it passes on."""

    def __init__(self, send: Send) -> None:
        self._send, self.status, self.body = send, 0, bytearray()
        self.headers: tuple[tuple[bytes, bytes], ...] = ()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], tuple(message.get("headers", []))
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")
        await self._send(message)


def _route(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path", "none"))


async def _nowhere(message: Message) -> None:
    """A ``send`` to nobody."""


async def _silence() -> Message:
    """A ``receive`` of a client that waits."""
    return await asyncio.Future()
