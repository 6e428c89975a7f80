"""Answers on their way to an archive: C-STORE from a bounded queue, again after a failure that may pass, dropped in the end.

Nothing is written to disk, for answers hold patient data: what cannot be delivered is dropped with a line in the log that names its number,
which the line of its image has too, and nothing of the patient. The archive or modality can send the image again.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from pydicom.dataset import Dataset
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, SecondaryCaptureImageStorage
from pynetdicom import AE
from pynetdicom.association import Association

from cxr_ray.errors import ConfigError
from cxr_ray.serving.dicom.identity import written_as
from cxr_ray.serving.dicom.wire import hush

logger = logging.getLogger(__name__)

_CLASSES: Final = (ComprehensiveSRStorage, SecondaryCaptureImageStorage)
_SYNTAXES: Final = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
_LONGEST_WAIT: Final = 60.0
_STORED: Final = frozenset({0x0000, 0xB000, 0xB006, 0xB007})
"""Success, and warnings that it was stored all the same (PS3.4 B.2.3)."""
_MAY_PASS: Final = range(0xA700, 0xA800)
"""Out of resources."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where answers go.

    Args:
        host: Name or address.
        port: TCP.
        ae_title: Of the archive.
    """

    host: str
    port: int
    ae_title: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``HOST:PORT/AET``.

        Raises:
            ConfigError: It is not so.
        """
        match = re.fullmatch(r"\[?([^\[\]/]+?)\]?:(\d{1,5})/([^\\/\s]{1,16})", text)
        if match is None or not 1 <= int(match[2]) <= 65535:
            raise ConfigError([f"{text!r} is not HOST:PORT/AET"], where="--answer-to", hint="such as 10.0.0.5:104/ARCHIVE")
        return cls(match[1], int(match[2]), match[3])


@dataclass(frozen=True, slots=True)
class _Parcel:
    number: str
    objects: tuple[Dataset, ...]


class Delivery:
    """A queue and the thread that empties it.

    Args:
        to: The archive.
        ae_title: Ours.
        room: Answers that may wait or be in work.
        tries: Before an answer is dropped.
        wait: Seconds before the second try; doubled before each further one, up to a minute.
        timeout: Seconds for each step of the archive's.
    """

    def __init__(self, to: Destination, *, ae_title: str, room: int = 32, tries: int = 6, wait: float = 2.0, timeout: float = 30.0) -> None:
        hush()
        self.to, self._tries, self._wait = to, tries, wait
        self._ae = AE(ae_title)
        self._ae.connection_timeout = self._ae.acse_timeout = self._ae.dimse_timeout = self._ae.network_timeout = timeout
        for sop_class in _CLASSES:
            self._ae.add_requested_context(sop_class, _SYNTAXES)
        self._room = threading.BoundedSemaphore(room)
        self._queue: queue.SimpleQueue[_Parcel | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="dicom-delivery", daemon=True)
        self._thread.start()

    def reserve(self) -> bool:
        """Take a place; False where all are taken. To be given back by :meth:`put` or :meth:`release`."""
        return self._room.acquire(blocking=False)

    def release(self) -> None:
        """Give back a place that nothing was put in."""
        self._room.release()

    def put(self, number: str, objects: Sequence[Dataset]) -> None:
        """Send ``objects`` from a place that was reserved; ``number`` stands in the log."""
        self._queue.put(_Parcel(number, tuple(objects)))

    def close(self, seconds: float = 10.0) -> None:
        """Try once what is left, for at most so long, and end."""
        self._stopping.set()
        self._queue.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            logger.warning("answers that were not delivered yet are dropped: the listener ends")

    def _work(self) -> None:
        for parcel in iter(self._queue.get, None):
            try:
                self._deliver(parcel)
            except Exception as error:  # one answer may cost itself, never the thread
                logger.error("answer %s is dropped: unexpected %s", parcel.number, type(error).__name__)
            self._room.release()

    def _deliver(self, parcel: _Parcel) -> None:
        left, start = list(parcel.objects), time.monotonic()
        for attempt in range(self._tries):
            reason = self._send(left)
            if not left:
                logger.info("answer %s delivered in %.1f s, try %d", parcel.number, time.monotonic() - start, attempt + 1)
                return
            if reason.startswith("refused") or attempt + 1 == self._tries:
                break
            if self._stopping.wait(min(self._wait * 2**attempt, _LONGEST_WAIT)):
                break
        logger.warning("answer %s is dropped after %d tries: %s", parcel.number, attempt + 1, reason)

    def _send(self, left: list[Dataset]) -> str:
        """Send in order and remove what was stored; why it went no further."""
        association = self._ae.associate(self.to.host, self.to.port, ae_title=self.to.ae_title)
        if not association.is_established:
            return "the archive is not reached, or takes no association"
        try:
            while left:
                reason = _store(association, left[0])
                if reason:
                    return reason
                del left[0]
        finally:
            association.release()
        return ""


def _store(association: Association, answer: Dataset) -> str:
    """Empty where it was stored; begins with ``refused`` where another try would fare no better."""
    accepted = [context for context in association.accepted_contexts if context.abstract_syntax == answer.SOPClassUID]
    if not accepted:
        return "refused: the archive does not take this kind of object"
    syntax = accepted[0].transfer_syntax[0]
    answer.file_meta.TransferSyntaxUID = syntax
    written_as(answer, syntax)
    status = association.send_c_store(answer).get("Status")
    if status in _STORED:
        return ""
    if status is None:
        return "the archive ended the connection or did not answer in time"
    return f"{'out of resources' if status in _MAY_PASS else 'refused'}: status 0x{status:04X}"
