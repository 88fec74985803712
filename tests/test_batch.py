"""Batches: parts, the ledger, several commands at once, signals, and the documented example."""

from __future__ import annotations

import hashlib
import json
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_engine import command, engine, load, started, write_studies
from command import run
from hepar.batch import crew, night
from hepar.batch import job as batch_job
from hepar.batch.job import RECORD, Engine, Job, Outcome, run_study
from hepar.batch.ledger import SILENCE_S, Ledger, is_lost, owner_name
from hepar.batch.night import run_batch
from hepar.batch.plan import plan
from hepar.batch.studies import Entry, in_part, safe_name
from hepar.batch.workers import Worker
from hepar.errors import InputRefused, ResourceExhausted, UsageError

PAGE = Path(__file__).parents[1] / "docs" / "batch.md"


@pytest.mark.parametrize("parts", [1, 2, 3, 10])
def test_closed_form_parts_are_disjoint_and_their_union_is_everything(parts):
    for name in (b"P1", b"P2", b"P3", "\u809d CT (1)".encode(), b"\xff", b""):
        entry = Entry("shown", name, Path("anywhere"))
        done_by = [part for part in range(parts) if in_part(entry, part, parts)]
        # The same on every machine, and whatever else there is.
        assert done_by == [int(hashlib.sha256(name).hexdigest(), 16) % parts]


@given(name=st.text(max_size=300))
def test_property_a_safe_name_is_one_folder_and_stays_itself(name):
    safe = safe_name(name)
    assert Path(safe).name == safe
    assert safe not in ("", ".", "..")
    assert safe_name(safe) == safe or safe.startswith("_")


def test_property_parts_leave_what_one_command_takes_over(tmp_path):
    source = write_studies(tmp_path / "in", {f"P{n}": "" for n in range(7)} | {"R": "refuse"})
    out, notes = tmp_path / "out", engine(tmp_path / "notes")
    names = []
    for part in range(2):
        document = run_batch(source, out, notes, num_parts=2, part_id=part)
        names += [study["study"] for study in document["studies"]]
        assert (out / f"batch-{part}-of-2.csv").is_file()
    assert sorted(names) == sorted(p.name for p in source.iterdir())
    whole = run_batch(source, out, notes)
    assert whole["counts"] == {"done": 7, "failed": 1, "duplicate": 0, "open": 0}
    assert sorted(started(tmp_path / "notes")) == sorted([*names, "R"])


def jobs_of(tmp_path: Path, count: int) -> dict[str, Job]:
    source = write_studies(tmp_path / "in", {f"P{n}": "" for n in range(count)})
    return {j.folder: j for j in plan(source, tmp_path / "out", engine(tmp_path / "notes")).jobs}


def test_closed_form_a_lease_ends_with_its_process():
    machine, pid, begun = owner_name().split(":")
    now = time.time()
    assert not is_lost(f"{machine}:{pid}:{begun}", now)
    assert not is_lost(f"{machine}:{pid}:{begun}", now - 10 * SILENCE_S)  # it lives, if slowly
    assert is_lost(f"{machine}:{pid}:{int(begun) - 1}", now)  # its number was given away again
    assert not is_lost(f"elsewhere:{pid}:{begun}", now - SILENCE_S / 2)
    assert is_lost(f"elsewhere:{pid}:{begun}", now - 2 * SILENCE_S)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert is_lost(f"{machine}:{ended.pid}:{begun}", now)


def test_property_two_ledgers_never_lease_one_study_to_both(tmp_path):
    jobs = jobs_of(tmp_path, 5)
    mine, other = (Ledger(tmp_path / "ledger.sqlite", f"{owner_name()}") for _ in range(2))
    other.owner = f"elsewhere:{mine.owner.partition(':')[2]}"
    for job in jobs.values():
        mine.queue(job)
    taken = [ledger.claim(jobs) for ledger in (mine, other, mine, other, mine, other)]
    assert taken == [*jobs.values(), None]
    assert mine.waiting(jobs) == 5
    # Leases of a living process stay its own, and only it can end them.
    mine.queue(jobs["P1"])
    mine.finish(Outcome("P1", "failed"))
    assert mine.rows()["P1"].owner == other.owner
    other.finish(Outcome("P1", "done", outputs={"a": "b"}))
    assert (mine.rows()["P1"].state, mine.rows()["P1"].outputs) == ("done", {"a": "b"})
    # The other one has not been heard of for long.
    with mine._change():
        mine._set("P3", heartbeat=time.time() - 2 * SILENCE_S)
    claimed = mine.claim(jobs)
    assert claimed is not None
    assert claimed.folder == "P3"
    assert mine.rows()["P3"].attempts == 2
    other.beat()
    other.release()
    assert mine.rows()["P3"].owner == mine.owner
    mine.release()
    assert {row.state for row in mine.rows().values()} == {"queued", "done"}
    mine.close()
    other.close()


@pytest.mark.parametrize("content", [b"no database" * 1000, None])
def test_property_a_damaged_ledger_costs_nothing_but_the_memory_of_failures(
    content, tmp_path, caplog
):
    jobs = jobs_of(tmp_path, 2)
    out = tmp_path / "out"
    for job in jobs.values():
        run_study(job)
    run_batch(tmp_path / "in", out, engine(tmp_path / "notes"))
    ledger = out / "ledger.sqlite"
    ledger.write_bytes(content or ledger.read_bytes()[:5000])
    document = run_batch(tmp_path / "in", out, engine(tmp_path / "notes"))
    assert "W_LEDGER_REBUILT" in caplog.text
    assert document["counts"]["done"] == 2
    assert len(started(tmp_path / "notes")) == 2


def test_property_two_commands_share_the_work(tmp_path):
    names = [f"P{n:02d}" for n in range(24)]
    source = write_studies(tmp_path / "in", dict.fromkeys(names, ""))
    both = [command(source, tmp_path / "out", tmp_path / "notes") for _ in range(2)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted(started(tmp_path / "notes")) == names
    for text, _ in said:  # whoever did them
        assert json.loads(text)["counts"]["done"] == len(names)


def test_property_a_stopped_command_leaves_no_process_and_goes_on(tmp_path):
    source = write_studies(tmp_path / "in", {"a": "", "b": "once hang", "c": ""})
    out, notes = tmp_path / "out", tmp_path / "notes"
    process = command(source, out, notes)
    while "b" not in started(notes):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate()  # ends only when no worker holds its stderr
    assert process.returncode == 143, errors
    assert json.loads(said)["error"]["code"] == "E_INTERRUPTED"
    states = {
        s["study"]: s["state"] for s in json.loads((out / "batch.json").read_text())["studies"]
    }
    assert states == {"a": "done", "b": "queued", "c": "queued"}
    assert {p.name for p in out.iterdir() if p.is_dir()} == {"a"}
    document = run_batch(source, out, engine(notes))
    assert document["counts"]["done"] == 3
    assert started(notes) == ["a", "b", "b", "c"]


def test_closed_form_a_refusal_and_a_bug_are_told_and_not_raised(tmp_path, caplog):
    source = write_studies(tmp_path / "in", {"a": "refuse", "b": "bug", "c": "memory"})
    jobs = plan(source, tmp_path / "out", engine(tmp_path / "notes")).jobs
    told = [pickle.loads(pickle.dumps(run_study))(pickle.loads(pickle.dumps(j))) for j in jobs]
    codes = [(outcome.code, outcome.exit_code) for outcome in told]
    assert codes == [("E_NO_LIVER", 10), ("E_INTERNAL", 14), ("E_MEMORY", 12)]
    assert "boom" in (told[1].message or "")
    assert "Traceback" in caplog.text
    assert str(tmp_path) not in (told[1].message or "") + caplog.text  # nor whose study it is
    assert not (tmp_path / "out").exists()


def test_closed_form_what_cannot_be_begun_is_refused_and_leaves_nothing(tmp_path):
    source, notes = write_studies(tmp_path / "in", {"a": ""}), engine(tmp_path / "notes")
    out = tmp_path / "out"
    for wrong in ({"num_parts": 2, "part_id": 2}, {"workers": 0}, {"timeout_s": 0.0}):
        with pytest.raises(UsageError):
            run_batch(source, out, notes, **wrong)
    for place in (source, source / "out", tmp_path):  # the last: the studies lie in the outputs
        with pytest.raises(UsageError) as refused:
            run_batch(source, place, notes)
        assert refused.value.code == "E_OUTPUT_PATH"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputRefused) as nothing:
        run_batch(tmp_path / "empty", out, notes)
    assert nothing.value.code == "E_NO_CASES"
    (tmp_path / "table.csv").write_text("case_id,label\na,b\n")
    with pytest.raises(InputRefused) as table:
        run_batch(tmp_path / "table.csv", out, notes)
    assert table.value.code == "E_COHORT"
    assert not out.exists()


def no_engine(engine: Engine) -> object:
    """Loads in the first process and in no other."""
    import multiprocessing

    if multiprocessing.parent_process() is not None:
        raise RuntimeError("no engine here")
    return load(engine)


def test_closed_form_workers_that_cannot_begin_end_the_batch_and_blame_no_study(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(crew, "ATTEMPTS", 1)
    source = write_studies(tmp_path / "in", {"a": ""})
    (tmp_path / "notes").mkdir()
    with pytest.raises(ResourceExhausted) as died:
        run_batch(source, tmp_path / "out", Engine(tmp_path / "notes", load=no_engine))
    assert died.value.code == "E_WORKER_DIED"
    (study,) = json.loads((tmp_path / "out" / "batch.json").read_text())["studies"]
    assert study["state"] == "queued"


def test_property_a_moved_study_keeps_its_result(tmp_path):
    source = write_studies(tmp_path / "in", {"P": ""})
    out, notes = tmp_path / "out", engine(tmp_path / "notes")
    first = plan(source, out, notes).jobs
    assert run_study(first[0]).state == "done"
    source.rename(tmp_path / "moved")
    (moved,) = plan(tmp_path / "moved", out, notes).jobs
    assert (moved.folder, batch_job.finished(moved) is not None) == ("P", True)
    # Another study of that name gets another folder.
    (other,) = plan(write_studies(tmp_path / "tuesday", {"P": "refuse"}), out, notes).jobs
    assert other.folder != "P"
    assert json.loads((out / "P" / RECORD).read_text())["name"] == "P"


@pytest.mark.parametrize(("number", "needs"), [(1, "hepar"), (2, "distributed")])
def test_oracle_the_documented_examples_run(tmp_path, number, needs):
    pytest.importorskip(needs, reason=f"{needs} is not installed: pip install 'hepar[cluster]'")
    code = PAGE.read_text().split("<!-- example -->\n```python\n")[number].split("```")[0]
    write_studies(tmp_path / "STUDIES", {"a": "", "b": "refuse"})
    (tmp_path / "notes").mkdir()
    # As documented, but for the networks; and guarded, as the main file of a spawned pool must be.
    assert 'Engine(device="cpu")' in code
    code = code.replace('Engine(device="cpu")', 'Engine(Path("notes"), load=load)')
    body = "\n".join(f"    {line}" for line in code.splitlines())
    script = tmp_path / "script.py"
    script.write_text(f"from batch_engine import load\nif __name__ == '__main__':\n{body}\n")
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={"PYTHONPATH": ":".join([f"{here}", *sys.path]), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "a done None 2\nb failed E_NO_LIVER None\n", done.stderr


def test_closed_form_the_command_tells_what_is_not_done(tmp_path, capsys, monkeypatch):
    outcome = {"study": "p", "state": "failed", "code": "E_X", "message": "No.", "remedy": "Do."}
    document = {
        "table": "batch.csv",
        "notes": ["W_NOT_A_STUDY: 1"],
        "counts": {"done": 3, "failed": 1, "duplicate": 0, "open": 0},
        "studies": [outcome],
    }
    monkeypatch.setattr(night, "run_batch", lambda *_, **__: document)
    code, out, _ = run(capsys, "batch", tmp_path, "-o", tmp_path / "out", "-q", "-d", "cpu")
    assert code == 11
    assert "p: failed: E_X: No.\n  remedy: Do.\n3 done, 1 failed" in out
    code, out, _ = run(
        capsys, "batch", tmp_path, "-o", tmp_path / "out", "-q", "-d", "cpu", "--json"
    )
    assert (code, json.loads(out)) == (11, document)


def test_closed_form_a_worker_killed_while_idle_is_heard_of(tmp_path):
    worker = Worker(engine(tmp_path / "notes"))
    assert worker.hear() is None
    assert worker.ready
    worker._process.kill()
    with pytest.raises(EOFError):
        worker.hear()
    assert "SIGKILL" in worker.mourn()


@pytest.mark.parametrize("can_be_started", [0, 1])
def test_closed_form_processes_that_cannot_be_started_are_done_without(
    can_be_started, tmp_path, monkeypatch, caplog
):
    source = write_studies(tmp_path / "in", {"a": "", "b": "", "c": ""})
    left = [Worker] * can_be_started

    def start(*args: object) -> Worker:
        if not left:
            raise OSError("no more processes")
        return left.pop()(*args)

    monkeypatch.setattr(crew, "Worker", start)
    out, notes = tmp_path / "out", engine(tmp_path / "notes")
    if not can_be_started:
        with pytest.raises(ResourceExhausted) as none:
            run_batch(source, out, notes, workers=2)
        assert none.value.code == "E_WORKER_DIED"
        assert json.loads((out / "batch.json").read_text())["counts"]["open"] == 3
        return
    assert run_batch(source, out, notes, workers=2)["counts"]["done"] == 3
    assert "W_FEWER_WORKERS" in caplog.text
    assert sorted(started(tmp_path / "notes")) == ["a", "b", "c"]


def test_closed_form_the_ledger_keeps_a_write_ahead_log(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert ledger._base.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    ledger.close()
