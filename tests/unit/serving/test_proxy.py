"""What stands before Ray's proxy, around a stand-in for it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from cxr_ray.cluster import RAY_ENVIRONMENT
from cxr_ray.serving import proxy as proxy_module
from cxr_ray.serving.bodies import BodyRefused, Memory
from cxr_ray.serving.guard import EdgeLimits
from cxr_ray.serving.proxy import ProxyGuard, middlewares

Message = dict[str, Any]


class RayProxy:
    """Answers as told, after ``failures`` errors of Ray's own, and remembers what reached it."""

    def __init__(
        self,
        status: int = 200,
        headers: list[tuple[bytes, bytes]] | None = None,
        body: bytes = b"{}",
        *,
        failures: int = 0,
        failure: int = 500,
    ) -> None:
        self.status, self.headers, self.body, self.failures, self.failure = status, headers or [], body, failures, failure
        self.scope: Message | None = None
        self.messages: list[Message] = []

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        self.scope = scope
        self.messages.append(await receive())
        if len(self.messages) <= self.failures:
            await send({"type": "http.response.start", "status": self.failure, "headers": []})
            await send({"type": "http.response.body", "body": b"ActorDiedError"})
            return
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})


def ask(
    proxy: RayProxy, *parts: bytes, headers: dict[str, str] | None = None, path: str = "/v1/predict", ends: bool = True
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to a request whose body arrives in ``parts``; where it does not end, nothing more comes."""
    sent: list[Message] = []
    queue = [{"type": "http.request", "body": part, "more_body": not ends or number < len(parts)} for number, part in enumerate(parts, 1)]

    async def receive() -> Message:
        if not queue:
            await asyncio.sleep(60)
        return queue.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": [(k.encode(), v.encode()) for k, v in (headers or {}).items()]}
    guard = ProxyGuard(proxy, EdgeLimits(body_bytes=1000, body_seconds=0.2))  # type: ignore[arg-type]
    asyncio.run(guard(scope, receive, send))
    told = [(name.decode(), value.decode()) for name, value in sent[0]["headers"]]
    assert len(dict(told)) == len(told), "a header twice"
    return sent[0]["status"], dict(told), b"".join(message.get("body", b"") for message in sent[1:])


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_module, "_PAUSES", (0.0, 0.0, 0.0))


OURS = [(b"content-type", b"application/json"), (b"x-content-type-options", b"nosniff")]


def test_ray_is_told_to_use_it() -> None:
    module, _, name = RAY_ENVIRONMENT["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].partition(":")
    assert (module, name) == (middlewares.__module__, middlewares.__name__)
    assert [middleware.cls for middleware in middlewares()] == [ProxyGuard]


def test_a_body_reaches_ray_whole() -> None:
    proxy = RayProxy(headers=OURS)
    assert ask(proxy, b"one ", b"two")[0] == 200
    assert proxy.messages == [{"type": "http.request", "body": b"one two", "more_body": False}]


@pytest.mark.parametrize(
    "header",
    [
        "X-Request-Timeout-Seconds",
        "x-request-disconnect-disabled",
        "serve_multiplexed_model_id",
        "Serve-Multiplexed-Model-Id",
        "X-Session-Id",
    ],
)
def test_clients_do_not_steer_ray(header: str) -> None:
    proxy = RayProxy(headers=OURS)
    ask(proxy, b"", headers={header: "?1", "accept": "*/*"})
    assert proxy.scope is not None
    names = {name.lower() for name, _ in proxy.scope["headers"]}
    assert names == {b"accept", b"x-request-id"}


def test_a_name_does_not_become_a_request_id() -> None:
    proxy = RayProxy(headers=OURS)
    _, headers, _ = ask(proxy, b"", headers={"X-Request-ID": "DOE^JANE"})
    assert proxy.scope is not None
    given = dict(proxy.scope["headers"])[b"x-request-id"].decode()
    assert headers["x-request-id"] == given
    assert given.isalnum()
    assert len(given) == 32


@pytest.mark.parametrize(
    ("parts", "headers", "ends", "status", "reason"),
    [
        ([b"x" * 9000] * 2, {}, True, 413, "too-large"),
        ([b""], {"content-length": "999999999"}, True, 413, "too-large"),
        ([b"x"], {}, False, 408, "too-slow"),
        ([], {}, False, 408, "too-slow"),
    ],
)
def test_what_is_too_large_or_too_slow_never_reaches_ray(
    parts: list[bytes], headers: dict[str, str], ends: bool, status: int, reason: str
) -> None:
    proxy = RayProxy()
    found, told, body = ask(proxy, *parts, headers=headers, ends=ends)
    assert (found, json.loads(body)["reason"]) == (status, reason)
    assert told["connection"] == "close"
    assert proxy.scope is None


@pytest.mark.parametrize(
    ("status", "reason"), [(404, "no-route"), (429, "busy"), (500, "internal"), (503, "unavailable"), (504, "internal")]
)
def test_rays_own_errors_become_refusals(status: int, reason: str) -> None:
    proxy = RayProxy(status, [(b"content-type", b"text/plain"), (b"retry-after", b"1")], b"Traceback: DOE^JANE")
    found, headers, body = ask(proxy, b"")
    assert (found, json.loads(body)["reason"]) == (status, reason)
    assert headers["retry-after"] == "1"
    assert b"DOE" not in body
    assert json.loads(body)["request_id"] == headers["x-request-id"]


def test_a_replicas_refusal_passes_as_it_is() -> None:
    found, _, body = ask(RayProxy(422, OURS, b'{"reason": "truncated"}'), b"")
    assert (found, body) == (422, b'{"reason": "truncated"}')


def test_what_ray_serves_is_not_told() -> None:
    proxy = RayProxy()
    assert ask(proxy, b"", path="/-/routes")[0] == 404
    assert proxy.scope is None


@pytest.mark.parametrize("failure", [500, 503])
def test_a_dead_replica_costs_nobody_an_answer(failure: int) -> None:
    """The body is kept, and goes to the next replica whole."""
    proxy = RayProxy(headers=OURS, failures=2, failure=failure)
    status, headers, body = ask(proxy, b"one ", b"two")
    assert (status, body) == (200, b"{}")
    assert [message["body"] for message in proxy.messages] == [b"one two"] * 3
    assert headers["x-request-id"].isalnum()


@pytest.mark.parametrize(
    ("failure", "path", "asked"), [(500, "/v1/predict", 4), (408, "/v1/predict", 1), (429, "/v1/predict", 1), (503, "/-/healthz", 1)]
)
def test_asking_again_has_an_end(failure: int, path: str, asked: int) -> None:
    proxy = RayProxy(failures=9, failure=failure)
    status, _, body = ask(proxy, b"x", path=path)
    assert (status, len(proxy.messages)) == (503 if failure == 408 else failure, asked)  # late is not the client's fault
    assert b"ActorDied" not in body


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("messages", [[], [{"type": "http.response.start", "status": 200, "headers": OURS}]], ids=["nothing", "half"])
def test_no_answer_is_asked_again(messages: list[Message], raises: bool) -> None:
    """Ray's proxy may end without a word, or after the start of an answer whose replica died."""
    proxy = RayProxy(headers=OURS)

    async def silent_at_first(scope: Message, receive: Any, send: Any) -> None:
        if not proxy.messages:
            proxy.messages.append(await receive())
            for message in messages:
                await send(message)
            if raises:
                raise RuntimeError
            return
        await proxy(scope, receive, send)

    assert ask(silent_at_first, b"x")[::2] == (200, b"{}")  # type: ignore[arg-type]
    assert len(proxy.messages) == 2


def test_a_replica_that_is_late_says_so_and_is_not_asked_again() -> None:
    """With HAProxy, Ray's replica sends its 408 and then raises as if it had been cancelled."""
    asked = []

    async def late(scope: Message, receive: Any, send: Any) -> None:
        asked.append(await receive())
        await send({"type": "http.response.start", "status": 408, "headers": []})
        await send({"type": "http.response.body", "body": b"Request timed out"})
        raise asyncio.CancelledError

    status, headers, body = ask(late, b"x")  # type: ignore[arg-type]
    assert (status, headers["retry-after"], json.loads(body)["reason"], len(asked)) == (503, "1", "unavailable", 1)


def test_nobody_is_asked_for_a_client_that_left() -> None:
    asked = []

    async def disconnected(scope: Message, receive: Any, send: Any) -> None:
        asked.append(await receive())
        assert (await receive())["type"] == "http.disconnect"

    queue = [{"type": "http.request", "body": b"x", "more_body": False}, {"type": "http.disconnect"}]

    async def receive() -> Message:
        return queue.pop(0)

    async def send(message: Message) -> None:
        raise AssertionError(message)

    asyncio.run(ProxyGuard(disconnected)({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send))
    assert len(asked) == 1


def test_a_replicas_own_fault_is_not_asked_again() -> None:
    proxy = RayProxy(500, OURS, b"{}")
    assert ask(proxy, b"x")[0] == 500
    assert len(proxy.messages) == 1


def test_bodies_together_have_a_limit() -> None:
    memory = Memory(10)
    memory.take(8)
    with pytest.raises(BodyRefused) as refused:
        memory.take(3)
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "1")
    memory.release(8)
    memory.take(10)


@pytest.mark.parametrize("failures", [0, 99])
def test_what_a_body_took_is_given_back(failures: int) -> None:
    proxy = RayProxy(headers=OURS, failures=failures)
    guard = ProxyGuard(proxy, EdgeLimits(memory_bytes=100))  # type: ignore[arg-type]

    async def receive() -> Message:
        return {"type": "http.request", "body": b"x" * 80, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    sent: list[Message] = []
    for _ in range(3):
        asyncio.run(guard({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send))
    assert [message["status"] for message in sent if "status" in message] == [500 if failures else 200] * 3
