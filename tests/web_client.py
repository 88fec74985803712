"""A server with the light engine, in this process or one of its own, and what talks to it."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

import batch_engine
from hepar.batch.job import Engine
from hepar.server.desk import Desk
from hepar.server.settings import Settings
from hepar.server.spool import Spool
from hepar.server.web import open_web

TOKENS = {"ann": "a" * 43, "ben": "b" * 43}
ENDED = ("done", "failed")


@dataclass
class Served:
    """A server that runs.

    Attributes:
        folder: of it.
        url: without a path.
        desk: where it runs in this process.
        process: where it has one of its own.
        said: what it told, line by line.
    """

    folder: Path
    url: str
    said: list[str]
    desk: Desk | None = None
    process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def client(self, who: str = "ann", **more: Any) -> httpx.Client:
        """A script with the token of someone."""
        headers = {"Authorization": f"Bearer {TOKENS[who]}", **more.pop("headers", {})}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120, **more)

    def until(self, client: httpx.Client, identifier: str, *states: str) -> dict[str, Any]:
        """The study, once it is in one of these states; `done` or `failed` by default."""
        end = time.monotonic() + 300
        while True:
            told = client.get(f"/studies/{identifier}").json()
            if told["state"] in (states or ENDED):
                return told
            assert time.monotonic() < end, told
            if self.desk is not None:
                self.desk.step()
            else:
                time.sleep(0.2)

    def left(self) -> set[str]:
        """Every file in the server's folder, but for what keeps count."""
        kept = {"tokens.yaml", "serve.yaml", ".serving"}
        return {
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if path.is_file() and path.name not in kept and "ledger" not in path.name
        }


def zipped(**files: bytes) -> bytes:
    """An archive of files by name, stored as they are."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()


def _folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokens = folder / "tokens.yaml"
    if not tokens.exists():
        tokens.touch(mode=0o600)
        tokens.write_text(yaml.safe_dump(TOKENS))
    return folder


@contextmanager
def served(tmp_path: Path, engine: Engine | None = None, **web: Any) -> Iterator[Served]:
    """A server in this process, whose desk is stepped by `Served.until` alone."""
    folder, said = _folder(tmp_path / "server"), []
    settings = Settings(web={"port": 0, **web}, quiet_s=0.1)
    spool = Spool(folder)
    spool.forsake()
    engine = engine or batch_engine.engine(tmp_path / "notes")
    desk = Desk(folder, spool, settings, engine)
    try:
        with open_web(folder, desk, settings.web, said.append):
            yield Served(folder, _url(said[0]), said, desk)
    finally:
        desk.end()


@contextmanager
def running(tmp_path: Path, **settings: Any) -> Iterator[Served]:
    """`hepar serve` in a process of its own, which is killed in the end."""
    folder, notes = _folder(tmp_path / "server"), tmp_path / "notes"
    notes.mkdir(exist_ok=True)
    settings = {"quiet_s": 0.5, **settings, "web": {"port": 0, **settings.get("web", {})}}
    (folder / "serve.yaml").write_text(yaml.safe_dump(settings))
    path = os.pathsep.join([str(batch_engine.HERE), str(batch_engine.SOURCE)])
    with (tmp_path / "said.txt").open("a+") as said:
        known = said.tell()
        process = subprocess.Popen(
            [sys.executable, "-c", "import web_client; web_client.main()", str(folder), str(notes)],
            stdout=subprocess.DEVNULL,
            stderr=said,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
    try:
        end = time.monotonic() + 300
        while not (found := re.search(r"http://\S+", told := _said(tmp_path)[known:])):
            assert process.poll() is None, told
            assert time.monotonic() < end
            time.sleep(0.1)
        yield Served(folder, _url(found[0]), [told], process=process)
    finally:
        kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL for the server alone; its workers notice."""
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait(60)


def _said(tmp_path: Path) -> str:
    return (tmp_path / "said.txt").read_text()


def _url(said: str) -> str:
    found = re.search(r"http://[\w.]+:\d+", said)
    assert found is not None
    return found[0]


def main() -> None:
    """The command, with the light engine in the place of the networks."""
    from hepar.cli import main as hepar_main
    from hepar.server import serve

    real = serve.run_server

    def with_orders(folder: Path, given: Engine, **options: Any) -> None:
        real(folder, dataclasses.replace(given, load=batch_engine.load), **options)

    serve.run_server = with_orders
    folder, notes = sys.argv[1:]
    hepar_main(["serve", folder, "--model", notes, "-d", "cpu"])


def asked(address: tuple[str, int], sent: bytes, timeout: float = 60) -> bytes:
    """What is answered to these very bytes: one answer, or what came before the end."""
    answer = b""
    with socket.create_connection(address, timeout) as connection:
        try:
            connection.sendall(sent)
            while not _is_whole(answer) and (data := connection.recv(2**16)):
                answer += data
        except (ConnectionError, TimeoutError):
            pass
    return answer


def _is_whole(answer: bytes) -> bool:
    """Whether the head has come, and as much of the body as it states."""
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return bool(end) and (length is None or len(body) >= int(length[1]))


def status_of(answer: bytes) -> int | None:
    """The status of an answer; None where the connection was closed without one."""
    return int(answer.split()[1]) if answer.startswith(b"HTTP/1.") else None


def request(
    method: str, target: str, headers: Mapping[str, str | None] | None = None, body: bytes = b""
) -> bytes:
    """A request of ann's as it is sent; a header that is None is left out."""
    said = {"Host": "127.0.0.1", "Authorization": f"Bearer {TOKENS['ann']}"}
    if body:
        said["Content-Length"] = str(len(body))
    lines = [f"{k}: {v}" for k, v in {**said, **(headers or {})}.items() if v is not None]
    return "\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""]).encode("latin-1") + body


class Health:
    """How long /health takes meanwhile, seconds, as another process sees it."""

    script = """
import http.client, json, sys, threading, time
times, stop = [], threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
while not stop.is_set():
    begun = time.perf_counter()
    connection = http.client.HTTPConnection(sys.argv[1], timeout=60)
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    connection.close()
    times.append(time.perf_counter() - begun)
    time.sleep(0.05)
print(json.dumps(times))
"""

    def __init__(self, server: Served) -> None:
        self.host, self.seen = server.url.removeprefix("http://"), list[float]()

    def __enter__(self) -> list[float]:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.script, self.host],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self.seen

    def __exit__(self, *raised: object) -> None:
        said, _ = self.process.communicate(timeout=120)
        if raised[0] is None:
            self.seen += json.loads(said)
