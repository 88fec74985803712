"""The web door: who gets in, what is taken, and what people and scripts are given."""

from __future__ import annotations

import io
import re
import tarfile
import time
from html.parser import HTMLParser

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepar.errors import UsageError
from hepar.server.desk import Case
from hepar.server.gate import Refusal
from hepar.server.multipart import Multipart, boundary_of
from hepar.server.study_page import document, script, studies_page, style
from hepar.server.tokens import read_tokens
from hepar.server.uploads import kind_of
from web_client import TOKENS, served, zipped


def test_closed_form_a_token_is_made_that_nobody_else_may_read(tmp_path):
    made = read_tokens(tmp_path)
    assert (tmp_path / "tokens.yaml").stat().st_mode & 0o777 == 0o600
    assert made.who(made.first) == "local"
    assert made.who(made.first[:-1]) is None
    assert read_tokens(tmp_path).first == made.first


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        (f"ann: {'a' * 43}", 0o644, "may read"),
        ("ann: short", 0o600, "token of ann"),
        ("ann: 12345678901234567890123", 0o600, "token of ann"),
        (f"ann: {'a' * 43}\nben: {'a' * 43}", 0o600, "another one's"),
        (f"'../ann': {'a' * 43}", 0o600, "a name is"),
        ("{}", 0o600, "no token"),
    ],
)
def test_closed_form_tokens_that_cannot_be_used_are_refused_unsaid(tmp_path, text, mode, said):
    (tmp_path / "tokens.yaml").touch(mode=mode)
    (tmp_path / "tokens.yaml").chmod(mode)
    (tmp_path / "tokens.yaml").write_text(text)
    with pytest.raises(UsageError, match=said) as refusal:
        read_tokens(tmp_path)
    assert refusal.value.code == "E_SERVE_TOKENS"
    assert "aaaa" not in str(refusal.value)


def _tar(mode: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        archive.addfile(tarfile.TarInfo("a"), io.BytesIO())
    return stream.getvalue()


def _nifti(suffix: str) -> bytes:
    import gzip

    plain = b"\x5c\x01\0\0".ljust(344, b"\0") + b"n+1\0" + bytes(1000)
    return gzip.compress(plain) if suffix == ".nii.gz" else plain


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (zipped(a=b"1"), ".zip"),
        (_tar("w"), ".tar"),
        (_tar("w:gz"), ".tar.gz"),
        (_tar("w:xz"), ".tar.xz"),
        (_tar("w:bz2"), ".tar.bz2"),
        (_nifti(".nii"), ".nii"),
        (_nifti(".nii.gz"), ".nii.gz"),
        (bytes(128) + b"DICM", ".dcm"),
    ],
    ids=lambda value: value if isinstance(value, str) else "bytes",
)
def test_closed_form_a_file_is_told_by_its_bytes(content, kind):
    assert kind_of(content[:1024]) == kind


@pytest.mark.parametrize(
    "content",
    [b"", b"MZ" + bytes(500), b"%PDF-1.7", b"<html>" * 300],
    ids=["nothing", "program", "PDF", "HTML"],
)
def test_closed_form_other_files_are_refused(content):
    with pytest.raises(Refusal) as refusal:
        kind_of(content)
    assert refusal.value.status == 415


_PARTS = st.lists(st.binary(max_size=40).filter(lambda b: b"--edge" not in b), max_size=4)


@given(_PARTS, st.lists(st.integers(1, 30), min_size=1), st.booleans())
def test_property_parts_are_the_same_however_their_bytes_come(parts, sizes, preamble):
    body = b"preamble\r\n" if preamble else b""
    for part in parts:
        body += b"--edge\r\nContent-Type: application/dicom\r\n\r\n" + part + b"\r\n"
    body += b"--edge--\r\nepilogue"
    parser, found, open_part = Multipart("edge"), [], None
    at = 0
    while at < len(body):
        size = sizes[at % len(sizes)]
        for event in parser.feed(body[at : at + size]):
            if isinstance(event, bytes):
                open_part += event
            elif event is None:
                found.append(open_part)
                open_part = None
            else:
                assert event == {"content-type": "application/dicom"}
                open_part = b""
        at += size
    assert parser.complete
    assert found == parts


def test_closed_form_boundaries():
    assert boundary_of('multipart/related; type="application/dicom"; boundary="a b"') == "a b"
    assert boundary_of("multipart/related; boundary=x") == "x"
    assert boundary_of("multipart/related") is None
    assert boundary_of("multipart/related; boundary=" + "x" * 71) is None
    assert boundary_of('multipart/related; boundary="\x01"') is None


def test_closed_form_a_browser_changes_its_token_for_a_cookie(tmp_path):
    with served(tmp_path) as server, httpx.Client(base_url=server.url) as browser:
        assert server.said[0].endswith(f"/?token={TOKENS['ann']}")
        assert browser.get("/").status_code == 401
        for query in ("?token=", "?token=x", "?xtoken=" + TOKENS["ann"]):
            assert browser.get(f"/{query}").status_code == 401
        answer = browser.get(f"/?token={TOKENS['ben']}")
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        kept = answer.headers["set-cookie"]
        assert "HttpOnly" in kept
        assert "SameSite=Strict" in kept
        page = browser.get("/")
        assert page.status_code == 200
        assert "script-src 'self'" in page.headers["content-security-policy"]
        for name, kind in (("/style.css", "text/css"), ("/studies.js", "text/javascript")):
            assert browser.get(name).headers["content-type"].startswith(kind)
        refused = httpx.get(server.url, headers={"Accept": "text/html"})
        assert refused.status_code == 401
        assert "E_TOKEN" in refused.text
        assert refused.headers["content-type"].startswith("text/html")


def test_closed_form_an_upload_becomes_files_for_who_sent_it(tmp_path):
    content = zipped(image=b"voxels" * 1000)
    with served(tmp_path) as server, server.client() as ann, server.client("ben") as ben:
        answer = ann.post("/studies", content=content)
        assert answer.status_code == 202
        here = answer.headers["location"]
        told = server.until(ann, answer.json()["id"])
        assert told["state"] == "done"
        assert told["lesions"] == len(content) % 4
        links = told["links"]["files"]
        assert set(links) == {
            *("overlay/slice.png", "segmentation.nii.gz", "findings.json", "study.json")
        }
        image = ann.get(links["segmentation.nii.gz"])
        assert image.content == content
        assert image.headers["content-type"] == "application/gzip"
        assert "content-encoding" not in image.headers
        assert ann.get(links["overlay/slice.png"]).headers["content-type"] == "image/png"
        assert ann.get(links["findings.json"]).json() == {"bytes": len(content)}
        part = ann.get(links["segmentation.nii.gz"], headers={"Range": "bytes=0-1"})
        assert (part.status_code, len(part.content)) == (200, len(content))
        assert ann.head(links["findings.json"]).status_code == 200
        (tmp_path / "server" / "results" / told["id"] / "more.txt").write_text("not of the result")
        assert ann.get(f"{here}/files/more.txt").status_code == 404
        assert here[9:17] in ann.get("/").text
        for method, path in (("GET", here), ("GET", links["findings.json"]), ("DELETE", here)):
            assert ben.request(method, path).status_code == 404
        assert ben.get("/studies").json() == {"studies": []}
        assert ann.delete(here).status_code == 204
        assert ann.get(here).status_code == 404
        server.desk.step()
        assert server.left() == set()


def test_closed_form_a_study_that_fails_says_why(tmp_path):
    with served(tmp_path) as server, server.client() as ann:
        answer = ann.post("/studies", content=zipped(a=b"1"))
        place = tmp_path / "server" / "uploads" / answer.json()["id"]
        (place / "study.zip").unlink()
        (place / "study").mkdir()
        (place / "study" / "order.txt").write_text("refuse")
        told = server.until(ann, answer.json()["id"])
        assert (told["state"], told["code"]) == ("failed", "E_NO_LIVER")
        assert told["remedy"]
        assert "E_NO_LIVER" in ann.get("/").text


def _cases() -> list[Case]:
    now = time.time()
    return [
        Case("0" * 32, "dicom", "arriving", now),
        Case("1" * 32, "dicom", "incomplete", now),
        Case("2" * 32, "upload", "queued", now, "ann"),
        Case("3" * 32, "upload", "running", now, "ben"),
        Case("4" * 32, "upload", "failed", now, "ann", "E_X", "<b>bad</b>", "Do 'this'."),
        Case(
            *("5" * 32, "dicom", "done", now, None, None, None, None, 2, 0.1234, 9.5),
            files=("report.html", 'overlay/a "b".png'),
        ),
    ]


class _Strict(HTMLParser):
    """Finds what a strict policy of content would block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocked: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        self.blocked += [name for name, _ in attrs if name == "style" or name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside in ("script", "style") and data.strip():
            self.blocked.append(data)


def test_closed_form_the_page_shows_every_state_and_needs_nothing_inline():
    html = studies_page(_cases(), "ann", 4000)
    strict = _Strict()
    strict.feed(html)
    assert strict.blocked == []
    for state in ("arriving", "incomplete", "queued", "running", "failed", "done"):
        assert f'class="state {state}"' in html
    assert "&lt;b&gt;bad" in html
    assert "12.3 %" in html
    assert re.findall(r'data-leave="(.)', html) == ["2", "4"]
    assert f'href="/studies/{"5" * 32}/files/overlay/a%20%22b%22.png"' in html
    assert document(_cases()[5])["links"]["report"] == f"/studies/{'5' * 32}/files/report.html"
    assert "prefers-color-scheme" in style()
    assert b"<" not in re.sub(rb"[\w ]< [\w ]", b"", script())  # the script writes no HTML


def test_closed_form_an_address_that_cannot_be_had_is_named(tmp_path):
    with (
        served(tmp_path) as server,
        pytest.raises(UsageError, match="Cannot listen") as refusal,
        served(tmp_path / "other", port=server.address[1]),
    ):
        pass
    assert refusal.value.code == "E_SERVE_ADDRESS"
