"""Heads that come late or without end, against uvicorn itself."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest
import uvicorn

from cxr_ray.serving import heads

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """An application."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of a server started as Ray Serve starts it: the protocol is not named."""
    monkeypatch.setattr(heads, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(uvicorn.config, "HTTP_PROTOCOLS", dict(uvicorn.config.HTTP_PROTOCOLS))
    heads.use_everywhere()
    server = uvicorn.Server(uvicorn.Config(hello, port=0, lifespan="off", log_config=None))
    thread = Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


async def told(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """All that the server says until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(pause)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return answer


@pytest.mark.parametrize("start", [b"", b"GET / HT", REQUEST[:-2]])
def test_half_a_head_is_not_waited_for(port: int, start: bytes) -> None:
    begin = time.monotonic()
    assert asyncio.run(told(port, start)) == b""
    assert 0.2 < time.monotonic() - begin < 2


def test_nor_on_a_connection_that_is_kept(port: int) -> None:
    begin = time.monotonic()
    assert asyncio.run(told(port, REQUEST, b"GET / HT", pause=0.1)).count(b"200 OK") == 1
    assert time.monotonic() - begin < 2


def test_drops_of_a_head_do_not_help(port: int) -> None:
    begin = time.monotonic()
    with contextlib.suppress(ConnectionError):  # the last drops find it closed
        asyncio.run(told(port, b"GET / HTTP/1.1\r\n", *[b"a: b\r\n"] * 30, pause=0.1))
    assert time.monotonic() - begin < 2.5


def test_a_head_has_an_end(port: int) -> None:
    assert b" 400 " in asyncio.run(told(port, b"GET / HTTP/1.1\r\na: " + b"b" * (heads.HEAD_BYTES + 1)))


def test_an_answer_may_take_longer_than_a_head(port: int) -> None:
    assert asyncio.run(told(port, REQUEST, REQUEST, b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", pause=0.2)).count(b"200 OK") == 3


def test_an_answer_leaves_in_one_piece() -> None:
    """Head and body in one system call: a server that dies has sent all of it or nothing, and HAProxy asks another."""

    class Wire(asyncio.Transport):
        closed = False

        def __init__(self) -> None:
            super().__init__()
            self.sent: list[bytes] = []

        def write(self, data: Any) -> None:
            self.sent.append(bytes(data))

        def writelines(self, list_of_data: Any) -> None:
            self.sent.append(b"".join(list_of_data))

        def is_closing(self) -> bool:
            return self.closed

        def close(self) -> None:
            self.closed = True

    async def ask(request: bytes) -> tuple[list[bytes], bool]:
        config = uvicorn.Config(hello, log_config=None)
        config.load()
        protocol, wire = heads.TimedProtocol(config, uvicorn.server.ServerState(), {}), Wire()
        protocol.connection_made(wire)
        protocol.data_received(request)
        for _ in range(5):
            await asyncio.sleep(0)
        closed = wire.closed
        protocol.connection_lost(None)
        return [piece[:12] + piece[-2:] for piece in wire.sent], closed

    assert asyncio.run(ask(REQUEST)) == ([b"HTTP/1.1 200hi"], False)
    assert asyncio.run(ask(b"GET / HTTP/1.0\r\n\r\n")) == ([b"HTTP/1.1 200hi"], True)
