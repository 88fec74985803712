"""The NIfTI door: the only place where the world is RAS and arrays are (x, y, z).

A file is read to its end, so that the gzip checksum is verified, before any voxel is used. Where a
header is ambiguous or contradicts itself the file is refused: spacing, orientation and units are
never guessed (unknown units, which the format leaves open, are taken as mm).
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

from hepar.geometry import Grid, flip_lps_ras
from hepar.io.atomic import atomic_path
from hepar.io.hounsfield import to_int16
from hepar.io.refusal import refuse
from hepar.study import Volume

_UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_GZIP_LEVEL = 4
_MAX_BYTES = 24 * 2**30
_MAX_TRAILING_BYTES = 64 * 2**20
_SLAB_VOXELS = 8_000_000
_MAX_SHEAR = 1e-3
_MAX_CONFLICT_VOXELS = 0.1
_PLAUSIBLE_SPACING_MM = (0.02, 50.0)


def is_nifti_name(path: Path) -> bool:
    """Whether a file is named as NIfTI: `.nii` or `.nii.gz`, in any case."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def read_nifti(path: Path | str) -> Volume:
    """Read a CT volume as HU.

    Args:
        path: `.nii` or `.nii.gz`; what it is, is seen from its first bytes.

    Returns:
        HU int16 `(z, y, x)` on the file's own voxels; below -1024 becomes -1024.

    Raises:
        InputRefused: a code of `refusal.REMEDIES`, for each way in which the file is unsafe.
    """
    path = Path(path)
    values, grid = _read(path)
    return Volume(to_int16(values, path.name), grid)


def read_label(path: Path | str) -> Volume:
    """Read a label map.

    Args:
        path: `.nii` or `.nii.gz`; values within 1e-3 of non-negative integers.

    Returns:
        uint8 `(z, y, x)` where the values allow, else int32.

    Raises:
        InputRefused: `E_LABEL_VALUES`, or as `read_nifti`.
    """
    path = Path(path)
    with _unpacked(path) as stream:
        header, shape, grid = _open_voxels(stream, path.name)
        label = np.zeros(shape, dtype=np.uint8)
        plane = shape[1] * shape[2]
        rows = max(1, _SLAB_VOXELS // plane)
        for begin in range(0, shape[0], rows):
            count = min(rows, shape[0] - begin)
            slab = _as_labels(_voxels(stream, header, count * plane, path.name), path.name)
            if slab.dtype != np.uint8 and label.dtype == np.uint8:
                label = label.astype(np.int32)
            label[begin : begin + count] = slab.reshape(count, *shape[1:])
        _to_end(stream, path.name)
    return Volume(label, grid)


def _as_labels(values: NDArray[Any], name: str) -> NDArray[Any]:
    """Values as uint8 where they allow, else int32."""
    if np.issubdtype(values.dtype, np.floating):
        rounded = np.rint(values)
        gap = np.abs(values - rounded)
        if float(gap.max()) > 1e-3:
            odd = float(values.flat[int(gap.argmax())])
            raise refuse("E_LABEL_VALUES", f"{name} holds {odd:.6g}, which is no label.")
        values = rounded
    low, high = values.min(), values.max()
    if low < 0 or high > np.iinfo(np.int32).max:
        raise refuse("E_LABEL_VALUES", f"{name} holds labels from {low} to {high}.")
    return values.astype(np.uint8 if high <= 255 else np.int32, copy=False)


def write_nifti(path: Path | str, array: NDArray[Any], grid: Grid) -> None:
    """Write a volume atomically, the same bytes for the same input.

    qform and sform hold the same affine (code 1, scanner), units are mm, the dtype is kept (bool
    becomes uint8, int64 int32 where it fits, float16 float32).

    Args:
        path: `.nii` or `.nii.gz`.
        array: `(z, y, x)` on `grid`.
        grid: where the voxels lie.
    """
    path = Path(path)
    if tuple(array.shape) != grid.shape:
        raise ValueError(f"array {array.shape} is not on its grid {grid.shape}")
    affine = flip_lps_ras(grid.affine)[:, [2, 1, 0, 3]]
    image = nib.Nifti1Image(_storable(array).transpose(2, 1, 0), affine)  # type: ignore[no-untyped-call]
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary, temporary.open("wb") as raw:
        if not path.name.lower().endswith(".gz"):
            image.to_stream(raw)
            return
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


def _read(path: Path) -> tuple[NDArray[Any], Grid]:
    """Values `(z, y, x)`, scaled and finite, and their grid."""
    with _unpacked(path) as stream:
        header, shape, grid = _open_voxels(stream, path.name)
        values = _voxels(stream, header, math.prod(shape), path.name)
        _to_end(stream, path.name)
    return values.reshape(shape), grid


@contextmanager
def _unpacked(path: Path) -> Iterator[BufferedIOBase]:
    """The file as a stream of inflated bytes; whatever reading it raises has a code."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            yield gzip.GzipFile(fileobj=raw) if packed else raw
    except EOFError as error:
        raise refuse("E_TRUNCATED", f"{path.name}: the gzip stream ends early.") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise refuse("E_CORRUPT", f"{path.name}: {error}.") from error
    except OSError as error:
        raise refuse("E_NO_IMAGE", f"{path.name} cannot be read: {error.strerror}.") from error


def _open_voxels(stream: BufferedIOBase, name: str) -> tuple[Any, tuple[int, int, int], Grid]:
    """Header, shape `(z, y, x)` and grid; the stream then stands at the first voxel."""
    head = stream.read(540)
    kind = _kind(head, name)
    try:
        header = kind.header_class(head[: kind.header_class.sizeof_hdr], check=True)
        size = tuple(int(n) for n in header.get_data_shape())
        offset, dtype = int(header["vox_offset"]), header.get_data_dtype()
        header.get_slope_inter()
    except Exception as error:
        raise refuse("E_MALFORMED", f"{name}: {error}.") from error
    if min(size, default=0) < 0 or offset < 0:
        raise refuse("E_MALFORMED", f"{name} declares the shape {size}.")
    declared = offset + math.prod(size) * dtype.itemsize
    if declared > _MAX_BYTES:
        raise refuse("E_MEMORY", f"{name} declares {declared / 2**30:.1f} GiB.")
    while len(size) > 3 and size[-1] == 1:
        size = size[:-1]
    if len(size) != 3 or min(size) < 1:
        raise refuse("E_NDIM", f"{name} has the shape {size}, not three dimensions.")
    if dtype.kind not in "iuf":
        raise refuse("E_DTYPE", f"{name} holds {dtype}.")
    affine = _affine(header, size, name)
    shape = (size[2], size[1], size[0])
    grid = _grid(flip_lps_ras(affine)[:, [2, 1, 0, 3]], shape, name)
    stream.seek(max(offset, kind.header_class.sizeof_hdr))
    return header, shape, grid


def _voxels(stream: BufferedIOBase, header: Any, count: int, name: str) -> NDArray[Any]:
    """The next voxels, scaled and finite; x runs fastest."""
    dtype = header.get_data_dtype()
    data = stream.read(count * dtype.itemsize)
    if len(data) < count * dtype.itemsize:
        raise refuse(
            "E_TRUNCATED", f"{name} ends {count * dtype.itemsize - len(data)} bytes early."
        )
    values: NDArray[Any] = np.frombuffer(data, dtype)
    slope, inter = header.get_slope_inter()
    if any((slope, inter)) and (slope, inter) != (1.0, 0.0):
        # float32 holds 16-bit values exactly and takes half the memory of float64.
        values = apply_read_scaling(values, np.float32(slope), np.float32(inter))
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise refuse("E_NOT_FINITE", f"{name} holds {bad} values that are NaN or Inf.")
    return values


def _to_end(stream: BufferedIOBase, name: str) -> None:
    """Read what follows the volume, so that a gzip checksum is verified."""
    if len(stream.read(_MAX_TRAILING_BYTES)) == _MAX_TRAILING_BYTES:
        raise refuse("E_CORRUPT", f"{name} goes on far beyond its volume.")


def _kind(head: bytes, name: str) -> Any:
    """The image class of a header; `n+1` and `n+2` are single-file NIfTI-1 and NIfTI-2."""
    if head[344:347] == b"n+1":
        return nib.Nifti1Image
    if head[4:7] == b"n+2":
        return nib.Nifti2Image
    if not head:
        raise refuse("E_NOT_NIFTI", f"{name} is empty.")
    if len(head) < 348 and head[:4] in (b"\x5c\x01\x00\x00", b"\x00\x00\x01\x5c"):
        raise refuse("E_TRUNCATED", f"{name} ends inside its header.")
    raise refuse("E_NOT_NIFTI", f"{name} is no single-file NIfTI.")


def _affine(header: Any, size: tuple[int, ...], name: str) -> NDArray[np.float64]:
    """The RAS affine in mm of `(x, y, z)` indices, where the header names one without doubt."""
    try:
        sform, s_code = header.get_sform(coded=True)
        qform, q_code = header.get_qform(coded=True)
    except Exception as error:
        raise refuse("E_AFFINE", f"{name}: {error}.") from error
    if not s_code and not q_code:
        raise refuse("E_NO_AFFINE", f"{name} has neither qform nor sform.")
    if s_code and q_code:
        corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(size) - 1)
        gap = corners @ (sform - qform)[:3, :3].T + (sform - qform)[:3, 3]
        voxel = max(1e-6, float(np.linalg.norm(sform[:3, :3], axis=0).min()))
        distance = float(np.linalg.norm(gap, axis=1).max()) / voxel
        if not distance <= _MAX_CONFLICT_VOXELS:
            raise refuse(
                "E_AFFINE_CONFLICT",
                f"{name}: qform and sform place a corner {distance:.2f} voxels apart.",
            )
    affine = np.array(sform if s_code else qform, dtype=np.float64)
    affine[:3] *= _UNIT_MM.get(int(header["xyzt_units"]) & 7, math.nan)
    if not np.isfinite(affine).all():
        raise refuse("E_AFFINE", f"{name} has an affine or a unit that is not finite.")
    return affine


def _grid(affine: NDArray[np.float64], shape: tuple[int, int, int], name: str) -> Grid:
    """The grid of an LPS affine over `(z, y, x)`, rounding errors of its rotation taken out."""
    linear = affine[:3, :3]
    spacing = np.linalg.norm(linear, axis=0)
    if spacing.min() <= 0:
        raise refuse("E_NO_GEOMETRY", f"{name} has a voxel size of {spacing.min():.3g}.")
    low, high = _PLAUSIBLE_SPACING_MM
    if spacing.min() < low or spacing.max() > high:
        sizes = " x ".join(f"{s:.3g}" for s in spacing)
        raise refuse("E_UNITS", f"{name} has voxels of {sizes} mm.")
    units = linear / spacing
    shear = float(np.abs(units.T @ units - np.eye(3)).max())
    if shear > _MAX_SHEAR:
        raise refuse("E_SHEARED", f"{name} has axes {shear:.3g} away from orthogonal.")
    left, _, right = np.linalg.svd(units)
    rotation = left @ right
    z, y, x = (float(s) for s in spacing)
    a, b, c = (float(v) for v in affine[:3, 3])
    return Grid(shape, (z, y, x), (a, b, c), tuple(float(v) for v in rotation.ravel()))
