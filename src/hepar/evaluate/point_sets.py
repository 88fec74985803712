"""How far each voxel of one set lies from the nearest of another: exact, by whichever way is fast.

A set is a sorted array of flat indices into a `(z, y, x)` box. A k-d tree over the points is
fastest for small sets, but on a grid it can meet every pair of points (equidistant neighbors), so
it is used only where even that costs less than a transform of the whole box. Otherwise an exact
Euclidean distance transform is read at the points, on all cores.
"""

from __future__ import annotations

import os
from itertools import product

import edt
import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]
Points = Int[np.ndarray, " _"]

# Pairs of points that a tree may meet in the time in which a transform passes one voxel.
_PAIRS_PER_VOXEL = 4
_SLAB_VOXELS = 2_000_000


def threads() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def distances(
    points: Int[np.ndarray, " n"],
    to: Int[np.ndarray, " m"],
    shape: Shape,
    spacing_mm: Spacing,
) -> Float[np.ndarray, " n"]:
    """Distance from each point to the nearest point of another set.

    Args:
        points: flat indices into the box.
        to: the same; not empty.
        shape: of the box.
        spacing_mm: (z, y, x).

    Returns:
        Millimeters, float64, in the order of `points`.

    Raises:
        ValueError: `to` is empty.
    """
    if not len(to):
        raise ValueError("no point to measure the distance to")
    if len(points) * len(to) > _PAIRS_PER_VOXEL * int(np.prod(shape)):
        return _by_transform(points, to, shape, spacing_mm)
    tree = cKDTree(_positions(to, shape, spacing_mm))
    found, _ = tree.query(_positions(points, shape, spacing_mm), workers=threads())
    return np.asarray(found, dtype=np.float64)


def _by_transform(
    points: Int[np.ndarray, " n"], to: Int[np.ndarray, " m"], shape: Shape, spacing_mm: Spacing
) -> Float[np.ndarray, " n"]:
    outside = np.ones(shape, dtype=np.uint8)
    outside.reshape(-1)[to] = 0
    squared = edt.edtsq(outside, anisotropy=spacing_mm, black_border=False, parallel=threads())
    del outside
    return np.asarray(np.sqrt(np.asarray(squared).reshape(-1)[points].astype(np.float64)))


def _positions(points: Points, shape: Shape, spacing_mm: Spacing) -> NDArray[np.float64]:
    indices = np.stack(np.unravel_index(points, shape), axis=1)
    return np.asarray(indices * np.asarray(spacing_mm, dtype=np.float64))


def boundary(mask: NDArray[np.bool_], neighbors: int) -> Points:
    """Voxels of a mask with a neighbor outside it; outside the box is outside the mask.

    A voxel is inner where lines (6), planes (18) or cubes (26) of three voxels around it all lie in
    the mask; planes and cubes are lines of lines, so a handful of shifted `and` does it. Worked
    in slabs that stay in the cache.

    Args:
        mask: `(z, y, x)`.
        neighbors: 6 (faces), 18 (and edges) or 26 (and corners).

    Returns:
        Sorted flat indices.

    Raises:
        ValueError: for another number of neighbors.
    """
    if neighbors not in (6, 18, 26):
        raise ValueError(f"{neighbors} neighbors; 6, 18 or 26 are possible")
    depth, height, width = mask.shape
    rows = max(1, _SLAB_VOXELS // (height * width))
    found = []
    for begin in range(0, depth, rows):
        end = min(begin + rows, depth)
        padded = np.zeros((end - begin + 2, height + 2, width + 2), dtype=np.uint8)
        low, high = max(begin - 1, 0), min(end + 1, depth)
        at = low - (begin - 1)
        padded[at : at + high - low, 1:-1, 1:-1] = mask[low:high]
        surface = padded[1:-1, 1:-1, 1:-1] & ~_inner(padded, neighbors)
        found.append(np.flatnonzero(surface) + begin * height * width)
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _line(values: NDArray[np.uint8], axis: int) -> NDArray[np.uint8]:
    """1 where a voxel and both its neighbors along an axis are 1; the axis loses its ends."""
    n, before = values.shape[axis], (slice(None),) * axis
    return np.asarray(
        values[(*before, slice(0, n - 2))]
        & values[(*before, slice(1, n - 1))]
        & values[(*before, slice(2, n))]
    )


def _inner(padded: NDArray[np.uint8], neighbors: int) -> NDArray[np.uint8]:
    """1 where the neighborhood of a voxel of the unpadded box is all 1, else 0."""

    along_x = _line(padded, 2)
    if neighbors == 26:
        return _line(_line(along_x, 1), 0)
    if neighbors == 6:
        along_y = _line(padded[1:-1, :, 1:-1], 1)
        along_z = _line(padded[:, 1:-1, 1:-1], 0)
        return np.asarray(along_x[1:-1, 1:-1] & along_y & along_z)
    plane_xy = _line(along_x[1:-1], 1)
    plane_xz = _line(along_x[:, 1:-1], 0)
    plane_yz = _line(_line(padded[:, :, 1:-1], 1), 0)
    return np.asarray(plane_xy & plane_xz & plane_yz)


def neighbor_codes(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Which of the eight voxels around each corner of the grid belong to a mask.

    Args:
        mask: `(z, y, x)`.

    Returns:
        `(z + 1, y + 1, x + 1)`: bit 4 dz + 2 dy + dx is the voxel at corner + (dz, dy, dx) - 1.
    """
    z, y, x = mask.shape
    codes = np.zeros((z + 1, y + 1, x + 1), dtype=np.uint8)
    values = mask.view(np.uint8)
    for dz, dy, dx in product((0, 1), repeat=3):
        bit = 4 * dz + 2 * dy + dx
        codes[1 - dz : z + 1 - dz, 1 - dy : y + 1 - dy, 1 - dx : x + 1 - dx] |= values << bit
    return codes
