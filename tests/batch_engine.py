"""What segments in tests of batches: no network, and each study says what becomes of it.

`order.txt` in the folder of a study says what happens; any other study is segmented. The model of
the engine is a folder, where every start is noted and where what happens once leaves a mark.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import hepar
from hepar.batch.job import RECORD, Engine
from hepar.errors import InputRefused, UsageError

HERE, SOURCE = Path(__file__).parent, Path(hepar.__file__).parents[1]
LOG = "started.txt"


@dataclass(frozen=True)
class Result:
    """What was found."""

    lesions: tuple[int, ...]
    tumor_burden: float


@dataclass(frozen=True)
class Orders:
    """A segmenter that does what its studies say."""

    notes: Path
    model_sha256: str = "model"

    def segment(self, source: Path | None, out: Path, stated: Mapping[str, Path]) -> Result:
        """Small files that are a function of the study's own."""
        place = source if source is not None else next(iter(stated.values())).parent
        self._note(place.name)
        order = place / "order.txt"
        self._obey(order.read_text() if order.is_file() else "", place.name, out)
        if order.is_file() and order.read_text().startswith("give "):
            shutil.copytree(order.read_text().removeprefix("give "), out, dirs_exist_ok=True)
            return Result((1, 2), 0.1)
        files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
        content = b"".join(p.read_bytes() for p in files)
        (out / "overlay").mkdir()
        (out / "overlay" / "slice.png").write_bytes(content[::-1])
        (out / "segmentation.nii.gz").write_bytes(content)
        (out / "findings.json").write_text(json.dumps({"bytes": len(content)}))
        return Result(tuple(range(len(content) % 4)), len(content) % 7 / 100)

    def _note(self, name: str) -> None:
        with (self.notes / LOG).open("ab") as stream:
            stream.write(os.fsencode(name) + b"\n")

    def _obey(self, order: str, name: str, out: Path) -> None:
        if order.startswith("once "):
            mark = self.notes / f"{name}.done"
            if mark.exists():
                return
            mark.touch()
        match order.removeprefix("once "):
            case "refuse":
                raise InputRefused("E_NO_LIVER", "liver", "There is no liver.", "Look at it.")
            case "refuse the command":
                raise UsageError("E_DICOM_SOURCE", "dicom_out", "It is a NIfTI.", "Leave it out.")
            case "refuse in no words":
                raise InputRefused("E_MALFORMED", "read", "name \udcff\x00 is odd.", "Rename it.")
            case "segfault":
                ctypes.string_at(0)
            case "abort":
                os.abort()
            case "exit":
                os._exit(7)
            case "leave":
                sys.exit(3)
            case "interrupt":
                raise KeyboardInterrupt
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "kill parent":
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(600)
            case "orphan":  # its child keeps the pipe open
                if os.fork():
                    os._exit(9)
                time.sleep(30)
                os._exit(0)
            case "hang":
                time.sleep(600)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "bug":
                raise RuntimeError(f"boom in {self.notes / name}")
            case "recursion":
                self._obey(order, name, out)
            case "chatter":
                sys.stdout.write("x" * 10**6)
                raise ValueError("y" * 10**5)
            case "vanish":
                shutil.rmtree(out)
            case "in the way":
                (out / RECORD).mkdir()
            case "full disk":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out))
            case "memory":
                raise MemoryError
            case "too large":
                resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
                bytearray(2**40)


def load(engine: Engine) -> Orders:
    """The segmenter of an engine."""
    assert engine.model is not None
    return Orders(engine.model)


def engine(notes: Path) -> Engine:
    """An engine that notes in this folder."""
    notes.mkdir(exist_ok=True)
    return Engine(notes, load=load)


def write_studies(folder: Path, orders: Mapping[str, str]) -> Path:
    """A folder a study."""
    for name, order in orders.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "image.bin").write_bytes(os.fsencode(name) * 50)
        if order:
            (folder / name / "order.txt").write_text(order)
    return folder


def started(notes: Path) -> list[str]:
    """Names of the studies that were begun, in that order."""
    log = notes / LOG
    return os.fsdecode(log.read_bytes()).split("\n")[:-1] if log.exists() else []


def command(source: Path, out: Path, notes: Path, *more: object) -> subprocess.Popen[str]:
    """`hepar batch` with this segmenter, in a process of its own."""
    notes.mkdir(exist_ok=True)
    words = [source, "-o", out, "--model", notes, "-d", "cpu", "-q", "--json", *more]
    return subprocess.Popen(
        [sys.executable, "-c", "import batch_engine; batch_engine.main()", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(SOURCE)])},
    )


def main() -> None:
    """The command, with this segmenter in the place of the networks."""
    from hepar.batch import night
    from hepar.cli import main as hepar_main

    real = night.run_batch

    def with_orders(source: Path, out: Path, given: Engine, **options: object) -> dict:
        return real(source, out, dataclasses.replace(given, load=load), **options)

    night.run_batch = with_orders
    hepar_main(["batch", *sys.argv[1:]])
