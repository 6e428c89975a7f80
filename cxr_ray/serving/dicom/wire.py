"""Bounds of what a peer may send, which pynetdicom does not set: length and duration of a PDU, length of a message, connections; and of
what pynetdicom may log."""

from __future__ import annotations

import logging
import socket
import time
from socketserver import BaseServer
from typing import Final

from pynetdicom import _config
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import ThreadedAssociationServer

logger = logging.getLogger(__name__)

MAX_PDU: Final = 2**16
"""Bytes of a P-DATA-TF PDU that we ask for; association requests with many contexts are shorter."""
_HEADER: Final = 6
_MAX_COMMAND: Final = 2**14
"""Bytes of a command set: a few UIDs and AE titles. pynetdicom parses it by pydicom."""
_COMMAND_BIT: Final = 1
_LAST_BIT: Final = 2


def hush() -> None:
    """Keep pynetdicom from logging: its lines have UIDs, and the text of exceptions that may have more."""
    _config.LOG_HANDLER_LEVEL = "none"
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)


class BoundedServer(ThreadedAssociationServer):
    """A server whose connections are bounded."""

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """Accept one connection.

        Raises:
            OSError: There are twice as many as associations are allowed; it was closed.
        """
        client, address = super().get_request()
        if len(self.active_associations) >= 2 * self.ae.maximum_associations:  # those above the limit are told so by pynetdicom
            client.close()
            raise OSError("too many connections")
        return BoundedSocket(client, longest=2 * MAX_PDU, seconds=self.ae.network_timeout or 30.0), address

    def shutdown(self) -> None:
        """End :meth:`serve_forever` and close."""
        BaseServer.shutdown(self)
        self.server_close()


class BoundedSocket(socket.socket):
    """A connection on which a PDU that is too long, or takes too long, ends it.

    Relies on how pynetdicom reads: the six bytes of a PDU's header (PS3.8 9.3.1), then as many as the header says.

    Args:
        client: The connection; it is taken over.
        longest: Bytes of a PDU behind its header.
        seconds: For a whole PDU, from its first byte on.
    """

    def __init__(self, client: socket.socket, *, longest: int, seconds: float) -> None:
        super().__init__(fileno=client.detach())
        self._longest, self._seconds = longest, seconds
        self._header, self._left, self._due = b"", 0, 0.0
        self.settimeout(seconds)

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """As of a socket.

        Raises:
            TimeoutError: The PDU is not complete in time.
            ConnectionAbortedError: It is too long.
        """
        now = time.monotonic()
        if not self._left and not self._header:
            self._due = now + self._seconds
        if now >= self._due:
            raise TimeoutError("the PDU takes too long")
        self.settimeout(self._due - now)
        try:
            data = super().recv(bufsize, flags)
        finally:
            self.settimeout(self._seconds)
        if self._left:
            self._left -= len(data)
            return data
        self._header += data
        if len(self._header) == _HEADER:
            self._left, self._header = int.from_bytes(self._header[2:], "big"), b""
            if self._left > self._longest:
                raise ConnectionAbortedError("the PDU is too long")
        return data


def bound_messages(association: Association, max_bytes: int) -> None:
    """Have ``association``, which has not begun yet, aborted where a message is longer than ``max_bytes``."""
    association.dimse = _BoundedMessages(association, max_bytes)


class _BoundedMessages(DIMSEServiceProvider):
    """Counts a message's bytes as they arrive, before they are gathered."""

    def __init__(self, association: Association, max_bytes: int) -> None:
        super().__init__(association)
        self._max = {True: _MAX_COMMAND, False: max_bytes}
        self._seen = {True: 0, False: 0}
        self._over = self._aborted = False

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take one P-DATA (PS3.8 9.3.5): fragments, each behind a byte that says whether it is of the command and the last of it."""
        for _, fragment in primitive.presentation_data_value_list:
            command, last = bool(fragment[0] & _COMMAND_BIT), bool(fragment[0] & _LAST_BIT)
            self._seen[command] += len(fragment) - 1
            self._over |= self._seen[command] > self._max[command]
            if last and not self._over:
                self._seen[command] = 0
        if not self._over:
            super().receive_primitive(primitive)
        elif not self._aborted:
            self._aborted = True
            logger.warning("a message longer than is accepted: the association is aborted")
            self.assoc.abort(block=False)
