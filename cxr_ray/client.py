"""A client of the service, on the standard library: ``Client(url, key).predict("xray.png")``.

It waits and asks again where the service says it is busy (429, 503), as long as its own time limit allows.
"""

from __future__ import annotations

import http.client
import json
import math
import secrets
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from cxr_ray.errors import CxrRayError
from cxr_ray.serving.schema import Answer, Answers, Explanation, ExplanationMethod, IndexedRefusal, ModelInfo, ModelList, ModelSummary

Source = str | PathLike[str] | bytes
"""A file's path, or its content."""
GatePolicy = Literal["refuse", "flag"]
_BUSY = frozenset({429, 503})
M = TypeVar("M", bound=BaseModel)


class ServiceError(CxrRayError):
    """The service does not answer, or refuses.

    Args:
        reason: Stable code of the refusal; ``unreachable`` or ``not-a-service`` where there was none.
        status: HTTP status; 0: no answer.
        body: The refusal as it came.
    """

    def __init__(self, message: str, *, reason: str, status: int = 0, body: dict[str, Any] | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason, self.status, self.body = reason, status, body or {}


class Client:
    """Asks one service.

    Args:
        url: Of the service, such as ``http://127.0.0.1:8000``.
        key: An API key.
        timeout: Seconds for one call, waiting for a busy service included.
        model: Name of the model to ask (:meth:`models`). None: the one that the service is named for.

    Raises:
        ServiceError: The URL is none of HTTP.
    """

    def __init__(self, url: str, key: str, *, timeout: float = 60.0, model: str | None = None) -> None:
        if urllib.parse.urlsplit(url).scheme not in {"http", "https"}:
            raise ServiceError(f"{url!r} is no address of a service", reason="unreachable", hint="such as http://127.0.0.1:8000")
        self._url, self._key, self._timeout, self._model = url.rstrip("/"), key, timeout, model

    def predict(self, source: Source, *, gate: GatePolicy | None = None) -> Answer:
        """Classify one image.

        Args:
            source: A path or a content.
            gate: ``flag``: answer what the input gate refuses all the same. None: as the service is set.

        Raises:
            ServiceError: The service refuses the image, or does not answer.
        """
        return self._ask("/v1/predict", Answer, {"gate": gate}, content=_read(source))

    def predict_many(self, sources: Sequence[Source], *, gate: GatePolicy | None = None) -> list[Answer | IndexedRefusal]:
        """Classify 2 to 16 images in one request: an answer or a refusal each, in their order.

        Raises:
            ServiceError: The service refuses the request as a whole, or does not answer.
        """
        boundary = secrets.token_hex(16)
        content = _form([_read(source) for source in sources], boundary)
        kind = f"multipart/form-data; boundary={boundary}"
        return self._ask("/v1/predict", Answers, {"gate": gate}, content=content, kind=kind).answers

    def explain(self, source: Source, *, label: str | None = None, method: ExplanationMethod | None = None) -> Explanation:
        """Where the model looked in one image for ``label`` (None: the most probable one).

        Raises:
            ServiceError: As :meth:`predict`.
        """
        return self._ask("/v1/explain", Explanation, {"label": label, "method": method}, content=_read(source))

    def model(self) -> ModelInfo:
        """What is being served.

        Raises:
            ServiceError: As :meth:`predict`.
        """
        return self._ask("/v1/model", ModelInfo, {})

    def models(self) -> list[ModelSummary]:
        """The models of the service.

        Raises:
            ServiceError: As :meth:`predict`.
        """
        return self._ask("/v1/models", ModelList, {}).models

    def _ask(
        self,
        path: str,
        model: type[M],
        query: Mapping[str, str | None],
        *,
        content: bytes | None = None,
        kind: str = "application/octet-stream",
    ) -> M:
        given = urllib.parse.urlencode({name: value for name, value in {**query, "model": self._model}.items() if value is not None})
        url = f"{self._url}{path}" + (f"?{given}" if given else "")
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": kind}
        end = time.monotonic() + self._timeout
        while True:
            request = urllib.request.Request(url, data=content, headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=max(end - time.monotonic(), 0.1)) as response:
                    return _parsed(model, response.read(), self._url)
            except urllib.error.HTTPError as error:
                with error:
                    wait = _seconds(error.headers.get("Retry-After"))
                    if error.code not in _BUSY or time.monotonic() + wait > end:
                        raise _refusal(error.code, error.read()) from None
                time.sleep(wait)
            except (urllib.error.URLError, TimeoutError, http.client.HTTPException, ConnectionError) as error:
                cause = getattr(error, "reason", None) or type(error).__name__
                raise ServiceError(f"no service answers at {self._url}: {cause}", reason="unreachable") from None


def _seconds(retry_after: str | None) -> float:
    """How long to wait before asking again; a second where the service does not say."""
    try:
        value = float(retry_after or 1.0)
    except ValueError:
        return 1.0
    return value if math.isfinite(value) and value > 0 else 1.0


def _read(source: Source) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise ServiceError(f"{Path(source)} cannot be read: {error.strerror}", reason="unreadable") from None


def _form(contents: Sequence[bytes], boundary: str) -> bytes:
    """A multipart form; files get numbers for names, for theirs may be a patient's."""
    parts = []
    for number, content in enumerate(contents):
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{number}"\r\n\r\n'
        parts += [head.encode(), content, b"\r\n"]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()])


def _parsed(model: type[M], body: bytes, url: str) -> M:
    try:
        return model.model_validate_json(body)
    except ValidationError:
        raise ServiceError(f"what answers at {url} is no cxr_ray service of this version", reason="not-a-service") from None


def _refusal(status: int, body: bytes) -> ServiceError:
    try:
        told = json.loads(body)
        reason, message = str(told["reason"]), str(told["message"])
    except (ValueError, KeyError, TypeError):
        return ServiceError(f"refused with HTTP status {status}", reason="not-a-service", status=status)
    hint = "--key-file, or CXR_RAY_API_KEY" if status == 401 else None
    return ServiceError(f"{message} ({reason}, HTTP {status})", reason=reason, status=status, body=told, hint=hint)
