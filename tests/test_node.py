"""The DICOM node with well-behaved peers: what it takes, how it keeps it, and what it says."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pydicom
import pytest
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)
from pynetdicom.dsutils import encode

from batch_engine import engine, started
from dicom_peer import HOST, NAME, TITLE, called, door, image, sent, until
from hepar.errors import UsageError
from hepar.server.doorkeeper import plain_address
from hepar.server.receiver import transfer_syntaxes
from hepar.server.serve import run_server
from hepar.server.settings import Peer
from hepar.server.spool import image_name, key_of


def test_closed_form_images_are_kept_as_they_were_sent(tmp_path):
    with door(tmp_path) as at:
        association = called(at)
        assert association.send_c_echo().Status == 0
        assert [sent(association, image(instance=f"1.2.3.{k}")) for k in range(3)] == [0, 0, 0]
        assert at.marks() == ["sending"]
        association.release()
        assert at.marks() == []
        assert set(at.files()) == {"1.2.3.0", "1.2.3.1", "1.2.3.2"}
        path = at.spool.inbox / key_of("1.2.3") / image_name("1.2.3.2")
        encoded = encode(image(instance="1.2.3.2"), False, True)
        head = path.read_bytes().removesuffix(encoded)
        assert head[:132] == b"\x00" * 128 + b"DICM"
        assert len(head) < 500
        meta = pydicom.dcmread(path).file_meta
        assert meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert meta.MediaStorageSOPClassUID == CTImageStorage
        assert meta.MediaStorageSOPInstanceUID == "1.2.3.2"
        assert not any(NAME in line or "1.2.3" in line for line in at.said)
        assert (at.said[0], len(at.said)) == (f"DICOM node HEPAR listens at {HOST}:{at.port}.", 1)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_closed_form_the_transfer_syntax_is_the_senders(tmp_path, syntax):
    with door(tmp_path) as at:
        association = called(at, syntax=syntax)
        data = image()
        data.file_meta.TransferSyntaxUID = syntax
        assert association.send_c_store(data).Status == 0
        association.release()
        kept = at.files()["1.2.3.1"]
        assert kept.file_meta.TransferSyntaxUID == syntax
        assert kept.PixelData == data.PixelData


def test_closed_form_lossy_is_taken_only_where_nothing_else_is_offered():
    syntaxes = transfer_syntaxes()
    assert syntaxes[0] == "1.2.840.10008.1.2.1"
    assert {"1.2.840.10008.1.2", JPEG2000Lossless, "1.2.840.10008.1.2.4.70"} <= set(syntaxes)
    assert {str(one) for one in syntaxes[-5:]} <= {
        f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81, 91, 203)
    }


@pytest.mark.parametrize(
    ("text", "plain"),
    [("::ffff:10.0.0.1", "10.0.0.1"), ("fe80::1%eth0", "fe80::1"), ("10.0.0.1", "10.0.0.1")],
)
def test_closed_form_an_address_is_compared_by_what_it_is(text, plain):
    assert plain_address(text) == plain


def test_closed_form_a_peer_without_address_and_a_port_in_use_are_named(tmp_path):
    with (
        pytest.raises(UsageError, match=r"nobody\.invalid") as refusal,
        door(tmp_path, Peer(ae_title=TITLE, host="nobody.invalid")),
    ):
        pass
    assert refusal.value.code == "E_SERVE_SETTINGS"
    with (
        door(tmp_path) as at,
        pytest.raises(UsageError, match="cannot listen") as refusal,
        door(tmp_path, port=at.port),
    ):
        pass
    assert refusal.value.code == "E_SERVE_SETTINGS"


@pytest.mark.skipif(shutil.which("storescu") is None, reason="dcmtk's storescu is not installed")
def test_peer_dcmtk_sends_a_series(tmp_path):
    images = [image(instance=f"1.2.3.{k}") for k in range(6)]
    for k, one in enumerate(images):
        one.save_as(tmp_path / f"{k}.dcm", enforce_file_format=True)
    with door(tmp_path / "server") as at:
        base = ["-aet", TITLE, "-aec", "HEPAR", HOST, str(at.port)]
        subprocess.run(["echoscu", *base], check=True, timeout=120)
        subprocess.run(["storescu", *base, *tmp_path.glob("*.dcm")], check=True, timeout=120)
        until(lambda: not at.marks())
        kept = at.files()
        assert len(kept) == len(images)
        assert all(kept[one.SOPInstanceUID] == one for one in images)


def test_closed_form_what_arrives_is_segmented_once_it_is_complete(tmp_path):
    said: list[str] = []
    folder = tmp_path / "server"
    folder.mkdir()
    peers = f"peers: [{{ae_title: {TITLE}, host: {HOST}}}]"
    (folder / "serve.yaml").write_text(
        f"quiet_s: 0.2\nweb: {{port: 0}}\nnode: {{port: 0, {peers}}}\n"
    )

    def send() -> bool:
        try:
            until(lambda: any("listens" in line for line in said))
            association = called(int(said[0].rpartition(":")[2].rstrip(".")))
            sent(association, image())
            association.release()
            until(lambda: (folder / "results" / key_of("1.2.3") / "study.json").is_file(), 120)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
        return True

    with ThreadPoolExecutor(1) as pool:
        sender = pool.submit(send)
        run_server(folder, engine(tmp_path / "notes"), progress=said.append)
        assert sender.result()
    assert started(tmp_path / "notes") == [key_of("1.2.3")]
