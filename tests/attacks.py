"""Hostile HTTP requests, as bytes on a socket: each must be refused with a 4xx. Plain functions without pytest."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import select
import socket
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import hostile

from cxr_ray.serving.audit import AuditLog
from cxr_ray.serving.edge import Face, build_api
from cxr_ray.serving.keys import KeyRecord, KeyRing
from cxr_ray.serving.schema import ModelInfo

_TYPE = "application/octet-stream"
_BOUNDARY = b"----boundary"
_WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Attack:
    """One request.

    Args:
        name: Kind and case, such as ``form: 1,001 files``.
        data: All that is sent.
        spoken: Whether an HTTP server can read it. If not, a bare status or a closed connection is answer enough; else a refusal in JSON.
    """

    name: str
    data: bytes
    spoken: bool = True


@dataclass(frozen=True)
class Reply:
    """What came back.

    Args:
        status: 0: the connection was closed without a word.
        headers: Of the answer.
        body: Of the answer.
        seconds: From the connection to the last byte.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    @property
    def refusal(self) -> dict[str, Any] | None:
        """The refusal in JSON; None: the body is none."""
        if not self.headers.get("content-type", "").startswith("application/json"):
            return None
        found = json.loads(self.body)
        return found if {"reason", "message", "request_id"} <= set(found) else None


def refused(attack: Attack, reply: Reply) -> bool:
    """Whether the reply is what the attack deserves."""
    if not attack.spoken:
        return reply.status == 0 or 400 <= reply.status < 500
    return 400 <= reply.status < 500 and reply.refusal is not None


def send(port: int, data: bytes) -> Reply:
    """Send bytes to 127.0.0.1 until they are gone or an answer comes; read the answer."""
    start = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=_WAIT_SECONDS) as client:
        left = memoryview(data)
        try:
            with contextlib.suppress(ConnectionError):  # what was answered before can still be read
                while left and not select.select([client], [], [], 0)[0]:
                    left = left[client.send(left[: 2**16]) :]
            answer = http.client.HTTPResponse(client)
            answer.begin()
            body = answer.read()
        except (ConnectionError, http.client.BadStatusLine):
            return Reply(0, {}, b"", time.perf_counter() - start)
    return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, body, time.perf_counter() - start)


def head(key: str, *lines: bytes, method: bytes = b"POST", path: bytes = b"/v1/predict") -> bytes:
    """A request's head with its blank line."""
    start = method + b" " + path + b" HTTP/1.1"
    return b"\r\n".join([start, b"Host: 127.0.0.1", b"X-API-Key: " + key.encode(), *lines, b"", b""])


def post(key: str, body: bytes, *lines: bytes, kind: str = _TYPE, path: bytes = b"/v1/predict") -> bytes:
    """A whole request with a body."""
    described = (b"Content-Type: " + kind.encode("latin-1"), b"Content-Length: %d" % len(body))
    return head(key, *described, *lines, path=path) + body


def part(disposition: bytes, content: bytes, *lines: bytes) -> bytes:
    """One part of a form."""
    described = b"\r\n".join([b"Content-Disposition: form-data; " + disposition, *lines])
    return b"--" + _BOUNDARY + b"\r\n" + described + b"\r\n\r\n" + content + b"\r\n"


def form(key: str, parts: Iterable[bytes], *, end: bytes = b"--" + _BOUNDARY + b"--\r\n") -> bytes:
    """A request with a form."""
    return post(key, b"".join(parts) + end, kind=f"multipart/form-data; boundary={_BOUNDARY.decode()}")


def attacks(key: str, model: str) -> list[Attack]:
    """All of them.

    Args:
        key: One that the service takes, so that nothing is refused for want of it.
        model: The name of its model.
    """
    return [*_of_files(key), *_of_forms(key), *_of_heads(key), *_of_lengths(key), *_of_tensors(key, model), *_of_noise(key)]


def closed_routes(model: bytes) -> list[str]:
    """Every path of the service but ``/healthz``, with something in place of its variables.

    Args:
        model: What ``GET /v1/model`` says, in JSON.
    """
    info = ModelInfo.model_validate_json(model)
    keys = KeyRing([KeyRecord(id="any", sha256="0" * 64)])
    api = build_api(Face(engine=cast(Any, None), info=info, keys=keys, audit=AuditLog(model_sha256=info.manifest_sha256)))
    paths = {cast(Any, route).path for route in api.routes} - {"/healthz"}
    return sorted(re.sub(r"{[^}]*}", "x", path) for path in paths)


def _of_files(key: str) -> list[Attack]:
    bad = {**hostile.hostile_files(), **hostile.cut_files()}
    whole = hostile.good_files()["grey.png"]
    return [
        *(Attack(f"file: {name}", post(key, data)) for name, data in bad.items()),
        Attack("file: gzip around a PNG", post(key, zlib.compress(whole, wbits=31), b"Content-Encoding: gzip")),
        Attack("file: HTML by its type", post(key, whole, kind="text/html")),
        Attack("file: a type in no encoding", post(key, whole, kind="image/\xff\xfe")),
    ]


def _of_forms(key: str) -> list[Attack]:
    text = hostile.hostile_files()["text.png"]
    climbing = b'name="image"; filename="../../../../etc/passwd"'
    whole = part(b'name="image"; filename="x.png"', hostile.good_files()["grey.png"])
    return [
        Attack("form: 1,001 files", form(key, [part(b'name="image"; filename="x.png"', text)] * 1001)),
        Attack("form: 1,001 fields", form(key, [part(b'name="note"', b"x")] * 1001)),
        Attack("form: a name that climbs", form(key, [part(climbing, text)])),
        Attack("form: a name of 1 MB", form(key, [part(b'name="image"; filename="' + b"x" * 10**6 + b'"', text)])),
        Attack("form: a name in no encoding", form(key, [part(b'name="\xff\xfe"; filename="\xc3\x28.png"', text)])),
        Attack("form: a part with 10,000 headers", form(key, [part(b'name="image"; filename="x"', text, *[b"X-A: b"] * 10_000)])),
        Attack("form: without its end", form(key, [whole], end=b"")),
        Attack("form: empty", form(key, [])),
        Attack("form: without a boundary", post(key, whole, kind="multipart/form-data")),
        Attack("form: another boundary", post(key, whole, kind="multipart/form-data; boundary=other")),
        Attack("form: a boundary of 10 KB", post(key, whole, kind=f"multipart/form-data; boundary={'x' * 10_000}")),
    ]


def _of_heads(key: str) -> list[Attack]:
    return [
        Attack("head: 40 KB in one header", head(key, b"X-Padding: " + b"x" * 40_000, b"Content-Length: 0")),
        Attack("head: 3,000 headers", head(key, *[b"X-Padding: x"] * 3000, b"Content-Length: 0"), spoken=False),
        Attack("head: 100 KB in one header", head(key, b"X-Padding: " + b"x" * 100_000, b"Content-Length: 0"), spoken=False),
        Attack("head: 10,000 headers", head(key, *[b"X-Padding: x"] * 10_000, b"Content-Length: 0"), spoken=False),
        Attack("head: a query of 100 KB", post(key, b"", path=b"/v1/predict?x=" + b"x" * 100_000), spoken=False),
        Attack("head: a header in no encoding", post(key, b"", b"X-Name: \xff\xfe\xc3\x28")),
        Attack("head: a key in no encoding", head("\u00ff\u00fe", method=b"GET", path=b"/v1/model")),
        Attack("head: a path in no encoding", head(key, method=b"GET", path=b"/v1/%ff%fe%00")),
        Attack("head: raw bytes in the path", head(key, method=b"GET", path=b"/v1/\xff\xfe"), spoken=False),
        Attack("head: a path that climbs", head(key, method=b"GET", path=b"/docs/../../../../etc/passwd")),
        Attack("head: a sample's path that climbs", head(key, method=b"GET", path=b"/v1/samples/..%2f..%2f..%2fetc%2fpasswd")),
        Attack("head: Ray's own routes", head(key, method=b"GET", path=b"/-/routes")),
        *(
            Attack(f"method: {name}", head(key, method=name.encode()))
            for name in ("DELETE", "PUT", "PATCH", "PROPFIND", "TRACE", "OPTIONS")
        ),
        Attack("method: unheard of", head(key, method=b"BREW"), spoken=False),
        Attack("method: CONNECT", head(key, method=b"CONNECT", path=b"example.com:443"), spoken=False),
        Attack("head: an upgrade", head(key, b"Connection: upgrade", b"Upgrade: websocket", method=b"GET"), spoken=False),
    ]


def _of_lengths(key: str) -> list[Attack]:
    kind, large = f"Content-Type: {_TYPE}".encode(), bytes(21 * 10**6)
    chunks = b"".join(b"%x\r\n" % len(large[at : at + 2**20]) + large[at : at + 2**20] + b"\r\n" for at in range(0, len(large), 2**20))
    return [
        Attack("body: none, and no length", head(key, kind)),
        Attack("body: 21 MB", post(key, large)),
        Attack("body: 21 MB in chunks", head(key, kind, b"Transfer-Encoding: chunked") + chunks + b"0\r\n\r\n"),
        Attack("body: 1 TB announced", head(key, kind, b"Content-Length: 1000000000000")),
        Attack("length: two that differ", head(key, kind, b"Content-Length: 4", b"Content-Length: 5") + b"abcde", spoken=False),
        Attack("length: negative", head(key, kind, b"Content-Length: -1"), spoken=False),
        Attack("length: a word", head(key, kind, b"Content-Length: many"), spoken=False),
        Attack("length: 30 digits", head(key, kind, b"Content-Length: " + b"9" * 30), spoken=False),
        Attack("length: and chunks", head(key, kind, b"Content-Length: 4", b"Transfer-Encoding: chunked") + b"0\r\n\r\n", spoken=False),
        Attack("chunk: no number", head(key, kind, b"Transfer-Encoding: chunked") + b"zz\r\nabc\r\n", spoken=False),
        Attack("chunk: longer than it says", head(key, kind, b"Transfer-Encoding: chunked") + b"1\r\nabc\r\n0\r\n\r\n", spoken=False),
        Attack("coding: unheard of", head(key, kind, b"Transfer-Encoding: rot13"), spoken=False),
    ]


def _of_tensors(key: str, model: str) -> list[Attack]:
    def asked(body: bytes, *lines: bytes) -> bytes:
        return post(key, body, *lines, kind="application/json", path=f"/v2/models/{model}/infer".encode())

    def tensor(shape: object, datatype: str, data: bytes) -> bytes:
        described = json.dumps({"name": "image", "shape": shape, "datatype": datatype}).encode()
        return b'{"inputs": [' + described[:-1] + b', "data": ' + data + b"}]}"

    return [
        Attack("tensor: no JSON", asked(b"\xff\xfe{")),
        Attack("tensor: 1,000,000 brackets", asked(tensor([1, 32, 32], "UINT8", b"[" * 10**6))),
        Attack("tensor: nested 100 deep", asked(tensor([1, 32, 32], "UINT8", b"[" * 100 + b"]" * 100))),
        Attack("tensor: a shape beyond memory", asked(tensor([1, 2**40, 2**40], "UINT8", b"[1]"))),
        Attack("tensor: a negative shape", asked(tensor([-1, -32, 32], "UINT8", b"[1]"))),
        Attack("tensor: numbers without end", asked(tensor([1, 32, 32], "UINT8", b"[1e999]"))),
        Attack("tensor: 4,000,000 numbers", asked(tensor([1, 32, 32], "UINT8", b"[" + b"1," * 4_000_000 + b"1]"))),
        Attack("tensor: text in base64", asked(tensor([1], "BYTES", b'["cGF0aWVudA=="]'))),
        Attack("tensor: binary of another length", asked(tensor([1], "BYTES", b"null") + bytes(9), b"Inference-Header-Content-Length: 70")),
        Attack("tensor: a header beyond the body", asked(b"{}", b"Inference-Header-Content-Length: 999999999999999999999")),
    ]


def _of_noise(key: str) -> list[Attack]:
    return [
        Attack("noise: after a whole request", head("no-key", method=b"GET", path=b"/v1/model") + b"\0\xff" * 1000, spoken=False),
        Attack("noise: alone", b"\0\xff" * 1000 + b"\r\n\r\n", spoken=False),
        Attack("noise: a TLS greeting", bytes.fromhex("16030100c8010000c40303") + bytes(200) + b"\r\n\r\n", spoken=False),
        Attack("noise: HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), spoken=False),
        Attack("noise: HTTP/9.9", head(key, method=b"GET").replace(b"HTTP/1.1", b"HTTP/9.9"), spoken=False),
    ]
