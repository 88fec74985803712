"""Sampling a volume at the voxels of another grid: by world position, in slabs, threaded.

Grids with parallel axes, which is nearly always, are sampled an axis at a time: two taps where the
new step is no wider than the old one, one small matrix product where voxels must be averaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hepar.geometry import Array, Box, Displacement, Grid, Lattice

_SLAB_VOXELS = 2_000_000


def resample(
    array: Array,
    source: Grid,
    target: Grid,
    *,
    order: int = 1,
    fill: float | None = 0.0,
    antialias: bool = True,
    displacement: Displacement | None = None,
) -> Array:
    """Sample a volume at the voxels of another grid, by world position.

    A target voxel whose center lies outside the source's voxels gets `fill`. Grids with parallel
    axes take one small matrix product an axis; others are sampled in slabs.

    Args:
        array: `(z, y, x)` on `source`.
        source: grid of `array`.
        target: grid wanted.
        order: 1 linear, 0 nearest.
        fill: value outside the source; None repeats the source's border instead.
        antialias: average over the target voxel where it is larger than the source's (order 1).
        displacement: a target point x is taken from the source at x + displacement(x).

    Returns:
        `(z, y, x)` on `target`; float32 for order 1, the dtype of `array` for order 0.
    """
    if tuple(array.shape) != source.shape:
        raise ValueError(f"array {array.shape} is not on its grid {source.shape}")
    if order not in (0, 1):
        raise ValueError(f"order must be 0 or 1, got {order}")
    step = np.linalg.inv(source.affine) @ target.affine
    linear = step[:3, :3]
    strongest = np.abs(linear).argmax(axis=0)
    rest = linear.copy()
    rest[strongest, range(3)] = 0.0
    reach = np.abs(rest) @ np.asarray(target.shape)
    if displacement is None and len(set(strongest)) == 3 and reach.max() < 1e-3:
        return _resample_parallel(array, target, step, strongest, order, fill, antialias)
    if order == 1 and antialias:
        widths = np.linalg.norm(linear, axis=1)
        if widths.max() > 1.5:
            sigma = np.where(widths > 1.0, 0.35 * np.sqrt(np.maximum(widths**2 - 1, 0)), 0.0)
            array = ndimage.gaussian_filter(array.astype(np.float32), sigma, mode="nearest")
    return _resample_anywhere(array, source, target, order, fill, displacement)


def resample_lattice(
    array: Array, source: Grid | Lattice, target: Grid | Lattice, *, order: int = 1, fill: float
) -> Array:
    """Sample a volume from, or at, voxels whose axes are not orthogonal.

    Args:
        array: `(z, y, x)` on `source`.
        source: where the values lie.
        target: where they are wanted.
        order: 1 linear, 0 nearest.
        fill: value outside the source.

    Returns:
        `(z, y, x)` on `target`; float32 for order 1, the dtype of `array` for order 0.
    """
    return _resample_anywhere(array, source, target, order, fill, None)


def _averaging_weights(
    centers: NDArray[np.float64], size: int, width: float
) -> NDArray[np.float32]:
    """Rows of weights `(out, in)`: a tent that reaches `width` input voxels to either side."""
    inside = np.clip(centers, 0, size - 1)
    weights = np.maximum(0.0, 1.0 - np.abs(inside[:, None] - np.arange(size)[None]) / width)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def _average(array: Array, weights: NDArray[np.float32], axis: int) -> Array:
    """Multiply one axis of a slab by a weight matrix."""
    if axis == 0:
        return np.tensordot(weights, array, axes=(1, 0))
    return np.matmul(weights, array) if axis == 1 else array @ weights.T


def _interpolate(array: Array, centers: NDArray[np.float64], axis: int) -> Array:
    """Two taps along one axis of a slab, border values replicated."""
    inside = np.clip(centers, 0, array.shape[axis] - 1)
    below = np.minimum(inside.astype(np.intp), max(array.shape[axis] - 2, 0))
    above = np.minimum(below + 1, array.shape[axis] - 1)
    shape = [1, 1, 1]
    shape[axis] = len(centers)
    share = (inside - below).astype(np.float32).reshape(shape)
    low = np.take(array, below, axis=axis)
    high = np.take(array, above, axis=axis)
    high -= low
    high *= share
    high += low
    return high


def _resample_parallel(
    array: Array,
    target: Grid,
    step: NDArray[np.float64],
    strongest: NDArray[np.intp],
    order: int,
    fill: float | None,
    antialias: bool,
) -> Array:
    result = array.transpose(tuple(int(a) for a in strongest))
    outside: list[NDArray[np.bool_]] = []
    plans = []
    for axis in range(3):
        a, b = step[strongest[axis], axis], step[strongest[axis], 3]
        centers = a * np.arange(target.shape[axis]) + b
        size = result.shape[axis]
        outside.append((centers < -0.5 - 1e-6) | (centers > size - 0.5 + 1e-6))
        plans.append((axis, centers, size, abs(a)))
    # The axis that shrinks most goes first, so that the others have less to do.
    for axis, centers, size, scale in sorted(plans, key=lambda p: len(p[1]) / p[2]):
        nearest = np.clip(np.rint(centers), 0, size - 1).astype(np.intp)
        exact = np.abs(centers - nearest).max() < 1e-4 and scale < 1.0 + 1e-6
        if order == 0 or exact:
            if len(nearest) != size or (nearest != np.arange(size)).any():
                result = np.take(result, nearest, axis=axis)
        else:
            result = _along(result, centers, scale if antialias else 1.0, axis)
    dtype = array.dtype if order == 0 else np.dtype(np.float32)
    output = np.array(result, dtype=dtype, order="C", copy=True)
    for axis, mask in enumerate(outside):
        if fill is not None and mask.any():
            np.moveaxis(output, axis, 0)[mask] = fill
    return output


def _along(array: Array, centers: NDArray[np.float64], width: float, axis: int) -> Array:
    """Sample one axis of a volume at fractional indices, slab by slab, in float32."""
    shape = list(array.shape)
    shape[axis] = len(centers)
    output = np.empty(shape, dtype=np.float32)
    weights = _averaging_weights(centers, array.shape[axis], width) if width > 1.0 else None
    across = 1 if axis == 0 else 0  # slabs are cut along an axis that is not sampled
    row_voxels = array.size // array.shape[across]

    def fill(rows: slice) -> None:
        where = (slice(None), rows) if across else (rows,)
        slab = array[where].astype(np.float32)
        sampled = (
            _interpolate(slab, centers, axis) if weights is None else _average(slab, weights, axis)
        )
        output[where] = sampled

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fill, _slabs(array.shape[across], row_voxels)))
    return output


def _displacement_on(displacement: Displacement, grid: Grid) -> Array:
    """Vectors `(z, y, x, 3)` in mm at the voxels of a grid."""
    parts = [
        resample(part, displacement.grid, grid, fill=None, antialias=False)
        for part in displacement.field_mm
    ]
    return np.stack(parts, axis=-1)


def _slabs(count: int, row_voxels: int) -> Iterator[slice]:
    rows = max(1, _SLAB_VOXELS // max(1, row_voxels))
    for start in range(0, count, rows):
        yield slice(start, min(count, start + rows))


def _resample_anywhere(
    array: Array,
    source: Grid | Lattice,
    target: Grid | Lattice,
    order: int,
    fill: float | None,
    displacement: Displacement | None,
) -> Array:
    dtype = array.dtype if order == 0 else np.dtype(np.float32)
    data = array if order == 0 else array.astype(np.float32, copy=False)
    output = np.empty(target.shape, dtype=dtype)
    limits = np.asarray(source.shape).reshape(3, 1, 1, 1)

    def fill_slab(rows: slice) -> None:
        z, y, x = (np.arange(n, dtype=np.float64) for n in target.shape)
        index = np.stack(np.meshgrid(z[rows], y, x, indexing="ij"), axis=-1)
        world = target.index_to_world(index)
        if displacement is not None:
            assert isinstance(target, Grid)
            slab = target.crop(Box((rows.start, 0, 0), (rows.stop, *target.shape[1:])))
            world += _displacement_on(displacement, slab)
        at = np.moveaxis(source.world_to_index(world), -1, 0)
        # "nearest" keeps the half voxel at the border; beyond it, the fill.
        values = ndimage.map_coordinates(data, at, order=order, mode="nearest", prefilter=False)
        if fill is not None:
            values[((at < -0.5 - 1e-6) | (at > limits - 0.5 + 1e-6)).any(axis=0)] = fill
        output[rows] = values

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fill_slab, _slabs(target.shape[0], target.shape[1] * target.shape[2] * 3)))
    return output
