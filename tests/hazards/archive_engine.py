"""A real `hepar serve` in a process of its own, whose segmenter knows where the liver is.

It leaves a true SEG and SR of every study, and a line of `started.txt` with the number of images
that it was given. `order.txt` in its folder may tell it to wait.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import hepar
from hepar.batch.job import Engine
from hepar.provenance import hepar_version

TESTS, SOURCE = Path(__file__).parents[1], Path(hepar.__file__).parents[1]
MODEL = "a" * 64
CENTER_MM, LIVER_MM = np.array([0.03, -1.07, 57.3]), 15.13
LESION_MM, LESION_RADIUS_MM = np.array([6.1, -3.2, -4.9]), 5.07


@dataclass(frozen=True)
class Result:
    """What was found."""

    lesions: tuple[int, ...]
    tumor_burden: float


@dataclass(frozen=True)
class Painter:
    """A segmenter that finds a ball of a liver with a lesion in it."""

    notes: Path
    model_sha256: str = MODEL

    def segment(self, source: Path | None, out: Path, stated: Mapping[str, Path]) -> Result:
        """A SEG, an SR and the findings."""
        from dicom_case import PROVENANCE, write_case

        assert source is not None
        with (self.notes / "started.txt").open("a") as stream:
            stream.write(f"{source.name} {len(list(source.iterdir()))}\n")
        while (self.notes / "wait").exists():
            time.sleep(0.1)
        hashes = {"model": MODEL, "settings": "b" * 64, "input": "d" * 64}
        said = {**PROVENANCE, "hepar": hepar_version(), "hashes": hashes}
        made = write_case(source, anatomy, out, provenance=said)
        (out / "findings.json").write_text(made.findings.model_dump_json())
        return Result(tuple(one.id for one in made.lesions.lesions), made.lesions.tumor_burden)


def anatomy(world_mm: np.ndarray) -> np.ndarray:
    """0 outside, 1 in the liver, 2 in its lesion."""
    numbers = (np.linalg.norm(world_mm - CENTER_MM, axis=-1) < LIVER_MM).astype(int)
    numbers[np.linalg.norm(world_mm - CENTER_MM - LESION_MM, axis=-1) < LESION_RADIUS_MM] = 2
    return numbers


def load(engine: Engine) -> Painter:
    """The segmenter of an engine."""
    assert engine.model is not None
    return Painter(engine.model)


def started(notes: Path) -> list[tuple[str, int]]:
    """Keys of the studies that were begun, and how many images each had then."""
    log = notes / "started.txt"
    lines = log.read_text().splitlines() if log.exists() else []
    return [(key, int(count)) for key, count in map(str.split, lines)]


class Server:
    """`hepar serve` with this segmenter, started by `start` and killed by `kill`.

    Args:
        folder: of the server; `serve.yaml` is written to it.
        notes: what the segmenter notes.
        settings: of `serve.yaml`.
    """

    def __init__(self, folder: Path, notes: Path, settings: Mapping[str, object]) -> None:
        self.folder, self.notes = folder, notes
        for place in (folder, notes):
            place.mkdir(parents=True, exist_ok=True)
        (folder / "serve.yaml").write_text(
            json.dumps({"web": {"port": 0}, **settings})
        )  # YAML, too
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to serve."""
        code = "import archive_engine; archive_engine.main()"
        paths = [TESTS / "hazards", TESTS, SOURCE]
        with (self.notes / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, str(self.folder), "--model", str(self.notes)],
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
            )

    def kill(self) -> None:
        """SIGKILL: nothing is tidied."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM."""
        if self._process is not None and self._process.poll() is None:
            self._end(signal.SIGTERM)

    def said(self) -> str:
        """What all its processes wrote."""
        return (self.notes / "log.txt").read_text()

    def _end(self, signum: signal.Signals) -> None:
        assert self._process is not None
        assert self._process.poll() is None, self.said()
        self._process.send_signal(signum)
        self._process.wait(120)


def main() -> None:
    """The command, with this segmenter in the place of the networks."""
    from hepar.cli import main as hepar_main
    from hepar.server import serve

    real = serve.run_server

    def with_painter(folder: Path, given: Engine, **options: object) -> None:
        real(folder, dataclasses.replace(given, load=load), **options)

    serve.run_server = with_painter
    hepar_main(["serve", "-d", "cpu", *sys.argv[1:]])
