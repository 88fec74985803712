"""Studies that come in over HTTP: how many at a time, how large, how slowly, and what they are.

What a body claims of itself is not believed: its length is counted, its kind told from its bytes.
"""

from __future__ import annotations

import asyncio
import os
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from anyio.to_thread import run_sync
from starlette.requests import Request

from hepar.server.desk import Desk
from hepar.server.gate import Refusal
from hepar.server.settings import Web
from hepar.server.spool import check_room, on_the_disk

SILENCE_S = 20.0
_MIN_BYTES_PER_S, _GRACE_S = 1024, 30.0
_WRITE_BYTES = 2**20
_LOOK_BYTES = 32 * 2**20
_HEAD_BYTES = 1024
_RETRY_S = 30


class Uploads:
    """The uploads that are arriving; for the thread of the web door.

    Args:
        desk: takes them.
        settings: of the web door.
    """

    def __init__(self, desk: Desk, settings: Web) -> None:
        self.desk, self.spool = desk, desk.spool
        self.most, self.most_bytes = settings.max_waiting, settings.max_upload_mb * 10**6
        self._announced: dict[object, int] = {}

    @contextmanager
    def admitted(self, request: Request) -> Iterator[None]:
        """Let an upload begin; it counts until this ends.

        Raises:
            Refusal: 413, it says that it is too large; 503, too many are arriving or wait.
            ResourceExhausted: `E_OUTPUT_WRITE`, the disk has less than twice its room.
        """
        said = request.headers.get("content-length", "0")
        size = int(said) if said.isascii() and said.isdigit() else 0
        if size > self.most_bytes:
            raise self._too_large()
        if len(self._announced) + self.desk.waiting() >= self.most:
            raise Refusal(
                503,
                "E_BUSY",
                f"{self.most} uploads are arriving or waiting.",
                f"Send it again in {_RETRY_S} s.",
                {"Retry-After": str(_RETRY_S)},
            )
        check_room(self.spool.incoming, 2 * (size + sum(self._announced.values())))
        ticket = object()
        self._announced[ticket] = size
        try:
            yield
        finally:
            del self._announced[ticket]

    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The parts of a body as they come.

        Raises:
            Refusal: 408, it comes too slowly; 413, it is too large.
            ResourceExhausted: `E_OUTPUT_WRITE`, the disk is all but full.
            ClientDisconnect: it ended too soon.
        """
        stream = request.stream()
        held, looked, begun = 0, 0, time.monotonic()
        while True:
            try:
                async with asyncio.timeout(SILENCE_S):
                    part = await anext(stream, None)
            except TimeoutError:
                raise _too_slow() from None
            if part is None:
                return
            held += len(part)
            if held > self.most_bytes:
                raise self._too_large()
            if held - looked > _LOOK_BYTES:
                looked = held
                check_room(self.spool.incoming)
            seconds = time.monotonic() - begun
            if seconds > _GRACE_S and held < seconds * _MIN_BYTES_PER_S:
                raise _too_slow()
            yield part

    async def receive(self, request: Request, owner: str) -> str:
        """Take an upload, one file, as it comes.

        Returns:
            The id of its study.

        Raises:
            Refusal: as `admitted` and `body`; 415, it is no file that could be a study.
            ResourceExhausted: `E_OUTPUT_WRITE`; nothing of it is kept.
        """
        with self.admitted(request), self.spool.temporary() as file:
            stream = await run_sync(file.open, "xb")
            head, kind, waiting = b"", None, bytearray()
            with stream, on_the_disk():
                async for part in self.body(request):
                    if kind is None:
                        head += part[:_HEAD_BYTES]
                        kind = kind_of(head) if len(head) >= _HEAD_BYTES else None
                    waiting += part
                    if len(waiting) >= _WRITE_BYTES:
                        await run_sync(stream.write, bytes(waiting))
                        waiting.clear()
                kind = kind or kind_of(head)
                await run_sync(stream.write, bytes(waiting))
                await run_sync(_flush, stream)
            return await run_sync(self.desk.accept, file, kind, owner)

    def _too_large(self) -> Refusal:
        return Refusal(
            413,
            "E_UPLOAD_SIZE",
            f"It is larger than the {self.most_bytes / 10**6:.0f} MB that may be uploaded.",
            "Leave out series that are not needed, or raise web.max_upload_mb of serve.yaml.",
        )


def kind_of(head: bytes) -> str:
    """The suffix of a file that could be a study, told from its first kilobyte.

    Raises:
        Refusal: 415, it is no zip or tar archive, NIfTI or DICOM file.
    """
    packed = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\0": ".xz"}
    for mark, suffix in packed.items():
        if head.startswith(mark):
            if suffix == ".gz" and _plain_kind(_inflated(head)) == ".nii":
                return ".nii.gz"
            return f".tar{suffix}"
    if (plain := _plain_kind(head)) is not None:
        return plain
    raise Refusal(
        415,
        "E_UPLOAD_KIND",
        "This is no zip or tar archive, NIfTI file or DICOM file.",
        "Pack the study's folder, and upload the archive.",
    )


def _plain_kind(head: bytes) -> str | None:
    if head.startswith(b"PK"):
        return ".zip"
    if head[257:262] == b"ustar":
        return ".tar"
    if head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2"):
        return ".nii"
    return ".dcm" if head[128:132] == b"DICM" else None


def _inflated(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(31).decompress(head, _HEAD_BYTES)
    except zlib.error:
        return b""


def _too_slow() -> Refusal:
    return Refusal(
        408, "E_TIMEOUT", "It comes too slowly.", "Send it again, over a faster connection."
    )


def _flush(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())
