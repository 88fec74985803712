"""Results on their way back: once, of the images as they are, and again after every failure."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pynetdicom
import pytest
from fake_archive import FakeArchive, reply
from orthanc import free_port, wait_for
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import Comprehensive3DSRStorage, ExplicitVRLittleEndian, SegmentationStorage
from synthetic_dicom import stack

from hepar.batch.crew import enter
from hepar.batch.job import Engine, run_study
from hepar.server import delivery as delivery_module
from hepar.server.archive import fetching
from hepar.server.delivery import Delivery, delivering
from hepar.server.desk import Desk
from hepar.server.dicomweb import Dicomweb
from hepar.server.receivers import Archive, DicomNode
from hepar.server.retries import PeerFailed, Retries
from hepar.server.settings import Pacs, Peer, Settings
from hepar.server.spool import Spool, key_of

STUDY = "1.2.3"
KEY = key_of(STUDY)
OBJECTS = {"seg.dcm": (SegmentationStorage, "SEG"), "sr.dcm": (Comprehensive3DSRStorage, "SR")}


@dataclass(frozen=True)
class Maker:
    """Leaves a SEG and an SR whose UIDs follow from the images."""

    model_sha256: str = "model"
    objects: bool = True

    def segment(self, source: Path | None, out: Path, stated: Mapping[str, Path]) -> Maker:
        """Two objects without content."""
        assert source is not None
        images = len(list(source.iterdir()))
        for number, (name, (kind, modality)) in enumerate(self.objects * list(OBJECTS.items())):
            made = Dataset()
            made.file_meta = FileMetaDataset()
            made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            made.SOPClassUID, made.Modality = kind, modality
            made.StudyInstanceUID, made.SeriesInstanceUID = STUDY, f"{STUDY}.900{number}"
            made.SOPInstanceUID = f"{STUDY}.{images}.{number}"
            made.save_as(out / name, enforce_file_format=True)
        return self

    @property
    def lesions(self) -> tuple[int, ...]:
        return ()

    @property
    def tumor_burden(self) -> float:
        return 0.0


class Hospital:
    """A server whose studies are done at once, and what becomes of its results."""

    def __init__(self, folder: Path, url: str = "http://h/x", maker: Maker | None = None) -> None:
        self.folder, self.spool = folder, Spool(folder)
        pacs = Pacs(url=url, days=20000, poll_s=0.02)
        self.settings = Settings(pacs=pacs, results_to="pacs", quiet_s=0.001, keep_days=None)
        self.desk = Desk(
            folder, self.spool, self.settings, Engine(load=lambda engine: maker or Maker())
        )

    def do(self) -> None:
        """Do what is complete."""
        time.sleep(0.01)
        self.desk._look()
        for job in self.desk._jobs.values():
            assert run_study(job).state == "done"
            enter(job, self.desk._ledger)
        self.desk._tell()

    def state(self) -> tuple[str, str | None]:
        """What the server tells of the delivery."""
        self.desk._tell()
        case = self.desk.case(KEY)
        return case.delivered, case.delivery


@pytest.fixture
def hospital(tmp_path) -> Iterator[Hospital]:
    """One study is done."""
    made = Hospital(tmp_path / "server")
    made.spool.store(STUDY, "1", [b"image"])
    made.do()
    yield made
    made.desk.end()


@pytest.fixture
def fake() -> Iterator[FakeArchive]:
    """An archive."""
    with FakeArchive() as one:
        yield one


@contextmanager
def to_archive(hospital: Hospital, fake: FakeArchive) -> Iterator[Delivery]:
    """Sends by STOW-RS."""
    with Dicomweb(Pacs(url=fake.url), hospital.folder) as web:
        yield Delivery(Archive(web), "pacs", hospital.folder, hospital.desk)


def at_once(delivery: Delivery) -> Delivery:
    """Tries again without a pause."""
    delivery._retries = Retries(0.0)
    return delivery


def test_closed_form_seg_and_sr_arrive_as_they_are_and_once(hospital, fake):
    assert hospital.state() == ("waiting", None)
    with to_archive(hospital, fake) as delivery:
        delivery.step()
        delivery.step()
    assert hospital.state() == ("sent", None)
    place = hospital.desk.result(KEY)
    assert list(fake.objects.values()) == [(place / name).read_bytes() for name in OBJECTS]
    with to_archive(hospital, fake) as delivery:  # as after a restart
        delivery.step()
    assert len(fake.asked) == 2
    assert hospital.state() == ("sent", None)


def test_closed_form_a_result_without_objects_is_said_to_have_none(tmp_path, fake):
    hospital = Hospital(tmp_path / "server", maker=Maker("no objects", objects=False))
    hospital.spool.store(STUDY, "1", [b"image"])
    hospital.do()
    with to_archive(hospital, fake) as delivery:
        delivery.step()
        delivery.step()
    assert hospital.state() == ("failed", "the study's headers allow no DICOM output")
    assert fake.asked == []
    hospital.desk.end()


def test_property_DN06_no_result_goes_out_while_newer_images_come(hospital, fake):
    with to_archive(hospital, fake) as delivery:
        hospital.spool.store(STUDY, "2", [b"late"])
        delivery.step()  # the desk does not know of it yet
        assert fake.asked == []
        hospital.do()
        delivery.step()
        assert set(fake.objects) == {f"{STUDY}.2.0", f"{STUDY}.2.1"}
        hospital.spool.store(STUDY, "3", [b"later"])
        hospital.do()
        assert hospital.state() == ("waiting", None)
        delivery.step()
    assert hospital.state() == ("sent", None)
    assert len(fake.objects) == 4


def test_fault_WE07_what_was_sent_before_we_were_killed_is_sent_again_under_its_uid(
    hospital, fake, monkeypatch
):
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with to_archive(hospital, fake) as delivery, monkeypatch.context() as patch:
        patch.setattr(delivery_module, "atomic_path", killed)
        with pytest.raises(KeyboardInterrupt):
            delivery.step()
    before = dict(fake.objects)
    assert len(before) == 1
    with to_archive(hospital, fake) as delivery:
        delivery.step()
    assert len(fake.objects) == 2
    assert before.items() <= fake.objects.items()


def test_fault_of_two_objects_one_is_refused_and_alone_sent_again(hospital, fake, caplog):
    fake.refuses["SR"] = 0xA700
    with to_archive(hospital, fake) as delivery:
        at_once(delivery).step()
        told = "sr.dcm: the archive did not take it (A700)"
        assert hospital.state() == ("failed", told)
        assert STUDY not in caplog.text
        delivery.step()
        assert len(fake.asked) == 3  # SEG once, SR twice
        fake.refuses.clear()
        delivery.step()
    assert hospital.state() == ("sent", None)
    assert len(fake.objects) == 2


def test_closed_form_what_the_archive_has_already_is_there(hospital, fake):
    fake.refuses.update(SEG=0x0111, SR=0x0111)
    with to_archive(hospital, fake) as delivery:
        delivery.step()
    assert hospital.state() == ("sent", None)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, b"<html>Please log in</html>", "text/html"),
        (200, b"", "application/dicom+json"),
        (200, json.dumps({"00081199": {"Value": [{"00081155": 3}]}}).encode(), "text/json"),
        (202, json.dumps([[]]).encode(), "application/dicom+json"),
        (500, b"", "text/plain"),
        (503, b"", "text/plain"),
    ],
)
def test_fault_an_answer_that_does_not_name_the_object_is_no_success(
    hospital, fake, status, body, kind
):
    fake.hostile = lambda handler: reply(handler, status, body, kind) or True
    with to_archive(hospital, fake) as delivery:
        at_once(delivery)
        with suppress(PeerFailed):
            delivery.step()
        assert hospital.state()[0] == ("waiting" if status == 503 else "failed")
        fake.hostile = None
        delivery.step()
    assert hospital.state() == ("sent", None)


def test_fault_a_receiver_that_is_away_is_waited_for(hospital, fake):
    with FakeArchive() as gone:
        pass
    with to_archive(hospital, gone) as delivery, pytest.raises(PeerFailed):
        delivery.step()
    assert hospital.state()[0] == "waiting"
    assert "cannot be reached" in hospital.state()[1]


def test_closed_form_marks_of_results_that_are_gone_go_too(hospital, fake):
    with to_archive(hospital, fake) as delivery:
        delivery.step()
        assert len(list((hospital.folder / "delivered").iterdir())) == 1
        hospital.desk.remove(KEY)
        delivery.step()
    assert list((hospital.folder / "delivered").iterdir()) == []


def test_closed_form_marks_of_another_receiver_do_not_count(hospital, fake):
    with to_archive(hospital, fake) as delivery:
        delivery.step()
        elsewhere = Delivery(delivery._receiver, "OTHER", hospital.folder, hospital.desk)
        elsewhere.step()
    assert len(fake.asked) == 4


def test_closed_form_a_study_comes_from_the_archive_and_its_results_go_there(
    tmp_path, fake, monkeypatch
):
    monkeypatch.setattr(delivery_module, "_EVERY_S", 0.02)
    fake.put(*(one.data for one in stack(4, matrix=(4, 4), study=STUDY)))
    hospital, told = Hospital(tmp_path, fake.url), []
    desk = (hospital.settings, hospital.folder, hospital.desk)
    with fetching(*desk), delivering(*desk, told.append):
        wait_for(lambda: hospital.do() or told, "the results to be sent")
    hospital.desk.end()
    assert told == [f"{KEY}: sent to pacs"]
    assert {f"{STUDY}.4.0", f"{STUDY}.4.1"} < fake.objects.keys()


class Node:
    """A DICOM node that answers C-STORE as it is told.

    Args:
        statuses: SOP class to status.
    """

    def __init__(self, statuses: Mapping[str, int]) -> None:
        self.port, self.statuses = free_port(), statuses
        self.taken: list[bytes] = []

    def __enter__(self) -> Node:
        entity = pynetdicom.AE("PEER")
        for sop_class in self.statuses:
            entity.add_supported_context(sop_class, ExplicitVRLittleEndian)
        self._server = entity.start_server(
            ("127.0.0.1", self.port),
            block=False,
            evt_handlers=[(pynetdicom.evt.EVT_C_STORE, self._take)],
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _take(self, event: object) -> int:
        status = self.statuses[event.request.AffectedSOPClassUID]
        if status == -1:
            event.assoc.abort()
        if status == 0:
            self.taken.append(event.encoded_dataset())
        return max(status, 0)


def to_node(hospital: Hospital, node: Node) -> Delivery:
    """Sends by C-STORE."""
    peer = Peer(ae_title="PEER", host="127.0.0.1", port=node.port)
    return at_once(Delivery(DicomNode("HEPAR", peer), "PEER", hospital.folder, hospital.desk))


def test_closed_form_a_node_gets_both_in_one_association(hospital):
    with Node({SegmentationStorage: 0, Comprehensive3DSRStorage: 0}) as node:
        delivery = to_node(hospital, node)
        delivery.step()
        delivery.step()
    taken = [pydicom.dcmread(io.BytesIO(one)) for one in node.taken]
    assert [str(one.SOPInstanceUID) for one in taken] == [f"{STUDY}.1.0", f"{STUDY}.1.1"]
    assert hospital.state() == ("sent", None)


@pytest.mark.parametrize(
    ("statuses", "state", "said"),
    [
        ({SegmentationStorage: 0, Comprehensive3DSRStorage: 0xA700}, "failed", "sr.dcm: .*A700"),
        ({SegmentationStorage: 0}, "failed", "sr.dcm: .*class"),
        ({SegmentationStorage: 0, Comprehensive3DSRStorage: -1}, "waiting", "broke off"),
        ({SegmentationStorage: 0xB000, Comprehensive3DSRStorage: 0x0111}, "sent", ""),
    ],
)
def test_fault_a_node_that_takes_one_of_two_is_sent_the_other_again(
    hospital, statuses, state, said
):
    with Node(statuses) as node:
        delivery = to_node(hospital, node)
        with suppress(PeerFailed):
            delivery.step()
    assert hospital.state()[0] == state
    assert re.search(said, hospital.state()[1] or "")
    with Node({SegmentationStorage: 0, Comprehensive3DSRStorage: 0}) as node:
        delivery._receiver._peer = Peer(ae_title="PEER", host="127.0.0.1", port=node.port)
        delivery.step()
    assert hospital.state() == ("sent", None)
    assert len(node.taken) == (0 if state == "sent" else 1)


# pynetdicom leaves the socket of an association that failed to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_fault_a_node_that_is_away_is_waited_for(hospital):
    with Node({SegmentationStorage: 0}) as node:
        pass
    with pytest.raises(PeerFailed, match="reached"):
        to_node(hospital, node).step()
    assert hospital.state()[0] == "waiting"
