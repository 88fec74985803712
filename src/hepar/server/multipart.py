"""Multipart bodies read as they come (RFC 2046): part by part, piece by piece, never whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from email.message import Message

_MAX_HEAD_BYTES = 2**16


def boundary_of(content_type: str) -> bytes | None:
    """The boundary that a Content-Type names; None where it is no multipart."""
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_boundary()
    if message.get_content_maintype() != "multipart" or not boundary:
        return None
    return boundary.encode("latin-1", "replace")


class Parts:
    """The parts of a body, each as pieces of bytes; a part is over when the next one is asked for.

    Args:
        chunks: of the body.
        boundary: between its parts.

    Raises:
        ValueError: while it is read: it ends before its last boundary, or is no multipart at all.
    """

    def __init__(self, chunks: Iterable[bytes], boundary: bytes) -> None:
        self._chunks = iter(chunks)
        self._delimiter = b"\r\n--" + boundary
        self._held = b"\r\n"  # the first boundary may stand at the very beginning

    def __iter__(self) -> Iterator[Iterator[bytes]]:
        self._skip(self._delimiter)
        while not self._begins(b"--"):
            self._skip(b"\r\n\r\n")  # headers of the part
            pieces = self._until(self._delimiter)
            yield pieces
            for _ in pieces:
                pass

    def _begins(self, mark: bytes) -> bool:
        while len(self._held) < len(mark):
            self._more()
        return self._held.startswith(mark)

    def _skip(self, mark: bytes) -> None:
        length = 0
        for piece in self._until(mark):
            length += len(piece)
            if length > _MAX_HEAD_BYTES:
                raise ValueError("no boundary where one has to be")

    def _until(self, mark: bytes) -> Iterator[bytes]:
        """What comes before a mark, which is taken away."""
        while True:
            at = self._held.find(mark)
            if at >= 0:
                piece, self._held = self._held[:at], self._held[at + len(mark) :]
                if piece:
                    yield piece
                return
            # A mark may be cut in two by the end of what is there.
            known = len(self._held) - len(mark) + 1
            if known > 0:
                piece, self._held = self._held[:known], self._held[known:]
                yield piece
            self._more()

    def _more(self) -> None:
        chunk = next(self._chunks, None)
        if chunk is None:
            raise ValueError("it ends in the middle")
        self._held += chunk
