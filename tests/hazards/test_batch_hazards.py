"""Nights in which studies, workers and the command itself come to harm."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest

from batch_engine import command, engine, started, write_studies
from hepar.batch.job import RECORD, run_study
from hepar.batch.night import run_batch
from hepar.batch.plan import plan
from hepar.data.phantoms import grid_of
from hepar.infer.bundle import default_bundle_path, load_bundle
from hepar.io.dicom_write import write_dicom_series
from hepar.io.nifti import write_nifti
from hepar.phantom.anatomy import anatomy
from hepar.phantom.scanner import paint
from hepar.pipeline import Pipeline
from hepar.provenance import sha256_tree
from hepar.study import Phase
from small_ct import volume

NAMES = tuple(f"study {number:02d}" for number in range(50))
POISON = {
    "study 05": ("refuse", "E_NO_LIVER"),
    "study 15": ("segfault", "E_WORKER_DIED"),
    "study 25": ("hang", "E_TIMEOUT"),
    "study 30": ("exit", "E_WORKER_DIED"),
    "study 40": ("bug", "E_INTERNAL"),
}
KILLS = {
    "study 10": "once kill",
    "study 20": "once kill parent",
    "study 35": "once kill",
}


@dataclass(frozen=True)
class Night:
    """A batch of 50 studies that was killed and begun again.

    Attributes:
        source, out, notes: its folders.
        codes: exit codes of the killed command and of the second one.
        before: file number and time of the records that the first one left.
        started: studies that each of them began.
        document: what the second one said.
    """

    source: Path
    out: Path
    notes: Path
    codes: tuple[int, int]
    before: dict[str, tuple[int, int]]
    started: tuple[list[str], list[str]]
    document: dict


def records(out: Path) -> dict[str, tuple[int, int]]:
    found = {p.parent.name: p.stat() for p in out.glob(f"[!.]*/{RECORD}")}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    folder = tmp_path_factory.mktemp("night")
    orders = dict.fromkeys(NAMES, "") | {name: order for name, (order, _) in POISON.items()}
    source = write_studies(folder / "in", orders | KILLS)
    out, notes = folder / "out", folder / "notes"
    asked = (source, out, notes, "--workers", 2, "--timeout", 10)
    first = command(*asked)
    first.communicate()
    before, begun = records(out), started(notes)
    second = command(*asked)
    said, _ = second.communicate()
    again = started(notes)[len(begun) :]
    codes = (first.returncode, second.returncode)
    return Night(source, out, notes, codes, before, (begun, again), json.loads(said))


def test_property_BA01_a_night_of_poison_and_kills_leaves_every_study_done_or_coded(night):
    assert night.codes == (-signal.SIGKILL, 11)
    assert night.document["counts"] == {"done": 45, "failed": 5, "duplicate": 0, "open": 0}
    studies = {study["study"]: study for study in night.document["studies"]}
    assert tuple(studies) == NAMES
    failed = {name: s["code"] for name, s in studies.items() if s["state"] == "failed"}
    assert failed == {name: code for name, (_, code) in POISON.items()}
    assert all(studies[name]["remedy"] for name in POISON)
    assert json.loads((night.out / "batch.json").read_text()) == night.document
    with (night.out / "batch.csv").open(newline="") as stream:
        rows = {row["study"]: row for row in csv.DictReader(stream)}
    for name, study in studies.items():
        told = {key: "" if value is None else str(value) for key, value in study.items()}
        assert rows[name] == told


def test_property_BA01_what_was_done_before_a_kill_is_not_done_again(night):
    begun, again = night.started
    assert begun  # else nothing was tested
    assert night.before
    after = records(night.out)
    assert {name: after[name] for name in night.before} == night.before
    assert not set(again) & set(night.before)
    assert set(begun) | set(again) == set(NAMES)


def test_property_BA01_results_are_those_of_a_night_in_which_nothing_died(night, tmp_path):
    for job in plan(night.source, tmp_path / "out", engine(tmp_path / "notes")).jobs:
        if job.name in KILLS:
            (tmp_path / "notes" / f"{job.name}.done").touch()
        if job.name not in POISON:
            assert run_study(job).state == "done"
    left = {place.name for place in night.out.iterdir() if place.is_dir()}
    assert left == set(NAMES) - set(POISON)  # nothing of the poisoned ones, no temporary
    for name in left:
        assert sha256_tree(night.out / name) == sha256_tree(tmp_path / "out" / name)


def test_property_BA01_where_all_is_done_or_refused_only_chance_failures_are_tried_again(
    night, tmp_path
):
    out, notes = tmp_path / "out", tmp_path / "notes"
    shutil.copytree(night.out, out)
    for name, (order, _) in POISON.items():
        if order != "refuse":  # whatever it was, it has passed
            (night.source / name / "order.txt").write_text("once " + order)
            notes.mkdir(exist_ok=True)
            (notes / f"{name}.done").touch()
    document = run_batch(night.source, out, engine(notes), timeout_s=60)
    assert document["counts"] == {"done": 49, "failed": 1, "duplicate": 0, "open": 0}
    assert sorted(started(notes)) == sorted(set(POISON) - {"study 05"})
    run_batch(night.source, out, engine(notes))
    assert len(started(notes)) == 4  # now nothing is


def test_property_BA06_a_process_that_dies_costs_its_own_study_alone(night):
    studies = {study["study"]: study for study in night.document["studies"]}
    assert "SIGSEGV" in studies["study 15"]["message"]
    assert "exit code 7" in studies["study 30"]["message"]
    for name in KILLS:  # killed once, not by its own fault
        assert studies[name]["state"] == "done"
    for name in ("study 14", "study 16", "study 29", "study 31"):
        assert studies[name]["state"] == "done"


def test_property_IN07_a_study_that_hangs_is_stopped_and_the_others_go_on(night):
    studies = {study["study"]: study for study in night.document["studies"]}
    assert studies["study 25"]["code"] == "E_TIMEOUT"
    assert "--timeout" in studies["study 25"]["remedy"]
    assert (night.started[0] + night.started[1]).count("study 25") == 1
    assert studies["study 26"]["state"] == studies["study 49"]["state"] == "done"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGES = {
    "cut": lambda place: cut(place / "segmentation.nii.gz"),
    "empty": lambda place: (place / "findings.json").write_bytes(b""),
    "flipped": lambda place: flip(place / "overlay" / "slice.png"),
    "deleted": lambda place: (place / "segmentation.nii.gz").unlink(),
    "record cut": lambda place: cut(place / RECORD),
    "record flipped": lambda place: flip(place / RECORD),
    "record deleted": lambda place: (place / RECORD).unlink(),
    "all deleted": lambda place: shutil.rmtree(place),
}


def test_property_BA03_outputs_that_are_not_whole_are_made_anew_and_others_are_not(tmp_path):
    source = write_studies(tmp_path / "in", dict.fromkeys([*DAMAGES, "whole"], ""))
    out, notes = tmp_path / "out", tmp_path / "notes"
    for job in plan(source, out, engine(notes)).jobs:
        assert run_study(job).state == "done"
    whole = {name: sha256_tree(out / name) for name in (*DAMAGES, "whole")}
    document = run_batch(source, out, engine(notes))  # takes over what others did
    assert document["counts"]["done"] == len(whole) == len(started(notes))
    for name, damage in DAMAGES.items():
        damage(out / name)
    (out / "whole" / "my remarks.txt").write_text("mine")
    (out / "cut" / "my remarks.txt").write_text("mine")
    document = run_batch(source, out, engine(notes))
    assert document["counts"]["done"] == len(whole)
    assert sorted(started(notes)[len(whole) :]) == sorted(DAMAGES)
    (out / "whole" / "my remarks.txt").unlink()
    assert {name: sha256_tree(out / name) for name in whole} == whole
    # What lay there besides is no result, and is kept.
    assert [p.read_text() for p in out.glob("stale/*/cut/my remarks.txt")] == ["mine"]


def test_property_BA03_another_input_setting_or_model_makes_a_result_anew(tmp_path):
    source = write_studies(tmp_path / "in", {"a": "", "b": ""})
    out = tmp_path / "out"
    for job in plan(source, out, engine(tmp_path / "notes")).jobs:
        run_study(job)
    (source / "a" / "image.bin").write_bytes(b"another scan")
    for job in plan(source, out, engine(tmp_path / "notes")).jobs:
        run_study(job)
    assert started(tmp_path / "notes") == ["a", "b", "a"]
    assert (out / "a" / "segmentation.nii.gz").read_bytes() == b"another scan"
    assert not (out / "stale").exists()
    # A study that is now refused leaves no result that looks new.
    (source / "b" / "order.txt").write_text("refuse")
    for job in plan(source, out, engine(tmp_path / "notes")).jobs:
        run_study(job)
    assert not (out / "b").exists()
    assert list(out.glob("stale/*/b/segmentation.nii.gz"))


def dicom(folder: Path, seed: str) -> None:
    scan = volume(shape=(8, 8, 10), slice_mm=5.0)
    write_dicom_series(
        folder, scan, description="liver", series_number=1, uid_seed=seed, study_uid="1.2.3"
    )


def test_property_BA04_a_study_that_is_there_twice_gives_one_output_and_one_note(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    dicom(source / "a", "same")
    dicom(source / "copy of a", "same")
    for path in (source / "copy of a").rglob("*.dcm"):
        path.rename(path.with_name(f"renamed {path.name}"))
    dicom(source / "rest of a", "other")
    (source / "z").symlink_to(source / "a")
    document = run_batch(source, out, engine(tmp_path / "notes"))
    states = {s["study"]: (s["state"], s["code"], s["folder"]) for s in document["studies"]}
    assert states == {
        "a": ("done", None, "a"),
        "copy of a": ("duplicate", "W_STUDY_TWICE", "a"),
        # It is no copy: other images of that study, which the result of a lacks.
        "rest of a": ("failed", "E_STUDY_SPLIT", None),
        "z": ("duplicate", "W_STUDY_TWICE", "a"),
    }
    assert [p.name for p in out.iterdir() if p.is_dir()] == ["a"]
    assert started(tmp_path / "notes") == ["a"]
    uid = {pydicom.dcmread(p).StudyInstanceUID for p in source.rglob("*.dcm")}
    assert uid == {"1.2.3"}


def test_property_BA04_a_row_that_is_there_twice_gives_one_output_and_one_note(tmp_path):
    write_studies(tmp_path / "in", {"p1": "", "p2": ""})
    table = tmp_path / "cohort.csv"
    rows = ["p1,in/p1/image.bin", "p2,in/p2/image.bin", "p1,in/p1/image.bin"]
    table.write_text("\n".join(["case_id,pv", *rows]) + "\n")
    todo = plan(table, tmp_path / "out", engine(tmp_path / "notes"))
    assert [(job.name, job.folder) for job in todo.jobs] == [("p1", "p1"), ("p2", "p2")]
    assert [(again.name, again.folder) for again in todo.again] == [("p1", "p1")]
    assert todo.again[0].twin.note.startswith("W_STUDY_TWICE: ")


def test_property_BA04_one_name_for_two_studies_gives_two_outputs(tmp_path):
    write_studies(tmp_path / "in", {"p1": "", "p2": ""})
    table = tmp_path / "cohort.csv"
    table.write_text("case_id,pv\np,in/p1/image.bin\np,in/p2/image.bin\n")
    out, notes = tmp_path / "out", tmp_path / "notes"
    jobs = plan(table, out, engine(notes)).jobs
    assert len({job.folder for job in jobs}) == 2
    assert [run_study(job).state for job in jobs] == ["done", "done"]
    assert sorted(p.read_bytes()[:2] for p in out.glob("*/segmentation.nii.gz")) == [b"p1", b"p2"]


HOSTILE = (
    *("肝 CT (1)", "..weird. ", "weird", "Weird", "WEIRD", "a" * 240, "a" * 241, "ä" * 120),
    *("e\u0301", "é", "stale", "NUL", "com1.x", "batch.csv", "ledger.sqlite", "a\nb", "a\tb"),
    *("$(touch HACKED)", "-rf", 'q"<>|?*:\\', "\u202egpj", "study.json", " x", "x ", "x"),
    os.fsdecode(b"broken \xff"),
)


def test_property_BA07_names_of_any_kind_get_safe_and_distinct_folders(tmp_path):
    source = write_studies(tmp_path / "in", dict.fromkeys(HOSTILE, ""))
    out, notes = tmp_path / "out", tmp_path / "notes"
    jobs = plan(source, out, engine(notes)).jobs
    assert len(jobs) == len(HOSTILE)
    folders = [job.folder for job in jobs]
    assert len({folder.casefold() for folder in folders}) == len(folders)
    for folder in folders:
        assert Path(folder).name == folder
        assert folder == folder.strip(". ")
        assert len(folder.encode()) <= 120
        assert folder.isprintable()
        assert not set(folder) & set('<>:"/\\|?*')
        stem = folder.split(".")[0].lower()
        assert stem not in ("nul", "com1", "stale")
        assert folder not in ("batch.csv", "batch.json", "ledger.sqlite")
    assert {"肝 CT (1)", "-rf", "$(touch HACKED)"} <= set(folders)
    assert all(run_study(job).state == "done" for job in jobs)
    assert {p.name for p in out.iterdir()} == set(folders)
    begun = started(notes)
    document = run_batch(source, out, engine(notes))
    assert document["counts"]["done"] == len(HOSTILE)
    assert started(notes) == begun
    with (out / "batch.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["folder"] for row in rows] == [s["folder"] for s in document["studies"]]
    for job in jobs:
        assert job.source is not None
        image = (job.source / "image.bin").read_bytes()
        assert (out / job.folder / "segmentation.nii.gz").read_bytes() == image
    # Names that come later take none of these.
    write_studies(source, {"wEIRD": "", "éx": ""})
    later = {job.source: job.folder for job in plan(source, out, engine(notes)).jobs}
    assert {job.source: later[job.source] for job in jobs}.items() <= later.items()
    assert {job.folder for job in jobs} == {later[job.source] for job in jobs}


@pytest.mark.full
def test_regression_BA01_the_shipped_networks_work_in_a_batch(tmp_path):
    """Two phantom patients and a row without a file: the results are those of `hepar segment`."""
    rows = ["case_id,pv", "nobody,nowhere.nii.gz"]
    for seed in (920_006, 920_007):
        patient = anatomy(seed, spacing_mm=(5.0, 3.0, 3.0))
        grid = grid_of(patient)
        write_nifti(tmp_path / f"{seed}.nii.gz", paint(patient, seed).hu["PV"], grid)
        rows.append(f"{seed},{seed}.nii.gz")
    table, out = tmp_path / "cohort.csv", tmp_path / "out"
    table.write_text("\n".join(rows) + "\n")
    document = run_batch(table, out)
    found = {s["study"]: (s["state"], s["code"]) for s in document["studies"]}
    assert found == {
        "920006": ("done", None),
        "920007": ("done", None),
        "nobody": ("failed", "E_NO_IMAGE"),
    }
    pipeline = Pipeline(load_bundle(default_bundle_path()))
    for study in document["studies"][:2]:
        name = study["study"]
        stated = {Phase.PV: tmp_path / f"{name}.nii.gz"}
        findings = pipeline.segment(None, tmp_path / "alone" / name, stated=stated)
        assert study["lesions"] == len(findings.lesions)
        assert study["tumor_burden"] == findings.tumor_burden
        for file in ("segmentation.nii.gz", "lesions.nii.gz", "lesions.csv", "ingest.json"):
            together = (out / name / file).read_bytes()
            assert together == (tmp_path / "alone" / name / file).read_bytes()
    before = records(out)
    again = run_batch(table, out)
    assert again == document  # attempts too: nothing was begun
    assert records(out) == before
