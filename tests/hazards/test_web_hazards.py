"""The web door under attack and under load, one test or more a case of `docs/hazards.md`."""

from __future__ import annotations

import hashlib
import socket
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from canary_study import write_study
from hostile_requests import hostile

import hepar.server.spool
from hepar.server import connections, uploads
from web_client import Health, Served, asked, kill, request, running, served, status_of, zipped

MB = 10**6


def _marked(number: int, size: int) -> Iterator[bytes]:
    """A tar archive of so many bytes that are all this number's."""
    member = tarfile.TarInfo(f"marker-{number}")
    member.size = size
    yield member.tobuf()
    mark = hashlib.sha256(str(number).encode()).digest() * 2**15
    for at in range(0, size, len(mark)):
        yield mark[: size - at]
    yield bytes(-size % 512 + 1024)


def _sha256(parts: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def test_property_WE01_an_upload_is_stopped_at_its_limit(tmp_path):
    with served(tmp_path, max_upload_mb=1) as server, server.client() as ann:
        answer = ann.post("/studies", content=_marked(1, 30 * MB))  # chunked: no length is said
        assert (answer.status_code, answer.json()["code"]) == (413, "E_UPLOAD_SIZE")
        for length in ("4000000000", "1000001"):
            answer = asked(server.address, request("POST", "/studies", {"Content-Length": length}))
            assert status_of(answer) == 413
        sent = request("POST", "/studies", {"Content-Length": "2000"}, zipped(a=bytes(3000)))
        assert status_of(asked(server.address, sent)) == 202  # and the rest is no request
        assert [name.rpartition("/")[2] for name in sorted(server.left())] == ["owner", "study.zip"]


def test_property_WE03_compressed_bodies_are_not_inflated(tmp_path):
    with served(tmp_path) as server, server.client() as ann:
        said = {"Content-Encoding": "gzip"}
        answer = ann.post("/studies", content=b"\x1f\x8b" + bytes(MB), headers=said)
        assert (answer.status_code, answer.json()["code"]) == (415, "E_UPLOAD_KIND")
        assert server.left() == set()


def _attack(server: Served, every: int = 1) -> tuple[Counter[int | None], list[bytes]]:
    """What was answered, and to which requests a refusal was due and did not come."""
    with server.client() as ann:
        study = ann.post("/studies", content=zipped(image=b"voxels" * 50)).json()["id"]
        server.until(ann, study)
        before, port = server.left(), str(server.address[1]).encode()
        outside = {path: path.read_bytes() for path in server.folder.parent.glob("*.yaml")}
        said, bad = Counter[int | None](), []
        for sent in list(hostile(study))[::every]:
            status = status_of(asked(server.address, sent.replace(b"PORT", port)))
            said[status] += 1
            if status is not None and not 400 <= status < 500:
                bad.append(sent[:300])
        assert ann.get(f"/studies/{study}").json()["state"] == "done"
        assert server.left() == before
        assert {p: p.read_bytes() for p in server.folder.parent.glob("*.yaml")} == outside
    return said, bad


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.full)])
def test_property_WE02_WE05_hostile_requests_are_refused(tmp_path, caplog, every):
    (tmp_path / "canary.yaml").write_text("outside of the server's folder")
    with served(tmp_path) as server:
        said, bad = _attack(server, every)
    assert bad == []
    assert sum(said.values()) >= 200 / every
    assert said[None] == 0  # even what is no HTTP is told so
    assert "Traceback" not in caplog.text


@pytest.mark.full
def test_property_WE02_hostile_requests_do_not_fill_the_memory(tmp_path):
    with running(tmp_path) as server:
        _attack(server, 20)
        before = _resident_mb(server)
        for _ in range(3):
            said, bad = _attack(server)
            assert bad == []
        grown = _resident_mb(server) - before
        print(f"WE02: {3 * sum(said.values())} requests, {dict(said)}, RSS grew {grown:.1f} MB")
        assert grown < 200


def _resident_mb(server: Served) -> float:
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def test_property_WE05_a_browser_acts_for_our_own_page_alone(tmp_path):
    with served(tmp_path) as server, httpx.Client(base_url=server.url) as browser:
        browser.get(f"/?token={'a' * 43}")
        for allowed in ({"Sec-Fetch-Site": "same-origin"}, {"Origin": server.url}):
            answer = browser.post("/studies", content=zipped(a=b"1"), headers=allowed)
            assert answer.status_code == 202
        answer = browser.post("/studies", content=zipped(a=b"1"))
        assert (answer.status_code, answer.json()["code"]) == (403, "E_CROSS_SITE")


def test_property_WE06_uploads_at_once_are_bounded_and_none_is_crossed(tmp_path):
    with served(tmp_path, max_waiting=2) as server, server.client() as ann:
        statuses, ids = Counter[int](), dict[int, str]()

        def send(number: int) -> None:
            while number not in ids:
                answer = ann.post("/studies", content=_marked(number, MB // 4))
                statuses[answer.status_code] += 1
                if answer.status_code == 202:
                    ids[number] = answer.json()["id"]
                else:
                    assert answer.headers["retry-after"].isdigit()
                    assert answer.json()["code"] == "E_BUSY"
                    time.sleep(0.2)

        threads = [threading.Thread(target=send, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            server.desk.step()
        assert len(set(ids.values())) == 6
        assert set(statuses) == {202, 503}
        for number, identifier in ids.items():
            links = server.until(ann, identifier)["links"]["files"]
            content = ann.get(links["segmentation.nii.gz"]).content
            assert content == b"".join(_marked(number, MB // 4))


@pytest.mark.full
def test_property_WE06_sixteen_uploads_of_60_mb(tmp_path):
    size, many, ids, statuses = 60 * MB, 16, dict[int, str](), Counter[int]()
    with running(tmp_path, web={"max_waiting": 12}) as server, server.client() as ann:

        def send(number: int) -> None:
            while number not in ids:
                try:
                    answer = ann.post("/studies", content=_marked(number, size))
                except httpx.WriteError:  # refused while it was being sent
                    statuses[0] += 1
                    continue
                statuses[answer.status_code] += 1
                if answer.status_code == 202:
                    ids[number] = answer.json()["id"]
                else:
                    time.sleep(1)

        threads = [threading.Thread(target=send, args=(number,)) for number in range(many)]
        with Health(server) as seen:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            states = [server.until(ann, identifier)["state"] for identifier in ids.values()]
        times = sorted(seen)
        print(
            f"WE06: {many} uploads of {size / MB:.0f} MB, answers {dict(statuses)}; /health "
            f"{len(times)} times, median {1000 * times[len(times) // 2]:.0f} ms, "
            f"p95 {1000 * times[int(0.95 * len(times))]:.0f} ms, RSS {_resident_mb(server):.0f} MB"
        )
        assert states == ["done"] * many
        assert len(set(ids.values())) == many
        assert set(statuses) == {202, 503}
        for number, identifier in ids.items():
            record = ann.get(f"/studies/{identifier}/files/study.json").json()
            assert record["files"]["segmentation.nii.gz"] == _sha256(_marked(number, size))


def test_property_WE07_a_server_that_is_killed_finishes_every_upload(tmp_path):
    with running(tmp_path) as server, server.client() as ann:
        content = {
            ann.post("/studies", content=zipped(image=b"%d" % n * 999)).json()["id"]: n
            for n in range(5)
        }
        half = socket.create_connection(server.address)
        body = zipped(image=bytes(3000))
        half.sendall(request("POST", "/studies", {"Content-Length": "9000"}, body))
        end = time.monotonic() + 60
        while not list((server.folder / "incoming").iterdir()) and time.monotonic() < end:
            time.sleep(0.05)
        kill(server.process)
        half.close()
    with running(tmp_path) as server, server.client() as ann:
        told = {identifier: server.until(ann, identifier) for identifier in content}
        assert [one["state"] for one in told.values()] == ["done"] * 5
        for identifier, number in content.items():
            image = ann.get(told[identifier]["links"]["files"]["segmentation.nii.gz"]).content
            assert image == zipped(image=b"%d" % number * 999)
        expected = {f"uploads/{i}/{name}" for i in content for name in ("owner", "study.zip")}
        expected |= {f"results/{i}/{name}" for i in content for name in told[i]["links"]["files"]}
        assert server.left() == expected


def test_property_WE08_an_upload_that_breaks_off_frees_its_place(tmp_path):
    with served(tmp_path, max_waiting=1) as server, server.client() as ann:
        body = zipped(image=bytes(200_000))
        with socket.create_connection(server.address) as half:
            half.sendall(request("POST", "/studies", {}, body)[:-100_000])
            while not server.left():
                time.sleep(0.02)
            assert ann.post("/studies", content=body).status_code == 503
        end = time.monotonic() + 60
        while server.left():
            assert time.monotonic() < end
            time.sleep(0.02)
        assert ann.post("/studies", content=body).status_code == 202


def test_property_WE08_an_upload_that_falls_silent_frees_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "SILENCE_S", 0.3)
    with served(tmp_path) as server:
        sent = request("POST", "/studies", {}, zipped(image=bytes(9000)))
        assert status_of(asked(server.address, sent[:-100])) == 408
        assert server.left() == set()


def test_property_DN06_a_stow_request_that_breaks_off_leaves_its_study_incomplete(tmp_path):
    files = [file.read_bytes() for file in write_study(tmp_path / "study")[:4]]
    parts = [b"--x\r\nContent-Type: application/dicom\r\n\r\n" + f + b"\r\n" for f in files]
    said = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=x'}
    whole = b"".join([*parts, b"--x--"])

    def state(server: Served, client: httpx.Client, wanted: str) -> None:
        end = time.monotonic() + 60
        while [s["state"] for s in client.get("/studies").json()["studies"]] != [wanted]:
            assert time.monotonic() < end
            server.desk.step()

    with served(tmp_path) as server, server.client("ben") as ben:
        with socket.create_connection(server.address) as half:
            half.sendall(request("POST", "/dicom-web/studies", said, whole)[: -len(parts[-1])])
            state(server, ben, "arriving")
        state(server, ben, "incomplete")
        unfinished = b"".join(parts)
        assert ben.post("/dicom-web/studies", content=unfinished, headers=said).status_code == 400
        state(server, ben, "incomplete")
        answer = ben.post("/dicom-web/studies/9.9", content=whole, headers=said)
        assert answer.status_code == 409
        state(server, ben, "incomplete")
        answer = ben.post("/dicom-web/studies", content=whole, headers=said)
        assert (answer.status_code, len(answer.json()["00081199"]["Value"])) == (200, 4)
        assert answer.headers["content-type"] == "application/dicom+json"
        state(server, ben, "done")
        (study,) = (server.folder / "inbox").iterdir()
        assert sorted(path.read_bytes() for path in study.iterdir()) == sorted(files)


def _slow(server: Served, count: int, stack: ExitStack) -> list[socket.socket]:
    """Connections that say nothing, or begin a head and do not end it."""
    opened = []
    for number in range(count):
        opened.append(stack.enter_context(socket.create_connection(server.address, 60)))
        if number % 2:
            opened[-1].sendall(b"GET /health HTTP/1.1\r\nHost: 127.0")
    return opened


def test_property_WE09_slow_connections_stop_nobody_and_are_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_S", 3.0)
    with served(tmp_path) as server, ExitStack() as stack:
        opened = _slow(server, 200, stack)
        for _ in range(20):
            assert httpx.get(f"{server.url}/health").status_code == 200
        opened[1].sendall(b".0.1\r\n")  # a head that goes on is no reason to wait longer
        assert [connection.recv(1) for connection in opened] == [b""] * 200


def test_property_WE09_of_too_many_connections_those_go_that_wait_longest(tmp_path, monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 20)
    with served(tmp_path) as server, ExitStack() as stack:
        opened = _slow(server, 30, stack)
        assert httpx.get(f"{server.url}/health").status_code == 200
        for connection in opened[:10]:
            try:
                assert connection.recv(1) == b""
            except ConnectionResetError:
                continue
        opened[-1].sendall(b".0.1\r\n\r\n")
        assert opened[-1].recv(12) == b"HTTP/1.1 200"


def test_closed_form_WE09_the_address_with_most_connections_gives_way(monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 4)
    gone = []

    def one(address: str, since: float | None) -> connections.Connection:
        made = connections.Connection.__new__(connections.Connection)
        made.client, made.waits_since = (address, 1), since
        made.transport = SimpleNamespace(
            is_closing=lambda: False, abort=lambda: gone.append((address, since))
        )
        return made

    made = [one("b", 0.0), *(one("a", since) for since in (None, 3.0, 2.0, 1.0)), one("c", 9.0)]
    connections.make_room(made)
    assert gone == [("a", 1.0), ("a", 2.0)]


@pytest.mark.full
def test_property_WE09_health_beside_200_slow_connections(tmp_path):
    with running(tmp_path) as server, ExitStack() as stack, Health(server) as seen:
        end = time.monotonic() + 20
        opened = _slow(server, 200, stack)
        while time.monotonic() < end:
            for number, connection in enumerate(opened):
                try:
                    connection.sendall(b"x" if number % 2 else b"")
                except OSError:  # closed by its deadline
                    opened[number] = stack.enter_context(socket.create_connection(server.address))
            time.sleep(0.5)
    times = sorted(seen)
    print(f"WE09: /health {len(times)} times, p95 {1000 * times[int(0.95 * len(times))]:.0f} ms")
    assert len(times) > 20


def test_property_WE11_a_disk_without_room_is_found_out_first(tmp_path, monkeypatch):
    free = [10**12]

    def usage(place: object) -> SimpleNamespace:
        return SimpleNamespace(free=free[0])

    with served(tmp_path) as server, server.client() as ann:
        monkeypatch.setattr(hepar.server.spool.shutil, "disk_usage", usage)
        free[0] = 100 * MB
        sent = request("POST", "/studies", {"Content-Length": str(60 * MB)})
        answer = asked(server.address, sent)  # nothing of its body was sent
        assert status_of(answer) == 507
        assert b"E_OUTPUT_WRITE" in answer
        monkeypatch.setattr(uploads, "_LOOK_BYTES", MB)
        free[0] = 10**12

        def parts() -> Iterator[bytes]:
            for number, part in enumerate(_marked(1, 30 * MB)):
                free[0] = 10**12 if number < 4 else MB
                yield part

        answer = ann.post("/studies", content=parts())
        assert (answer.status_code, answer.json()["code"]) == (507, "E_OUTPUT_WRITE")
        assert server.left() == set()
