"""DICOMweb as hepar needs it of an archive: QIDO-RS, WADO-RS and STOW-RS (PS3.18).

Written here because what is to be had holds whole images in memory, takes a body that was cut for a
whole one, and gives data sets where the files as they were sent are wanted. Whatever an archive
answers is not trusted: neither its length, nor its form, nor that it is what was asked for.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hepar.errors import UsageError
from hepar.server.extra import needed
from hepar.server.multipart import Multipart, boundary_of
from hepar.server.retries import PeerFailed
from hepar.server.settings import FILE, Pacs

_JSON = "application/dicom+json"
_STUDY, _SERIES, _INSTANCE = "0020000D", "0020000E", "00080018"
_MODALITY, _STUDY_COUNT, _SERIES_COUNT = "00080060", "00201208", "00201209"
_STORED, _REFUSED, _REFUSED_UID, _REASON = "00081199", "00081198", "00081155", "00081197"
_UID = re.compile(r"[0-9.]{1,64}")
_PAGE = 500
_MAX_ITEMS = 100_000
_MAX_JSON_BYTES = 64 * 2**20
_CHUNK = 2**16
_CONNECT_S, _SILENCE_S = 10.0, 60.0
# After so long a body has to have come at so many bytes a second.
_PATIENCE_S, _SLOWEST = 120.0, 10_000
# 0x0111: it is there already.
_DUPLICATE = 0x0111
# These speak of the archive, or of us, and not of what was asked for.
_OUT_OF_ORDER = frozenset([401, 403, 407, 408, 429, 502, 503, 504])

Item = Mapping[str, Any]


@dataclass(frozen=True)
class ListedStudy:
    """A study as an archive lists it.

    Attributes:
        uid: StudyInstanceUID.
        instances: how many of all modalities it has; None where the archive does not say.
    """

    uid: str
    instances: int | None


class Dicomweb:
    """An archive; may be used by many threads. Its connections are closed at the end of a block.

    Args:
        pacs: where it is.
        folder: of the server, to which `password_file` is relative.

    Raises:
        UsageError: `E_SERVE_SETTINGS`, the password cannot be read; `E_SERVE_PACKAGES`.

    Every method raises `PeerFailed` where the archive does not do what it should.
    """

    def __init__(self, pacs: Pacs, folder: Path) -> None:
        self._httpx = needed("httpx")
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log addresses, with UIDs
        self._root = pacs.url.rstrip("/")
        self._client = self._httpx.Client(
            auth=_credentials(pacs, folder),
            timeout=self._httpx.Timeout(_SILENCE_S, connect=_CONNECT_S),
            # A body that inflates could be a bomb.
            headers={"Accept-Encoding": "identity"},
        )

    def __enter__(self) -> Dicomweb:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def ct_studies(self, since: str) -> list[ListedStudy]:
        """Studies with CT images.

        Args:
            since: first StudyDate, `YYYYMMDD`.
        """
        asked = {
            "ModalitiesInStudy": "CT",
            "StudyDate": f"{since}-",
            "includefield": _STUDY_COUNT,
        }
        found = self._search("studies", asked, _STUDY)
        return [ListedStudy(uid, _number(item, _STUDY_COUNT)) for uid, item in found.items()]

    def series(self, study: str, modality: str) -> dict[str, int | None]:
        """Series of one modality: how many instances each has, as far as the archive says."""
        asked = {"Modality": modality, "includefield": _SERIES_COUNT}
        found = self._search(f"studies/{study}/series", asked, _SERIES)
        return {
            uid: _number(item, _SERIES_COUNT)
            for uid, item in found.items()
            if _text(item, _MODALITY) in (modality, None)
        }

    def instances(self, study: str, series: str) -> frozenset[str]:
        """SOPInstanceUIDs of a series."""
        return frozenset(self._search(f"studies/{study}/series/{series}/instances", {}, _INSTANCE))

    def metadata(self, study: str, series: str) -> list[Item]:
        """The headers of a series."""
        return self._json(f"studies/{study}/series/{series}/metadata", {})

    @contextmanager
    def retrieve(self, study: str, series: str) -> Iterator[Iterator[Iterator[bytes]]]:
        """Yield the files of a series, each as pieces of bytes that have to be read in turn."""
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        path = f"studies/{study}/series/{series}"
        with self._ask("GET", path, headers={"Accept": accept}) as response:
            boundary = boundary_of(response.headers.get("Content-Type", ""))
            if boundary is None:
                raise PeerFailed("the archive sent something else than images")
            try:
                yield _parts(_paced(response), boundary)
            except ValueError as error:
                raise PeerFailed(f"what the archive sent is damaged: {error}") from None

    def store(self, file: Path, instance: str) -> None:
        """Store an object; it is there afterwards, now or since before.

        Args:
            file: of the object.
            instance: its SOPInstanceUID.
        """
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        length = len(head) + file.stat().st_size + len(tail)
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'

        def body() -> Iterator[bytes]:
            yield head
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    yield chunk
            yield tail

        headers = {"Content-Type": kind, "Accept": _JSON, "Content-Length": str(length)}
        with self._ask(
            "POST", "studies", headers=headers, content=body(), taken=(200, 202, 409)
        ) as response:
            status = response.status_code
            answer = _parsed(response)
        if not any(_names(item, _STORED, instance) for item in answer):
            reasons = [r for item in answer for r in _reasons(item, instance)]
            if _DUPLICATE in reasons:
                return
            said = ", ".join(f"{reason:04X}" for reason in reasons)
            raise PeerFailed(f"the archive did not take it ({said or status})")

    def _search(self, path: str, asked: Mapping[str, str], tag: str) -> dict[str, Item]:
        """Everything that matches, by its UID, page by page until one brings nothing new."""
        found: dict[str, Item] = {}
        passed = 0
        while passed < _MAX_ITEMS:
            page = self._json(path, {**asked, "limit": str(_PAGE), "offset": str(passed)})
            uids = [(_text(item, tag), item) for item in page]
            named = {uid: item for uid, item in uids if uid and _UID.fullmatch(uid)}
            if page and not named:
                raise PeerFailed("the archive listed nothing that has a UID")
            if not named.keys() - found.keys():
                return found
            found.update(named)
            passed += len(page)
        raise PeerFailed("the archive's list has no end")

    def _json(self, path: str, asked: Mapping[str, str]) -> list[Item]:
        with self._ask("GET", path, headers={"Accept": _JSON}, params=asked) as response:
            return [] if response.status_code == 204 else _parsed(response)

    @contextmanager
    def _ask(
        self, method: str, path: str, taken: Sequence[int] = (200, 204, 206), **more: Any
    ) -> Iterator[Any]:
        try:
            with self._client.stream(method, f"{self._root}/{path}", **more) as response:
                status = response.status_code
                if status not in taken:
                    down = status in _OUT_OF_ORDER
                    raise PeerFailed(f"the archive answered {status}", down=down)
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise PeerFailed("the archive sent what was compressed without being asked to")
                yield response
        except (self._httpx.HTTPError, self._httpx.InvalidURL, self._httpx.StreamError) as error:
            raise PeerFailed(
                f"the archive cannot be reached, or broke off ({type(error).__name__})", down=True
            ) from None


def _credentials(pacs: Pacs, folder: Path) -> tuple[str, str] | None:
    if pacs.user is None or pacs.password_file is None:
        return None
    try:
        with (folder / pacs.password_file).open(encoding="utf-8") as stream:
            return pacs.user, stream.readline().rstrip("\r\n")
    except (OSError, ValueError) as error:
        raise UsageError(
            "E_SERVE_SETTINGS",
            "serve",
            f"{FILE}: pacs.password_file cannot be read ({type(error).__name__}).",
            "Name a file whose first line is the password.",
        ) from None


def _paced(response: Any) -> Iterator[bytes]:
    """The bytes of a body, unless they come so slowly that it would never end."""
    begun, received = time.monotonic(), 0
    for chunk in response.iter_raw():
        received += len(chunk)
        seconds = time.monotonic() - begun
        if seconds > _PATIENCE_S and received < _SLOWEST * seconds:
            raise PeerFailed("the archive is too slow", down=True)
        yield chunk


def _parts(chunks: Iterable[bytes], boundary: str) -> Iterator[Iterator[bytes]]:
    """The parts of a multipart body, each as pieces, which are read before the next part is.

    Raises:
        ValueError: it is none, or ends before its last boundary.
    """
    body = Multipart(boundary)
    events = (event for chunk in chunks for event in body.feed(chunk))
    for _head in events:
        pieces = iter(lambda: next(events, None), None)
        yield pieces  # type: ignore[misc]
        for _ in pieces:
            pass
    if not body.complete:
        raise ValueError("it ends in the middle")


def _parsed(response: Any) -> list[Item]:
    """The objects of a DICOM JSON body (PS3.18 F.2)."""
    data = bytearray()
    for chunk in _paced(response):
        data += chunk
        if len(data) > _MAX_JSON_BYTES:
            raise PeerFailed("the archive's answer is far too long")
    try:
        answer = json.loads(data) if data.strip() else []
    except (ValueError, RecursionError):
        raise PeerFailed("the archive did not answer in DICOM JSON") from None
    items = answer if isinstance(answer, list) else [answer]
    if not all(isinstance(item, dict) for item in items):
        raise PeerFailed("the archive did not answer in DICOM JSON")
    return items


def values(item: Item, tag: str) -> list[Any]:
    """What an object of DICOM JSON says under a tag."""
    element = item.get(tag)
    found = element.get("Value") if isinstance(element, dict) else None
    return found if isinstance(found, list) else []


def _text(item: Item, tag: str) -> str | None:
    first = next(iter(values(item, tag)), None)
    return first if isinstance(first, str) else None


def _number(item: Item, tag: str) -> int | None:
    first = next(iter(values(item, tag)), None)
    try:
        return None if first is None else int(first)  # some archives quote it
    except (TypeError, ValueError):
        return None


def _names(item: Item, tag: str, instance: str) -> bool:
    return any(
        isinstance(one, dict) and _text(one, _REFUSED_UID) == instance for one in values(item, tag)
    )


def _reasons(item: Item, instance: str) -> list[int]:
    return [
        reason
        for one in values(item, _REFUSED)
        if isinstance(one, dict)
        and _text(one, _REFUSED_UID) in (instance, None)
        and (reason := _number(one, _REASON)) is not None
    ]
