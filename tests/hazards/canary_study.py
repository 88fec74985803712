"""A study full of identifiers and hostile text, segmented by the command without its networks."""

from __future__ import annotations

import atexit
import base64
import functools
import gzip
import io
import logging
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

import hepar.pipeline
from hepar.cli import main
from hepar.geometry import Grid
from hepar.infer.bundle import Bundle
from hepar.io.dicom_write import write_dicom_series
from hepar.preprocess import liver_box
from hepar.render import viewer
from hepar.stages.tumor import find_lesions
from hepar.study import AlignedStudy, LiverCase, Volume
from hepar.systems.baselines.hu_threshold import HuThresholdSettings

CANARIES = (
    *("CANARY^ZZTOP", "PHI-CANARY-7731", "ACC-CANARY-55", "DOC^CANARY", "19010203", "john.doe"),
    # Parts of them, and other ways to write them.
    *("zztop", "canary", "1901-02-03", "03.02.1901", "john"),
)
SCRIPT = "<script>alert(1)</script>"
SHELL = "a;touch HACKED $(touch HACKED)"
SHAPE, SPACING_MM = (24, 80, 96), (5.0, 4.0, 4.0)
LIVER_MM, LESION_MM = np.array([-60.0, 0.0, 60.0]), np.array([-60.0, 10.0, 65.0])


def grid_of(shape: tuple[int, int, int] = SHAPE) -> Grid:
    """An axial grid whose middle lies at x = y = 0."""
    middle = [-(n - 1) * s / 2 for n, s in zip(shape[1:], SPACING_MM[1:], strict=True)]
    return Grid.axial(shape, SPACING_MM, (middle[1], middle[0], 0.0))


def ball(world: np.ndarray, center: np.ndarray, radius_mm: float) -> np.ndarray:
    return ((world - center) ** 2).sum(axis=-1) < radius_mm**2


def places(grid: Any) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    return grid.index_to_world(index.astype(float))


def hu_at(world: np.ndarray) -> np.ndarray:
    """HU of a body with a ball of a liver and a ball of a lesion, at LPS positions."""
    hu = np.full(world.shape[:-1], -1000.0)
    hu[(world[..., 0] / 170) ** 2 + (world[..., 1] / 130) ** 2 < 1] = 45
    hu[ball(world, LIVER_MM, 50)] = 112
    hu[ball(world, LESION_MM, 14)] = 60
    noise = np.random.default_rng(1).normal(0, 4, hu.shape)
    return np.rint(hu + noise).astype(np.int16)


def find_ball(aligned: AlignedStudy, model: object, **options: object) -> LiverCase:
    """Stands in for the liver network."""
    liver = ball(places(aligned.grid), LIVER_MM, 50)
    box = liver_box(liver, aligned.grid, 10.0)
    assert box is not None
    return LiverCase(aligned, liver, box, float(liver.sum()) * aligned.grid.voxel_ml)


@contextmanager
def stand_ins() -> Iterator[pytest.MonkeyPatch]:
    """No network is built; everything around them is the product's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bundle, "model", lambda self, part: None)
        patch.setattr(hepar.pipeline, "find_liver", find_ball)
        patch.setattr(
            hepar.pipeline,
            "find_lesions",
            lambda case, model, **_: find_lesions(case, HuThresholdSettings()),
        )
        # NiiVue, which only npm has, holds nothing of the patient.
        patch.setattr(viewer, "SCRIPTS", viewer.SCRIPTS[1:])
        yield patch


def write_study(
    folder: Path,
    name: str = "portal",
    change: Callable[[Any], object] | None = None,
    number: int = 2,
) -> tuple[Path, ...]:
    """A DICOM series whose headers hold every canary, in their own tags and in free text."""
    grid = grid_of()
    files = write_dicom_series(
        folder / name,
        Volume(hu_at(places(grid)), grid),
        description=f"{name} CANARY^ZZTOP {SCRIPT}",
        series_number=number,
        study_uid="1.2.3",
        frame_of_reference_uid="1.2.3.5",
    )
    for file in files:
        data = pydicom.dcmread(file)
        data.PatientName, data.PatientID = "CANARY^ZZTOP", "PHI-CANARY-7731"
        data.PatientBirthDate, data.AccessionNumber = "19010203", "ACC-CANARY-55"
        data.ReferringPhysicianName = "DOC^CANARY"
        data.StudyDescription = "Liver of Zztop, born 1901-02-03, 03.02.1901"
        data.ProtocolName = "abdomen DOC^CANARY 19010203"
        data.ImageComments = f"ACC-CANARY-55 {SCRIPT}"
        if change is not None:
            change(data)
        data.save_as(file)
    return files


@dataclass
class Run:
    """A run of the command.

    Attributes:
        code: exit code.
        out: folder of results.
        said: stdout, stderr and log, as one text.
        stdout: alone.
        connections: what it tried to reach.
    """

    code: int
    out: Path
    said: str
    stdout: str
    connections: list[str] = field(default_factory=list)

    def texts(self) -> Iterator[tuple[str, bytes]]:
        """Everything that was said, every file name, and the inflated bytes of every file."""
        yield "said", self.said.encode()
        if not self.out.exists():
            return
        for path in sorted(self.out.rglob("*")):
            yield "name", path.relative_to(self.out).as_posix().encode()
            if path.is_file():
                data = path.read_bytes()
                data = gzip.decompress(data) if path.suffix == ".gz" else data
                # Base64 spells any word: pictures inside a page are those of the overlay, and
                # volumes are looked at as what they are.
                data = re.sub(rb"data:image/png;base64,[\w+/=]+", b"", data)
                yield path.name, re.sub(rb">(H4sI[\w+/=]+)<", _inflated, data)


def _inflated(found: re.Match[bytes]) -> bytes:
    return gzip.decompress(base64.b64decode(found[1]))


def run(out: Path, *arguments: object) -> Run:
    """Run the command with everything it says and connects to recorded."""
    words = [str(a) for a in arguments]
    stdout, stderr, logged, reached = io.StringIO(), io.StringIO(), io.StringIO(), []
    handler = logging.StreamHandler(logged)
    root = logging.getLogger()
    level, code = root.level, 0

    def refuse(*args: object, **kwargs: object) -> None:
        reached.append(str(args))
        raise OSError("no network in this test")

    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with stand_ins() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
            patch.setattr(sys, "argv", ["hepar", *words])
            for name in ("connect", "connect_ex", "sendto"):
                patch.setattr(socket.socket, name, refuse)
            for name in ("create_connection", "getaddrinfo", "gethostbyname"):
                patch.setattr(socket, name, refuse)
            main(words)
    except SystemExit as leave:
        code = int(leave.code or 0)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    said = "".join(stream.getvalue() for stream in (stdout, stderr, logged))
    return Run(code, out, said, stdout.getvalue(), reached)


@functools.cache
def canary_run() -> Run:
    """The study of every canary, segmented once for all tests of a process."""
    base = Path(tempfile.mkdtemp(prefix="hazard-"))
    atexit.register(shutil.rmtree, base, True)
    home = base / "home" / "john.doe" / "john.doe CANARY^ZZTOP" / SHELL
    write_study(home)
    more = ("--probabilities", "--viewer")
    return run(base / "out", "segment", home.parent, "-o", base / "out", *more)
