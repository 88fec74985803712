"""The socket of an association, which takes no more memory and time than an image needs."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pynetdicom.association import Association
from pynetdicom.transport import AssociationSocket

MAX_PDU_BYTES = 2**17
MAX_INSTANCE_BYTES = 2**30
MAX_HELD_BYTES = 2 * MAX_INSTANCE_BYTES
MAX_COMMAND_BYTES = 2**16
MIN_BYTES_A_SECOND = 10_000
SLOW_START_S = 60.0
_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)


class Excess(Exception):
    """A peer sends more, or more slowly, than anyone does; pynetdicom aborts the association."""


class BoundedSocket(AssociationSocket):
    """What pynetdicom reads its PDUs from: by `recv`, a header or all of the rest at a time.

    Args:
        association: it belongs to.
        connection: to the peer, blocking.
        request: the A-ASSOCIATE-RQ, which has been read already.
        held: how many bytes of unfinished images all associations hold.
    """

    def __init__(
        self,
        association: Association,
        connection: socket.socket,
        request: bytes,
        held: Callable[[], int],
    ) -> None:
        super().__init__(association, client_socket=connection)
        self._connection, self._request, self._all_held = connection, memoryview(request), held
        self._busy = False
        self._began: float | None = None
        self.held = 0

    @property
    def ready(self) -> bool:
        """Whether a PDU is to be read: none is while an image waits to be kept."""
        if self._request:
            return True
        if self._busy or not self.assoc.dimse.msg_queue.empty():
            return False
        return bool(super().ready)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Leave with the peer what it sends while the block runs, which ends with an image."""
        self._busy = True
        try:
            yield
        finally:
            self._busy, self.held = False, 0

    def recv(self, nr_bytes: int) -> bytearray:
        """Read so many bytes, or fewer where the peer hangs up.

        Raises:
            Excess: too much is announced, or it takes too long; no memory was taken for it.
            OSError: the connection is lost.
        """
        if self._request:
            part, self._request = self._request[:nr_bytes], self._request[nr_bytes:]
            return bytearray(part)
        left = self._seconds_left(nr_bytes)
        end = time.monotonic() + left
        data = bytearray(nr_bytes)
        view, count = memoryview(data), 0
        while count < nr_bytes:
            self._connection.settimeout(left)
            part_size = self._connection.recv_into(view[count:])
            if not part_size:
                break
            count += part_size
            left = end - time.monotonic()
            if left <= 0:
                raise Excess
        view.release()
        if _QUICKACK is not None:  # a peer that waits for it (Nagle) sends on; it does not last
            self._connection.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        self._connection.settimeout(SLOW_START_S)  # for what is sent
        del data[count:]
        return data

    def hang_up(self) -> None:
        """End whatever reads from the connection, or writes to it."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close_for_good(self) -> None:
        """Release the connection, whatever pynetdicom did."""
        self._connection.close()

    def _seconds_left(self, wanted: int) -> float:
        """Judge what is about to be read, and how long it may take."""
        message: Any = self.assoc.dimse.message
        now = time.monotonic()
        if message is None:
            self.held, self._began = 0, None
            command = 0
        else:
            command = message.encoded_command_set.tell()
            self.held = command + message.data_set.tell()
            self._began = self._began or now
        if wanted > MAX_PDU_BYTES or command > MAX_COMMAND_BYTES:
            raise Excess
        if self.held + wanted > MAX_INSTANCE_BYTES:
            raise Excess
        if self.held > MAX_COMMAND_BYTES and self._all_held() + wanted > MAX_HELD_BYTES:
            raise Excess
        allowed = SLOW_START_S + self.held / MIN_BYTES_A_SECOND
        left = allowed - (now - self._began if self._began else 0)
        if left <= 0:
            raise Excess
        return left
