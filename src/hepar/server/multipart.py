"""The parts of a multipart body (RFC 2046), told apart as the bytes come; nothing is gathered."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from email.message import Message

_MAX_HEAD = 8 * 1024
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")


class Multipart:
    """Bytes go in, and parts come out.

    Args:
        boundary: between the parts.

    Attributes:
        complete: whether the closing boundary was seen.
    """

    def __init__(self, boundary: str) -> None:
        self._line = b"\r\n--" + boundary.encode("ascii")
        self._rest = bytearray(b"\r\n")  # the first boundary need not follow a line
        self._state = "preamble"
        self.complete = False

    def feed(self, data: bytes) -> Iterator[Mapping[str, str] | bytes | None]:
        """Yield headers where a part begins, its bytes, and None where it ends.

        Raises:
            ValueError: this is no such body.
        """
        self._rest += data
        while not self.complete:
            if self._state in ("preamble", "part"):
                at = self._rest.find(self._line)
                end = at if at >= 0 else max(0, len(self._rest) - len(self._line) + 1)
                if end and self._state == "part":
                    yield bytes(self._rest[:end])
                del self._rest[:end]
                if at < 0:
                    return
                del self._rest[: len(self._line)]
                if self._state == "part":
                    yield None
                self._state = "boundary"
            elif self._state == "boundary":
                if self._rest[:2] == b"--":
                    self.complete = True
                elif (rest := self._upto(b"\r\n")) is None:
                    return
                elif rest.strip(b" \t"):
                    raise ValueError("a boundary stands within a line")
                else:
                    # So that a head without lines ends where any other does.
                    self._rest[:0] = b"\r\n"
                    self._state = "head"
            else:
                head = self._upto(b"\r\n\r\n")
                if head is None:
                    return
                yield _headers(head)
                self._state = "part"

    def _upto(self, end: bytes) -> bytes | None:
        """What comes before an end, both taken; None where it has not come yet."""
        at = self._rest.find(end)
        if at > _MAX_HEAD or (at < 0 and len(self._rest) > _MAX_HEAD):
            raise ValueError("the head of a part is too long")
        if at < 0:
            return None
        found = bytes(self._rest[:at])
        del self._rest[: at + len(end)]
        return found


def parameters(content_type: str) -> tuple[str, dict[str, str]]:
    """A Content-Type in small letters, and its parameters by name in small letters."""
    message = Message()
    message["Content-Type"] = content_type
    found = message.get_params() or [("", "")]
    return found[0][0].lower(), {name.lower(): value for name, value in found[1:]}


def boundary_of(content_type: str) -> str | None:
    """The boundary that a Content-Type names; None where that is none."""
    boundary = parameters(content_type)[1].get("boundary", "")
    return boundary if _BOUNDARY.fullmatch(boundary) else None


def _headers(head: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in head.decode("latin-1").split("\r\n") if line)
    return {name.strip().lower(): value.strip() for name, _, value in lines}
