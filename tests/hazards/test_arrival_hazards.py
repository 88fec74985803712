"""Studies that arrive at a server: complete or not, done once, and told apart."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from batch_engine import engine, started
from hepar.errors import InputRefused
from hepar.server.desk import Desk
from hepar.server.settings import Settings
from hepar.server.spool import Spool, key_of

QUIET_S = 0.2


def _desk(tmp_path: Path, **settings: object) -> Desk:
    folder = tmp_path / "server"
    spool = Spool(folder)
    spool.forsake()
    return Desk(folder, spool, Settings(quiet_s=QUIET_S, **settings), engine(tmp_path / "notes"))


def _until(desk: Desk, state: str, identifier: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while (case := desk.case(identifier)) is None or case.state != state:
        assert time.monotonic() < end, (state, desk.cases())
        desk.step()


def _rest(desk: Desk, steps: int = 3) -> None:
    time.sleep(2 * QUIET_S)
    for _ in range(steps):
        desk.step()


def test_closed_form_a_study_is_done_once_when_it_is_complete(tmp_path):
    desk = _desk(tmp_path)
    try:
        desk.spool.begin("1.2", "a")
        assert desk.spool.store("1.2", "1.2.1", [b"one", b"two"])
        _rest(desk)
        assert desk.case(key_of("1.2")).state == "arriving"
        assert desk.spool.store("1.2", "1.2.2", [b"three"])
        assert not desk.spool.store("1.2", "1.2.1", [b"onetwo"])
        desk.spool.end("1.2", "a")
        _until(desk, "done", key_of("1.2"))
        assert (desk.result(key_of("1.2")) / "study.json").is_file()
        assert not desk.spool.store("1.2", "1.2.2", [b"three"])
        _rest(desk)
        assert started(tmp_path / "notes") == [key_of("1.2")]
    finally:
        desk.end()
    again = _desk(tmp_path)
    try:
        _until(again, "done", key_of("1.2"))
        assert started(tmp_path / "notes") == [key_of("1.2")]
    finally:
        again.end()


def test_property_DN06_a_study_whose_sender_broke_off_waits_for_the_rest(tmp_path):
    desk = _desk(tmp_path)
    try:
        desk.spool.begin("1.2", "a")
        desk.spool.store("1.2", "1.2.1", [b"one"])
        desk.spool.broke_off("1.2", "a")
        _rest(desk)
        assert desk.case(key_of("1.2")).state == "incomplete"
    finally:
        desk.end()
    desk = _desk(tmp_path)  # as after a kill
    try:
        _rest(desk)
        assert desk.case(key_of("1.2")).state == "incomplete"
        desk.spool.begin("1.2", "b")
        desk.spool.store("1.2", "1.2.1", [b"one"])
        desk.spool.store("1.2", "1.2.2", [b"two"])
        _rest(desk)
        assert desk.case(key_of("1.2")).state == "arriving"
        assert started(tmp_path / "notes") == []
        desk.spool.end("1.2", "b")
        _until(desk, "done", key_of("1.2"))
    finally:
        desk.end()


def test_property_DN06_images_that_come_late_make_the_result_anew(tmp_path):
    desk = _desk(tmp_path)
    try:
        desk.spool.store("1.2", "1.2.1", [b"one"])
        _until(desk, "done", key_of("1.2"))
        before = (desk.result(key_of("1.2")) / "findings.json").read_text()
        desk.spool.store("1.2", "1.2.2", [b"two!"])
        desk.step()
        assert desk.case(key_of("1.2")).state == "arriving"
        _until(desk, "done", key_of("1.2"))
        assert (desk.result(key_of("1.2")) / "findings.json").read_text() != before
        assert len(started(tmp_path / "notes")) == 2
    finally:
        desk.end()


def test_property_DN05_other_bytes_under_a_known_uid_are_refused_and_the_first_stay(tmp_path):
    spool = Spool(tmp_path)
    spool.store("1.2", "1.2.1", [b"one"])
    with pytest.raises(InputRefused, match="SOPInstanceUID"):
        spool.store("1.2", "1.2.1", [b"two"])
    (image,) = (tmp_path / "inbox" / key_of("1.2")).iterdir()
    assert image.read_bytes() == b"one"
    assert not list(spool.incoming.iterdir())


def test_closed_form_uploads_are_done_at_once_and_belong_to_someone(tmp_path):
    desk = _desk(tmp_path)
    try:
        with desk.spool.temporary() as file:
            file.write_bytes(b"upload")
            identifier = desk.accept(file, ".zip", "someone")
        assert desk.case(identifier).state == "queued"
        assert desk.waiting() == 1
        _until(desk, "done", identifier)
        assert desk.case(identifier).owner == "someone"
        assert desk.waiting() == 0
        assert not list(desk.spool.incoming.iterdir())
    finally:
        desk.end()


def test_closed_form_studies_are_forgotten_after_the_days_that_they_are_kept(tmp_path):
    desk = _desk(tmp_path, keep_days=1.0)
    try:
        desk.spool.store("1.2", "1.2.1", [b"one"])
        _until(desk, "done", key_of("1.2"))
        long_ago = time.time() - 2 * 86400
        os.utime(tmp_path / "server" / "inbox" / key_of("1.2"), (long_ago, long_ago))
        _rest(desk)
        desk._tidy()
        assert desk.cases() == ()
        left = [p for p in (tmp_path / "server").rglob("*") if key_of("1.2") in p.name]
        assert left == []
    finally:
        desk.end()


def test_property_WE07_a_server_that_is_killed_goes_on_where_it_was(tmp_path):
    desk = _desk(tmp_path)
    for number in range(3):
        desk.spool.store(f"1.{number}", f"1.{number}.1", [b"%d" % number])
    _rest(desk, 1)
    desk._crew.end()  # and nothing of what `end` tidies
    again = _desk(tmp_path)
    try:
        for number in range(3):
            _until(again, "done", key_of(f"1.{number}"))
    finally:
        again.end()
