"""Many anatomies in one small file, to be painted again and again: a cohort in tens of megabytes.

The file is a ZIP with one xz stream a patient, uncompressed by the ZIP itself. A stream holds the
length of a JSON header, the header, and three byte maps:

- `first`: for each voxel its row in the table of the tuples of all one-byte arrays (tissue, liver,
  instance, part, ...) there are, a few dozen a patient;
- `second`: 0 where a voxel is pure and its second tissue is the usual one of its row, else one more
  than its row in the table of second tissues;
- `share`: of the voxels with a `second` above 0, in order.

Long runs and few symbols are what LZMA is good at; predicting voxels from their neighbors first
made files larger. Every stream ends in a SHA-256 that is checked when it is read, and the ZIP holds
a CRC-32 of each.
"""

from __future__ import annotations

import json
import lzma
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, overload

import numpy as np

from hepar.errors import InputRefused
from hepar.io.atomic import atomic_path
from hepar.phantom.anatomy import Anatomy
from hepar.phantom.lesions import LesionSpec

# What `_unpack` raises for a stream that `_pack` of this version did not write.
_MALFORMED = (KeyError, TypeError, ValueError)
_FORMAT = "hepar anatomies 1"
_SECOND = ("second", "share")
# Position in the stream says nothing about a byte (pb 0), the byte before it much (lc 4); a
# patient fits in the dictionary, and a larger one would only cost memory.
_FILTERS = (
    {
        "id": lzma.FILTER_LZMA2,
        "preset": 6 | lzma.PRESET_EXTREME,
        "dict_size": 2**22,
        "lc": 4,
        "lp": 0,
        "pb": 0,
    },
)


class Bank:
    """The anatomies of a file, each read when it is asked for.

    Safe to use from several threads and to send to other processes: nothing stays open.

    Args:
        path: of the file.
        names: its members, in order.
    """

    def __init__(self, path: Path, names: tuple[str, ...]) -> None:
        self.path, self.names = path, names

    def __len__(self) -> int:
        """Patients."""
        return len(self.names)

    def __iter__(self) -> Iterator[Anatomy]:
        """The anatomies in order."""
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Anatomy: ...
    @overload
    def __getitem__(self, index: slice) -> Bank: ...
    def __getitem__(self, index: int | slice) -> Anatomy | Bank:
        """An anatomy, bit for bit as it was written; of a slice, the smaller bank.

        Raises:
            InputRefused: `E_BANK`, the file was altered since it was opened.
        """
        if isinstance(index, slice):
            return Bank(self.path, self.names[index])
        name = self.names[index]
        try:
            with zipfile.ZipFile(self.path) as archive:
                return _unpack(lzma.decompress(archive.read(name)))
        except (OSError, EOFError, zipfile.BadZipFile, lzma.LZMAError, *_MALFORMED):
            raise _refuse(self.path, f"anatomy {name} cannot be read or was altered") from None


def write_bank(path: Path | str, anatomies: Iterable[Anatomy]) -> Path:
    """Write anatomies as one file, whole or not at all.

    Args:
        path: of the file.
        anatomies: taken one after the other, so a generator holds one in memory.

    Raises:
        ResourceExhausted: `E_OUTPUT_WRITE`.
    """
    path = Path(path)
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        archive.comment = _FORMAT.encode()
        for number, anatomy in enumerate(anatomies):
            # A fixed date: the same anatomies give the same bytes.
            archive.writestr(zipfile.ZipInfo(f"{number:06d}.xz"), _compress(_pack(anatomy)))
    return path


def read_bank(path: Path | str) -> Bank:
    """Open a bank; its table of contents is read now, its anatomies later.

    Raises:
        InputRefused: `E_BANK`, no such file, not a bank, or cut short.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names, comment = tuple(sorted(archive.namelist())), archive.comment
    except OSError as error:
        raise _refuse(path, f"cannot be read: {error.strerror or error}") from None
    except zipfile.BadZipFile:
        raise _refuse(path, "is cut short or no bank of anatomies") from None
    if comment != _FORMAT.encode():
        raise _refuse(path, "is no bank of anatomies of this version")
    return Bank(path, names)


def _refuse(path: Path, problem: str) -> InputRefused:
    return InputRefused(
        "E_BANK",
        "phantom",
        f"{path.name}: {problem}.",
        "Write it again with `hepar phantom --formats bank`, or copy it again.",
    )


def _compress(data: bytes) -> bytes:
    return lzma.compress(data, check=lzma.CHECK_SHA256, filters=list(_FILTERS))


def _pack(anatomy: Anatomy) -> bytes:
    values = {f.name: getattr(anatomy, f.name) for f in fields(anatomy)}
    second, share = (values.pop(name) for name in _SECOND)
    arrays = {name: v for name, v in values.items() if isinstance(v, np.ndarray)}
    table, row = _table(np.stack([a.ravel().view(np.uint8) for a in arrays.values()], axis=1))
    header: dict[str, Any] = {
        "shape": anatomy.tissue.shape,
        "arrays": {name: str(a.dtype) for name, a in arrays.items()},
        "first": table.tolist(),
        "lesions": [asdict(spec) for spec in values.pop("lesions")],
        "plain": {name: v for name, v in values.items() if name not in arrays},
    }
    maps = [_symbols(row, len(table))]
    if second is not None:
        second, share = second.ravel(), share.ravel()
        usual = _usual(row, second, share, len(table))
        other = (share > 0) | (second != usual[row])
        codes, code_row = np.unique(second[other], return_inverse=True)
        symbol = np.zeros(len(row), np.int64)
        symbol[other] = code_row + 1
        header |= {"second": codes.tolist(), "usual": usual.tolist()}
        maps += [_symbols(symbol, len(codes) + 1), share[other].tobytes()]
    head = json.dumps(header, separators=(",", ":")).encode()
    return b"".join([len(head).to_bytes(4, "little"), head, *maps])


def _unpack(data: bytes) -> Anatomy:
    end = 4 + int.from_bytes(data[:4], "little")
    header = json.loads(data[4:end])
    shape = tuple(header["shape"])
    size = int(np.prod(shape))
    table = np.asarray(header["first"], np.uint8)
    row, end = _read_symbols(data, end, size, len(table))
    arrays: dict[str, Any] = {
        name: table[row, i].view(dtype).reshape(shape)
        for i, (name, dtype) in enumerate(header["arrays"].items())
    }
    if "second" in header:
        symbol, end = _read_symbols(data, end, size, len(header["second"]) + 1)
        other = symbol > 0
        codes = np.asarray(header["usual"], np.uint16)[row]
        codes[other] = np.asarray(header["second"], np.uint16)[symbol[other] - 1]
        share = np.zeros(size, np.uint8)
        share[other] = np.frombuffer(data, np.uint8, int(other.sum()), end)
        arrays |= {"second": codes.reshape(shape), "share": share.reshape(shape)}
    return Anatomy(
        **arrays,
        **{name: _tuples(value) for name, value in header["plain"].items()},
        lesions=tuple(_lesions(header["lesions"])),
    )


def _table(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of (n, k) uint8, sorted, and for each row its place among them."""
    key = np.zeros(len(rows), np.uint64)
    for column in rows.T:
        key = key * np.uint64(256) + column.astype(np.uint64)
    _, where, place = np.unique(key, return_index=True, return_inverse=True)
    return rows[where], place


def _usual(row: np.ndarray, second: np.ndarray, share: np.ndarray, rows: int) -> np.ndarray:
    """uint16 (rows,): the commonest second tissue of each row's pure voxels."""
    usual = np.zeros(rows, np.uint16)
    pure = share == 0
    pairs, counts = np.unique(row[pure].astype(np.int64) * 65536 + second[pure], return_counts=True)
    order = np.argsort(counts, kind="stable")
    usual[pairs[order] // 65536] = pairs[order] % 65536
    return usual


def _symbols(values: np.ndarray, count: int) -> bytes:
    """One byte a value, or the low bytes and then the high bytes of more than 256 symbols."""
    low = (values & 255).astype(np.uint8).tobytes()
    return low if count <= 256 else low + (values >> 8).astype(np.uint8).tobytes()


def _read_symbols(data: bytes, start: int, size: int, count: int) -> tuple[np.ndarray, int]:
    values = np.frombuffer(data, np.uint8, size, start).astype(np.int64)
    if count <= 256:
        return values, start + size
    high = np.frombuffer(data, np.uint8, size, start + size)
    return values + 256 * high.astype(np.int64), start + 2 * size


def _lesions(documents: list[dict[str, Any]]) -> Iterator[LesionSpec]:
    for document in documents:
        yield LesionSpec(**{name: _tuples(value) for name, value in document.items()})


def _tuples(value: Any) -> Any:
    """JSON knows lists only; in an anatomy every sequence is a tuple."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
