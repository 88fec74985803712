"""Where voxels lie in the patient: the only file that knows affines.

World coordinates are LPS in millimetres (x to the patient's Left, y to Posterior, z to Superior).
Arrays are `(z, y, x)`, and so are shapes, spacings and indices; world points are `(x, y, z)`.
RAS exists only at the NIfTI door, through `flip_lps_ras`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Triple = tuple[float, float, float]
Index = tuple[int, int, int]
Array = NDArray[Any]

# Columns: the LPS unit vectors of the z, y and x axes of an axial array.
_AXIAL = (0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0)
# Where world z, y and x run forwards, and where backwards.
_LETTERS = (("S", "I"), ("P", "A"), ("L", "R"))


def _triple(values: Any) -> Triple:
    z, y, x = (float(v) for v in values)
    return z, y, x


@dataclass(frozen=True)
class Box:
    """A half-open box of voxels, `(z, y, x)`.

    Attributes:
        start: first voxel of each axis.
        stop: one past the last voxel of each axis.
    """

    start: Index
    stop: Index

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Slices that cut the box out of an array."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    @property
    def shape(self) -> Index:
        """Voxels along each axis."""
        z, y, x = (b - a for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    def union(self, other: Box) -> Box:
        """The smallest box around both."""
        z, y, x = (min(a, b) for a, b in zip(self.start, other.start, strict=True))
        d, h, w = (max(a, b) for a, b in zip(self.stop, other.stop, strict=True))
        return Box((z, y, x), (d, h, w))

    def relative_to(self, outer: Box) -> Box:
        """The same voxels, counted from the first voxel of another box."""
        z, y, x = (a - b for a, b in zip(self.start, outer.start, strict=True))
        d, h, w = (a - b for a, b in zip(self.stop, outer.start, strict=True))
        return Box((z, y, x), (d, h, w))

    @staticmethod
    def full(shape: Index) -> Box:
        """The box of a whole array."""
        return Box((0, 0, 0), shape)

    @staticmethod
    def around(mask: NDArray[np.bool_], margin_voxels: Index = (0, 0, 0)) -> Box | None:
        """The smallest box around `mask`, grown by a margin and cut at the array's borders.

        Args:
            mask: `(z, y, x)`.
            margin_voxels: voxels added on either side of each axis.

        Returns:
            The box, or None for an empty mask.
        """
        start, stop = [], []
        for axis in range(3):
            others = tuple(a for a in range(3) if a != axis)
            hits = np.flatnonzero(mask.any(axis=others))
            if hits.size == 0:
                return None
            start.append(max(0, int(hits[0]) - margin_voxels[axis]))
            stop.append(min(mask.shape[axis], int(hits[-1]) + 1 + margin_voxels[axis]))
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def key_slice(mask: NDArray[np.bool_], axis: int = 0) -> int:
    """The slice on which a mask is largest."""
    others = tuple(a for a in range(3) if a != axis)
    return int(mask.sum(axis=others).argmax())


class _Voxels(ABC):
    """Voxels with an affine: places of indices, and indices of places."""

    @property
    @abstractmethod
    def affine(self) -> NDArray[np.float64]:
        """4x4 matrix from `(z, y, x, 1)` voxel indices to `(x, y, z, 1)` LPS mm."""

    def index_to_world(self, index: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """LPS mm `(..., 3)` of voxel indices `(..., 3)`."""
        affine = self.affine
        return np.asarray(np.asarray(index, dtype=np.float64) @ affine[:3, :3].T + affine[:3, 3])

    def world_to_index(self, world_mm: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Continuous voxel indices `(..., 3)` of LPS mm `(..., 3)`."""
        inverse = np.linalg.inv(self.affine)
        points = np.asarray(world_mm, dtype=np.float64)
        return np.asarray(points @ inverse[:3, :3].T + inverse[:3, 3])


@dataclass(frozen=True)
class Grid(_Voxels):
    """A regular grid of voxels in the patient.

    Attributes:
        shape: voxels along `(z, y, x)`.
        spacing_mm: distance between neighbours along `(z, y, x)`.
        origin_mm: LPS position `(x, y, z)` of the center of voxel `(0, 0, 0)`.
        direction: row-major 3x3 matrix; column k is the LPS unit vector of array axis k.
    """

    shape: Index
    spacing_mm: Triple
    origin_mm: Triple
    direction: tuple[float, ...]

    def __post_init__(self) -> None:
        matrix = np.asarray(self.direction, dtype=np.float64)
        if matrix.shape != (9,) or not np.isfinite(matrix).all():
            raise ValueError(f"direction must hold 9 finite numbers, got {self.direction}")
        if min(self.spacing_mm) <= 0 or not np.isfinite(self.spacing_mm).all():
            raise ValueError(f"spacing_mm must be positive, got {self.spacing_mm}")
        if min(self.shape) < 1:
            raise ValueError(f"shape must be positive, got {self.shape}")
        square = matrix.reshape(3, 3)
        if np.abs(square.T @ square - np.eye(3)).max() > 1e-4:
            raise ValueError("direction columns must be orthonormal")

    @staticmethod
    def axial(shape: Index, spacing_mm: Triple, origin_mm: Triple = (0.0, 0.0, 0.0)) -> Grid:
        """A grid whose z, y, x run to Superior, Posterior and Left."""
        return Grid(shape, spacing_mm, origin_mm, _AXIAL)

    @staticmethod
    def from_affine(affine: NDArray[np.float64], shape: Index) -> Grid:
        """The grid of an index-to-LPS affine over `(z, y, x, 1)` with orthogonal axes."""
        linear = np.asarray(affine, dtype=np.float64)[:3, :3]
        spacing = np.linalg.norm(linear, axis=0)
        direction = tuple(float(v) for v in (linear / spacing).ravel())
        origin = _triple(np.asarray(affine)[:3, 3])
        return Grid(shape, _triple(spacing), origin, direction)

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The direction as a 3x3 array."""
        return np.asarray(self.direction, dtype=np.float64).reshape(3, 3)

    @property
    def affine(self) -> NDArray[np.float64]:
        """4x4 matrix from `(z, y, x, 1)` voxel indices to `(x, y, z, 1)` LPS mm."""
        affine = np.eye(4)
        affine[:3, :3] = self.matrix * np.asarray(self.spacing_mm)
        affine[:3, 3] = self.origin_mm
        return affine

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in milliliters."""
        return float(np.prod(self.spacing_mm)) / 1000.0

    @property
    def extent_mm(self) -> Triple:
        """Length of the grid along `(z, y, x)`, voxel borders included."""
        return _triple(np.asarray(self.shape) * np.asarray(self.spacing_mm))

    def crop(self, box: Box) -> Grid:
        """The grid of a box of this grid's voxels."""
        origin = self.index_to_world(np.asarray(box.start, dtype=np.float64))
        return Grid(box.shape, self.spacing_mm, _triple(origin), self.direction)

    def with_spacing(self, spacing_mm: Triple) -> Grid:
        """A grid over the same extent at another spacing, centered on this one."""
        old, new = np.asarray(self.spacing_mm), np.asarray(spacing_mm, dtype=np.float64)
        size = np.asarray(self.shape) * old
        shape = np.maximum(1, np.ceil(size / new - 1e-6)).astype(int)
        middle = (np.asarray(self.shape) - 1) / 2
        center = self.index_to_world(middle)
        origin = center - self.matrix @ (new * (shape - 1) / 2)
        return Grid(
            (int(shape[0]), int(shape[1]), int(shape[2])),
            _triple(spacing_mm),
            _triple(origin),
            self.direction,
        )

    def distance_mm(self, other: Grid) -> float:
        """The largest distance between the same corner voxels of two grids of one shape."""
        corners = np.array(list(np.ndindex(2, 2, 2)), dtype=np.float64)
        corners *= np.asarray(self.shape) - 1
        gap = self.index_to_world(corners) - other.index_to_world(corners)
        return float(np.linalg.norm(gap, axis=1).max())

    def is_close(self, other: Grid, tol_mm: float = 0.01) -> bool:
        """Whether every voxel of both grids lies at the same place, within a tolerance."""
        return self.shape == other.shape and self.distance_mm(other) <= tol_mm


@dataclass(frozen=True)
class Lattice(_Voxels):
    """Voxels whose axes are not orthogonal, as a tilted gantry or a sheared affine leaves them.

    Attributes:
        shape: voxels along `(z, y, x)`.
        rows: row-major 3x4 matrix from `(z, y, x, 1)` indices to LPS mm.
    """

    shape: Index
    rows: tuple[float, ...]

    @property
    def affine(self) -> NDArray[np.float64]:
        """4x4 matrix from `(z, y, x, 1)` voxel indices to `(x, y, z, 1)` LPS mm."""
        affine = np.eye(4)
        affine[:3] = np.asarray(self.rows, dtype=np.float64).reshape(3, 4)
        return affine

    def upright(self) -> Grid:
        """The orthogonal grid around these voxels.

        The two axes nearest to a right angle stay as they are and the third becomes their normal,
        so that the slices of a tilted gantry remain slices, each shifted within its own plane.
        """
        linear = self.affine[:3, :3]
        units = linear / np.linalg.norm(linear, axis=0)
        # The first of equals: rows and columns.
        cosines = {(a, b): abs(units[:, a] @ units[:, b]) for a, b in ((1, 2), (0, 2), (0, 1))}
        a, b = min(cosines, key=lambda pair: round(cosines[pair], 3))
        c = 3 - a - b
        matrix = np.empty((3, 3))
        matrix[:, a] = units[:, a]
        matrix[:, c] = np.cross(units[:, a], units[:, b])
        matrix[:, c] *= np.sign(matrix[:, c] @ units[:, c]) / np.linalg.norm(matrix[:, c])
        matrix[:, b] = np.cross(matrix[:, c], matrix[:, a])
        matrix[:, b] *= np.sign(matrix[:, b] @ units[:, b])
        spacing = np.abs((matrix * linear).sum(axis=0))
        corners = np.array(list(np.ndindex(2, 2, 2))) * (np.asarray(self.shape) - 1)
        reach = corners @ linear.T @ matrix / spacing
        first = np.floor(reach.min(axis=0) + 1e-6)
        z, y, x = (np.ceil(reach.max(axis=0) - 1e-6) - first + 1).astype(int)
        origin = self.affine[:3, 3] + matrix @ (spacing * first)
        direction = tuple(float(v) for v in matrix.ravel())
        return Grid((int(z), int(y), int(x)), _triple(spacing), _triple(origin), direction)


@dataclass(frozen=True)
class Displacement:
    """A smooth field of displacements on its own, usually coarse, grid.

    Attributes:
        field_mm: `(3, z, y, x)` LPS vectors `(x, y, z)` in mm; zero outside the grid's border
            values are replicated.
        grid: where the vectors sit.
    """

    field_mm: NDArray[np.float32]
    grid: Grid

    def at(self, world_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Displacements `(..., 3)` at LPS points `(..., 3)`, linear, border values replicated."""
        index = np.moveaxis(self.grid.world_to_index(world_mm), -1, 0)
        parts = [
            ndimage.map_coordinates(part, index, order=1, mode="nearest", prefilter=False)
            for part in self.field_mm
        ]
        return np.stack(parts, axis=-1).astype(np.float64)


def flip_lps_ras(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """An index-to-world affine with its world changed between LPS and RAS."""
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine, dtype=np.float64)


def _orientation(grid: Grid) -> tuple[Index, tuple[bool, bool, bool]]:
    """Array axes that run nearest to Superior, Posterior, Left, and which of them run backwards."""
    rows = grid.matrix[::-1]  # world z, y, x against array axes
    best: tuple[Index, float] = ((0, 1, 2), -1.0)
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        score = sum(abs(rows[k, axis]) for k, axis in enumerate(order))
        if score > best[1] + 1e-9:
            best = (order, score)
    order = best[0]
    z, y, x = (bool(rows[k, axis] < 0) for k, axis in enumerate(order))
    return order, (z, y, x)


def orientation_of(grid: Grid) -> tuple[str, float]:
    """How a grid lies in the patient, in words that people use.

    Args:
        grid: any.

    Returns:
        The letters towards which z, y and x run, each of L, R, P, A, S, I (an axial series from the
        feet upwards is `SPL`), and the largest angle in degrees between an axis and its letter.
    """
    order, flips = _orientation(grid)
    letters = {axis: pair[flip] for axis, flip, pair in zip(order, flips, _LETTERS, strict=True)}
    cosine = min(abs(float(grid.matrix[2 - k, axis])) for k, axis in enumerate(order))
    return "".join(letters[axis] for axis in range(3)), float(np.degrees(np.arccos(min(1, cosine))))


def canonical(array: Array, grid: Grid) -> tuple[Array, Grid]:
    """Turn a volume to the nearest axial orientation by transposing and flipping alone.

    Args:
        array: `(z, y, x)` in the grid's own axes.
        grid: the grid of `array`.

    Returns:
        A view of the array and its grid, z nearest to Superior, y to Posterior, x to Left.
    """
    order, flips = _orientation(grid)
    corner = [0, 0, 0]
    for axis, flip in zip(order, flips, strict=True):
        corner[axis] = grid.shape[axis] - 1 if flip else 0
    turned = array.transpose(order)[tuple(slice(None, None, -1 if f else 1) for f in flips)]
    signs = np.where(flips, -1.0, 1.0)
    matrix = grid.matrix[:, list(order)] * signs
    z, y, x = order
    return turned, Grid(
        (grid.shape[z], grid.shape[y], grid.shape[x]),
        (grid.spacing_mm[z], grid.spacing_mm[y], grid.spacing_mm[x]),
        _triple(grid.index_to_world(np.asarray(corner, dtype=np.float64))),
        tuple(float(v) for v in matrix.ravel()),
    )


def uncanonical(array: Array, source: Grid) -> Array:
    """Undo `canonical`: bring an array on the axial grid back to the voxels of `source`."""
    order, flips = _orientation(source)
    turned = array[tuple(slice(None, None, -1 if f else 1) for f in flips)]
    return turned.transpose(np.argsort(order))
