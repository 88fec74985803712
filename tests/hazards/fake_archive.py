"""An archive for tests that speaks DICOMweb as far as hepar asks, and misbehaves when told to."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pydicom
from pydicom.dataset import Dataset

_JSON = "application/dicom+json"
MULTIPART = 'multipart/related; type="application/dicom"; boundary=b'
Hostile = Callable[[BaseHTTPRequestHandler], bool]


@dataclass
class FakeArchive:
    """From `__enter__` to `__exit__`.

    Attributes:
        objects: SOPInstanceUID to the file.
        asked: method and path of every request.
        hostile: answers in its place; returns whether it did.
        refuses: modality to the FailureReason with which such objects are not taken.
        lists_counts: whether it says how many instances there are.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    hostile: Hostile | None = None
    refuses: dict[str, int] = field(default_factory=dict)
    lists_counts: bool = True

    def __enter__(self) -> FakeArchive:
        archive = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                archive.asked.append(("GET", self.path))
                if archive.hostile is None or not archive.hostile(self):
                    archive.get(self)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                archive.asked.append(("POST", self.path))
                if archive.hostile is None or not archive.hostile(self):
                    archive.take(self, body)

            def log_message(self, *said: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/dicom-web"
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def put(self, *images: Dataset) -> None:
        """It has these objects from now on."""
        for image in images:
            stream = io.BytesIO()
            image.save_as(stream, enforce_file_format=True)
            self.objects[str(image.SOPInstanceUID)] = stream.getvalue()

    def retrieved(self) -> int:
        """How many series were retrieved."""
        return sum(m == "GET" and p.split("/")[-2] == "series" for m, p in self.asked)

    def get(self, handler: BaseHTTPRequestHandler) -> None:
        """QIDO-RS and WADO-RS."""
        split = urlsplit(handler.path)
        asked = {key: value[0] for key, value in parse_qs(split.query).items()}
        words = split.path.removeprefix("/dicom-web/").split("/")
        images = [_read(one) for one in self.objects.values()]
        if len(words) > 1:
            images = [one for one in images if one.StudyInstanceUID == words[1]]
        if len(words) > 3:
            images = [one for one in images if one.SeriesInstanceUID == words[3]]
        if words[-1] == "metadata":
            return reply(handler, 200, json.dumps([one.to_json_dict() for one in images]).encode())
        if len(words) == 4:
            files = [self.objects[str(one.SOPInstanceUID)] for one in images]
            kind = 'multipart/related; type="application/dicom"; boundary="a b"'
            return reply(handler, 200, multipart(files, b"a b"), kind)
        if "Modality" in asked:
            images = [one for one in images if one.Modality == asked["Modality"]]
        found: dict[str, dict] = {}
        for one in images:
            uid, count = {
                "studies": (one.StudyInstanceUID, "00201208"),
                "series": (one.SeriesInstanceUID, "00201209"),
                "instances": (one.SOPInstanceUID, None),
            }[words[-1]]
            item = found.setdefault(uid, _item(one))
            if count and self.lists_counts:
                number = item.setdefault(count, {"vr": "IS", "Value": [0]})
                number["Value"][0] += 1
        begin, limit = int(asked.get("offset", 0)), int(asked.get("limit", 1000))
        page = list(found.values())[begin : begin + limit]
        return reply(handler, 200 if page else 204, json.dumps(page).encode() if page else b"")

    def take(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        """STOW-RS of one object."""
        head = body.index(b"\r\n\r\n") + 4
        file = body[head : body.rindex(b"\r\n--")]
        data = pydicom.dcmread(io.BytesIO(file))
        told = {"00081155": {"vr": "UI", "Value": [str(data.SOPInstanceUID)]}}
        reason = self.refuses.get(data.Modality)
        if reason is None:
            self.objects[str(data.SOPInstanceUID)] = file
            answer = {"00081199": {"vr": "SQ", "Value": [told]}}
        else:
            told["00081197"] = {"vr": "US", "Value": [reason]}
            answer = {"00081198": {"vr": "SQ", "Value": [told]}}
        reply(handler, 200 if reason is None else 409, json.dumps(answer).encode())


@cache
def _read(file: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(file))


def _item(one: Dataset) -> dict:
    values = {
        "0020000D": ("UI", str(one.StudyInstanceUID)),
        "0020000E": ("UI", str(one.SeriesInstanceUID)),
        "00080018": ("UI", str(one.SOPInstanceUID)),
        "00080060": ("CS", one.Modality),
    }
    return {tag: {"vr": vr, "Value": [value]} for tag, (vr, value) in values.items()}


def multipart(files: list[bytes], boundary: bytes) -> bytes:
    """A body with these files as its parts."""
    head = b"--" + boundary + b"\r\nContent-Type: application/dicom\r\n\r\n"
    return b"".join(head + one + b"\r\n" for one in files) + b"--" + boundary + b"--\r\n"


def reply(
    handler: BaseHTTPRequestHandler, status: int, body: bytes, kind: str = _JSON, **headers: str
) -> None:
    """Answer a request."""
    handler.send_response(status)
    for name, value in {"Content-Type": kind, **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def everything(status: int, body: bytes, kind: str, **headers: str) -> Hostile:
    """The same answer to whatever is asked."""

    def answer(handler: BaseHTTPRequestHandler) -> bool:
        reply(handler, status, body, kind, **headers)
        return True

    return answer


def as_json(value: object) -> Hostile:
    """The same DICOM JSON, or JSON at least, to whatever is asked."""
    return everything(200, json.dumps(value).encode(), "application/dicom+json")


def breaks_off(handler: BaseHTTPRequestHandler) -> bool:
    """The connection ends in the middle of the images."""
    if "transfer-syntax" not in handler.headers["Accept"]:
        return False
    handler.send_response(200)
    handler.send_header("Content-Type", MULTIPART)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(multipart([b"\0" * 300], b"b")[:200])
    handler.close_connection = True
    return True


def drips(handler: BaseHTTPRequestHandler) -> bool:
    """Images that would never end."""
    if "transfer-syntax" not in handler.headers["Accept"]:
        return False
    handler.send_response(200)
    handler.send_header("Content-Type", MULTIPART)
    handler.send_header("Connection", "close")
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b".")
            time.sleep(0.02)
    except OSError:
        return True
