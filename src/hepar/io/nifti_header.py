"""What a NIfTI header says of its voxels: shape, type, and where they lie, or why it is not used.

Where a header is ambiguous or contradicts itself the file is refused: spacing and orientation are
never guessed, and nothing that nibabel would put right in silence is taken over unsaid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from hepar.geometry import Grid, Lattice, flip_lps_ras
from hepar.io.refusal import refuse

HEAD_BYTES = 540
_UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_UNIT_NAMES = {1: "meters", 3: "microns"}
_MAX_BYTES = 24 * 2**30
_MAX_SHEAR = 1e-3
# Beyond these no scanner and no tilt of a gantry can have made the voxels.
_MIN_UPRIGHT = 0.5
_MAX_GROWTH = 4.0
_MAX_CONFLICT_VOXELS = 0.1
_PLAUSIBLE_SPACING_MM = (0.02, 50.0)


@dataclass(frozen=True)
class Head:
    """A header that can be used.

    Attributes:
        header: as nibabel understands it.
        shape: of one volume, `(z, y, x)`.
        volumes: how many the file holds; more than one in a 4D file.
        offset: bytes before the first voxel.
        grid: where the voxels lie, or the orthogonal grid around them where they are sheared.
        lattice: the voxels themselves, where they are sheared.
        notes: `W_CODE: words`, what was not as usual.
    """

    header: Any
    shape: tuple[int, int, int]
    volumes: int
    offset: int
    grid: Grid
    lattice: Lattice | None
    notes: tuple[str, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored values."""
        return np.dtype(self.header.get_data_dtype())

    @property
    def volume_bytes(self) -> int:
        """Of one volume as stored."""
        return math.prod(self.shape) * self.dtype.itemsize


def parse_head(head: bytes, limit_bytes: float, name: str) -> Head:
    """Understand the first bytes of a file.

    Args:
        head: the first 540 bytes, or all there are.
        limit_bytes: the most that the file can hold, inflated; nothing is made for a header that
            declares more.
        name: of the file, for messages.

    Raises:
        InputRefused: `E_NOT_NIFTI`, `E_TRUNCATED`, `E_MALFORMED`, `E_MEMORY`, `E_NDIM`, `E_DTYPE`,
            or as `_placed`.
    """
    kind = _kind(head, name)
    length = kind.header_class.sizeof_hdr
    if len(head) < length:
        raise refuse("E_TRUNCATED", f"{name} ends inside its header.")
    try:
        raw = kind.header_class(head[:length], check=False)
        header = kind.header_class(head[:length], check=True)
        size = tuple(int(n) for n in header.get_data_shape())
        offset, dtype = int(header["vox_offset"]), header.get_data_dtype()
        header.get_slope_inter()
    except Exception as error:  # nibabel raises many types on malformed bytes
        raise refuse("E_MALFORMED", f"{name}: {error}.") from error
    if min(size, default=0) < 0 or offset < 0:
        raise refuse("E_MALFORMED", f"{name} declares the shape {size}.")
    while len(size) > 3 and size[-1] == 1:
        size = size[:-1]
    if len(size) not in (3, 4) or min(size) < 1:
        raise refuse("E_NDIM", f"{name} has the shape {size}, not three dimensions.")
    if dtype.kind not in "iuf":
        raise refuse("E_DTYPE", f"{name} holds {dtype}.")
    offset = max(offset, length)
    declared = offset + math.prod(size) * dtype.itemsize
    if declared > _MAX_BYTES:
        raise refuse("E_MEMORY", f"{name} declares {declared / 2**30:.1f} GiB.")
    if declared > limit_bytes:
        raise refuse(
            "E_TRUNCATED", f"{name} declares {declared} bytes and can hold {limit_bytes:.0f}."
        )
    with np.errstate(all="ignore"):  # what overflows is not finite, and refused for that
        grid, lattice, notes = _placed(raw, header, size[:3], name)
    return Head(header, _zyx(size), math.prod(size[3:]), offset, grid, lattice, notes)


def _zyx(size: tuple[int, ...]) -> tuple[int, int, int]:
    return size[2], size[1], size[0]


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


def _placed(
    raw: Any, header: Any, size: tuple[int, ...], name: str
) -> tuple[Grid, Lattice | None, tuple[str, ...]]:
    """Where the voxels lie.

    Raises:
        InputRefused: `E_AFFINE`, `E_NO_AFFINE`, `E_AFFINE_CONFLICT`, `E_NO_GEOMETRY`, `E_UNITS`.
    """
    affine = _affine(raw, header, size, name)
    unit = int(header["xyzt_units"]) & 7
    if unit not in _UNIT_MM:
        raise refuse("E_UNITS", f"{name} names a unit of length, {unit}, that does not exist.")
    affine[:3] *= _UNIT_MM[unit]
    if not np.isfinite(affine).all():
        raise refuse("E_AFFINE", f"{name} has an affine that is not finite.")
    lps = flip_lps_ras(affine)[:, [2, 1, 0, 3]]
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    if spacing.min() <= 0:
        raise refuse("E_NO_GEOMETRY", f"{name} has a voxel size of {spacing.min():.3g}.")
    low, high = _PLAUSIBLE_SPACING_MM
    sizes = " x ".join(f"{s:.3g}" for s in spacing)
    if spacing.min() < low or spacing.max() > high:
        raise refuse("E_UNITS", f"{name} has voxels of {sizes} mm.")
    notes = []
    if unit in _UNIT_NAMES:
        notes.append(
            f"W_UNITS: the header is in {_UNIT_NAMES[unit]}; with that its voxels are {sizes} mm"
        )
    shear = float(np.abs((lps[:3, :3] / spacing).T @ (lps[:3, :3] / spacing) - np.eye(3)).max())
    if shear <= _MAX_SHEAR:
        return _grid(lps, _zyx(size)), None, tuple(notes)
    lattice = Lattice(_zyx(size), tuple(float(v) for v in lps[:3].ravel()))
    notes.append(
        f"W_SHEAR: the axes are {shear:.3g} away from orthogonal; the volume was resampled by its "
        "full affine, and masks are put back on the file's own voxels"
    )
    return _upright(lattice, name), lattice, tuple(notes)


def _upright(lattice: Lattice, name: str) -> Grid:
    """The orthogonal grid around sheared voxels, if they are not too far from it."""
    linear = lattice.affine[:3, :3]
    flatness = abs(np.linalg.det(linear)) / np.prod(np.linalg.norm(linear, axis=0))
    grid = lattice.upright() if flatness >= _MIN_UPRIGHT else None
    if grid is None or math.prod(grid.shape) > _MAX_GROWTH * math.prod(lattice.shape):
        raise refuse("E_AFFINE", f"{name} has axes that lie nearly in one plane.")
    return grid


def _affine(raw: Any, header: Any, size: tuple[int, ...], name: str) -> NDArray[np.float64]:
    """The RAS affine of `(x, y, z)` indices in the file's unit, where it is named without doubt."""
    try:
        sform, s_code = header.get_sform(coded=True)
        q_code = int(header["qform_code"])
        # Asked before the qform is computed: nibabel takes a size of 0 for 1 mm.
        sizes = np.asarray(raw["pixdim"][1:4], dtype=np.float64)
        if q_code and not (np.abs(sizes) > 0).all() and np.isfinite(sizes).all():
            raise refuse("E_NO_GEOMETRY", f"{name} has a voxel size of 0 in its qform.")
        qform, q_code = header.get_qform(coded=True)
    except (ValueError, TypeError, ArithmeticError, nib.spatialimages.HeaderDataError) as error:
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
    return np.array(sform if s_code else qform, dtype=np.float64)


def _grid(affine: NDArray[np.float64], shape: tuple[int, int, int]) -> Grid:
    """The grid of an LPS affine over `(z, y, x)`, rounding errors of its rotation taken out."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing)
    z, y, x = (float(s) for s in spacing)
    a, b, c = (float(v) for v in affine[:3, 3])
    return Grid(shape, (z, y, x), (a, b, c), tuple(float(v) for v in (left @ right).ravel()))
