"""The DICOM node and what comes over a network: strangers, floods, lies, and loss at any moment."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage, MRImageStorage
from pynetdicom.dsutils import encode

from batch_engine import HERE, SOURCE
from dicom_peer import (
    HOST,
    NAME,
    TITLE,
    ask,
    called,
    door,
    ended,
    image,
    raw,
    sent,
    until,
)
from hepar.server import bounded_socket, doorkeeper, receiver
from hepar.server.settings import Peer
from hepar.server.spool import Spool

OTHER = Peer(ae_title="ELSEWHERE", host="127.0.0.2")
HERE_TOO = Peer(ae_title=TITLE, host=HOST)
ABORT = 7
needs_storescu = pytest.mark.skipif(
    shutil.which("storescu") is None, reason="dcmtk's storescu is not installed"
)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def _is_lost(connection: socket.socket) -> bool:
    try:
        connection.sendall(b"\x00")
    except OSError:
        return True
    return False


@pytest.mark.parametrize(
    ("title", "node"),
    [("EVIL", "HEPAR"), (TITLE, "WRONG"), ("ELSEWHERE", "HEPAR")],
    ids=["unknown", "wrong", "from another address"],
)
def test_property_DN01_strangers_are_rejected(tmp_path, title, node):
    with door(tmp_path, HERE_TOO, OTHER) as at:
        association = called(at, title, node)
        assert association.is_rejected
        assert not association.is_established
        assert len(at.said) == 2
        assert f"rejected {HOST}" in at.said[1]
        assert at.nothing_is_kept()


def test_property_DN01_an_address_of_no_peer_is_not_even_heard(tmp_path, monkeypatch):
    monkeypatch.setattr(doorkeeper, "REQUEST_S", 3600)
    with door(tmp_path, OTHER) as at, raw(at) as connection:
        assert ended(connection) == b""


def test_property_DN01_a_host_does_not_keep_the_others_out(tmp_path):
    with door(tmp_path, HERE_TOO, OTHER, max_associations=2) as at:
        first = called(at)
        assert first.is_established
        assert called(at).is_rejected
        elsewhere = called(at, OTHER.ae_title, address=OTHER.host)
        assert elsewhere.is_established
        first.release()
        again = called(at)
        assert again.is_established
        again.release()
        elsewhere.release()


@pytest.mark.parametrize("count", [24, pytest.param(100, marks=pytest.mark.full)])
def test_property_DN02_idle_connections_keep_nobody_out(tmp_path, count, monkeypatch):
    monkeypatch.setattr(doorkeeper, "REQUEST_S", 3600)
    with door(tmp_path, max_associations=4) as at:
        threads = threading.active_count()
        idle = [raw(at) for _ in range(count)]
        until(lambda: idle[count - doorkeeper.WAITING_PER_ADDRESS - 1].recv(1) == b"")
        started = time.monotonic()
        assert threading.active_count() == threads
        association = called(at)
        assert association.send_c_echo().Status == 0
        print(f"C-ECHO beside {count} idle sockets: {time.monotonic() - started:.3f} s")
        association.release()
        for connection in idle:
            connection.close()


@pytest.mark.parametrize("drip", [b"", b"\x01"])
def test_property_DN02_who_does_not_ask_in_time_is_dropped(tmp_path, drip, monkeypatch):
    monkeypatch.setattr(doorkeeper, "REQUEST_S", 0.5)
    with door(tmp_path) as at, raw(at) as connection:
        connection.sendall(struct.pack(">BBL", 1, 0, 200))
        connection.settimeout(0.1)
        for _ in range(600):
            try:
                connection.sendall(drip)
                assert connection.recv(1) == b""
                break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            raise AssertionError("it was never dropped")


@pytest.mark.parametrize("megabytes", [8, pytest.param(300, marks=pytest.mark.full)])
def test_property_DN02_a_pdu_of_4_gib_takes_no_memory(tmp_path, megabytes, monkeypatch):
    monkeypatch.setattr(doorkeeper, "REQUEST_S", 3600)
    with door(tmp_path) as at, raw(at) as connection:
        before, part = _resident_bytes(), bytes(2**20)
        try:
            connection.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFFF))
            for _ in range(megabytes):
                connection.sendall(part)
        except ConnectionError:
            pass
        assert ended(connection)[:1] in (b"", bytes([ABORT]))
        grown = (_resident_bytes() - before) / 2**20
        print(f"{megabytes} MB sent of a PDU of 4 GiB: {grown:.1f} MiB more in memory")
        assert grown < 64
        association = called(at)
        assert association.send_c_echo().Status == 0
        association.release()


@pytest.mark.parametrize("first", [b"\x04\x00\x00\x00\x00\x10", b"\x01\x00\x00\x00\x00\x10"])
def test_property_DN02_what_is_no_request_is_aborted(tmp_path, first):
    with door(tmp_path) as at, raw(at) as connection:
        connection.sendall(first)
        assert ended(connection)[0] == ABORT


def test_property_DN02_an_association_takes_no_pdu_beyond_what_was_agreed(tmp_path):
    with door(tmp_path) as at:
        association = called(at)
        assert sent(association, image()) == 0
        header = struct.pack(">BBL", 4, 0, bounded_socket.MAX_PDU_BYTES + 1)
        association.dul.socket.socket.sendall(header + bytes(100))
        until(lambda: at.marks() == ["lost"])
        until(lambda: not association.is_alive())


def test_property_DN02_an_image_takes_no_memory_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded_socket, "MAX_INSTANCE_BYTES", 2**20)
    with door(tmp_path) as at:
        association = called(at)
        assert sent(association, image()) == 0
        assert sent(association, image(instance="1.2.3.2", PixelData=bytes(2**21))) is None
        until(lambda: at.marks() == ["lost"])
        assert set(at.files()) == {"1.2.3.1"}


def test_property_DN02_a_pdu_that_drips_ends_the_association(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded_socket, "SLOW_START_S", 0.5)
    with door(tmp_path) as at:
        association = called(at)
        assert sent(association, image()) == 0
        connection = association.dul.socket.socket
        connection.sendall(struct.pack(">BBL", 4, 0, 100_000))
        until(lambda: _is_lost(connection))
        until(lambda: at.marks() == ["lost"])


def test_property_DN04_only_ct_is_taken(tmp_path):
    with door(tmp_path) as at:
        association = called(at)
        accepted = {context.abstract_syntax for context in association.accepted_contexts}
        assert CTImageStorage in accepted
        assert MRImageStorage not in accepted
        assert sent(association, image(), sop_class=MRImageStorage) == 0x0122
        assert sent(association, image(SOPClassUID=MRImageStorage)) == 0xA900
        assert at.nothing_is_kept()
        association.release()


def test_property_DN05_an_image_is_kept_once_and_never_changed(tmp_path):
    with door(tmp_path) as at:
        association = called(at)
        assert [sent(association, image()) for _ in range(2)] == [0, 0]
        assert sent(association, image(PixelData=bytes(128))) == 0x0111
        association.release()
        assert at.files()["1.2.3.1"].PixelData == image().PixelData
        assert at.marks() == []


@pytest.mark.parametrize("way", ["abort", "lost connection", "silence", "server ends"])
def test_property_DN06_a_sender_that_breaks_off_is_known(tmp_path, way, monkeypatch):
    monkeypatch.setattr(receiver, "IDLE_S", 0.5 if way == "silence" else 600.0)
    with door(tmp_path) as at:
        association = called(at)
        assert sent(association, image()) == 0
        if way == "abort":
            association.abort()
        elif way == "lost connection":
            association.dul.socket.socket.close()
        if way != "server ends":
            until(lambda: at.marks() == ["lost"])
    assert at.marks() == ["lost"]
    with door(tmp_path) as at:
        association = called(at)
        assert [sent(association, image(instance=f"1.2.3.{k}")) for k in (1, 2)] == [0, 0]
        assert at.marks() == ["lost", "sending"]
        association.release()
        assert at.marks() == []


def test_property_DN06_what_is_sent_without_waiting_is_kept_before_the_release(tmp_path):
    with door(tmp_path) as at:
        association = called(at)
        for k in range(6):
            ask(association, image(instance=f"1.2.3.{k}"))
        association.release()
        until(lambda: at.marks() != ["sending"])
        assert at.marks() == []
        assert len(at.files()) == 6


LIES = {
    "another instance": (image(), {"instance": "1.2.3.9"}),
    "no instance": (image(instance=""), {"instance": "1.2.3.1"}),
    "no instance anywhere": (image(instance=""), {}),
    "no instance requested": (image(instance="0"), {"instance": ""}),
    "a path as instance": (image(instance="../../x"), {"instance": "../../x"}),
    "no study": (image(study=""), {}),
    "a path as study": (image(study="../../etc"), {}),
    "a study too long": (image(study="1." + "2" * 64), {}),
    "a study with leading zeros": (image(study="1.02"), {}),
    "no data set": (image(), {"encoded": b"\x00" * 8}),
    "noise": (image(), {"encoded": bytes(range(256)) * 4}),
    "a name": (image(), {"encoded": NAME.encode() * 20}),
    "a file within": (image(), {"encoded": b"\x00" * 128 + b"DICM" + encode(image(), False, True)}),
    "a file meta within": (
        image(),
        {"encoded": b"\x02\x00\x10\x00UI\x02\x001\x00" + encode(image(), False, True)},
    ),
}


@pytest.mark.filterwarnings("ignore:Invalid value:UserWarning")
@pytest.mark.parametrize("lie", LIES)
def test_property_DN07_what_is_not_what_it_says_is_not_kept(tmp_path, lie, caplog):
    data, command = LIES[lie]
    with door(tmp_path) as at:
        association = called(at)
        caplog.clear()
        assert sent(association, data, **command) == 0xC000
        assert at.nothing_is_kept()
        assert not any("pynetdicom" in record.name for record in caplog.records)
        assert sent(association, image()) == 0
        association.release()
        assert at.marks() == []


def test_property_DN08_a_full_disk_is_said_and_survived(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = image(instance="1.2.3.2", PixelData=bytes(2**20))
    with door(tmp_path) as at:
        association = called(at)
        assert sent(association, image()) == 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))  # a write fails in its middle
        try:
            assert sent(association, large) == 0xA700
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert set(at.files()) == {"1.2.3.1"}
        assert not any(at.spool.incoming.iterdir())
        association.release()
        assert at.marks() == ["lost"]  # it was not told that all is well
        association = called(at)
        assert sent(association, large) == 0
        association.release()
        assert at.marks() == []


def test_property_DN08_no_image_is_begun_that_the_disk_has_no_room_for(tmp_path, monkeypatch):
    with door(tmp_path) as at:
        association = called(at)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 9, 0))
            assert sent(association, image()) == 0xA700
        assert at.files() == {}
        assert sent(association, image()) == 0
        association.release()
        assert at.marks() == []


@pytest.mark.parametrize("images", [3, pytest.param(40, marks=pytest.mark.full)])
def test_property_DN09_what_was_acknowledged_outlives_a_kill(tmp_path, images):
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (SOURCE, HERE)))},
    )
    try:
        port = int(server.stdout.readline())
        association = called(port)
        for k in range(images):
            assert sent(association, image(instance=f"1.2.3.{k}")) == 0
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()
        server.stdout.close()
    spool = Spool(tmp_path)
    spool.forsake()
    (arrival,) = spool.arrivals()
    assert len(list(arrival.folder.iterdir())) == images
    assert (arrival.sending, arrival.lost) == (0, 1)
    assert not arrival.settled(0)


_SERVER = """
import sys, time
from pathlib import Path
from dicom_peer import door
with door(Path(sys.argv[1])) as at:
    print(at.port, flush=True)
    time.sleep(600)
"""


def test_property_DN10_associations_at_once_do_not_mix(tmp_path):
    def send(study: int) -> list[int | None]:
        association = called(at)
        images = (image(f"1.2.{study}", f"1.2.{study}.{k}") for k in range(8))
        answers = [sent(association, one) for one in images]
        association.release()
        return answers

    with door(tmp_path) as at, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(send, range(4))) == [[0] * 8] * 4
        assert at.marks() == []
        _is_all(at.files(), 4, 8)


@needs_storescu
@pytest.mark.full
def test_property_DN10_sixteen_senders_of_300_images(tmp_path):
    for study in range(16):
        (tmp_path / str(study)).mkdir()
        for k in range(300):
            one = image(f"1.2.{study}", f"1.2.{study}.{k}", PixelData=bytes(2 * 64 * 64))
            one.save_as(tmp_path / str(study) / f"{k}.dcm", enforce_file_format=True)
    with door(tmp_path / "server") as at:
        base = ["storescu", "-aet", TITLE, "-aec", "HEPAR", HOST, str(at.port), "+sd"]
        started = time.monotonic()
        senders = [subprocess.Popen([*base, str(tmp_path / str(study))]) for study in range(16)]
        assert [sender.wait() for sender in senders] == [0] * 16
        print(f"{16 * 300 / (time.monotonic() - started):.0f} images a second")
        until(lambda: not at.marks())
        _is_all(at.files(), 16, 300)


def _is_all(kept: dict, studies: int, images: int) -> None:
    wanted = {f"1.2.{study}.{k}" for study in range(studies) for k in range(images)}
    assert set(kept) == wanted
    for uid, one in kept.items():
        assert uid.startswith(f"{one.StudyInstanceUID}.")
        assert Path(one.filename).parent == Path(kept[f"{one.StudyInstanceUID}.0"].filename).parent
