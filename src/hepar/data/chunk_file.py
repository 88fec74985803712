"""Named arrays in one file of compressed chunks: a patch costs the chunks that it meets.

The file is a magic number, the length of an index, the SHA-256 of the index, the index (JSON), and
the chunks one after another, nothing between or behind them. The index holds the SHA-256 of each
compressed chunk, which is compared whenever the chunk is read, before it is unpacked: a byte that
the disk loses at any time is noticed when it matters. Whoever opens the file reads its index and
its small arrays; those of three and more dimensions are read as they are looked at.

Chunks are 64 voxels wide (128^3 voxels anywhere meet 27 of them), one phase deep, and packed with
LZ4 behind a bit shuffle: a seventh larger on CT than zstd, and unpacked more than twice as fast
(`benchmarks/chunk_codecs.json`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from hepar.data.array_file import Arrays, Stamp, lost, stamp
from hepar.errors import ResourceExhausted
from hepar.io.atomic import atomic_path

EDGE = 64
_MAGIC = b"hepar chunks 01\n"
_HEAD = len(_MAGIC) + 8 + 32
_LAZY_DIMS = 3  # volumes; what has fewer dimensions is a table of a few numbers
Box = tuple[slice, ...]


class _Damaged(Exception):
    """A file that is not what was written."""


@dataclass(frozen=True)
class _Layout:
    """Where an array lies.

    Attributes:
        dtype, shape: of the array.
        chunk: shape of a chunk; those at the far ends are smaller.
        places: first byte, length and SHA-256 of each chunk, in the order of the array.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    places: tuple[tuple[int, int, str], ...]

    def met(self, inside: Box) -> Iterator[tuple[int, tuple[int, ...], Box, Box]]:
        """The chunks that meet a box: number, shape, where in the box, and which part of each."""
        axes: list[list[tuple[int, int, slice, slice]]] = []
        stride = 1
        for want, n, size in reversed(list(zip(inside, self.shape, self.chunk, strict=True))):
            pieces = []
            for at in range(want.start // size, -(-want.stop // size)):
                first, last = at * size, min((at + 1) * size, n)
                low, high = max(want.start, first), min(want.stop, last)
                target = slice(low - want.start, high - want.start)
                pieces.append((at * stride, last - first, target, slice(low - first, high - first)))
            axes.insert(0, pieces)
            stride *= -(-n // size)
        for combined in itertools.product(*axes):
            yield (
                sum(piece[0] for piece in combined),
                tuple(piece[1] for piece in combined),
                tuple(piece[2] for piece in combined),
                tuple(piece[3] for piece in combined),
            )


class ChunkedArray:
    """A read-only array in a file; basic slicing with step 1 gives plain arrays.

    Attributes:
        shape, dtype, ndim: as of an array.
        bytes_decompressed: how much was unpacked to answer so far.
    """

    def __init__(self, file: _File, name: str) -> None:
        layout = file.layouts[name]
        self.shape, self.dtype, self.ndim = layout.shape, layout.dtype, len(layout.shape)
        self.bytes_decompressed = 0
        self._file, self._name = file, name
        self._count = threading.Lock()

    def __getitem__(self, key: Any) -> np.ndarray:
        """The part of the array that integers, slices and an ellipsis name.

        Raises:
            IndexError: it lies outside, or asks for more than basic slicing with step 1.
            ResourceExhausted: `E_OUTPUT_WRITE`, the file is damaged and stays so.
        """
        inside, keep = _basic(key, self.shape)
        found, unpacked = self._file.read(self._name, inside)
        with self._count:
            self.bytes_decompressed += unpacked
        return np.asarray(found[keep])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it."""
        return self[...] if dtype is None else self[...].astype(dtype)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array, unpacked."""
        return self.dtype.itemsize * math.prod(self.shape)


ChunkedArrays = dict[str, np.ndarray | ChunkedArray]


@dataclass(frozen=True)
class Chunked:
    """An opened file.

    Attributes:
        arrays: by name, volumes as `ChunkedArray`.
        stamp: of the file that was opened.
    """

    arrays: ChunkedArrays
    stamp: Stamp


class _File:
    """A file that is made whole again when something in it turns out to be damaged."""

    def __init__(self, path: Path, layouts: dict[str, _Layout], mend: Callable[[], None]) -> None:
        self.path, self.layouts, self.mend = path, layouts, mend

    def read(self, name: str, inside: Box) -> tuple[np.ndarray, int]:
        """A box of an array, and how many bytes were unpacked for it."""
        try:
            return self._read(name, inside)
        except (_Damaged, OSError):
            self.mend()
        try:
            with self.path.open("rb") as file:
                self.layouts = _layouts(file)
            return self._read(name, inside)
        except (_Damaged, OSError) as error:
            raise lost(self.path) from error

    def _read(self, name: str, inside: Box) -> tuple[np.ndarray, int]:
        layout = self.layouts[name]
        found = np.empty([s.stop - s.start for s in inside], layout.dtype)
        unpacked = 0
        with self.path.open("rb") as file:
            for number, shape, target, source in layout.met(inside):
                chunk = _unpacked(_stored(file, layout.places[number]), layout.dtype, shape)
                unpacked += chunk.nbytes
                found[target] = chunk[source]
        return found, unpacked


def write_chunks(path: Path, arrays: Arrays) -> None:
    """Write a file that `open_chunks` reads.

    Raises:
        ResourceExhausted: `E_OUTPUT_WRITE`.
    """
    index, packed = {}, []
    for name, array in arrays.items():
        chunk = _chunk_shape(array.shape)
        places = []
        for at in itertools.product(*map(range, _counts(array.shape, chunk))):
            data = _packed(np.asarray(array[_chunk_box(at, array.shape, chunk)]))
            places.append([len(data), hashlib.sha256(data).hexdigest()])
            packed.append(data)
        index[name] = {"dtype": array.dtype.str, "shape": array.shape, "chunks": places}
    text = json.dumps(index, separators=(",", ":")).encode()
    head = _MAGIC + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + text
    with atomic_path(path) as temporary:
        try:
            with temporary.open("wb") as file:
                file.writelines([head, *packed])
        except OSError as error:
            raise ResourceExhausted(
                "E_OUTPUT_WRITE",
                "cache",
                f"{path.name} cannot be written: {error.strerror or error}.",
                "Give a cache folder on a disk that has room.",
            ) from error


def open_chunks(path: Path, mend: Callable[[], None]) -> Chunked | None:
    """The arrays of a file; None where it is missing, of another layout, or damaged so far.

    Args:
        path: what `write_chunks` wrote.
        mend: called when a chunk turns out to be damaged later on; makes the file whole again, or
            raises what it has to say.
    """
    try:
        with path.open("rb") as file:
            layouts = _layouts(file)
            found = stamp(path)
        if found is None:
            return None
        opened = _File(path, layouts, mend)
        small = {
            name: opened._read(name, tuple(slice(0, n) for n in layout.shape))[0]
            for name, layout in layouts.items()
            if len(layout.shape) < _LAZY_DIMS
        }
    except (_Damaged, OSError):
        return None
    return Chunked({n: small[n] if n in small else ChunkedArray(opened, n) for n in layouts}, found)


def is_whole(path: Path) -> bool:
    """Whether every byte of a file is as it was written."""
    try:
        with path.open("rb") as file:
            for layout in _layouts(file).values():
                for place in layout.places:
                    _stored(file, place)
    except (_Damaged, OSError):
        return False
    return True


def _layouts(file: IO[bytes]) -> dict[str, _Layout]:
    """The index of a file, whose chunks have to end where the file does."""
    head = file.read(_HEAD)
    length = int.from_bytes(head[len(_MAGIC) : len(_MAGIC) + 8], "little")
    size = file.seek(0, 2)
    if not head.startswith(_MAGIC) or _HEAD + length > size:
        raise _Damaged
    file.seek(_HEAD)
    text = file.read(length)
    if hashlib.sha256(text).digest() != head[-32:]:
        raise _Damaged
    at, layouts = _HEAD + length, {}
    for name, entry in json.loads(text).items():
        shape, places = tuple(entry["shape"]), []
        for stored, digest in entry["chunks"]:
            places.append((at, stored, digest))
            at += stored
        dtype = np.dtype(entry["dtype"])
        layouts[name] = _Layout(dtype, shape, _chunk_shape(shape), tuple(places))
    if at != size:
        raise _Damaged
    return layouts


def _stored(file: IO[bytes], place: tuple[int, int, str]) -> bytes:
    at, length, digest = place
    file.seek(at)
    data = file.read(length)
    if hashlib.sha256(data).hexdigest() != digest:
        raise _Damaged
    return data


def _packed(chunk: np.ndarray) -> bytes:
    import blosc2  # a bare GPU machine has no cohorts on disk, and not this

    plain = np.ascontiguousarray(chunk)
    return bytes(
        blosc2.compress2(
            plain.reshape(-1).view(np.uint8),
            typesize=plain.dtype.itemsize,
            codec=blosc2.Codec.LZ4,
            clevel=5,
            filters=[blosc2.Filter.BITSHUFFLE],
            filters_meta=[0],
            nthreads=1,
        )
    )


def _unpacked(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    import blosc2  # a bare GPU machine has no cohorts on disk, and not this

    found = np.empty(shape, dtype)
    try:
        blosc2.decompress2(data, dst=found.reshape(-1).view(np.uint8), nthreads=1)
    except (RuntimeError, ValueError, TypeError) as error:
        raise _Damaged from error
    return found


def _chunk_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """One deep but along the last three axes."""
    lead = max(0, len(shape) - 3)
    return (1,) * lead + (EDGE,) * (len(shape) - lead)


def _counts(shape: Sequence[int], chunk: Sequence[int]) -> tuple[int, ...]:
    return tuple(-(-n // size) for n, size in zip(shape, chunk, strict=True))


def _chunk_box(at: Sequence[int], shape: Sequence[int], chunk: Sequence[int]) -> Box:
    return tuple(
        slice(place * size, min((place + 1) * size, n))
        for place, size, n in zip(at, chunk, shape, strict=True)
    )


def _basic(key: Any, shape: tuple[int, ...]) -> tuple[Box, tuple[Any, ...]]:
    """A key of basic slicing as a box, and what of the box is kept: axes of integers go."""
    keys = list(key) if isinstance(key, tuple) else [key]
    dots = [number for number, k in enumerate(keys) if k is Ellipsis]
    if len(dots) > 1 or len(keys) - len(dots) > len(shape):
        raise IndexError(f"{len(keys)} indices for {len(shape)} axes")
    at = dots[0] if dots else len(keys)
    keys[at : at + 1] = [slice(None)] * (len(shape) - len(keys) + len(dots))
    box: list[slice] = []
    keep: list[slice | int] = []
    for k, n in zip(keys, shape, strict=True):
        if isinstance(k, slice):
            start, stop, step = k.indices(n)
            if step != 1:
                raise IndexError(f"step {step}: chunks are read forwards, every voxel")
            box.append(slice(start, max(start, stop)))
            keep.append(slice(None))
        elif isinstance(k, int | np.integer) and not isinstance(k, bool | np.bool_):
            place = int(k) + (n if k < 0 else 0)
            if not 0 <= place < n:
                raise IndexError(f"index {k} is out of bounds for an axis of {n}")
            box.append(slice(place, place + 1))
            keep.append(0)
        else:
            raise IndexError(f"{type(k).__name__}: chunks are read by basic slicing only")
    return tuple(box), tuple(keep)
