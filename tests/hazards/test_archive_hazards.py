"""Studies fetched from an archive: whole or not at all, whatever the archive answers."""

from __future__ import annotations

import gzip
import io
import os
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from fake_archive import (
    MULTIPART,
    FakeArchive,
    as_json,
    breaks_off,
    drips,
    everything,
    multipart,
    reply,
)
from pydicom.dataset import Dataset
from synthetic_dicom import stack

from hepar.errors import UsageError
from hepar.provenance import hepar_version
from hepar.server import archive as archive_module
from hepar.server import dicomweb
from hepar.server.archive import Source
from hepar.server.dicomweb import Dicomweb
from hepar.server.retries import PeerFailed, repeated
from hepar.server.settings import Pacs, Settings
from hepar.server.spool import Spool, image_name, key_of

STUDY, QUIET_S, MODEL = "1.2.3", 0.05, "a" * 64


def images(n: int = 4, **options: object) -> list[Dataset]:
    """Images of one series."""
    return [one.data for one in stack(n, matrix=(4, 4), **options)]


def settings(url: str, **more: object) -> Settings:
    """A server beside this archive, in a hurry."""
    return Settings(
        pacs=Pacs(url=url, days=20000, poll_s=0.01, **more), quiet_s=QUIET_S, keep_days=None
    )


@pytest.fixture
def fake():
    """An archive with a study of two series."""
    with FakeArchive() as one:
        one.put(*images(), *images(series="1.2.3.5"))
        yield one


class Clock:
    """Stands still until it is told to go on."""

    now = 0.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """The time by which a study is quiet."""
    monkeypatch.setattr(archive_module, "time", Clock())
    return archive_module.time


@pytest.fixture
def source(tmp_path, fake, clock):
    """Asks that archive."""
    chosen = settings(fake.url)
    with Dicomweb(chosen.pacs, tmp_path) as web:
        yield Source(web, Spool(tmp_path), chosen, MODEL)


def step(source: Source, times: int = 2) -> None:
    """Ask, several times, after more than the quiet time."""
    for _ in range(times):
        archive_module.time.now += 2 * QUIET_S
        source.step()


def inbox(folder: Path) -> set[str]:
    """Images of the study that are here."""
    place = folder / "inbox" / key_of(STUDY)
    return {path.name for path in place.iterdir()} if place.exists() else set()


def names(fake: FakeArchive) -> set[str]:
    """What the images of the archive are called in the spool."""
    return {image_name(uid) for uid in fake.objects}


def test_closed_form_a_quiet_study_is_fetched_as_it_was_sent_and_once(tmp_path, fake, source):
    source.step()
    assert inbox(tmp_path) == set()  # it may still grow
    step(source)
    assert inbox(tmp_path) == names(fake)
    for uid, file in fake.objects.items():
        assert (tmp_path / "inbox" / key_of(STUDY) / image_name(uid)).read_bytes() == file
    assert fake.retrieved() == 2
    (arrival,) = Spool(tmp_path).arrivals()
    assert (arrival.sending, arrival.lost) == (0, 0)
    with Dicomweb(settings(fake.url).pacs, tmp_path) as web:  # as after a restart
        step(Source(web, Spool(tmp_path), settings(fake.url), MODEL), 3)
    assert fake.retrieved() == 2


def test_closed_form_a_study_that_grows_is_left_alone_and_then_completed(
    tmp_path, fake, source, clock
):
    for image in images(8)[4:]:
        source.step()
        fake.put(image)
        clock.now += 0.9 * QUIET_S
        source.step()
        assert fake.retrieved() == 0
    step(source)
    assert inbox(tmp_path) == names(fake)
    fake.put(*images(2, series="1.2.3.6"))
    step(source)
    assert inbox(tmp_path) == names(fake)
    assert fake.retrieved() == 3  # of the new series alone


def test_property_DN06_a_study_of_which_the_archive_has_more_waits_for_it(tmp_path, fake, source):
    spool = Spool(tmp_path)
    step(source)
    for image in images(8)[4:]:
        fake.put(image)
        source.step()
        (arrival,) = spool.arrivals()
        assert (len(inbox(tmp_path)), arrival.sending) == (8, 1)
    step(source)
    (arrival,) = spool.arrivals()
    assert (len(inbox(tmp_path)), arrival.sending, arrival.lost) == (12, 0, 0)
    fake.put(images(9)[8])
    source.step()
    del fake.objects[str(images(9)[8].SOPInstanceUID)]  # it has less again
    step(source)
    (arrival,) = spool.arrivals()
    assert (len(inbox(tmp_path)), arrival.sending, arrival.lost) == (12, 0, 0)
    fake.put(images(9)[8])
    source.step()
    fake.objects.clear()
    source.step()
    (arrival,) = spool.arrivals()
    assert (arrival.sending, arrival.lost) == (0, 1)


def test_closed_form_what_is_no_ct_is_not_fetched(tmp_path, fake, source):
    fake.put(*images(1, series="1.2.3.7", Modality="SEG", acquisition=7))
    step(source)
    assert len(inbox(tmp_path)) == 8


def test_closed_form_an_archive_need_not_count(tmp_path, fake, source):
    fake.lists_counts = False
    step(source)
    assert inbox(tmp_path) == names(fake)


def test_closed_form_long_lists_come_in_pages(tmp_path, fake, source, monkeypatch):
    monkeypatch.setattr(dicomweb, "_PAGE", 3)
    fake.put(*images(11, series="1.2.3.8"))
    step(source)
    assert inbox(tmp_path) == names(fake)


def _images_as(body: Callable[[list[bytes]], bytes], kind: str = MULTIPART) -> Callable:
    def answer(handler: BaseHTTPRequestHandler) -> bool:
        if "transfer-syntax" not in handler.headers["Accept"]:
            return False
        series = handler.path.rpartition("/")[2]
        made = [file(one) for one in images(series=series)]
        reply(handler, 200, body(made), kind)
        return True

    return answer


def file(image: Dataset) -> bytes:
    """An image as a file."""
    stream = io.BytesIO()
    image.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


HOSTILE = {
    "a login page": everything(200, b"<html>Please log in</html>", "text/html"),
    "an error": everything(500, b"oh", "text/plain"),
    "out of order": everything(503, b"oh", "text/plain"),
    "elsewhere": everything(302, b"", "text/plain", Location="http://127.0.0.1:9/"),
    "deep json": everything(200, b"[" * 100_000, "application/dicom+json"),
    "endless json": everything(200, b"[" + b" " * 300_000 + b"]", "application/dicom+json"),
    "a bomb": everything(
        200, gzip.compress(b"[]"), "application/dicom+json", Content_Encoding="gzip"
    ),
    "numbers": as_json([1, 2]),
    "an object": as_json({"error": "CANARY^ZZTOP"}),
    "evil uids": as_json([{"0020000D": {"vr": "UI", "Value": ["../../../etc/passwd"]}}]),
    "empty tags": as_json([{"0020000D": None}, {"0020000D": {"vr": "UI", "Value": [None]}}]),
    "cut short": _images_as(lambda made: multipart(made, b"b")[:-40]),
    "cut before the last boundary": _images_as(lambda made: multipart(made, b"b")[:-7]),
    "no boundary": _images_as(lambda made: b"".join(made), "application/dicom"),
    "another boundary": _images_as(lambda made: multipart(made, b"x") * 30),
    "one missing": _images_as(lambda made: multipart(made[1:], b"b")),
    "one twice": _images_as(lambda made: multipart([*made[1:], made[-1]], b"b")),
    "one more": _images_as(lambda made: multipart([*made, file(images(9)[8])], b"b")),
    "another study": _images_as(
        lambda made: multipart([file(one) for one in images(study="1.2.9")], b"b")
    ),
    "no dicom": _images_as(lambda made: multipart([b"\0" * 200] * 4, b"b")),
    "half an image": _images_as(lambda made: multipart([one[:200] for one in made], b"b")),
    "a huge image": _images_as(lambda made: multipart([made[0] + b"\0" * 300_000], b"b")),
    "breaks off": breaks_off,
    "drips": drips,
}


@pytest.mark.parametrize("how", HOSTILE)
def test_fault_DN06_an_archive_that_misbehaves_costs_a_line_and_a_later_try(
    tmp_path, fake, source, caplog, monkeypatch, how
):
    monkeypatch.setattr(archive_module, "_MAX_IMAGE_BYTES", 200_000)
    monkeypatch.setattr(dicomweb, "_MAX_JSON_BYTES", 200_000)
    monkeypatch.setattr(dicomweb, "_PATIENCE_S", 0.1)
    monkeypatch.setattr(archive_module, "time", time)
    fake.hostile = HOSTILE[how]
    with repeated(source.step, 0.01, "W_PACS"):
        deadline = time.monotonic() + 30
        while not caplog.records:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert inbox(tmp_path) == set()
        fake.hostile = None
        while len(inbox(tmp_path)) < 8 or list((tmp_path / "open").iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert inbox(tmp_path) == names(fake)
    assert list((tmp_path / "incoming").iterdir()) == []
    assert all("W_PACS: " in one.getMessage() for one in caplog.records)
    assert "a bug" not in caplog.text
    for secret in (STUDY, "CANARY", "passwd", "127.0.0.1"):
        assert secret not in caplog.text


def test_fault_an_archive_that_is_down_is_said_to_be(tmp_path):
    chosen = settings("http://127.0.0.1:9/dicom-web")
    with Dicomweb(chosen.pacs, tmp_path) as web, pytest.raises(PeerFailed, match="reached") as said:
        Source(web, Spool(tmp_path), chosen, MODEL).step()
    assert said.value.down


def test_fault_one_damaged_study_does_not_keep_others_away(tmp_path, fake, source):
    fake.put(*images(study="1.2.9", series="1.2.9.1"))

    def broken(handler: BaseHTTPRequestHandler) -> bool:
        if "/1.2.3/series/1.2.3.4" not in handler.path:
            return False
        reply(handler, 500, b"", "text/plain")
        return True

    fake.hostile = broken
    step(source)
    assert inbox(tmp_path) == set()
    assert len(list((tmp_path / "inbox" / key_of("1.2.9")).iterdir())) == 4


def test_fault_WE07_a_study_that_is_cut_while_it_is_published_is_not_complete(
    tmp_path, fake, source, monkeypatch
):
    real, calls = os.link, []

    def link(one: Path, other: Path) -> None:
        calls.append(other)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        real(one, other)

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(Exception, match="E_OUTPUT_WRITE"):
        step(source)
    (arrival,) = Spool(tmp_path).arrivals()
    assert len(inbox(tmp_path)) == 3
    assert (arrival.sending, arrival.lost) == (0, 1)
    step(source)
    (arrival,) = Spool(tmp_path).arrivals()
    assert inbox(tmp_path) == names(fake)
    assert (arrival.sending, arrival.lost) == (0, 0)


def test_closed_form_what_a_sender_owed_the_archive_may_give(tmp_path, fake, source):
    spool = Spool(tmp_path)
    spool.begin(STUDY, "scanner")
    uid, data = next(iter(fake.objects.items()))
    spool.store(STUDY, uid, [data])
    step(source)
    assert len(inbox(tmp_path)) == 1  # the scanner is still at it
    spool.broke_off(STUDY, "scanner")
    step(source)
    (arrival,) = spool.arrivals()
    assert inbox(tmp_path) == names(fake)
    assert arrival.lost == 0


def test_fault_WE07_a_study_that_was_published_but_not_said_to_be_is_complete(
    tmp_path, fake, source
):
    spool = Spool(tmp_path)
    spool.begin(STUDY, "archive")
    for uid, data in fake.objects.items():
        spool.store(STUDY, uid, [data])
    spool.forsake()  # as after a kill
    step(source)
    (arrival,) = spool.arrivals()
    assert (arrival.sending, arrival.lost) == (0, 0)
    assert fake.retrieved() == 0


@pytest.mark.parametrize("changed", [None, "model", "version", "image", "seg"])
def test_closed_form_a_study_with_our_results_of_these_images_is_not_done_again(
    tmp_path, fake, source, changed
):
    evidence = [*fake.objects, "1.9.1"]
    report = images(1, series="1.2.3.9002", Modality="SR", acquisition=8)[0]
    report.DeviceSerialNumber = "b" * 64 if changed == "model" else MODEL
    report.SoftwareVersions = "0.0" if changed == "version" else hepar_version()
    report.CurrentRequestedProcedureEvidenceSequence = [
        _holding(
            "ReferencedSeriesSequence", _holding("ReferencedSOPSequence", *map(_item, evidence))
        )
    ]
    seg = images(1, series="1.2.3.9001", Modality="SEG", acquisition=9)[0]
    seg.SOPInstanceUID = seg.file_meta.MediaStorageSOPInstanceUID = "1.9.1"
    fake.put(report, *([] if changed == "seg" else [seg]))
    if changed == "image":
        fake.put(images(5)[4])
    step(source)
    assert bool(inbox(tmp_path)) == (changed is not None)


def _holding(keyword: str, *items: Dataset) -> Dataset:
    made = Dataset()
    setattr(made, keyword, list(items))
    return made


def _item(uid: str) -> Dataset:
    made = Dataset()
    made.ReferencedSOPInstanceUID = uid
    return made


def test_closed_form_a_password_is_read_from_its_file(tmp_path, fake):
    (tmp_path / "secret").write_text("pass word\n")
    seen = []
    fake.hostile = lambda handler: bool(seen.append(handler.headers["Authorization"]))
    chosen = settings(fake.url, user="me", password_file=Path("secret"))
    with Dicomweb(chosen.pacs, tmp_path) as web:
        web.ct_studies("20000101")
    assert seen[0] == "Basic bWU6cGFzcyB3b3Jk"
    (tmp_path / "secret").unlink()
    with pytest.raises(UsageError, match="password_file"):
        Dicomweb(chosen.pacs, tmp_path)
