"""Request bodies: read whole into memory, counted and timed as they arrive, never onto a disk; and the images in them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.types import Message, Receive

from cxr_ray.errors import ImageError

IMAGE_TYPES = ("image/png", "image/jpeg", "application/dicom", "application/octet-stream")
MOST_IMAGES = 16
_MOST_FIELDS = 8
FORM_OVERHEAD = 16 * 1024
"""Bytes that a form may have beside its images."""
_HEAD_BYTES = 32 * 1024
_QUICK_BYTES = 1024 * 1024
"""A form up to this is parsed at once: a thread would take longer to start on it than to do it."""


class BodyRefused(Exception):
    """A body that is not read to its end.

    Args:
        status: HTTP status.
        reason: Stable code.
        message: For a person.
        headers: Of the answer.
    """

    def __init__(self, status: int, reason: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message
        self.headers = {**(headers or {}), "Connection": "close"}  # what is left of the body is not read


class ClientGone(Exception):
    """The client closed the connection before its body was complete; nobody is left to answer."""


class Memory:
    """What the bodies that one process holds may take together.

    Args:
        most_bytes: Beyond, a body is refused as ``busy``.
    """

    def __init__(self, most_bytes: int) -> None:
        self._free = most_bytes

    def take(self, count: int) -> None:
        """Hold ``count`` more bytes.

        Raises:
            BodyRefused: 429; nothing was taken.
        """
        if count > self._free:
            raise BodyRefused(429, "busy", "the service has more requests than it can hold; see Retry-After", {"Retry-After": "1"})
        self._free -= count

    def release(self, count: int) -> None:
        """Hold ``count`` fewer."""
        self._free += count


async def read_body(
    receive: Receive, headers: Headers, *, most_bytes: int, seconds: float, pause: float = 10.0, memory: Memory | None = None
) -> bytes:
    """The whole body of an ASGI request.

    Args:
        receive: Of the request.
        headers: Of the request; too many of them, or a ``Content-Length`` above the limit, are refused before a byte is read.
        most_bytes: Largest body.
        seconds: From now to the body's last byte.
        pause: The longest wait for a part of it.
        memory: What the body is taken from, for the caller to release once it is done with it.

    Raises:
        BodyRefused: 431 or 413 ``too-large``, 408 ``too-slow`` or 429 ``busy``.
        ClientGone: The client left.
    """
    if sum(len(name) + len(value) for name, value in headers.raw) > _HEAD_BYTES:
        raise BodyRefused(431, "too-large", "the head of the request is too large")
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()) or int(length) > most_bytes:
        raise _too_large(most_bytes)
    memory = memory or Memory(most_bytes)
    body = bytearray()
    clock = asyncio.get_running_loop().time
    end = clock() + seconds
    try:
        async with asyncio.timeout_at(end) as limit:
            while True:
                limit.reschedule(min(end, clock() + pause))
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part = message.get("body", b"")
                if len(body) + len(part) > most_bytes:
                    raise _too_large(most_bytes)
                memory.take(len(part))
                body += part
                if not message.get("more_body", False):
                    return bytes(body)
    except BaseException as error:
        memory.release(len(body))
        if isinstance(error, TimeoutError):
            raise BodyRefused(408, "too-slow", f"the body did not arrive within {seconds:g} s, or paused for {pause:g} s") from None
        raise


def _too_large(most_bytes: int) -> BodyRefused:
    return BodyRefused(413, "too-large", f"the body is larger than {(most_bytes - FORM_OVERHEAD) / 2**20:g} MiB")


def replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives ``body`` once, then what the connection says (that the client left)."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


class _Form:
    """The files of a multipart form, gathered by the parser's callbacks. Names of files are seen and forgotten."""

    def __init__(self, most_files: int) -> None:
        self.files: list[bytes] = []
        self.complete = False
        self._most_files, self._fields = most_files, 0
        self._name, self._value = bytearray(), bytearray()

    def on_part_begin(self) -> None:
        self._disposition, self._content, self._is_file = b"", bytearray(), False

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def on_headers_finished(self) -> None:
        self._is_file = b"filename" in parse_options_header(self._disposition)[1]
        self._fields += not self._is_file
        if self._is_file and len(self.files) == self._most_files:
            raise ImageError("too-many-files", f"the form holds more files than are taken: {self._most_files}")
        if self._fields > _MOST_FIELDS:
            raise ImageError("bad-form", f"the form holds more than {_MOST_FIELDS} fields beside files")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._content += data[start:end]

    def on_part_end(self) -> None:
        if self._is_file:
            self.files.append(bytes(self._content))

    def on_end(self) -> None:
        self.complete = True

    def callbacks(self) -> dict[str, Callable[..., None]]:
        """By the names that the parser calls them by."""
        return {name: getattr(self, name) for name in vars(type(self)) if name.startswith("on_")}


async def images_of(headers: Headers, body: bytes, *, most: int = MOST_IMAGES) -> list[bytes]:
    """The files of a multipart form in their order, whatever their fields are called, or the whole body as one image.

    Args:
        headers: Of the request.
        body: Of the request.
        most: Files that a form may hold.

    Raises:
        ImageError: ``unsupported``, ``bad-form``, ``too-many-files`` or ``no-file``.
    """
    kind, options = parse_options_header(headers.get("content-type", ""))
    if kind == b"multipart/form-data":
        boundary = options.get(b"boundary", b"")
        if len(body) <= _QUICK_BYTES:
            return _files_of(body, boundary, most)
        return await asyncio.to_thread(_files_of, body, boundary, most)
    if kind and kind.decode("latin-1") not in IMAGE_TYPES:
        raise ImageError("unsupported", f"send multipart/form-data with files, or a body of type {', '.join(IMAGE_TYPES)}")
    return [body]


def _files_of(body: bytes, boundary: bytes, most: int) -> list[bytes]:
    form = _Form(most)
    try:
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise ImageError("bad-form", "the multipart form is malformed") from None
    if not form.complete:
        raise ImageError("bad-form", "the multipart form ends before its last boundary")
    if not form.files:
        raise ImageError("no-file", "the form holds no file; send the image as the field 'image'")
    return form.files
