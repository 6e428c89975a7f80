"""Middleware of Ray Serve's HTTP proxy, which stands before the replicas: bodies are complete before they take a replica's place.

Ray Serve's proxy has no limit on bodies and obeys headers of the client that lift its own time limit. Ray calls :func:`middlewares`
where ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` names it, in the proxy's process (``cxr_ray.cluster`` sets it for clusters
started here; ``serve/README.md`` says where to set it on others). The guard of each replica holds the same limits without it.
"""

from __future__ import annotations

from typing import Final

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cxr_ray.serving.bodies import FORM_OVERHEAD, BodyRefused, ClientGone, read_body, replay
from cxr_ray.serving.guard import EdgeLimits, refuse, request_id_of

_RAYS_OWN: Final = frozenset(
    {b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"x-request-id", b"serve-multiplexed-model-id", b"x-session-id"}
)
"""Headers that would let a client steer Ray Serve, or write into its log."""
_ROUTES: Final = "/-/routes"
_REASONS: Final = {
    404: ("no-route", "there is no such route; /docs lists them"),
    408: ("deadline", "no answer within the service's time limit; try again later"),
    429: ("busy", "the service has more requests than it can hold; see Retry-After"),
    503: ("unavailable", "no replica can answer now; try again later"),
}


def middlewares() -> list[Middleware]:
    """What Ray Serve wraps its proxy in."""
    return [Middleware(ProxyGuard)]


class ProxyGuard:
    """ASGI middleware: strips what steers Ray, reads the body under limits, and turns Ray's own plain-text errors into refusals.

    Args:
        app: Ray Serve's proxy.
        limits: Bounds of a request.
    """

    def __init__(self, app: ASGIApp, limits: EdgeLimits | None = None) -> None:
        self.app, self.limits = app, limits or EdgeLimits()

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
        scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if _plain(name) not in _RAYS_OWN]}
        scope["headers"].append((b"x-request-id", request_id.encode()))
        try:
            most = self.limits.body_bytes + FORM_OVERHEAD
            body = await read_body(receive, Headers(scope=scope), most_bytes=most, seconds=self.limits.body_seconds)
        except BodyRefused as error:
            await refuse(request_id, error.status, error.reason, error.message, {"Connection": "close"})(scope, receive, send)
            return
        except ClientGone:
            return
        await self.app(scope, replay(body, receive), _Translated(scope, receive, send, request_id))


def _plain(name: bytes) -> bytes:
    return name.lower().replace(b"_", b"-")


class _Translated:
    """A ``send`` that lets a replica's answers pass, with one request id, and puts a refusal in place of Ray's own errors."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self._scope, self._receive, self._send, self._request_id = scope, receive, send, request_id
        self._replaced = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = Headers(raw=message.get("headers", []))
            if message["status"] >= 400 and "x-content-type-options" not in headers:  # the guard of a replica always sets it
                self._replaced = True
                status = message["status"]
                reason, text = _REASONS.get(status, ("internal", "a fault of the service; its log has this request_id"))
                after = {"Retry-After": headers["retry-after"]} if "retry-after" in headers else None
                await refuse(self._request_id, status, reason, text, after)(self._scope, self._receive, self._send)
            rest = [(name, value) for name, value in headers.raw if name.lower() != b"x-request-id"]
            message = {**message, "headers": [*rest, (b"x-request-id", self._request_id.encode())]}
        if not self._replaced:
            await self._send(message)
