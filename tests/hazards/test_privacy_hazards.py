"""Who a patient is stays inside the DICOM objects, one test or more a case of `docs/hazards.md`."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pydicom
import pytest
from canary_study import CANARIES, Run, canary_run, grid_of, hu_at, places, run, write_study
from hypothesis import given
from hypothesis import strategies as st

import hepar.pipeline
from hepar.errors import InputRefused
from hepar.io.archive import unpack
from hepar.io.atomic import private_folder, sweep_private
from hepar.io.nifti import write_nifti
from hepar.io.phase_words import phase_of_path
from hepar.io.privacy import Mask, people_in, public_command, public_name, scrub


def leaks(found: Run) -> list[str]:
    """Where a canary shows, in whatever case."""
    return [
        f"{canary} in {where}: {data[max(0, at - 60) : at + 60]!r}"
        for where, data in found.texts()
        for canary in CANARIES
        if (at := data.lower().find(canary.lower().encode())) >= 0
    ]


def test_property_PR01_no_identifier_in_anything_written_or_said():
    found = canary_run()
    assert found.code == 0, found.said
    assert "lesions.nii.gz" in dict(found.texts())
    assert "W_PHASE" not in found.said  # the words that tell the phase are not masked
    assert json.loads((found.out / "findings.json").read_text())["phases"][0]["phase"] == "PV"
    assert leaks(found) == []


def test_property_PR01_pictures_hold_no_text():
    pictures = list((canary_run().out / "overlay").glob("*.png"))
    assert pictures
    for picture in pictures:
        data, kinds, at = picture.read_bytes(), set(), 8
        while at < len(data):
            kinds.add(data[at + 4 : at + 8])
            at += 12 + int.from_bytes(data[at : at + 4], "big")
        assert kinds <= {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"pHYs"}


def _missing(home: Path) -> list[object]:
    return [home / "CANARY^ZZTOP.nii.gz"]


def _truncated(home: Path) -> list[object]:
    path = home / "CANARY^ZZTOP 19010203.nii.gz"
    write_nifti(path, hu_at(places(grid_of())), grid_of())
    path.write_bytes(path.read_bytes()[:900])
    return [home]


def _gap(home: Path) -> list[object]:
    write_study(home)[9].unlink()
    return [home]


def _magnetic(home: Path) -> list[object]:
    write_study(home, change=lambda d: setattr(d, "Modality", "MR"))
    return [home]


def _damaged(home: Path) -> list[object]:
    file = write_study(home)[3]
    damaged = file.rename(file.with_name("ZZTOP^CANARY.dcm"))
    damaged.write_bytes(damaged.read_bytes()[:400])
    return [home]


def _unknown(home: Path) -> list[object]:
    for number, name in enumerate(("CANARY one", "CANARY two")):
        write_study(home, name, number=number)
    return [home]


def _several(home: Path) -> list[object]:
    for number, name in enumerate(("art", "pv")):
        write_study(home, name, number=number)
    return ["--phase", f"art={home}"]


def _patients(home: Path) -> list[object]:
    write_study(home, "art")
    write_study(home, "pv", lambda d: setattr(d, "PatientID", "ACC-CANARY-55"), number=3)
    return [home]


def _archive(home: Path) -> list[object]:
    path = home / "CANARY^ZZTOP.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("../john.doe", b"x")
    return [path]


def _twice(home: Path) -> list[object]:
    return ["--phase", f"art={home}", "--phase", f"pv={home}"]


def _output(home: Path) -> list[object]:
    write_study(home)
    (home.parent / "out").write_text("")
    return [home]


FAILING = {
    "E_NO_IMAGE": _missing,
    "E_TRUNCATED": _truncated,
    "E_SLICE_GAP": _gap,
    "E_WRONG_MODALITY": _magnetic,
    "E_PHASES_UNKNOWN": _unknown,
    "E_SEVERAL_SERIES": _several,
    "E_MIXED_PATIENTS": _patients,
    "E_ARCHIVE": _archive,
    "E_PHASE_TWICE": _twice,
    "E_OUTPUT_PATH": _output,
}


@pytest.mark.parametrize("code", FAILING)
def test_property_PR01_no_identifier_in_a_refusal(tmp_path, code):
    home = tmp_path / "john.doe"
    home.mkdir()
    arguments = FAILING[code](home)
    for extra in ((), ("--json",)):
        found = run(tmp_path / "out", "segment", *arguments, "-o", tmp_path / "out", *extra)
        assert code in found.said
        assert found.code in (2, 10)
        assert leaks(found) == []
    if code not in ("E_OUTPUT_PATH", "E_SEVERAL_SERIES", "E_PHASE_TWICE"):
        assert leaks(run(tmp_path / "none", "inspect", *arguments)) == []


def test_property_PR01_a_damaged_slice_is_told_by_its_number(tmp_path):
    home = tmp_path / "john.doe"
    found = run(tmp_path / "out", "segment", *_damaged(home), "-o", tmp_path / "out")
    assert found.code == 10
    assert "(file 24 by name)" in found.said
    assert leaks(found) == []


def test_property_PR01_a_bug_prints_no_identifier(tmp_path):
    home = tmp_path / "john.doe"
    write_study(home)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(f"cannot open '{home}/CANARY^ZZTOP.dcm', nor {home}/x.dcm")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hepar.pipeline, "assign_phases", broken)
        found = run(tmp_path / "out", "segment", home / "CANARY^ZZTOP.dcm", "-o", tmp_path / "out")
        assert found.code == 10
        found = run(tmp_path / "out", "segment", home, "-o", tmp_path / "out")
    assert found.code == 14
    assert "RuntimeError: cannot open" in found.said
    assert "pipeline.py" in found.said
    assert [leak for leak in leaks(found) if "john" in leak.split(" in ")[0]] == []


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_property_PR01_inspect_names_nobody(tmp_path, as_json):
    home = tmp_path / "john.doe" / "ZZTOP CANARY"
    write_study(home)
    write_nifti(home / "CANARY^ZZTOP_art.nii.gz", hu_at(places(grid_of())), grid_of())
    found = run(tmp_path / "out", "inspect", home, *as_json)
    assert found.code == 0
    assert "_art.nii.gz" in found.stdout
    assert leaks(found) == []


def test_property_PR03_neither_path_nor_user_nor_host():
    found = canary_run()
    strangers = [str(found.out.parent), str(Path.home()), os.uname().nodename, "HACKED"]
    for where, data in found.texts():
        for stranger in strangers:
            if len(stranger) > 3:
                assert stranger.encode() not in data, (where, stranger)
    command = json.loads((found.out / "run.json").read_text())["command"]
    assert command == "hepar segment '*.* *^*' -o out --probabilities --viewer"


@given(
    words=st.lists(
        st.sampled_from(["Meier", "portal", "venous", "late", "art", "77s", "12", "ct"])
    ),
    mark=st.sampled_from(["_", "-", " ", ".", "/"]),
)
def test_property_PR03_public_names_still_tell_the_phase(words, mark):
    name = mark.join(words)
    shown = public_name(name)
    assert "meier" not in shown.lower()
    if "Meier" not in words:
        assert shown == name
    assert phase_of_path(name) is None or phase_of_path(shown) == phase_of_path(name)


def test_closed_form_PR03_what_is_shown_of_names():
    for name, shown in (
        ("image_0012.dcm", "image_0012.dcm"),
        ("PATIENT_DICOM/pv", "PATIENT_DICOM/pv"),
        ("Meier_19010203_portalVenous.nii.gz", "*_*_portalVenous.nii.gz"),
        ("MeierArt", "*Art"),
        ("1.2.840.113619", "1.2.840.113619"),
    ):
        assert public_name(name) == shown
    words = ("/x/hepar", "segment", "/home/meier/Meier.zip", "--phase=art=/x/meier.nii#1", "-q")
    assert public_command(words) == ("hepar", "segment", "*.zip", "--phase=art=*.nii#1", "-q")
    text = "in '/home/meier smith/x y.py' and /home/meier/z.py: Meier.zip"
    assert scrub(text, words) == "in 'x y.py' and z.py: *.zip"


def test_closed_form_PR01_what_a_header_says_is_masked_in_every_spelling():
    people = people_in([], ["Meier^Anna Maria", "ID-7731-X", "19010203", "PV 12"])
    mask = Mask(people=people)
    for text, shown in (
        ("Liver ANNA_MEIER pv", "Liver *_* pv"),
        ("annameier", "annameier"),
        ("born 1901-02-03 or 03.02.1901", "born * or *"),
        ("7731 and 77310", "* and 77310"),
        ("venous PV 12", "venous PV 12"),
        ("Meierling", "Meierling"),
    ):
        assert mask(text) == shown


@pytest.mark.parametrize("also", ["", "MONOCHROME1"])
def test_property_PR04_burned_in_text_suppresses_pictures(tmp_path, also):
    def change(data: pydicom.Dataset) -> None:
        # Only one slice says so, and not the first.
        data.BurnedInAnnotation = "YES" if data.InstanceNumber == 8 else "NO"
        data.PhotometricInterpretation = also or data.PhotometricInterpretation

    write_study(tmp_path / "study", change=change)
    to = tmp_path / "out"
    found = run(to, "segment", tmp_path / "study", "-o", to, "--viewer")
    assert found.code == 0, found.said
    findings = json.loads((found.out / "findings.json").read_text())
    assert sum(w.startswith("W_BURNED_IN: ") for w in findings["warnings"]) == 1
    assert any("W_MONOCHROME1: " in w for w in findings["warnings"]) == bool(also)
    assert findings["lesions"]
    page = (found.out / "report.html").read_text()
    assert "data:image" not in page
    assert "W_BURNED_IN" in page
    assert not list(found.out.rglob("*.png"))
    assert not (found.out / "viewer.html").exists()
    # As there would be without it.
    assert list((canary_run().out / "overlay").glob("*.png"))
    assert (canary_run().out / "viewer.html").exists()


SLEEPER = """
import sys, time
from pathlib import Path
from hepar.io.atomic import private_folder
with private_folder() as folder:
    (folder / "CANARY").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


def test_property_PR05_temporary_folders_are_private_and_swept_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with private_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert folder.parent == tmp_path
    assert list(tmp_path.iterdir()) == []
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        assert sweep_private() == 0  # of a process that lives
        process.send_signal(signal.SIGKILL)
    assert (left / "CANARY").exists()
    # The next command of any kind sweeps it, also one that is refused.
    run(tmp_path / "out", "inspect", tmp_path / "nothing")
    assert not left.exists()


def test_property_PR05_an_archive_leaves_nothing_behind(tmp_path, monkeypatch):
    private = tmp_path / "tmp"
    private.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(private))
    study = tmp_path / "john.doe"
    write_study(study)
    shutil.make_archive(str(tmp_path / "john.doe"), "zip", study)
    found = run(tmp_path / "out", "segment", tmp_path / "john.doe.zip", "-o", tmp_path / "out")
    assert found.code == 0, found.said
    assert list(private.iterdir()) == []
    assert leaks(found) == []
    plain = run(tmp_path / "plain", "segment", study, "-o", tmp_path / "plain")
    for name in ("segmentation.nii.gz", "lesions.csv"):
        assert (plain.out / name).read_bytes() == (found.out / name).read_bytes()
    gzip_of_nothing = tmp_path / "b.tar.gz"
    gzip_of_nothing.write_bytes(gzip.compress(bytes(2048)))
    assert run(tmp_path / "o", "inspect", gzip_of_nothing).code == 10
    assert list(private.iterdir()) == []


@pytest.mark.parametrize("kind", ["twice", "outside", "checksum", "header", "long", "link"])
def test_property_PR01_members_of_archives_are_not_named(tmp_path, kind):
    name = """CANARY^ZZTOP's "19010203".dcm"""
    members = {"twice": [name, name.lower()], "outside": [f"../{name}"], "long": [name * 20]}
    archive = tmp_path / ("a.tar" if kind == "link" else "a.zip")
    if kind == "link":
        with tarfile.open(archive, "w") as opened:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, name
            opened.addfile(link)
    else:
        with zipfile.ZipFile(archive, "w") as opened:
            for member in members.get(kind, [name]):
                opened.writestr(member, b"voxels")
        place = {"checksum": (b"voxels", b"voxelz"), "header": (b"ZZTOP", b"ZZTOQ")}.get(kind)
        if place is not None:
            archive.write_bytes(archive.read_bytes().replace(*place, 1))
    with pytest.raises(InputRefused) as refusal:
        unpack(archive, tmp_path / "out")
    said = str(refusal.value).lower()
    assert [canary for canary in CANARIES if canary.lower() in said] == []
