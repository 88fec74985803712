"""The HTTP half of PR01: who a patient is shows in no body, header or log of the web door."""

from __future__ import annotations

import io
import logging
import re
import zipfile
from pathlib import Path

import httpx
import pydicom
import pytest
from canary_engine import engine
from canary_study import CANARIES, write_study

from web_client import Served, served

HOME = "john.doe CANARY^ZZTOP"


def _archive(files: tuple[Path, ...], twice: bool = False) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number, file in enumerate(files):
            archive.write(file, f"{HOME}/19010203/ACC-CANARY-55 {number}.dcm")
        if twice:
            archive.write(files[0], f"{HOME}/19010203/acc-canary-55 0.dcm")
    return stream.getvalue()


def _related(files: tuple[Path, ...]) -> bytes:
    parts = (
        b"--x\r\nContent-Type: application/dicom\r\n"
        b'Content-Disposition: attachment; filename="CANARY^ZZTOP.dcm"\r\n\r\n' + f.read_bytes()
        for f in files
    )
    return b"\r\n".join([*parts, b"--x--"])


def _leaks(texts: dict[str, bytes]) -> list[str]:
    return [
        f"{canary} in {where}: {data[max(0, at - 60) : at + 60]!r}"
        for where, data in texts.items()
        for canary in CANARIES
        if (at := data.lower().find(canary.lower().encode())) >= 0
    ]


class _Heard(dict[str, bytes]):
    """Every answer of a server, headers too; pictures inside a page are those of the overlay."""

    def client(self, server: Served) -> httpx.Client:
        return server.client(event_hooks={"response": [self._hear]})

    def _hear(self, answer: httpx.Response) -> None:
        answer.read()
        said = f"{answer.status_code} {dict(answer.headers)}".encode()
        data = re.sub(rb"data:image/png;base64,[\w+/=]+", b"", answer.content)
        self[f"{len(self)} {answer.request.method} {answer.request.url.path}"] = said + data

    def add(self, server: Served, caplog: pytest.LogCaptureFixture, said: str) -> None:
        """What was logged and printed, and what files are called."""
        logged = [r.getMessage() for r in caplog.records if not r.name.startswith("http")]
        self["log"] = "\n".join([said, *server.said, *logged]).encode()
        self["names"] = "\n".join(map(str, sorted(server.left()))).encode()


def _send(server: Served, ann: httpx.Client, files: tuple[Path, ...]) -> tuple[str, list[str]]:
    """A study by STOW-RS, and two archives that cannot be used; their ids."""
    related = {"Content-Type": "multipart/related; type=application/dicom; boundary=x"}
    answer = ann.post("/dicom-web/studies", content=_related(files), headers=related)
    assert answer.status_code == 200, answer.text
    server.desk.step()
    (stowed,) = ann.get("/studies").json()["studies"]
    name = {"Content-Disposition": 'attachment; filename="CANARY^ZZTOP 19010203.zip"'}
    sent = (_archive(files[:9] + files[12:]), _archive(files, twice=True))
    answers = [ann.post("/studies?name=CANARY.zip", content=c, headers=name) for c in sent]
    return stowed["id"], [answer.json()["id"] for answer in answers]


def _ask_around(ann: httpx.Client, files: tuple[Path, ...]) -> None:
    """What is refused, and what is told of all studies."""
    related = {"Content-Type": "multipart/related; type=application/dicom; boundary=x"}
    changed = pydicom.dcmread(files[0])
    changed.ImageComments = "another"
    changed.save_as(files[0])
    other = pydicom.dcmread(files[1])
    other.SOPClassUID = other.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    other.save_as(files[1])
    files[2].write_bytes(files[2].read_bytes()[:700])
    answer = ann.post("/dicom-web/studies", content=_related(files[:3]), headers=related)
    assert answer.status_code == 409
    failed = answer.json()["00081198"]["Value"]
    assert [f["00081197"]["Value"] for f in failed] == [[0x0111], [0x0122]]
    assert "0008119A" in answer.json()
    for path in ("/", "/studies", f"/studies/{HOME}", f"/{HOME}?{HOME}", f"/dicom-web/{HOME}"):
        ann.get(path, headers={"Accept": "text/html"})
        ann.get(path)
    ann.post("/studies", content=HOME.encode(), headers={"Host": "CANARY.ZZTOP"})
    ann.post("/studies", content=HOME.encode() * 500)


def test_property_PR01_no_identifier_in_answers_and_logs(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    files, heard = write_study(tmp_path / "home" / HOME), _Heard()
    with served(tmp_path) as server, heard.client(server) as ann:
        _, uploads = _send(server, ann, files)
        for identifier in uploads:
            server.until(ann, identifier)
        _ask_around(ann, files)
    heard.add(server, caplog, "".join(capfd.readouterr()))
    assert len(heard) > 20
    assert _leaks(heard) == []


@pytest.mark.full
def test_property_PR01_no_identifier_in_results_over_http(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    files, heard = write_study(tmp_path / "home" / HOME), _Heard()
    with served(tmp_path, engine()) as server, heard.client(server) as ann:
        stowed, uploads = _send(server, ann, files)
        for identifier in uploads:
            told = server.until(ann, identifier)
            assert (told["state"], told["code"][:2]) == ("failed", "E_")
        told = server.until(ann, stowed)
        assert told["state"] == "done", told
        assert {"report.html", "seg.dcm"} <= set(told["links"]["files"])
        for name, link in told["links"]["files"].items():
            if name.endswith(".dcm"):  # belongs to the record
                assert b"ZZTOP" in httpx.get(server.url + link, headers=ann.headers).content
            elif not name.endswith(".nii.gz"):
                ann.get(link)
        _ask_around(ann, files)
    heard.add(server, caplog, "".join(capfd.readouterr()))
    assert _leaks(heard) == []
