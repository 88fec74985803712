"""Requests that no honest client sends, each to be refused: kinds and variants, as raw bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator

from web_client import TOKENS, request

PATHS = (
    *("../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "%2e%2e%2fowner"),
    *("%252e%252e%252fowner", "/etc/passwd", "%2fetc%2fpasswd", "..%5c..%5cowner", "..\\owner"),
    *("%00", "study.json%00.png", "a" * 1000, "%ff%fe", "%c0%ae%c0%ae/owner", "C:%5cWindows"),
    *("%E2%80%AEgnp", "%EF%BD%9E", ".", "..", "./findings.json", "overlay/../findings.json"),
    *("overlay//slice.png", "overlay/", "overlay", ";id", "$(id)", "findings.json/", "%0d%0aX:y"),
    *("FINDINGS.JSON", "../owner", "../study.zip", "../../tokens.yaml", "~", "*", "file:///etc"),
)
NAMES = (
    "../../etc/cron.d/x",
    "/etc/cron.d/x",
    "a%00.zip",
    "x" * 1500,
    "..\\x.zip",
    "a\tb",
    "'; ls",
)
HOSTS = (
    *("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "a@127.0.0.1"),
    *("127.0.0.1:99999", "", "[::1", "127.0.0.1/evil", "localhost:80@evil.example", "127.0.0.1#"),
    *("0x7f000001.evil", "localhost evil", "127.0.0.1:0", "*", "..", "%31%32%37.0.0.1"),
)
ENCODINGS = ("gzip", "deflate", "br", "GZIP", "gzip, gzip", "x-gzip", "zstd", "identity, gzip")
_LINE = "Host: 127.0.0.1\r\n"


def hostile(study: str) -> Iterator[bytes]:
    """Every request.

    Args:
        study: id of one of ann's that is done.
    """
    for path in PATHS:
        yield request("GET", f"/studies/{path}")
        yield request("GET", f"/studies/{study}/files/{path}")
        yield request("DELETE", f"/studies/{path}")
    yield request("GET", f"/studies/{study[:-1]}")
    yield request("GET", f"/studies/{study.replace(study[0], 'A')}")
    for name in NAMES:
        yield request("POST", f"/studies?name={name.replace(' ', '+')}", body=b"#!/bin/sh\n")
        said = {"Content-Disposition": f'attachment; filename="{name}"'}
        yield request("POST", "/studies", said, b"MZ" + bytes(2000))
    for host in HOSTS:
        yield request("GET", "/studies", {"Host": host})
        yield request("GET", "/health", {"Host": host, "Authorization": None})
    for encoding in ENCODINGS:
        yield request("POST", "/studies", {"Content-Encoding": encoding}, b"\x1f\x8b" + bytes(500))
    yield from _strangers(study)
    yield from _other_sites(study)
    yield from _no_images()
    yield from _other_bodies()
    yield from _no_http()


def _strangers(study: str) -> Iterator[bytes]:
    token = TOKENS["ann"]
    shown = (
        *(None, "", "Bearer", "Bearer ", f"Bearer {token[:-1]}", f"Bearer {token}x", "Basic YTph"),
        *(f"Bearer {token.upper()}", f"Token {token}", "Bearer " + "a" * 8000, "Bearer \xe4\xf6"),
    )
    for authorization in shown:
        for method, path in (
            ("GET", "/"),
            ("GET", f"/studies/{study}"),
            ("POST", "/dicom-web/studies"),
        ):
            yield request(method, path, {"Authorization": authorization})
    for cookie in ("hepar-1", "hepar", "", "a"):
        yield request("GET", "/", {"Authorization": None, "Cookie": f"{cookie}={token}"})
    for query in (f"token={token[:-1]}", f"Token={token}", f"x=1&xtoken={token}", "token=%00"):
        yield request("GET", f"/?{query}", {"Authorization": None})
    yield request("GET", f"/studies?token={token}", {"Authorization": None})


def _other_sites(study: str) -> Iterator[bytes]:
    """As a browser sends them that holds ann's cookie; PORT is that of the server."""
    said: tuple[dict[str, str], ...] = (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://127.0.0.1.evil.example"},
        {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {},
    )
    for headers in said:
        whose = {"Authorization": None, "Cookie": f"hepar-PORT={TOKENS['ann']}", **headers}
        yield request("DELETE", f"/studies/{study}", whose)
        yield request("POST", "/studies", whose, b"PK\x03\x04" + bytes(2000))


def _no_images() -> Iterator[bytes]:
    """What is no STOW-RS."""
    related = 'multipart/related; type="application/dicom"'
    for kind in ("application/dicom", "multipart/form-data; boundary=x", "", "text/plain", ";;="):
        yield request("POST", "/dicom-web/studies", {"Content-Type": kind}, b"--x--")
    for boundary in ("", "; boundary=", "; boundary=" + "x" * 71, '; boundary="\x01"'):
        yield request("POST", "/dicom-web/studies", {"Content-Type": related + boundary}, b"--x--")
    bodies = (
        *(b"--x--", b"nothing", b"--x\r\n", b"--x\r\n\r\nDICM", b"--xyz\r\n\r\n", b"--x junk\r\n"),
        *(b"--x\r\nA: " + b"b" * 9000, b"--x\r\n\r\nno dicom\r\n--x--"),
        b"--x\r\n\r\n" + bytes(128) + b"DICM" + os.urandom(400) + b"\r\n--x--",
        b"--x\r\nContent-Type: text/html\r\n\r\n<html>\r\n--x--",
        b"--x\r\nContent-Type: application/dicom\r\nContent-Encoding: gzip\r\n\r\n\r\n--x--",
    )
    for body in bodies:
        said = {"Content-Type": f"{related}; boundary=x"}
        for path in ("/dicom-web/studies", "/dicom-web/studies/1.2.3"):
            yield request("POST", path, said, body)


def _other_bodies() -> Iterator[bytes]:
    for body in (
        b"%PDF-1.7",
        b"<html>",
        os.urandom(3000).replace(b"PK", b"  "),
        b"{}",
        bytes(4000),
    ):
        yield request("POST", "/studies", {}, body)
    yield request("POST", "/studies", {"Content-Length": "0"})
    for length in ("99999999999", "9" * 19, "4000000001"):
        yield request("POST", "/studies", {"Content-Length": length})
    for method in ("PUT", "PATCH", "TRACE", "OPTIONS", "PROPFIND"):
        yield request(method, "/studies")
        yield request(method, "/health")
    yield request("POST", "/health")
    yield request("DELETE", "/studies")


def _no_http() -> Iterator[bytes]:
    """What is no HTTP, or hardly."""
    head = f"GET /studies HTTP/1.1\r\n{_LINE}Authorization: Bearer {TOKENS['ann']}\r\n"
    post = f"POST /studies HTTP/1.1\r\n{_LINE}Authorization: Bearer {TOKENS['ann']}\r\n"
    for line in (
        *("no colon", "a b: c", "A : b", "A: b\0c", " folded", "\x01: a", "Content-Length: -1"),
        *("Content-Length: 1\r\nContent-Length: 2", "Content-Length: 1, 2", "Content-Length: 4e9"),
        *("Content-Length: " + "9" * 30, "Transfer-Encoding: gzip", "A: " + "b" * 70_000),
        *("Transfer-Encoding: chunked, gzip", f"{_LINE}Host: b", "Content-Length: 0x10"),
    ):
        yield f"{head}{line}\r\n\r\n".encode("latin-1")
    for chunk in ("zz\r\n", "-1\r\n", "f" * 40 + "\r\n", "5;" + "a" * 20_000, "3\r\nabcXX"):
        yield f"{post}Transfer-Encoding: chunked\r\n\r\n{chunk}".encode()
    yield (head + "".join(f"H{n}: v\r\n" for n in range(3000)) + "\r\n").encode()
    yield from (
        b"GET /\r\n\r\n",
        b"\0" * 100 + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x0d\x0a" * 40,
        b"GET  / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"G\xe4T / HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /studies HTTP/1.0\r\n\r\n",
        b"A" * 100_000,
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    )
    for target in ("http://evil.example/", "*", "evil.example:443", "/?" + "a" * 3000, "//", "/%"):
        yield request("CONNECT" if ":4" in target else "GET", target)
    for upgrade in ("websocket", "h2c"):
        said = {"Connection": "Upgrade", "Upgrade": upgrade, "Sec-WebSocket-Key": "x"}
        yield request("GET", "/ws", said)
