"""Beside a real archive: studies that a scanner sends to Orthanc come back with SEG and SR, once.

Our process is killed while a study is fetched or done, and right after a result was made; a study
whose second half comes late is never done by halves.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

import archive_engine
import pydicom
import pytest
from archive_engine import Server, started
from dicom_case import wrong_pixels
from orthanc import AE_TITLE, Orthanc, free_port, wait_for
from synthetic_dicom import save, stack

from hepar.io.sr import read_sr
from hepar.server.archive import Source
from hepar.server.dicomweb import Dicomweb
from hepar.server.settings import Settings
from hepar.server.spool import Spool, key_of

pytestmark = pytest.mark.full

IMAGES = 24
QUIET_S = 20.0


def scan(folder: Path, study: str) -> list[Path]:
    """The files of a patient in two phases, 24 images each."""
    patient = {"study": study, "PatientID": f"ID{study}", "PatientName": f"NAME^{study}"}
    early = {**patient, "series": f"{study}.1", "SeriesNumber": 1}
    late = {**patient, "series": f"{study}.2", "SeriesNumber": 2, "marker_hu": 200}
    return [
        *save(stack(IMAGES, **early), folder / "early"),
        *save(stack(IMAGES, **late), folder / "late"),
    ]


def settings(archive: Orthanc, results_to: str = "pacs") -> dict[str, object]:
    """A server beside this archive."""
    return {
        "pacs": {"url": archive.url, "days": 20000, "poll_s": 0.5},
        "results_to": results_to,
        "keep_days": None,
        "quiet_s": QUIET_S,
    }


def has_results(archive: Orthanc, studies: list[str]) -> bool:
    """Whether every study has a SEG and an SR."""
    return all(archive.instances(s, m) for s in studies for m in ("SEG", "SR"))


def assert_right(archive: Orthanc, study: str, tmp_path: Path) -> None:
    """One valid SEG and one SR of this very study, with its truth."""
    for modality in ("SEG", "SR"):
        ((series, instance),) = archive.instances(study, modality)
        path = tmp_path / f"{study}-{modality}.dcm"
        path.write_bytes(archive.file(study, series, instance))
        data = pydicom.dcmread(path)
        assert (data.StudyInstanceUID, data.PatientID) == (study, f"ID{study}")
        if modality == "SEG":
            assert wrong_pixels(path, archive_engine.anatomy) == 0
        else:
            assert [group.segment for group in read_sr(path)] == [1, 2]
        if program := shutil.which("dciodvfy"):
            told = subprocess.run([program, str(path)], capture_output=True, text=True)
            assert "Error" not in told.stderr


def test_property_DN06_four_studies_come_back_once_with_two_kills_and_a_late_half(tmp_path):
    studies = [f"1.2.3.{n}" for n in range(1, 5)]
    files = {study: scan(tmp_path / study, study) for study in studies}
    folder, notes = tmp_path / "server", tmp_path / "notes"
    with Orthanc(tmp_path / "archive") as archive:
        server = Server(folder, notes, settings(archive))
        (notes / "wait").touch()
        server.start()
        try:
            for study in studies[:3]:
                archive.receive(files[study])
            wait_for(lambda: started(notes), "a study to be begun")
            server.kill()  # one is being done, others are fetched or not
            (notes / "wait").unlink()
            server.start()
            wait_for(lambda: list(folder.glob("results/*/study.json")), "a result")
            server.kill()  # it is not sent, or that it was is not written down
            server.start()
            half = len(files[studies[3]]) // 2 + IMAGES // 4
            archive.receive(files[studies[3]][:half])
            time.sleep(QUIET_S / 4)
            archive.receive(files[studies[3]][half:])
            wait_for(lambda: has_results(archive, studies), "all results", 600)
            wait_for(lambda: said_sent(server) == set(map(key_of, studies)), "the notes of it")
        finally:
            server.stop()
        for study in studies:
            assert_right(archive, study, tmp_path)
        assert {count for _, count in started(notes)} == {2 * IMAGES}
        begun, sent = len(started(notes)), server.said().count("sent to")
        server.start()
        try:
            archive.receive(files[studies[0]])  # what it holds already
            time.sleep(3 * QUIET_S)
        finally:
            server.stop()
        assert (len(started(notes)), server.said().count("sent to")) == (begun, sent)
    for study in studies:
        assert study not in server.said()
        assert f"NAME^{study}" not in server.said()


def test_property_DN06_results_go_to_a_node_by_c_store(tmp_path):
    study, port = "1.2.3.5", free_port()
    with Orthanc(tmp_path / "archive", "HEPAR", port) as archive:
        peer = {"ae_title": AE_TITLE, "host": "127.0.0.1", "port": archive.port}
        node = {"ae_title": "HEPAR", "port": port, "peers": [peer]}
        asked = {**settings(archive, AE_TITLE), "node": node, "quiet_s": 3}
        server = Server(tmp_path / "server", tmp_path / "notes", asked)
        archive.receive(scan(tmp_path / study, study))
        archive.stop()  # it is away when the server starts
        server.start()
        try:
            wait_for(lambda: "W_PACS" in server.said(), "a question in vain")
            archive.start()
            wait_for(lambda: has_results(archive, [study]), "results", 600)
        finally:
            server.stop()
        assert_right(archive, study, tmp_path)
        # A server that has lost its folder sees that it was done, unless by another model.
        for model, images in ((archive_engine.MODEL, 0), ("b" * 64, 2 * IMAGES)):
            chosen = Settings.model_validate({**settings(archive), "quiet_s": 0.01})
            spool = Spool(tmp_path / model)
            with Dicomweb(chosen.pacs, tmp_path) as web:
                source = Source(web, spool, chosen, model)
                for _ in range(2):
                    source.step()
                    time.sleep(0.1)
            assert sum(1 for _ in spool.inbox.rglob("*.dcm")) == images


def test_property_DN06_what_orthanc_passes_on_comes_back_once_after_a_kill(tmp_path):
    study, port = "1.2.3.6", free_port()
    files = scan(tmp_path / study, study)
    notes = tmp_path / "notes"
    with Orthanc(tmp_path / "archive", "HEPAR", port) as archive:
        peer = {"ae_title": AE_TITLE, "host": "127.0.0.1", "port": archive.port}
        node = {"ae_title": "HEPAR", "port": port, "peers": [peer]}
        asked = {"node": node, "results_to": AE_TITLE, "quiet_s": 3}
        server = Server(tmp_path / "server", notes, asked)
        (notes / "wait").touch()
        server.start()
        try:
            wait_for(lambda: "listens at" in server.said(), "the node")
            archive.receive(files)
            archive.pass_on()
            wait_for(lambda: started(notes), "the study to be begun")
            server.kill()
            (notes / "wait").unlink()
            server.start()
            wait_for(lambda: has_results(archive, [study]), "results", 600)
            wait_for(lambda: said_sent(server) == {key_of(study)}, "the note of it")
        finally:
            server.stop()
        assert_right(archive, study, tmp_path)
        assert {count for _, count in started(notes)} == {len(files)}
        assert len(started(notes)) == 2


def said_sent(server: Server) -> set[str]:
    """Keys of the studies that the server says it has sent."""
    return set(re.findall(r"([0-9a-f]{32}): sent to", server.said()))
