"""Atomic writes: whole or not at all, also for a process that is killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

import hepar
from hepar.errors import HeparError, ResourceExhausted, UsageError
from hepar.io.atomic import atomic_path, staged_folder, sweep

_SOURCE = Path(hepar.__file__).parents[1]
_WRITER = """
import sys
from hepar.io.atomic import atomic_path
print("ready", flush=True)
count = 0
while True:
    count += 1
    with atomic_path(sys.argv[1]) as temporary:
        with open(temporary, "wb") as stream:
            for _ in range(8):
                stream.write(bytes([count % 256]) * 65536)
"""


def _write_half_and_fail(target: Path) -> None:
    with atomic_path(target) as temporary:
        temporary.write_text("new, half")
        raise RuntimeError("broke")


def _stage_half_and_stop(out: Path) -> None:
    with staged_folder(out) as staged:
        (staged / "a").write_text("new")
        raise KeyboardInterrupt


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_appears_whole_under_its_name_and_keeps_its_suffix(tmp_path: Path) -> None:
    target = tmp_path / "new" / "mask.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.name.endswith(".nii.gz")
        temporary.write_bytes(b"mask")
        assert not target.exists()
    assert target.read_bytes() == b"mask"
    assert _names(target.parent) == ["mask.nii.gz"]


def test_a_failed_write_leaves_the_old_file_and_no_trace(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="broke"):
        _write_half_and_fail(target)
    assert target.read_text() == "old"
    assert _names(tmp_path) == ["a.json"]


def test_a_failed_write_removes_the_parents_it_made(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broke"):
        _write_half_and_fail(tmp_path / "x" / "y" / "a")
    assert _names(tmp_path) == []


def test_a_block_that_writes_nothing_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceExhausted, match="E_OUTPUT_WRITE"), atomic_path(tmp_path / "a"):
        pass
    assert _names(tmp_path) == []


def test_a_staged_folder_appears_at_once(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with staged_folder(out) as staged:
        (staged / "overlay").mkdir()
        (staged / "overlay" / "1.png").write_bytes(b"png")
        (staged / "findings.json").write_text("{}")
        assert not out.exists()
    assert _names(out) == ["findings.json", "overlay"]
    assert _names(tmp_path / "deep") == ["out"]


def test_a_staged_folder_replaces_files_of_an_existing_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "overlay").mkdir(parents=True)
    (out / "overlay" / "1.png").write_bytes(b"old")
    (out / "note.txt").write_text("the user's")
    with staged_folder(out) as staged:
        (staged / "overlay").mkdir()
        (staged / "overlay" / "1.png").write_bytes(b"new")
    assert (out / "overlay" / "1.png").read_bytes() == b"new"
    assert (out / "note.txt").read_text() == "the user's"
    assert _names(tmp_path) == ["out"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_failed_stage_leaves_out_as_it_was(tmp_path: Path, exists: bool) -> None:
    out = tmp_path / "deep" / "out"
    if exists:
        out.mkdir(parents=True)
        (out / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        _stage_half_and_stop(out)
    if exists:
        assert (out / "a").read_text() == "old"
        assert _names(out.parent) == ["out"]
    else:
        assert _names(tmp_path) == []


@pytest.mark.parametrize("writes", [atomic_path, staged_folder])
def test_a_disk_that_fills_while_results_are_written_is_a_typed_error(
    tmp_path: Path, writes: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    def fill(number: int) -> None:
        with writes(tmp_path / "out"):
            raise OSError(number, os.strerror(number))

    with pytest.raises(ResourceExhausted) as refusal:
        fill(errno.ENOSPC)
    assert refusal.value.code == "E_OUTPUT_WRITE"
    with pytest.raises(FileNotFoundError):  # whatever was read in the block
        fill(errno.ENOENT)
    assert _names(tmp_path) == []


def test_a_file_where_the_folder_should_be_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UsageError, match="E_OUTPUT_PATH"), staged_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").read_text() == "a file"


def test_a_parent_that_is_a_file_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HeparError, match="E_OUTPUT_WRITE"), atomic_path(tmp_path / "file" / "a"):
        pass


def test_a_killed_writer_never_tears_the_file_and_its_orphans_are_swept(tmp_path: Path) -> None:
    target = tmp_path / "weights.bin"
    environment = {**os.environ, "PYTHONPATH": str(_SOURCE)}
    for round_ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(target)],
            env=environment,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        while not target.exists():
            time.sleep(0.005)
        time.sleep(0.003 * round_)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        data = target.read_bytes()
        assert len(data) == 8 * 65536
        assert len(set(data)) == 1
        sweep(tmp_path)
        assert _names(tmp_path) == ["weights.bin"]
        target.unlink()


def test_sweeping_spares_the_living_and_the_strange(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("mine")
        strange = tmp_path / ".hepar-tmp-00000000-1-00000000-a"
        strange.write_text("another machine's")
        assert sweep(tmp_path) == 0
        assert temporary.exists()
    assert strange.exists()


def test_sweeping_removes_a_dead_folder(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("x")
        host = temporary.name.split("-")[2]
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead = tmp_path / f".hepar-tmp-{host}-{process.pid}-01234567-out"
    dead.mkdir()
    (dead / "half").write_text("x")
    with staged_folder(tmp_path / "out") as staged:
        (staged / "b").write_text("y")
    assert _names(tmp_path) == ["a", "out"]
