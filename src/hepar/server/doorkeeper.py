"""The doorkeeper of the DICOM node: holds what connects until it has asked for an association.

Whoever connects gets no thread and no place among the associations before the whole A-ASSOCIATE-RQ
is here; one thread holds them all, drops who does not ask in time, and answers who may not come in.
"""

from __future__ import annotations

import ipaddress
import selectors
import socket
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field

REQUEST_S = 5.0
REQUEST_BYTES = 2**18
WAITING_PER_ADDRESS = 16
_REQUEST, _REJECTION, _ABORT = 1, 3, 7
_HEADER = 6  # PDU type, a reserved byte, length
_TITLES = 74  # bytes of a request up to its items
_TURN_S = 0.2


@dataclass(frozen=True)
class Rejection:
    """Why an association is rejected: result, source and reason of PS3.8, Table 9-21."""

    result: int
    source: int
    reason: int


CALLED_TITLE = Rejection(1, 1, 7)
CALLING_TITLE = Rejection(1, 1, 3)
FULL = Rejection(2, 3, 2)
_UNEXPECTED, _INVALID = 2, 6  # reasons of an A-ABORT by the provider


@dataclass(eq=False)
class Request:
    """Who asks for an association, as far as it has asked.

    Attributes:
        socket: of the connection.
        address: it comes from.
        deadline: on the monotonic clock.
        pdu: what came of its A-ASSOCIATE-RQ.
        answered: with no; it is to hang up.
    """

    socket: socket.socket
    address: str
    deadline: float
    pdu: bytearray = field(default_factory=bytearray)
    answered: bool = False

    @property
    def called(self) -> str:
        """The AE title that is called."""
        return self.pdu[10:26].decode("ascii", "replace").strip(" \x00")

    @property
    def calling(self) -> str:
        """The AE title that calls."""
        return self.pdu[26:42].decode("ascii", "replace").strip(" \x00")


class Doorkeeper:
    """Accepts connections for a node; for one thread.

    Args:
        host, port: to listen at; port 0 for any free one.
        addresses: of the peers; connections from elsewhere are closed at once.
        admit: given a request whose A-ASSOCIATE-RQ is here; takes its socket over, or rejects it.

    Raises:
        OSError: it cannot listen there.
    """

    def __init__(
        self,
        host: str,
        port: int,
        addresses: Collection[str],
        admit: Callable[[Request], Rejection | None],
    ) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=128)
        self._listener.setblocking(False)
        self._addresses, self._admit = frozenset(addresses), admit
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._waiting: list[Request] = []

    @property
    def listens_at(self) -> tuple[str, int]:
        """Address and port."""
        host, port = self._listener.getsockname()[:2]
        return host, port

    def step(self) -> None:
        """Hear who connects and who asks, for a fifth of a second at most."""
        for key, _ in self._selector.select(_TURN_S):
            if key.data is None:
                self._accept()
            elif key.data in self._waiting:  # nobody has dropped it in this turn
                self._hear(key.data)
        now = time.monotonic()
        for request in [one for one in self._waiting if one.deadline < now]:
            self._drop(request)

    def close(self) -> None:
        """Close what waits, and listen no more."""
        for request in list(self._waiting):
            self._drop(request)
        self._selector.close()
        self._listener.close()

    def _accept(self) -> None:
        try:
            connection, place = self._listener.accept()
        except OSError:  # it is gone again; or there are no file descriptors left, which come back
            time.sleep(0.01)
            return
        address = plain_address(place[0])
        if address not in self._addresses:
            connection.close()
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        same = [one for one in self._waiting if one.address == address]
        if len(same) >= WAITING_PER_ADDRESS:
            self._drop(same[0])  # the oldest, which is the least likely to ask
        request = Request(connection, address, time.monotonic() + REQUEST_S)
        self._waiting.append(request)
        self._selector.register(connection, selectors.EVENT_READ, request)

    def _hear(self, request: Request) -> None:
        pdu = request.pdu
        wanted = _HEADER if len(pdu) < _HEADER else _HEADER + _length(pdu)
        try:
            part = request.socket.recv(wanted - len(pdu)) if not request.answered else b""
        except BlockingIOError:
            return
        except OSError:
            part = b""
        if not part:
            self._drop(request)
            return
        pdu += part
        if len(pdu) < _HEADER:
            return
        if pdu[0] != _REQUEST:
            self._refuse(request, _abort(_UNEXPECTED))
        elif not _TITLES <= _HEADER + _length(pdu) <= REQUEST_BYTES:
            self._refuse(request, _abort(_INVALID))
        elif len(pdu) == _HEADER + _length(pdu):
            self._decide(request)

    def _decide(self, request: Request) -> None:
        self._selector.unregister(request.socket)
        self._waiting.remove(request)
        rejection = self._admit(request)
        if rejection is not None:
            self._waiting.append(request)
            self._selector.register(request.socket, selectors.EVENT_READ, request)
            reasons = (rejection.result, rejection.source, rejection.reason)
            self._refuse(request, bytes((_REJECTION, 0, 0, 0, 0, 4, 0, *reasons)))

    def _refuse(self, request: Request, answer: bytes) -> None:
        """Say no, and leave it to the caller to hang up, so that the answer is heard."""
        request.answered = True
        request.deadline = time.monotonic() + REQUEST_S
        try:
            request.socket.send(answer)
            request.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(request)

    def _drop(self, request: Request) -> None:
        self._waiting.remove(request)
        with suppress(KeyError, ValueError):
            self._selector.unregister(request.socket)
        request.socket.close()


def plain_address(text: str) -> str:
    """An address as peers are compared by: IPv4 within IPv6 as IPv4, without a zone."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def _length(pdu: bytes | bytearray) -> int:
    return int.from_bytes(pdu[2:_HEADER], "big")


def _abort(reason: int) -> bytes:
    return bytes((_ABORT, 0, 0, 0, 0, 4, 0, 0, 2, reason))
