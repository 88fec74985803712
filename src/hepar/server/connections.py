"""A connection to the web door, which nobody holds without using it: uvicorn's, with deadlines.

uvicorn waits for the head of a request as long as it takes, and takes any number of connections.
Here a head has to come within seconds, a reader who stops reading is left, and of too many
connections those are closed that wait, longest first, of the address that has most of them.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 256
MAX_HEAD_BYTES = 16 * 1024
HEAD_S = 10.0
READER_S = 60.0


class Connection(H11Protocol):
    """One connection.

    Attributes:
        waits_since: when it began to wait for a request, seconds of the loop; None during one.
    """

    waits_since: float | None = None
    _deadline: asyncio.TimerHandle | None = None
    _reader: asyncio.TimerHandle | None = None

    @property
    def address(self) -> str:
        """Whom it comes from."""
        return self.client[0] if self.client else ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()
        make_room(c for c in self.connections if isinstance(c, Connection))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadlines."""
        self._stop_waiting()
        self._cancel_reader()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Stop waiting when a request has begun."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Wait for the next request; the rest of a body that nobody read has to end as soon."""
        self._wait()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Give a reader a minute to go on."""
        super().pause_writing()
        self._reader = self.loop.call_later(READER_S, self.transport.abort)

    def resume_writing(self) -> None:
        """The reader reads."""
        self._cancel_reader()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, if it can still be answered, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            told = {
                "code": "E_HTTP_REQUEST",
                "message": "This is no valid HTTP request, or its head is too long.",
                "remedy": "Send HTTP/1.1; docs/serve.md has examples.",
            }
            body = json.dumps(told).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"x-content-type-options", b"nosniff"),
                (b"connection", b"close"),
            ]
            events: tuple[Any, ...] = (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _wait(self) -> None:
        self._stop_waiting()
        self.waits_since = self.loop.time()
        self._deadline = self.loop.call_later(HEAD_S, self.transport.close)

    def _stop_waiting(self) -> None:
        self.waits_since = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cancel_reader(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None


def make_room(connections: Iterable[Connection]) -> None:
    """Close connections that wait for a request, until there are not too many."""
    opened = [c for c in connections if not c.transport.is_closing()]
    waiting = [c for c in opened if c.waits_since is not None]
    held = Counter(c.address for c in opened)
    for _ in range(min(len(opened) - MAX_CONNECTIONS, len(waiting))):
        leaver = max(waiting, key=lambda c: (held[c.address], -(c.waits_since or 0)))
        waiting.remove(leaver)
        held[leaver.address] -= 1
        leaver.transport.abort()
