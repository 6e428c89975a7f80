"""A C-STORE SCP: takes chest X-rays from a modality or archive, asks the model, and hands the answers to :class:`Delivery`.

An image is answered while its sender waits, so that the status tells it the truth (PS3.4 B.2.3, PS3.7 C):

====== ===================================================================================================================
0x0000 the model has answered, and the answer is on its way
0xA700 out of resources: too many answers wait, or the model cannot be asked now; the same image may be sent again
0xA900 the data set is not of the SOP class or instance that the command says
0xC000 cannot understand: no identity, no readable picture, or refused by the input gate; the comment has the reason's code
0x0110 a fault of ours
====== ===================================================================================================================

DICOM's upper layer has no authentication: AE titles are names that anybody can say. So the listener is on loopback unless callers are
named, and belongs behind a firewall or TLS proxy. pynetdicom bounds neither the length of a PDU nor that of a message, nor the time
that one may take; ``wire`` does. Data sets stay in memory and are never parsed by pydicom.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final, Self

from pydantic import Field, field_validator, model_validator
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from cxr_ray.errors import ClusterError, CxrRayError, ImageError
from cxr_ray.imaging.dicom_header import EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE
from cxr_ray.imaging.frames import JPEG_2000, JPEG_FAMILY, RLE
from cxr_ray.serving.dicom.answer import Answer
from cxr_ray.serving.dicom.delivery import Delivery
from cxr_ray.serving.dicom.identity import IMAGE_CLASSES
from cxr_ray.serving.dicom.wire import MAX_PDU, BoundedServer, bound_messages, hush
from cxr_ray.settings import Settings

logger = logging.getLogger(__name__)

SYNTAXES: Final = [EXPLICIT_LITTLE, IMPLICIT_LITTLE, *sorted(JPEG_2000 | JPEG_FAMILY), RLE, EXPLICIT_BIG]
"""Transfer syntaxes that the decoder reads."""
_VERIFICATION: Final = "1.2.840.10008.1.1"
_BUSY, _MISMATCH, _CANNOT, _FAULT = 0xA700, 0xA900, 0xC000, 0x0110


class ListenSettings(Settings):
    """Where and for whom the listener listens."""

    host: str = "127.0.0.1"
    port: int = Field(default=11112, ge=0, le=65535)
    """0: any free one."""
    ae_title: str = Field(default="CXR_RAY", min_length=1, max_length=16)
    """Ours; callers must call it."""
    callers: tuple[str, ...] = ()
    """AE titles that may call. Empty: any, which only a loopback ``host`` may have."""
    max_associations: int = Field(default=4, ge=1)
    max_bytes: int = Field(default=20 * 2**20, ge=1)
    """Of one image."""
    timeout_s: float = Field(default=30.0, gt=0)
    """For each PDU, and between two."""

    @field_validator("ae_title", "callers")
    @classmethod
    def _printable(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for title in (value,) if isinstance(value, str) else value:
            if not 1 <= len(title.strip()) <= 16 or not (title.isascii() and title.isprintable()) or "\\" in title:
                raise ValueError(f"{title!r} is no AE title: 1 to 16 printable ASCII characters, no backslash")
        return value

    @model_validator(mode="after")
    def _known_callers(self) -> Self:
        if not self.callers and not _is_loopback(self.host):
            raise ValueError(f"host {self.host} lets others in, so the callers must be named: --caller AET, once for each")
        return self


@contextlib.contextmanager
def listening(answer: Callable[[bytes], Answer], delivery: Delivery, settings: ListenSettings) -> Iterator[int]:
    """Listen within a block; yields the port.

    Args:
        answer: DICOM file -> answer; called from as many threads as there are associations.
        delivery: Where answers are put.
        settings: Bounds.

    Raises:
        ClusterError: The port is taken.
    """
    server = _server(_Store(answer, delivery), settings)
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="dicom-listener", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        for association in server.active_associations:
            association.abort()
        thread.join()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _server(store: _Store, settings: ListenSettings) -> BoundedServer:
    hush()
    ae = AE(settings.ae_title)
    ae.require_called_aet, ae.require_calling_aet = True, list(settings.callers)
    ae.maximum_associations, ae.maximum_pdu_size = settings.max_associations, MAX_PDU
    ae.network_timeout = ae.acse_timeout = ae.dimse_timeout = settings.timeout_s
    ae.add_supported_context(_VERIFICATION)
    for sop_class in IMAGE_CLASSES:
        ae.add_supported_context(sop_class, SYNTAXES)
    handlers: list[Any] = [
        (evt.EVT_CONN_OPEN, lambda event: bound_messages(event.assoc, settings.max_bytes)),
        (evt.EVT_C_STORE, store),
        (evt.EVT_C_ECHO, lambda event: 0x0000),
    ]
    try:
        return BoundedServer(ae, (settings.host, settings.port), settings.ae_title, ae.supported_contexts, evt_handlers=handlers)
    except OSError as error:
        raise ClusterError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}", hint="--port another") from None


class _Store:
    """The handler of one C-STORE request."""

    def __init__(self, answer: Callable[[bytes], Answer], delivery: Delivery) -> None:
        self._answer, self._delivery = answer, delivery

    def __call__(self, event: evt.Event) -> Dataset:
        number = uuid.uuid4().hex[:12]
        if not self._delivery.reserve():
            return _said(number, _BUSY, "too-many-answers-wait")
        code, reason = _FAULT, "fault"
        try:
            answer = self._answer(event.encoded_dataset())
            request: Any = event.request
            if (request.AffectedSOPClassUID, request.AffectedSOPInstanceUID) == (answer.identity.sop_class, answer.identity.instance):
                self._delivery.put(number, answer.objects)
                return _said(number, 0x0000, "answered")
            code, reason = _MISMATCH, "not-what-the-command-says"
        except ImageError as error:
            code, reason = _CANNOT, error.reason
        except CxrRayError as error:
            code, reason = _BUSY, f"no-answer-now ({type(error).__name__})"
        except Exception as error:  # the text may hold patient data: the kind alone is logged
            logger.error("image %s: unexpected %s", number, type(error).__name__)
        self._delivery.release()
        return _said(number, code, reason)


def _said(number: str, code: int, reason: str) -> Dataset:
    """The status, with a line in the log; neither has anything of the patient."""
    logger.log(logging.WARNING if code else logging.INFO, "image %s: 0x%04X %s", number, code, reason)
    status = Dataset()
    status.Status = code
    if code:
        status.ErrorComment = reason[:64]
    return status
