"""Named arrays in one file, which are read where they are looked at: a slice costs a slice.

The file is safetensors (eight bytes of length, a JSON header, values) with a SHA-256 over names,
types, shapes and values in its header. Whoever opens it reads it once from end to end, to verify
it; then the arrays are read-only maps of the file, whose pages the operating system keeps while it
has room, and gives to all processes alike.

A map shows the file as it is. One that another process replaces (`atomic_path`) stays what it was
for those who hold it; one that is cut short under its readers ends them (SIGBUS), which is why
`stamp` is compared before each use; a byte that the disk loses after the file was verified is not
noticed until it is opened again.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors.numpy import save_file

from hepar.errors import ResourceExhausted
from hepar.io.atomic import atomic_path

Arrays = dict[str, np.ndarray]
Stamp = tuple[int, int, int]
_DIGEST = "sha256 of the arrays"
_CHUNK = 2**20
_TYPES = {
    "BOOL": "|b1",
    **{f"I{8 * n}": f"<i{n}" for n in (2, 4, 8)},
    **{f"U{8 * n}": f"<u{n}" for n in (2, 4, 8)},
    **{f"F{8 * n}": f"<f{n}" for n in (2, 4, 8)},
    "I8": "|i1",
    "U8": "|u1",
}


@dataclass(frozen=True)
class Mapped:
    """A verified file.

    Attributes:
        arrays: read-only, by name.
        stamp: of the file that was verified and is mapped.
    """

    arrays: Arrays
    stamp: Stamp


@dataclass(frozen=True)
class _Place:
    """Where an array lies: its type and shape, and its first byte in the file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    at: int

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


def arrays_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the names, types, shapes and values of arrays."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(_title(name, array.dtype, array.shape))
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write a file that `map_arrays` reads.

    Raises:
        ResourceExhausted: `E_OUTPUT_WRITE`.
    """
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with atomic_path(path) as temporary:
        save_file(plain, temporary, metadata={_DIGEST: arrays_hash(plain)})


def stamp(path: Path) -> Stamp | None:
    """What changes when a file is replaced, cut or written to; None where there is none."""
    try:
        return _stamp(path.stat())
    except OSError:
        return None


def map_arrays(path: Path, verified: Stamp | None = None) -> Mapped | None:
    """The arrays of a file; None where it is missing, damaged, or of another layout.

    Args:
        path: what `write_arrays` wrote.
        verified: a file of this stamp is not verified once more.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            places, written = _read_header(file, status.st_size)
            if _stamp(status) != verified and _digest(file, places) != written:
                return None
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return Mapped({n: _view(pages, place) for n, place in places.items()}, _stamp(status))
    except (OSError, AttributeError, KeyError, TypeError, ValueError):
        return None


def lost(path: Path) -> ResourceExhausted:
    """What to raise of a file that was just written and is damaged already."""
    return ResourceExhausted(
        "E_OUTPUT_WRITE",
        "cache",
        f"{path.name} was written and cannot be read again as it was written.",
        "Give a cache folder on a disk that is intact and whose files can be mapped.",
    )


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _title(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    return f"\n{name} {dtype.str} {shape}\n".encode()


def _view(pages: mmap.mmap, place: _Place) -> np.ndarray:
    if place.nbytes == 0:
        return np.empty(place.shape, place.dtype)
    return np.ndarray(place.shape, place.dtype, pages, place.at)


def _read_header(file: BinaryIO, size: int) -> tuple[dict[str, _Place], str]:
    """Where the arrays lie, and their SHA-256; a header of nonsense raises one error or another."""
    length = int.from_bytes(file.read(8), "little")
    start = 8 + length
    if start > size:
        raise ValueError("the header is longer than the file")
    header = json.loads(file.read(length))
    written = str(header.pop("__metadata__")[_DIGEST])
    places, end = {}, start
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        place = _Place(np.dtype(_TYPES[entry["dtype"]]), tuple(entry["shape"]), start + first)
        if first < 0 or last - first != place.nbytes:
            raise ValueError(f"{name} is longer or shorter than its shape")
        places[name], end = place, max(end, start + last)
    if end != size:
        raise ValueError("the file is longer or shorter than its arrays")
    return places, written


def _digest(file: BinaryIO, places: Mapping[str, _Place]) -> str:
    """As `arrays_hash`, without having more than a chunk in memory."""
    digest = hashlib.sha256()
    for name in sorted(places):
        place = places[name]
        digest.update(_title(name, place.dtype, place.shape))
        for chunk in _chunks(file, place):
            digest.update(chunk)
    return digest.hexdigest()


def _chunks(file: BinaryIO, place: _Place) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(_CHUNK, place.nbytes)))
    file.seek(place.at)
    left = place.nbytes
    while left:
        got = file.readinto(buffer[: min(left, len(buffer))])  # type: ignore[attr-defined]
        if not got:
            raise ValueError("the file ends early")
        yield buffer[:got]
        left -= got
