"""Faults of caches that are kept in chunks: damage before, while and between they are read."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from tiny_training import ROOT

from fake_systems import spec_2d, spec_3d
from hepar.data import cache as cache_module
from hepar.data.cache import ArrayCache
from hepar.data.chunk_file import is_whole, open_chunks, write_chunks
from hepar.data.cohort_cases import CohortCases
from hepar.data.tumor_source import CaseSource
from hepar.errors import InputRefused, ResourceExhausted
from hepar.geometry import Grid
from hepar.io.nifti import write_nifti
from hepar.recipe_data import CohortData

PARTS = {"case": "a", "version": 1}
SMALL = (1, 6, 5, 4)
LARGE = (2, 70, 80, 66)


def arrays(shape: tuple[int, ...] = SMALL) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    hu = rng.integers(-100, 200, shape).astype(np.int16)
    return {"lesions": np.array([[1, 2, 3]], np.int32), "hu": hu, "liver": hu[0] > 0}


def stored(folder: Path) -> Path:
    (path,) = folder.glob("*/*.chunks")
    return path


class Maker:
    """Makes the arrays of a case, and counts how often."""

    def __init__(self, shape: tuple[int, ...] = SMALL) -> None:
        self.shape, self.made = shape, 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.made += 1
        return arrays(self.shape)


def assert_right(found, shape: tuple[int, ...] = SMALL) -> None:
    for name, value in arrays(shape).items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype


def flipped(good: bytes, at: int) -> bytes:
    return good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.full)])
def test_property_TR05_flipped_bytes_of_chunks_are_noticed(step, tmp_path, caplog, monkeypatch):
    """Magic number, length, index and each chunk: nothing of the file is beyond a checksum."""
    monkeypatch.setattr("hepar.io.atomic._sync", lambda _: None)  # a disk flush a byte
    ArrayCache(tmp_path).get_chunked(PARTS, Maker())
    path = stored(tmp_path)
    good = path.read_bytes()
    for at in (*range(60), *range(60, len(good), step)):
        path.write_bytes(flipped(good, at))
        caplog.clear()
        maker = Maker()
        assert_right(ArrayCache(tmp_path).get_chunked(PARTS, maker))
        assert maker.made == 1
        assert "W_CACHE_REBUILT" in caplog.text
        assert path.read_bytes() == good


@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "garbage", "another layout", "gone"])
def test_property_TR05_chunks_that_are_no_use_are_made_again(damage, tmp_path, caplog):
    ArrayCache(tmp_path).get_chunked(PARTS, Maker())
    path = stored(tmp_path)
    good = path.read_bytes()
    changed = {
        "cut": good[:-1],
        "longer": good + b"\0",
        "empty": b"",
        "garbage": b"x" * 999,
        "another layout": good.replace(b"chunks 01", b"chunks 00", 1),
    }
    path.write_bytes(changed.get(damage, good))
    if damage == "gone":
        path.unlink()
    maker = Maker()
    assert_right(ArrayCache(tmp_path).get_chunked(PARTS, maker))
    assert maker.made == 1
    assert ("W_CACHE_REBUILT" in caplog.text) == (damage != "gone")
    assert path.read_bytes() == good


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "gone"])
def test_property_TR05_chunks_damaged_between_two_patches_are_made_again(damage, tmp_path, caplog):
    """What was opened already is read on: the next patch is right, and the file is whole again."""
    maker = Maker(LARGE)
    found = ArrayCache(tmp_path).get_chunked(PARTS, maker)
    hu = arrays(LARGE)["hu"]
    np.testing.assert_array_equal(found["hu"][0, :9, :9, :9], hu[0, :9, :9, :9])
    path = stored(tmp_path)
    good = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        changed = {"flipped": flipped(good, len(good) // 2), "cut": good[: len(good) // 2]}
        path.write_bytes(changed.get(damage, b""))
    np.testing.assert_array_equal(found["hu"][:, 60:, 70:, 60:], hu[:, 60:, 70:, 60:])
    assert_right(found, LARGE)
    assert (maker.made, is_whole(path)) == (2, True)
    assert ("W_CACHE_REBUILT" in caplog.text) == (damage != "gone")
    assert path.read_bytes() == good


def test_property_TR05_a_sound_chunk_is_read_beside_a_damaged_one(tmp_path):
    maker = Maker(LARGE)
    found = ArrayCache(tmp_path).get_chunked(PARTS, maker)
    path = stored(tmp_path)
    good = path.read_bytes()
    path.write_bytes(flipped(good, len(good) - 1))  # of the last array, the liver
    whole = arrays(LARGE)
    np.testing.assert_array_equal(found["hu"][...], whole["hu"])
    assert maker.made == 1
    np.testing.assert_array_equal(found["liver"][...], whole["liver"])
    assert maker.made == 2


def test_property_TR05_threads_that_meet_one_damage_make_it_again_once(tmp_path):
    maker = Maker(LARGE)
    found = ArrayCache(tmp_path).get_chunked(PARTS, maker)
    path = stored(tmp_path)
    good = path.read_bytes()
    path.write_bytes(flipped(good, len(good) // 2))
    whole, wrong = arrays(LARGE), []
    gate = threading.Barrier(4)

    def read() -> None:
        gate.wait()
        if not np.array_equal(found["hu"][...], whole["hu"]):
            wrong.append(1)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (wrong, maker.made) == ([], 2)


def test_property_TR05_a_disk_that_loses_every_chunk_is_a_typed_error(tmp_path, monkeypatch):
    def loses_a_byte(path, made):
        write_chunks(path, made)
        good = path.read_bytes()
        path.write_bytes(flipped(good, len(good) - 50))

    monkeypatch.setattr(cache_module, "write_chunks", loses_a_byte)
    found = ArrayCache(tmp_path).get_chunked(PARTS, Maker(LARGE))
    with pytest.raises(ResourceExhausted) as caught:
        np.asarray(found["hu"]), np.asarray(found["liver"])
    assert (caught.value.code, caught.value.exit_code) == ("E_OUTPUT_WRITE", 12)


def test_property_TR05_a_source_that_is_gone_when_it_is_needed_again_is_named(tmp_path):
    def refuses():
        if maker.made:
            raise InputRefused("E_NO_IMAGE", "read", "pv.nii.gz is gone.", "Copy it again.")
        return maker()

    maker = Maker(LARGE)
    found = ArrayCache(tmp_path).get_chunked(PARTS, refuses)
    path = stored(tmp_path)
    path.write_bytes(path.read_bytes()[:9999])
    with pytest.raises(InputRefused) as caught:
        found["hu"][0]
    assert caught.value.code == "E_NO_IMAGE"


SPEC = spec_3d(
    phases=("ART", "PV"),
    class_names=("liver", "tumor"),
    spacing_mm=(3.0, 2.0, 2.0),
    needs_liver=True,
)


def source(folder: Path, cache_dir: Path | None, spec=SPEC) -> CaseSource:
    data = CohortData(path=folder / "cohort.csv", margin_mm=None, samples_per_case=6)
    return CaseSource(CohortCases(data, spec, cache_dir=cache_dir), data, spec, seed=0)


def cohort_on_disk(folder: Path) -> None:
    grid = Grid.axial((20, 70, 40), (3.0, 2.0, 2.0))
    rng = np.random.default_rng(0)
    label = np.zeros(grid.shape, np.uint8)
    label[4:18, 8:60, 8:36], label[8:12, 20:30, 20:26] = 1, 2
    for name in "ab":
        for phase in ("art", "pv"):
            hu = rng.integers(-100, 200, grid.shape).astype(np.int16)
            write_nifti(folder / f"{name}-{phase}.nii", hu, grid)
        write_nifti(folder / f"{name}-label.nii", label, grid)
    lines = [f"{n},{n},{n}-art.nii,{n}-pv.nii,{n}-label.nii" for n in "ab"]
    rows = [f"{lines[0]},train", f"{lines[1]},validation", ""]
    (folder / "cohort.csv").write_text("\n".join(["case_id,patient_id,art,pv,label,split", *rows]))


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_property_TR05_training_goes_on_with_the_right_patches(damage, tmp_path, caplog):
    """A cohort's file is damaged between two patches; every later one is that of an intact disk."""
    cohort_on_disk(tmp_path)
    right, ours = source(tmp_path, None), source(tmp_path, tmp_path / "cache")
    first = ours.sample(0, 0)
    np.testing.assert_array_equal(first.image, right.sample(0, 0).image)
    path = stored(tmp_path / "cache")
    good = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(flipped(good, len(good) // 2) if damage == "flipped" else good[:5000])
    for epoch in range(2):
        for index in range(6):
            mine, theirs = ours.sample(epoch, index), right.sample(epoch, index)
            for name in ("image", "label", "liver", "visible"):
                np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
    assert ("W_CACHE_REBUILT" in caplog.text) == (damage != "gone")
    assert path.read_bytes() == good


def test_property_TR05_cohorts_of_slices_stay_in_maps(tmp_path):
    """A slice of a map costs a slice; of chunks it would cost 64."""
    cohort_on_disk(tmp_path)
    flat = spec_2d(phases=("PV",), patch=(16, 16), spacing_mm=(3.0, 2.0, 2.0))
    for number, (spec, suffix) in enumerate(((flat, ".safetensors"), (SPEC, ".chunks"))):
        source(tmp_path, tmp_path / str(number), spec).sample(0, 0)
        kept = [p for p in (tmp_path / str(number)).rglob("*") if p.is_file() and p.suffix]
        assert [p.suffix for p in kept] == [suffix]


def _get(folder: Path, number: int, results) -> None:
    gate, done = results
    gate.wait()
    maker = Maker(LARGE)
    found = ArrayCache(folder).get_chunked(PARTS, maker)
    right = np.array_equal(found["hu"][...], arrays(LARGE)["hu"])
    done.put((number, maker.made, right))


def test_property_TR07_two_caches_of_one_folder_make_a_case_once(tmp_path):
    """Each holds locks of its own, as two processes do."""
    maker, answers = Maker(LARGE), []
    gate = threading.Barrier(2)

    def get() -> None:
        cache = ArrayCache(tmp_path)
        gate.wait()
        answers.append(cache.get_chunked(PARTS, maker))

    threads = [threading.Thread(target=get) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert maker.made == 1
    assert len(answers) == 2
    for found in answers:
        assert_right(found, LARGE)


@pytest.mark.full
def test_property_TR07_processes_that_want_one_case_make_it_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    gate, done = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=_get, args=(tmp_path, n, (gate, done)), daemon=True)
        for n in range(2)
    ]
    for process in processes:
        process.start()
    answers = [done.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert sum(made for _, made, _ in answers) == 1
    assert all(right for *_, right in answers)
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".hepar-tmp")]


WRITER = """
import sys
from pathlib import Path
import numpy as np
from hepar.data.chunk_file import write_chunks
made = dict(np.load(sys.argv[2]))
print("ready", flush=True)
while True:
    write_chunks(Path(sys.argv[1]), made)
    print("written", flush=True)
"""


@pytest.mark.parametrize("kills", [1, pytest.param(25, marks=pytest.mark.full)])
def test_property_TR05_a_kill_while_chunks_are_written_leaves_all_or_nothing(kills, tmp_path):
    path = tmp_path / "a.chunks"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "made.npz", **arrays(LARGE))
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, path, tmp_path / "made.npz"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "written\n"]
        threading.Event().wait(float(rng.uniform(0.0, 0.02)))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert is_whole(path)
        found = open_chunks(path, lambda: None)
        assert found is not None
        assert_right(found.arrays, LARGE)
    write_chunks(path, arrays(LARGE))  # sweeps what the dead process left
    assert {p.name for p in tmp_path.iterdir()} == {"a.chunks", "made.npz"}
