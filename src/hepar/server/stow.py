"""STOW-RS, PS3.18 section 10.5: DICOM images come in over HTTP, one after another, into the spool.

Each is on the disk before the answer says so. Studies of a request that broke off wait for a sender
that ends well, as those of an association do.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from anyio.to_thread import run_sync
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
)
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hepar.errors import InputRefused
from hepar.io.dicom_headers import Header
from hepar.io.dicom_scan import read_headers
from hepar.server.gate import Refusal
from hepar.server.multipart import Multipart, boundary_of, parameters
from hepar.server.spool import Spool, on_the_disk
from hepar.server.uploads import Uploads

CT = {CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage}
DICOM = "application/dicom"
MAX_INSTANCES = 20_000
_CHUNK = 2**20
# Failure reasons, PS3.18 table I.2-2 and PS3.7 annex C.
_DUPLICATE, _CLASS, _DATA_SET, _UNREADABLE = 0x0111, 0x0122, 0xA900, 0xC000


@dataclass
class Answer:
    """What became of each instance.

    Attributes:
        stored: SOP class and instance UID.
        failed: the same, and the reason; empty UIDs where they cannot be told.
    """

    stored: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str, int]] = field(default_factory=list)

    def response(self) -> Response:
        """200, all is stored; 202, some is; 409, nothing is."""
        told: dict[str, Any] = {"00081190": {"vr": "UR"}}  # nothing can be retrieved here
        if self.stored:
            told["00081199"] = _sequence(_item(*one) for one in self.stored)
        named = [one for one in self.failed if one[1]]
        if named:
            told["00081198"] = _sequence(_item(*one) for one in named)
        if len(named) < len(self.failed):
            reasons = (reason for _, uid, reason in self.failed if not uid)
            told["0008119A"] = _sequence({"00081197": _value("US", r)} for r in reasons)
        status = 200 if not self.failed else 202 if self.stored else 409
        return JSONResponse(told, status, media_type="application/dicom+json")


class _Senders:
    """The studies of one request; those that it does not end were broken off."""

    def __init__(self, spool: Spool) -> None:
        self.spool, self.name = spool, secrets.token_hex(8)
        self.studies: set[str] = set()

    def begin(self, study_uid: str) -> None:
        if study_uid not in self.studies:
            self.spool.begin(study_uid, self.name)
            self.studies.add(study_uid)

    def end(self) -> None:
        while self.studies:
            self.spool.end(next(iter(self.studies)), self.name)
            self.studies.pop()

    def broke_off(self) -> None:
        for study_uid in self.studies:
            self.spool.broke_off(study_uid, self.name)


async def store(request: Request, uploads: Uploads) -> Response:
    """Store the instances of a request.

    Raises:
        Refusal: 400, 415, it is no such request; as `Uploads.admitted` and `Uploads.body`.
        ResourceExhausted: `E_OUTPUT_WRITE`; what was stored before is kept.
    """
    parts = Multipart(_boundary(request.headers.get("content-type", "")))
    wanted, answer, senders = request.path_params.get("uid"), Answer(), _Senders(uploads.spool)
    with uploads.admitted(request), ExitStack() as undo:
        undo.callback(senders.broke_off)
        with uploads.spool.temporary() as file:
            stream: BinaryIO | None = None
            undo.callback(lambda: stream and stream.close())
            async for data in uploads.body(request):
                for event in _told_apart(parts, data):
                    if isinstance(event, bytes):
                        if stream is not None:
                            with on_the_disk():
                                await run_sync(stream.write, event)
                    elif event is None and stream is not None:
                        stream.close()
                        await run_sync(_keep, file, wanted, senders, answer)
                        stream = None
                    elif event is not None:
                        if len(answer.stored) + len(answer.failed) >= MAX_INSTANCES:
                            raise _malformed(f"more than {MAX_INSTANCES} instances")
                        if parameters(event.get("content-type", DICOM))[0] == DICOM:
                            with on_the_disk():
                                stream = await run_sync(file.open, "wb")
                        else:
                            answer.failed.append(("", "", _UNREADABLE))
        if not parts.complete:
            raise _malformed("it ends without its closing boundary")
        await run_sync(senders.end)
    if not (answer.stored or answer.failed):
        raise _malformed("it holds no part")
    return answer.response()


def _keep(file: Path, wanted: str | None, senders: _Senders, answer: Answer) -> None:
    """Keep one instance, or say why not."""
    found = read_headers(file)
    header = found[0] if isinstance(found, list) and found else None
    if header is None or not all(
        map(_is_uid, (header.study_uid, header.sop_class, header.sop_uid))
    ):
        answer.failed.append(("", "", _UNREADABLE))
        return
    named = header.sop_class, header.sop_uid
    if (reason := _misfit(header, wanted)) is not None:
        answer.failed.append((*named, reason))
        return
    senders.begin(header.study_uid)
    try:
        with file.open("rb") as stream:
            senders.spool.store(header.study_uid, header.sop_uid, _chunks(stream))
    except InputRefused:
        answer.failed.append((*named, _DUPLICATE))
    else:
        answer.stored.append(named)


def _misfit(header: Header, wanted: str | None) -> int | None:
    if header.sop_class not in CT:
        return _CLASS
    return _DATA_SET if wanted is not None and header.study_uid != wanted else None


def _told_apart(parts: Multipart, data: bytes) -> Iterator[Any]:
    try:
        yield from parts.feed(data)
    except ValueError as error:
        raise _malformed(str(error)) from None


def _boundary(content_type: str) -> str:
    kind, said = parameters(content_type)
    if kind != "multipart/related" or said.get("type", DICOM).lower() != DICOM:
        raise Refusal(
            415,
            "E_UPLOAD_KIND",
            "Images come as multipart/related of application/dicom.",
            'Send Content-Type: multipart/related; type="application/dicom"; boundary=...',
        )
    if (boundary := boundary_of(content_type)) is None:
        raise _malformed("its boundary is missing or malformed")
    return boundary


def _malformed(why: str) -> Refusal:
    return Refusal(
        400,
        "E_HTTP_REQUEST",
        f"The multipart body cannot be used: {why}.",
        "Send it as PS3.18 section 10.5 says.",
    )


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK):
        yield chunk


def _is_uid(text: str) -> bool:
    return 0 < len(text) <= 64 and set(text) <= set("0123456789.")


def _item(sop_class: str, instance: str, reason: int | None = None) -> dict[str, Any]:
    item = {"00081150": _value("UI", sop_class), "00081155": _value("UI", instance)}
    if reason is not None:
        item["00081197"] = _value("US", reason)
    return item


def _sequence(items: Iterator[dict[str, Any]]) -> dict[str, Any]:
    return {"vr": "SQ", "Value": list(items)}


def _value(vr: str, value: str | int) -> dict[str, Any]:
    return {"vr": vr, "Value": [value]}
