"""Series drawn from a seed: any orientation, spacing, order, phases, rescale and storage."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
)
from scipy.spatial.transform import Rotation
from synthetic_dicom import Place, Slice, Storage, ct_slice, enhanced, save
from transfer_syntaxes import COMPRESSORS, OPENJPEG_MIN_PIXELS

from hepar.study import Study

QUICK = 300
# Compressed images are decoded in a process of their own, which takes longer than all the rest.
FEW_COMPRESSED, COMPRESSED = 0.02, 0.10
UNCOMPRESSED = ("explicit", "implicit", "big endian", "deflated")
SYNTAXES = (*UNCOMPRESSED, *COMPRESSORS)
_SPLITS = ("AcquisitionNumber", "AcquisitionTime", "TemporalPositionIdentifier", "series")


@dataclass(frozen=True)
class Draw:
    """What a seed stands for; its text says everything a failure needs.

    Attributes:
        seed: the seed.
        syntax: transfer syntax of every file.
        multi: one enhanced file a series instead of one file a slice.
        phases: how many passes over the same places.
        split: what tells phases apart.
        depths_mm: distance of each slice along the normal, ascending.
        place: of the first slice.
        storages: one a slice.
    """

    seed: int
    syntax: str
    multi: bool
    phases: int
    split: str
    depths_mm: tuple[float, ...]
    place: Place
    storages: tuple[Storage, ...]


def draw(seed: int) -> Draw:
    """A pure function of the seed."""
    rng = np.random.default_rng([20_260_901, seed])
    packed = rng.random() < (FEW_COMPRESSED if seed < QUICK else COMPRESSED)
    syntax = str(rng.choice(tuple(COMPRESSORS) if packed else UNCOMPRESSED))
    multi = bool(rng.random() < 0.3)
    # Thin slices would be many files, so they come in one; every series covers a liver's height.
    step = float(rng.uniform(2.0 if multi else 5.2, 9.0))
    n = max(8, int(np.ceil(41 / step)))
    depths = tuple(k * step for k in range(n))
    side = OPENJPEG_MIN_PIXELS if syntax == "JPEG2000" else 12
    place = Place(
        _triple(rng.uniform(-400, 400, 3)),
        _axes(rng),
        (float(rng.uniform(0.4, 2.5)), float(rng.uniform(0.4, 2.5))),
        (side + int(rng.integers(1, 5)), side),
    )
    # Acquisition is what a multi-frame file says of each frame; the rest is of the file.
    split = str(rng.choice(("AcquisitionNumber", "series") if multi else _SPLITS))
    phases = int(rng.choice((1, 2, 3), p=(0.75, 0.2, 0.05)))
    return Draw(seed, syntax, multi, phases, split, depths, place, _storages(rng, n, syntax))


def _triple(values: Any) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return x, y, z


def _axes(rng: np.random.Generator) -> tuple[float, ...]:
    """Along a row and down a column: any of the 48 upright ways, or oblique."""
    if rng.random() < 0.5:
        matrix = Rotation.random(rng=rng).as_matrix()
    else:
        matrix = np.eye(3)[rng.permutation(3)]
    matrix = matrix * rng.choice([-1.0, 1.0], 3)
    return tuple(float(v) for v in matrix[:2].ravel())


def _storages(rng: np.random.Generator, n: int, syntax: str) -> tuple[Storage, ...]:
    """One storage for all slices, or a rescale of each slice's own."""
    bits = 16 if syntax.endswith("GDCM") or rng.random() < 0.6 else 12
    signed = bool(rng.random() < 0.5)
    slopes = (1.0, 0.5, 0.25, 2.0) if bits == 16 else (1.0, 2.0)
    intercepts = (0.0, 24.0) if signed else (-1024.0, -1200.0, -8192.0)[: 3 if bits == 16 else 2]
    one = Storage(float(rng.choice(slopes)), float(rng.choice(intercepts)), signed, bits)
    if rng.random() < 0.6:
        return (one,) * n
    return tuple(
        Storage(float(rng.choice(slopes)), float(rng.choice(intercepts)), signed, bits)
        for _ in range(n)
    )


def images(drawn: Draw, *flips: int) -> list[list[Slice]]:
    """Uncompressed images of each phase.

    Args:
        drawn: what they are of.
        *flips: axes of the pixels (0 down the rows, 1 along the columns) that are stored backwards:
            other files of the same patient.
    """
    rng = np.random.default_rng([20_260_902, drawn.seed])
    volumes = []
    for phase in range(drawn.phases):
        series = f"1.2.3.{4 + phase}" if drawn.split == "series" else "1.2.3.4"
        clock = f"1010{10 + 20 * phase}" if drawn.split == "AcquisitionTime" else "101010"
        tags: dict[str, object] = {"AcquisitionTime": clock, "ContentTime": clock}
        if drawn.split == "TemporalPositionIdentifier":
            tags["TemporalPositionIdentifier"] = phase + 1
        slices = []
        for k, depth in enumerate(drawn.depths_mm):
            where = np.asarray(drawn.place.corner_mm) + depth * drawn.place.normal
            place = Place(
                _triple(where), drawn.place.orientation, drawn.place.pixel_mm, drawn.place.matrix
            )
            hu = np.flip(_content(rng, place.matrix), flips)
            one = ct_slice(
                phase * len(drawn.depths_mm) + k,
                _backwards(place, flips),
                drawn.storages[k],
                series=series,
                acquisition=phase + 1 if drawn.split == "AcquisitionNumber" else 1,
                hu=np.ascontiguousarray(hu),
                **tags,
            )
            slices.append(one)
        volumes.append(slices)
    return volumes


def _backwards(place: Place, flips: tuple[int, ...]) -> Place:
    """Where the same pixels lie when they are stored from the other end."""
    row, column = np.asarray(place.orientation[:3]), np.asarray(place.orientation[3:])
    corner = np.asarray(place.corner_mm)
    if 0 in flips:
        corner, column = corner + (place.matrix[0] - 1) * place.pixel_mm[0] * column, -column
    if 1 in flips:
        corner, row = corner + (place.matrix[1] - 1) * place.pixel_mm[1] * row, -row
    orientation = tuple(float(v) for v in (*row, *column))
    return Place(_triple(corner), orientation, place.pixel_mm, place.matrix)


def _content(rng: np.random.Generator, matrix: tuple[int, int]) -> NDArray[np.int16]:
    """Air and textured tissue; even numbers, which a slope of 2 can hold."""
    hu = 2 * rng.integers(-50, 100, matrix)
    hu[: matrix[0] // 4] = -1000
    hu[-1, -1] = 2 * rng.integers(200, 700)
    return hu.astype(np.int16)


def as_files(drawn: Draw, volumes: list[list[Slice]], syntax: str | None = None) -> list[Slice]:
    """What is written: a file a slice, or a file a series; in the drawn or another syntax.

    The images keep their places and HU; their files are used up.
    """
    if drawn.multi and drawn.split == "series":
        files = [enhanced(slices, drawn.seed) for slices in volumes]
    elif drawn.multi:
        files = [enhanced([one for slices in volumes for one in slices], drawn.seed)]
    else:
        files = [one for slices in volumes for one in slices]
    for one in files:
        store(one, syntax or drawn.syntax)
    return files


def store(one: Slice, syntax: str) -> None:
    """Put the file of an image into a transfer syntax of `SYNTAXES`."""
    data = one.data
    if syntax in COMPRESSORS:
        COMPRESSORS[syntax](data)
    elif syntax == "implicit":
        data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    elif syntax == "deflated":
        data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    elif syntax == "big endian":
        data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
        data.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        data.set_original_encoding(False, False)


def write(files: list[Slice], folder: Path) -> None:
    """Save files as `0000.dcm`, ..."""
    save(files, folder, [f"{k:04d}.dcm" for k in range(len(files))])


def what_was_read(study: Study) -> str:
    """A hash of every volume with its place, whatever the series are called."""
    volumes = []
    for series in study.series:
        place = np.round(series.volume.grid.affine, 6) + 0.0  # Without a negative zero.
        volumes.append(hashlib.sha256(place.tobytes() + series.volume.array.tobytes()).hexdigest())
    return hashlib.sha256("".join(sorted(volumes)).encode()).hexdigest()
