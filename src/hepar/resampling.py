"""Sampling a volume at the voxels of another grid: by world position, in slabs, threaded.

Grids with parallel axes, which is nearly always, are sampled an axis at a time: two taps where the
new step is no wider than the old one, one small matrix product where voxels must be averaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

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
    strongest = np.abs(step[:3, :3]).argmax(axis=0)
    if displacement is None and _parallel(step, strongest, target):
        turned = array.transpose(tuple(int(a) for a in strongest))
        axes = _axes(source, target, step, strongest, order, antialias)
        return _resample_parallel(turned, axes, order, fill)
    if order == 1 and antialias:
        widths = np.linalg.norm(step[:3, :3], axis=1)
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


class PartSampler:
    """What `resample` gives (order 1) in boxes, each out of no more of the source than it needs.

    So that a volume can go through in slabs. Interpolated voxels are the same to the last bit,
    averaged ones to the rounding of their sums.

    Args:
        source: the whole grid that there are values on.
        target: the whole grid wanted; its axes run along those of `source`.
        antialias: as `resample`.

    Raises:
        ValueError: the axes of the grids are not the same.
    """

    def __init__(self, source: Grid, target: Grid, *, antialias: bool = True) -> None:
        step = np.linalg.inv(source.affine) @ target.affine
        same = np.arange(3)
        if not _parallel(step, same, target):
            raise ValueError("parts are only sampled between grids whose axes are the same")
        self._axes = _axes(source, target, step, same, 1, antialias)
        self.source, self.target = source, target

    def needs(self, wanted: Box) -> Box:
        """The voxels of the source that a box of the target is made from."""
        start, stop = [0, 0, 0], [0, 0, 0]
        for one in self._axes:
            reads = one.reads[wanted.start[one.axis] : wanted.stop[one.axis]]
            start[one.axis], stop[one.axis] = int(reads[:, 0].min()), int(reads[:, 1].max())
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))

    def reached(self, box: Box) -> Box | None:
        """The voxels of the target that need any of a box of the source; None if none does."""
        start, stop = [0, 0, 0], [0, 0, 0]
        for one in self._axes:
            first, last = box.start[one.axis], box.stop[one.axis]
            hits = np.flatnonzero((one.reads[:, 0] < last) & (one.reads[:, 1] > first))
            if hits.size == 0:
                return None
            start[one.axis], stop[one.axis] = int(hits[0]), int(hits[-1]) + 1
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))

    def part(self, held: Array, holds: Box, wanted: Box, *, fill: float | None = 0.0) -> Array:
        """Sample a box of the target.

        Args:
            held: `(z, y, x)` voxels of the source that lie in `holds`.
            holds: where they lie; at least what `needs` names.
            wanted: voxels of the target.
            fill: value outside the source; None repeats the source's border instead.

        Returns:
            float32 `(z, y, x)` of `wanted`.

        Raises:
            ValueError: `held` lacks voxels.
        """
        if tuple(held.shape) != holds.shape:
            raise ValueError(f"array {held.shape} is not on its box {holds.shape}")
        axes = [one.part(holds, wanted) for one in self._axes]
        return _resample_parallel(held, axes, 1, fill)


def _parallel(step: NDArray[np.float64], strongest: NDArray[np.intp], target: Grid) -> bool:
    """Whether each axis of the target runs along one of the source."""
    rest = step[:3, :3].copy()
    rest[strongest, range(3)] = 0.0
    reach = np.abs(rest) @ np.asarray(target.shape)
    return len(set(strongest)) == 3 and bool(reach.max() < 1e-3)


@dataclass(frozen=True)
class _Axis:
    """How one axis is sampled: taken, interpolated between two voxels, or averaged over more.

    Attributes:
        axis: of the target.
        below: `(out,)` the voxel of the source at or before each voxel of the target; the nearest
            one where values are taken as they are.
        share: `(out,)` of the voxel after it; None where values are taken.
        weights: `(out, in)` of an average; None for the other two.
        reads: `(out, 2)` the first voxel read and the one past the last.
        outside: `(out,)` voxels that lie beyond the source.
        size: voxels of the source.
    """

    axis: int
    below: NDArray[np.intp]
    share: NDArray[np.float32] | None
    weights: NDArray[np.float32] | None
    reads: NDArray[np.intp]
    outside: NDArray[np.bool_]
    size: int

    def part(self, holds: Box, wanted: Box) -> _Axis:
        """The same for a range of both grids."""
        first, stop = holds.start[self.axis], holds.stop[self.axis]
        chosen = slice(wanted.start[self.axis], wanted.stop[self.axis])
        reads = self.reads[chosen]
        if reads.size and (reads.min() < first or reads.max() > stop):
            raise ValueError(f"axis {self.axis} is read beyond the part {first} to {stop}")
        return replace(
            self,
            below=self.below[chosen] - first,
            share=None if self.share is None else self.share[chosen],
            weights=None if self.weights is None else self.weights[chosen, first:stop],
            reads=reads - first,
            outside=self.outside[chosen],
            size=stop - first,
        )


def _axes(
    source: Grid,
    target: Grid,
    step: NDArray[np.float64],
    strongest: NDArray[np.intp],
    order: int,
    antialias: bool,
) -> list[_Axis]:
    """How each axis is sampled; the one that shrinks most first, so the others have less to do."""
    axes = []
    for axis in range(3):
        a, b = step[strongest[axis], axis], step[strongest[axis], 3]
        centers = a * np.arange(target.shape[axis]) + b
        axes.append(_axis(axis, centers, source.shape[strongest[axis]], abs(a), order, antialias))
    return sorted(axes, key=lambda one: len(one.below) / one.size)


def _axis(
    axis: int,
    centers: NDArray[np.float64],
    size: int,
    scale: float,
    order: int,
    antialias: bool,
) -> _Axis:
    outside = (centers < -0.5 - 1e-6) | (centers > size - 0.5 + 1e-6)
    inside = np.clip(centers, 0, size - 1)
    nearest = np.clip(np.rint(centers), 0, size - 1).astype(np.intp)
    exact = np.abs(centers - nearest).max() < 1e-4 and scale < 1.0 + 1e-6
    if order == 0 or exact:
        reads = np.stack([nearest, nearest + 1], axis=1)
        return _Axis(axis, nearest, None, None, reads, outside, size)
    below = np.minimum(inside.astype(np.intp), max(size - 2, 0))
    share = (inside - below).astype(np.float32)
    width = scale if antialias else 1.0
    if width <= 1.0:
        reads = np.stack([below, np.minimum(below + 2, size)], axis=1)
        return _Axis(axis, below, share, None, reads, outside, size)
    weights = _averaging_weights(centers, size, width)
    used = weights > 0
    reads = np.stack([used.argmax(axis=1), size - used[:, ::-1].argmax(axis=1)], axis=1)
    return _Axis(axis, below, share, weights, reads, outside, size)


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


def _interpolate(
    array: Array, below: NDArray[np.intp], share: NDArray[np.float32], axis: int
) -> Array:
    """Two taps along one axis of a slab, border values replicated."""
    above = np.minimum(below + 1, array.shape[axis] - 1)
    shape = [1, 1, 1]
    shape[axis] = len(below)
    low = np.take(array, below, axis=axis)
    high = np.take(array, above, axis=axis)
    high -= low
    high *= share.reshape(shape)
    high += low
    return high


def _resample_parallel(result: Array, axes: list[_Axis], order: int, fill: float | None) -> Array:
    """Sample a volume an axis at a time, the axes in the order given."""
    dtype = result.dtype if order == 0 else np.dtype(np.float32)
    for one in axes:
        if one.share is not None:
            result = _along(result, one)
        elif len(one.below) != one.size or (one.below != np.arange(one.size)).any():
            result = np.take(result, one.below, axis=one.axis)
    output = np.array(result, dtype=dtype, order="C", copy=True)
    for one in axes:
        if fill is not None and one.outside.any():
            np.moveaxis(output, one.axis, 0)[one.outside] = fill
    return output


def _along(array: Array, how: _Axis) -> Array:
    """Sample one axis of a volume at fractional indices, slab by slab, in float32."""
    axis = how.axis
    shape = list(array.shape)
    shape[axis] = len(how.below)
    output = np.empty(shape, dtype=np.float32)
    across = 1 if axis == 0 else 0  # slabs are cut along an axis that is not sampled
    row_voxels = array.size // array.shape[across]

    def fill(rows: slice) -> None:
        where = (slice(None), rows) if across else (rows,)
        slab = array[where].astype(np.float32)
        assert how.share is not None
        if how.weights is None:
            output[where] = _interpolate(slab, how.below, how.share, axis)
        else:
            output[where] = _average(slab, how.weights, axis)

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
