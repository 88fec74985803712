"""Nights in which studies, workers and the command itself come to harm."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import pydicom
import pytest
from killed_night import POISON, SHORT, WHOLE, Night, records, run_night

from batch_engine import engine, started, write_studies
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

REFUSALS = ("E_NO_LIVER", "E_MALFORMED")


@pytest.fixture(
    scope="module",
    params=[pytest.param(SHORT, id="50"), pytest.param(WHOLE, id="200", marks=pytest.mark.full)],
)
def night(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Night:
    return run_night(tmp_path_factory.mktemp("night"), request.param)


def by_name(night: Night) -> dict[str, dict]:
    return {study["study"]: study for study in night.document["studies"]}


def test_property_BA01_a_night_of_poison_and_kills_leaves_every_study_done_or_coded(night):
    *killed, last = night.codes
    assert killed  # else nothing was tested
    assert set(killed) == {-signal.SIGKILL}
    assert last == 11
    scale, studies = night.scale, by_name(night)
    counts = {"done": len(scale.sound), "failed": len(scale.poison), "duplicate": 0, "open": 0}
    assert tuple(studies) == scale.names
    failed = {name: s["code"] for name, s in studies.items() if s["state"] == "failed"}
    assert failed == {name: POISON[order] for name, order in scale.poison.items()}
    assert night.document["counts"] == counts
    assert all(studies[name]["remedy"] for name in scale.poison)
    assert json.loads((night.out / "batch.json").read_text()) == night.document
    with (night.out / "batch.csv").open(newline="") as stream:
        rows = {row["study"]: row for row in csv.DictReader(stream)}
    for name, study in studies.items():
        told = {key: "" if value is None else str(value) for key, value in study.items()}
        assert rows[name] == told


def test_property_BA01_what_was_done_before_a_kill_is_not_done_again(night):
    begun = started(night.notes)
    after = records(night.out)
    assert any(done for done, _ in night.before)  # else nothing was tested
    for done, count in night.before:
        assert {name: after[name] for name in done} == done
        assert not set(begun[count:]) & set(done)
    assert set(begun) == set(night.scale.names)


def test_property_BA01_results_are_those_of_a_night_in_which_nothing_died(night, tmp_path):
    scale = night.scale
    for job in plan(night.source, tmp_path / "out", engine(tmp_path / "notes")).jobs:
        if job.name in scale.once:
            (tmp_path / "notes" / f"{job.name}.done").touch()
        if job.name in scale.sound:
            assert run_study(job).state == "done"
    left = {place.name for place in night.out.iterdir() if place.is_dir()}
    assert left == scale.sound  # nothing of the poisoned ones, no temporary
    for name in left:
        assert sha256_tree(night.out / name) == sha256_tree(tmp_path / "out" / name)


def test_property_BA01_where_all_is_done_or_refused_only_chance_failures_are_tried_again(
    night, tmp_path
):
    out, notes = tmp_path / "out", tmp_path / "notes"
    shutil.copytree(night.out, out)
    refused = {name for name, s in by_name(night).items() if s["code"] in REFUSALS}
    passed = set(night.scale.poison) - refused
    notes.mkdir()
    for name in passed:  # whatever it was, it has passed
        (night.source / name / "order.txt").write_text("once " + night.scale.poison[name])
        (notes / f"{name}.done").touch()
    document = run_batch(night.source, out, engine(notes), timeout_s=60)
    done = len(night.scale.names) - len(refused)
    assert document["counts"] == {
        "done": done,
        "failed": len(refused),
        "duplicate": 0,
        "open": 0,
    }
    assert sorted(started(notes)) == sorted(passed)
    left = records(out)
    assert run_batch(night.source, out, engine(notes)) == document
    assert len(started(notes)) == len(passed)  # now nothing is
    assert records(out) == left


def test_property_BA06_a_process_that_dies_costs_its_own_study_alone(night):
    studies, scale = by_name(night), night.scale
    assert "SIGSEGV" in studies[scale.of("segfault")]["message"]
    assert "exit code 7" in studies[scale.of("exit")]["message"]
    for name in scale.sound:  # some were killed once, not by their own fault
        assert studies[name]["state"] == "done"


def test_property_IN07_a_study_that_hangs_is_stopped_and_the_others_go_on(night):
    name = night.scale.of("hang")
    study = by_name(night)[name]
    assert study["code"] == "E_TIMEOUT"
    assert "--timeout" in study["remedy"]
    if not night.scale.kills:  # a killed command begins it again
        assert started(night.notes).count(name) == 1


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
