"""Heads: a request's comes in time and of some size, or its connection is closed; an answer's leaves together with its body.

Uvicorn, which Ray Serve runs, has neither limit, and writes an answer in two pieces: a replica that dies between them has answered, so
that HAProxy (``cxr_ray.front``) does not ask another, and the client is left with a head.
"""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from typing import Any, Final, cast

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS: Final = 5.0
"""From the connection, or from a head's first byte on a connection that is kept, to its end."""
HEAD_BYTES: Final = 64 * 1024


class _Together:
    """A transport that sends in one piece what is written in one turn of the loop."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Keep it until the turn ends."""
        if not self._held:
            self._loop.call_soon(self._send)
        self._held.append(data)

    def close(self) -> None:
        """Send what is kept, then close."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        held, self._held = self._held, []
        if held and not self._transport.is_closing():
            self._transport.writelines(held)


class TimedProtocol(HttpToolsProtocol):
    """HTTP/1.1 as uvicorn speaks it, with limits on heads, and whole answers."""

    _clock: TimerHandle | None = None
    _bytes: int = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first head is awaited from here."""
        super().connection_made(cast(asyncio.Transport, _Together(transport, self.loop)))
        self._begin()

    def data_received(self, data: bytes) -> None:
        """What is still a head after this may not be too large."""
        super().data_received(data)
        self._bytes += len(data)
        if self._clock is not None and self._bytes > HEAD_BYTES:
            self._end()
            self.send_400_response("The head of the request is too large.")

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._begin()

    def on_headers_complete(self) -> None:
        """It has ended."""
        self._end()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more will come."""
        self._end()
        super().connection_lost(exc)

    def _begin(self) -> None:
        if self._clock is None:
            self._bytes = 0
            self._clock = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _end(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None


def use_everywhere() -> None:
    """Make it the protocol of servers that this process starts from now on and that name none."""
    protocols: dict[str, Any] = uvicorn.config.HTTP_PROTOCOLS
    protocols["auto"] = f"{TimedProtocol.__module__}:{TimedProtocol.__name__}"
