"""Faults of caches and of processes that prepare data; the table is `docs/hazards.md`."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import operator
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from deadly_job import double
from tiny_training import ROOT, tiny_recipe

from hepar.data import organ_bank, processes
from hepar.data.cache import ArrayCache
from hepar.data.cohort_cases import CohortCases
from hepar.data.organ_bank import BankEntry
from hepar.data.phantom_cases import PhantomCases
from hepar.data.phantom_cohort import single
from hepar.data.phantoms import _draw_all
from hepar.data.processes import in_processes
from hepar.data.tumor_source import CaseSource
from hepar.errors import ResourceExhausted
from hepar.geometry import Grid
from hepar.io.nifti import write_nifti
from hepar.recipe_data import CohortData, OrganData
from hepar.systems.table import build

PARTS = {"case": "a", "version": 1}


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    hu = rng.integers(-100, 200, (2, 3, 4)).astype(np.int16)
    return {"hu": hu, "liver": hu > 0, "spacing_mm": np.array([2.0, 1.0, 1.0])}


def stored(folder: Path) -> Path:
    (path,) = folder.glob("*/*.safetensors")
    return path


def get(folder: Path) -> tuple[dict[str, np.ndarray], int]:
    """What a new process would get, and how often it was made for it."""
    made = []

    def make():
        made.append(1)
        return arrays()

    return ArrayCache(folder).get(PARTS, make), len(made)


def assert_right(found: dict[str, np.ndarray]) -> None:
    for name, value in arrays().items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype


def test_property_TR05_every_flipped_byte_of_a_cache_file_is_noticed(tmp_path, caplog):
    get(tmp_path)
    path = stored(tmp_path)
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        caplog.clear()
        found, made = get(tmp_path)
        assert_right(found)
        # A space of the padding between header and values means nothing.
        if made == 0:
            assert good[at : at + 1] == b" "
        else:
            assert "W_CACHE_REBUILT" in caplog.text
            assert path.read_bytes() == good
    assert get(tmp_path)[1] == 0


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "older layout"])
def test_property_TR05_a_cache_file_that_is_no_use_is_made_again(damage, tmp_path, caplog):
    from safetensors.numpy import save_file

    get(tmp_path)
    path = stored(tmp_path)
    good = path.read_bytes()
    if damage == "older layout":
        save_file(arrays(), path)
    else:
        path.write_bytes({"cut": good[:-20], "empty": b"", "garbage": b"x" * 999}[damage])
    found, made = get(tmp_path)
    assert made == 1
    assert_right(found)
    assert "W_CACHE_REBUILT" in caplog.text
    assert path.read_bytes() == good


@pytest.mark.parametrize("damage", ["cut", "empty", "another byte", "gone"])
def test_property_TR05_a_cache_file_damaged_while_it_is_in_use_is_made_again(
    damage, tmp_path, caplog
):
    """Its arrays are maps of the file: to read beyond the end of one would end the process."""
    cache = ArrayCache(tmp_path)
    cache.get(PARTS, arrays)
    path = stored(tmp_path)
    good, written = path.read_bytes(), path.stat().st_mtime_ns
    if damage == "gone":
        path.unlink()
    else:
        changed = good[:-1] + bytes([good[-1] ^ 1])
        path.write_bytes({"cut": good[:-20], "empty": b""}.get(damage, changed))
        os.utime(path, ns=(0, written + 1))  # the clock of a file system may be coarse
    assert_right(cache.get(PARTS, arrays))
    assert ("W_CACHE_REBUILT" in caplog.text) == (damage != "gone")
    assert path.read_bytes() == good


def small_bank(_data=None, _seed=None) -> list[BankEntry]:
    rng = np.random.default_rng(1)
    code = rng.integers(0, 9, (4, 5, 6)).astype(np.uint8)
    native = np.arange(4, dtype=np.float32)
    return [BankEntry(code + k, None, native, (4.0, 4.0, 4.0)) for k in range(2)]


def test_property_TR05_flipped_bytes_of_the_organ_bank_are_noticed(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(organ_bank, "build_bank", small_bank)
    data = OrganData()
    organ_bank.load_bank(data, 0, tmp_path)
    (path,) = tmp_path.glob("*.npz")
    good = path.read_bytes()
    rebuilt = 0
    for at in range(0, len(good), 7):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        caplog.clear()
        bank = organ_bank.load_bank(data, 0, tmp_path)
        rebuilt += "W_CACHE_REBUILT" in caplog.text
        assert len(bank) == 2
        for entry, expected in zip(bank, small_bank(), strict=True):
            np.testing.assert_array_equal(entry.code, expected.code)
            np.testing.assert_array_equal(entry.native_hu, expected.native_hu)
    # The rest are bytes of the archive that decide nothing: dates, attributes.
    assert rebuilt > len(good) / 7 / 3
    path.write_bytes(good[: len(good) // 2])
    assert len(organ_bank.load_bank(data, 0, tmp_path)) == 2


def test_property_TR06_a_killed_process_is_started_again(tmp_path, caplog):
    job = functools.partial(double, tmp_path, 2, 3)
    assert list(in_processes(job, range(8), 2, str)) == [2 * n for n in range(8)]
    assert "W_WORKER_RESTARTED" in caplog.text
    assert len(list(tmp_path.iterdir())) == 2
    assert not multiprocessing.active_children()


def test_property_TR06_a_case_that_kills_every_process_is_named(tmp_path):
    job = functools.partial(double, tmp_path, 99, 3)
    stream = in_processes(job, range(8), 2, lambda n: f"patient-{n}")
    assert [next(stream) for _ in range(3)] == [0, 2, 4]
    with pytest.raises(ResourceExhausted) as caught:
        next(stream)
    assert (caught.value.code, caught.value.exit_code) == ("E_WORKER_DIED", 12)
    assert "patient-3" in caught.value.message
    assert not multiprocessing.active_children()


def test_property_TR06_painting_survives_the_kill_of_its_processes(monkeypatch):
    """The doors that paint: the first pool is killed whole, as the system does without memory."""
    killed = []
    submit = processes._submit

    def kills(pool, job, item):
        future = submit(pool, job, item)
        # Both are there: the pool starts no other while it notices that they are gone.
        if not killed and len(pool._processes) == 2:
            killed.extend(pool._processes)
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
        return future

    monkeypatch.setattr(processes, "_submit", kills)
    monkeypatch.setattr("hepar.data.phantoms.draw", operator.attrgetter("seed"))
    roster = [single(seed) for seed in (4, 5, 6)]
    monkeypatch.setattr("hepar.data.phantoms.in_processes", _named)
    assert list(_draw_all(roster, 2)) == [4, 5, 6]
    assert killed


def _named(job, items, count, _name):
    return in_processes(job, items, count, str)


def test_property_TR06_samples_and_patients_have_names(tmp_path):
    recipe = tiny_recipe("data.train_patients=3")
    spec = build(recipe.system).input_spec
    cases = PhantomCases(recipe.data, spec, cache_dir=None)
    source = CaseSource(cases, recipe.data, spec, seed=0)
    names = {source.case_of(0, index) for index in range(len(source))}
    assert names == {cases.train_name(i) for i in range(3)}
    assert cases.train_name(0) == f"phantom-{recipe.data.seed_base}"


def test_property_TR11_without_shared_memory_work_is_done_in_this_process(monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(processes, "ProcessPoolExecutor", no_locks)
    with caplog.at_level(logging.WARNING):
        assert list(in_processes(abs, [-1, -2], 64, str)) == [1, 2]
    assert "W_FEWER_WORKERS" in caplog.text


def test_property_TR11_a_pool_that_starts_no_process_gives_way(monkeypatch, caplog):
    from concurrent.futures import ProcessPoolExecutor

    def refused(*_args, **_options):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(ProcessPoolExecutor, "submit", refused)
    assert list(in_processes(abs, [-1, -2], 2, str)) == [1, 2]
    assert "W_FEWER_WORKERS" in caplog.text


TWO = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from deadly_job import double
from tiny_training import tiny_recipe
from hepar.data.phantom_cases import PhantomCases
from hepar.train.loop import train
paint = PhantomCases._paint
def painted(self, patient, paints):
    print("painted", patient, flush=True)
    return paint(self, patient, paints)
PhantomCases._paint = painted
print("ready", flush=True)
sys.stdin.readline()
recipe = tiny_recipe("schedule.steps=3", "schedule.validate_every=0", f"seed={sys.argv[3]}")
train(recipe, Path(sys.argv[1]), cache_dir=Path(sys.argv[2]), workers=2)
"""


@pytest.mark.full
def test_property_TR07_two_runs_on_one_empty_cache_paint_once_and_agree(tmp_path):
    folders = [ROOT / "src", ROOT / "tests", ROOT / "tests" / "hazards"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}

    def begin(name: str, cache: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", TWO, tmp_path / name, tmp_path / cache, "0"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    runs = [begin("a", "shared"), begin("b", "shared"), begin("alone", "own")]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    outputs = [run.communicate("go\n", timeout=900)[0].split("\n") for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0]
    alone = [line for line in outputs[2] if line]
    assert len(alone) == 3  # two patients to train on, one held out
    assert sorted(line for text in outputs[:2] for line in text if line) == sorted(alone)
    best = [(tmp_path / name / "best.safetensors").read_bytes() for name in ("a", "b", "alone")]
    assert best[0] == best[1] == best[2]
    assert not [p for p in (tmp_path / "shared").rglob("*") if p.name.startswith(".hepar-tmp")]


def test_property_TR09_an_edited_cohort_has_another_fingerprint(tmp_path):
    """A row, a fold or one voxel of a file; not where the cache is or how often it is asked."""
    grid = Grid.axial((4, 8, 8), (8.0, 5.0, 5.0))
    for name in "abc":
        hu = np.full(grid.shape, ord(name), np.int16)
        write_nifti(tmp_path / f"{name}.nii.gz", hu, grid)
        write_nifti(tmp_path / f"{name}-label.nii.gz", (hu > 0).astype(np.uint8), grid)

    def fingerprint(rows: str) -> str:
        lines = [f"{r[0]},{r[0]},{r[0]}.nii.gz,{r[0]}-label.nii.gz,{r[1]}" for r in rows.split()]
        table = "\n".join(["case_id,patient_id,pv,label,fold", *lines, ""])
        (tmp_path / "cohort.csv").write_text(table)
        data = CohortData(path=tmp_path / "cohort.csv", fold=0)
        return CohortCases(
            data, build(tiny_recipe().system).input_spec, cache_dir=None
        ).fingerprint()

    first = fingerprint("a0 b1 c1")
    assert fingerprint("a0 b1 c1") == first
    others = {first, fingerprint("a0 b1"), fingerprint("a1 b0 c1")}
    hu = np.full(grid.shape, ord("c"), np.int16)
    hu[0, 0, 0] += 1
    write_nifti(tmp_path / "c.nii.gz", hu, grid)
    others.add(fingerprint("a0 b1 c1"))
    assert len(others) == 4
