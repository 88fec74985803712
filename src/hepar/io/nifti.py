"""The NIfTI door: the only place where the world is RAS and arrays are (x, y, z).

A file is read to its end, so that the gzip checksum is verified, before any voxel is used. Where a
header is ambiguous or contradicts itself the file is refused: spacing, orientation and units are
never guessed (unknown units, which the format leaves open, are taken as mm).
"""

from __future__ import annotations

import gzip
import logging
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

from hepar.geometry import Grid, Lattice, flip_lps_ras
from hepar.io.atomic import atomic_path
from hepar.io.hounsfield import AIR_HU, to_int16
from hepar.io.nifti_header import HEAD_BYTES, Head, parse_head
from hepar.io.refusal import refuse
from hepar.resampling import resample_lattice
from hepar.study import Volume

log = logging.getLogger(__name__)

_GZIP_LEVEL = 4
# No deflate stream inflates further: 258 bytes for two bits.
_MAX_INFLATION = 1032
_MAX_TRAILING_BYTES = 64 * 2**20
_CHUNK = 16 * 2**20
_SLAB_VOXELS = 8_000_000
_MAX_NONFINITE_SHARE = 1e-3
_MAX_LISTED = 6
_PART = re.compile(r"(?P<file>.+\.nii(\.gz)?)#(?P<part>\d{1,6})", re.IGNORECASE)


@dataclass(frozen=True)
class CtFile:
    """A volume as it was read.

    Attributes:
        volume: HU int16.
        notes: `W_CODE: words`, what was not as usual and is put right.
        lattice: the file's own voxels where their axes are not orthogonal; `volume` then lies on
            an orthogonal grid around them.
    """

    volume: Volume
    notes: tuple[str, ...] = ()
    lattice: Lattice | None = None


def is_nifti_name(path: Path) -> bool:
    """Whether a file is named as NIfTI: `.nii` or `.nii.gz`, in any case."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def split_part(path: Path) -> tuple[Path, int | None]:
    """`FILE.nii.gz#1` as the file and the number of a volume in it, counted from 0."""
    match = None if path.exists() else _PART.fullmatch(path.name)
    return (path, None) if match is None else (path.with_name(match["file"]), int(match["part"]))


def read_ct(path: Path | str, part: int | None = None) -> CtFile:
    """Read a CT volume as HU.

    Args:
        path: `.nii` or `.nii.gz`; what it is, is seen from its first bytes.
        part: which volume of a 4D file, from 0; without it a 4D file is refused.

    Returns:
        HU int16 `(z, y, x)`; below -1024, and where the file holds no number, -1024. With
        `W_NONFINITE`, `W_UNITS` or `W_SHEAR` in `notes`.

    Raises:
        InputRefused: a code of `refusal.REMEDIES`, for each way in which the file is unsafe.
    """
    path = Path(path)
    with _unpacked(path) as (stream, limit):
        head = parse_head(stream.read(HEAD_BYTES), limit, path.name)
        stream.seek(head.offset + _part(head, part, path.name) * head.volume_bytes)
        values = _values(stream, head, head.volume_bytes, path.name)
        _to_end(stream, head, part or 0, path.name)
    values, notes = _finite(values.reshape(head.shape), path.name)
    hu = to_int16(values, path.name)
    if head.lattice is not None:
        upright = resample_lattice(hu, head.lattice, head.grid, fill=AIR_HU)
        hu = np.rint(upright).astype(np.int16)
    return CtFile(Volume(hu, head.grid), (*head.notes, *notes), head.lattice)


def read_nifti(path: Path | str) -> Volume:
    """`read_ct` where only the volume is wanted; what was not as usual is logged.

    Raises:
        InputRefused: as `read_ct`.
    """
    found = read_ct(path)
    for note in found.notes:
        log.warning("%s (%s)", note, Path(path).name)
    return found.volume


def read_label(path: Path | str) -> Volume:
    """Read a label map.

    Args:
        path: `.nii` or `.nii.gz`; values within 1e-3 of non-negative integers.

    Returns:
        uint8 `(z, y, x)` where the values allow, else int32; on the same grid as a CT of the same
        header.

    Raises:
        InputRefused: `E_LABEL_VALUES`, or as `read_ct`.
    """
    path = Path(path)
    with _unpacked(path) as (stream, limit):
        head = parse_head(stream.read(HEAD_BYTES), limit, path.name)
        stream.seek(head.offset + _part(head, None, path.name) * head.volume_bytes)
        shape = head.shape
        label = np.zeros(shape, dtype=np.uint8)
        plane = shape[1] * shape[2]
        rows = max(1, _SLAB_VOXELS // plane)
        for begin in range(0, shape[0], rows):
            count = min(rows, shape[0] - begin)
            size = count * plane * head.dtype.itemsize
            slab = _as_labels(_values(stream, head, size, path.name), path.name)
            if slab.dtype != np.uint8 and label.dtype == np.uint8:
                label = label.astype(np.int32)
            label[begin : begin + count] = slab.reshape(count, *shape[1:])
        _to_end(stream, head, 0, path.name)
    if head.lattice is not None:
        label = resample_lattice(label, head.lattice, head.grid, order=0, fill=0)
    return Volume(label, head.grid)


def _part(head: Head, part: int | None, name: str) -> int:
    """Which volume of a file is read."""
    if part is None and head.volumes == 1:
        return 0
    if part is None:
        raise refuse("E_NDIM", f"{name} is 4D and holds {head.volumes} volumes.")
    if part >= head.volumes:
        raise refuse("E_NDIM", f"{name} has no volume {part}: it holds {head.volumes}, from 0.")
    return part


def _as_labels(values: NDArray[Any], name: str) -> NDArray[Any]:
    """Values as uint8 where they allow, else int32."""
    if np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all():
            raise refuse("E_NONFINITE", f"{name} holds labels that are NaN or Inf.")
        rounded = np.rint(values)
        if float(np.abs(values - rounded).max()) > 1e-3:
            raise refuse("E_LABEL_VALUES", f"{name} holds {histogram(values)}.")
        values = rounded
    low, high = values.min(), values.max()
    if low < 0 or high > np.iinfo(np.int32).max:
        raise refuse("E_LABEL_VALUES", f"{name} holds {histogram(values)}.")
    return values.astype(np.uint8 if high <= 255 else np.int32, copy=False)


def histogram(values: NDArray[Any]) -> str:
    """The commonest values and how many voxels have each, in words."""
    found, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_MAX_LISTED]
    listed = ", ".join(f"{found[k]:.6g} in {counts[k]}" for k in order)
    more = f" and {len(found) - len(order)} other values" if len(found) > len(order) else ""
    return f"{listed} voxels{more}"


def write_nifti(
    path: Path | str, array: NDArray[Any], grid: Grid | Lattice, description: str = ""
) -> None:
    """Write a volume atomically, the same bytes for the same input.

    qform and sform hold the same affine (code 1, scanner), units are mm, the dtype is kept (bool
    becomes uint8, int64 int32 where it fits, float16 float32). A qform cannot hold axes that are
    not orthogonal; there the sform alone is coded.

    Args:
        path: `.nii` or `.nii.gz`.
        array: `(z, y, x)` on `grid`.
        grid: where the voxels lie.
        description: for the header's `descrip`, at most 79 ASCII characters.
    """
    path = Path(path)
    image = _image(array, grid, description)
    with atomic_path(path) as temporary, temporary.open("wb") as raw:
        if path.name.lower().endswith(".gz"):
            _pack(image, raw)
        else:
            image.to_stream(raw)


def nifti_bytes(
    array: NDArray[Any],
    grid: Grid,
    *,
    slope: float = 1.0,
    intercept: float = 0.0,
    shown: tuple[float, float] | None = None,
) -> bytes:
    """The content of a `.nii.gz` whose stored numbers stand for others, as `write_nifti` writes it.

    Args:
        array: `(z, y, x)` on `grid`, as stored.
        grid: where the voxels lie.
        slope, intercept: what a stored number n stands for: slope * n + intercept.
        shown: values that a viewer should show as black and as white.
    """
    image = _image(array, grid, "")
    image.header.set_slope_inter(slope, intercept)
    if shown is not None:
        image.header["cal_min"], image.header["cal_max"] = shown
    stream = BytesIO()
    _pack(image, stream)
    return stream.getvalue()


def _image(array: NDArray[Any], grid: Grid | Lattice, description: str) -> Any:
    if tuple(array.shape) != grid.shape:
        raise ValueError(f"array {array.shape} is not on its grid {grid.shape}")
    affine = flip_lps_ras(grid.affine)[:, [2, 1, 0, 3]]
    image = nib.Nifti1Image(_storable(array).transpose(2, 1, 0), affine)  # type: ignore[no-untyped-call]
    image.set_qform(affine if isinstance(grid, Grid) else None, code=int(isinstance(grid, Grid)))
    image.set_sform(affine, code=1)
    image.header["descrip"] = description.encode("ascii", "replace")[:79]
    image.header.set_xyzt_units("mm")
    return image


def _pack(image: Any, raw: BufferedIOBase) -> None:
    """Compress without a name and a time, so that the same input gives the same bytes."""
    with gzip.GzipFile("", "wb", _GZIP_LEVEL, raw, mtime=0) as packed:
        image.to_stream(packed)


def _storable(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype in (np.dtype(np.int64), np.dtype(np.uint64)):
        if array.size and (array.min() < -(2**31) or array.max() >= 2**31):
            raise ValueError("64-bit integers beyond 32 bits cannot be written")
        return array.astype(np.int32)
    return array


@contextmanager
def _unpacked(path: Path) -> Iterator[tuple[BufferedIOBase, float]]:
    """The file as a stream of inflated bytes, and the most it can hold; errors have a code."""
    try:
        with path.open("rb") as raw:
            size = path.stat().st_size
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if packed:
                yield gzip.GzipFile(fileobj=raw), float(_MAX_INFLATION) * size
            else:
                yield raw, float(size)
    except EOFError as error:
        raise refuse("E_TRUNCATED", f"{path.name}: the gzip stream ends early.") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise refuse("E_CORRUPT", f"{path.name}: {error}.") from error
    except OSError as error:
        raise refuse("E_NO_IMAGE", f"{path.name} cannot be read: {error.strerror}.") from error


def _values(stream: BufferedIOBase, head: Head, size: int, name: str) -> NDArray[Any]:
    """The values of the next bytes, scaled; x runs fastest."""
    data = stream.read(size)
    if len(data) < size:
        raise refuse("E_TRUNCATED", f"{name} ends {size - len(data)} bytes early.")
    values: NDArray[Any] = np.frombuffer(data, head.dtype)
    slope, inter = head.header.get_slope_inter()
    if any((slope, inter)) and (slope, inter) != (1.0, 0.0):
        # float32 holds 16-bit values exactly and takes half the memory of float64.
        with np.errstate(all="ignore"):  # a senseless slope shows in the values
            values = apply_read_scaling(values, np.float32(slope), np.float32(inter))
    return values


def _finite(values: NDArray[Any], name: str) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Values with air for what is no number, and a note; not where that is more than a few."""
    if not np.issubdtype(values.dtype, np.floating):
        return values, ()
    bad = ~np.isfinite(values)
    count = int(bad.sum())
    if not count:
        return values, ()
    text = f"{count} of {values.size} values are NaN or Inf"
    if count >= _MAX_NONFINITE_SHARE * values.size:
        raise refuse("E_NONFINITE", f"{name}: {text}.")
    values = np.where(bad, values.dtype.type(AIR_HU), values)
    return values, (f"W_NONFINITE: {text}; they were taken as air ({AIR_HU} HU)",)


def _to_end(stream: BufferedIOBase, head: Head, part: int, name: str) -> None:
    """Read what follows the volume, so that a gzip checksum is verified."""
    left = (head.volumes - part - 1) * head.volume_bytes
    while left > 0:
        data = stream.read(min(left, _CHUNK))
        if not data:
            raise refuse("E_TRUNCATED", f"{name} ends {left} bytes early.")
        left -= len(data)
    if len(stream.read(_MAX_TRAILING_BYTES)) == _MAX_TRAILING_BYTES:
        raise refuse("E_CORRUPT", f"{name} goes on far beyond its volume.")
