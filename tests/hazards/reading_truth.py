"""Whether what a reader returned is the phantom at the places it claims: None, or what is wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from synthetic_dicom import AIR_HU, MARKER_MM, Hu, Points, Slice, phantom

Affine = NDArray[np.float64]


def misplaced(
    array: NDArray[np.number], affine: Affine, slices: Sequence[Slice], tolerance_mm: float = 0.01
) -> str | None:
    """Compare a volume with the images it was made of, pixel by pixel at their world positions.

    Args:
        array: `(z, y, x)` HU.
        affine: 4x4, from `(z, y, x, 1)` to LPS mm.
        slices: the images, in any order.
        tolerance_mm: how far a voxel may lie from its pixel.

    Returns:
        None where every pixel has a voxel of its own, there, with its HU; else the first fault.
    """
    pixels = sum(one.hu.size for one in slices)
    if array.ndim != 3 or array.size != pixels:
        return f"{array.shape} voxels for {len(slices)} images, {pixels} pixels"
    inverse, spacing_mm = np.linalg.inv(affine), np.linalg.norm(affine[:3, :3], axis=0)
    taken = np.zeros(array.shape, bool)
    for k, one in enumerate(slices):
        there = one.place.world_mm() @ inverse[:3, :3].T + inverse[:3, 3]
        nearest = np.rint(there).astype(int)
        off_mm = float(np.abs((there - nearest) * spacing_mm).max())
        if off_mm > tolerance_mm:
            return f"image {k} lies {off_mm:.4f} mm off the voxels"
        if (nearest < 0).any() or (nearest >= array.shape).any():
            return f"image {k} lies outside the volume"
        at = tuple(np.moveaxis(nearest, -1, 0))
        if not np.array_equal(array[at], one.hu):
            wrong = array[at] != one.hu
            first = tuple(np.argwhere(wrong)[0])
            return (
                f"image {k}: {wrong.sum()} of {wrong.size} pixels differ, "
                f"{array[at][first]} instead of {one.hu[first]} at {first}"
            )
        taken[at] = True
    return None if taken.all() else f"{(~taken).sum()} voxels belong to no pixel"


def resampled_wrong(
    array: NDArray[np.number], affine: Affine, slices: Sequence[Slice], marker_hu: int
) -> str | None:
    """Judge a volume that had to be interpolated, e.g. of a tilted gantry.

    Away from borders, by one image along the stack and 1.5 pixels across, HU are the phantom's;
    outside the field there is air; the ball's center is within half a voxel; no image is left out.

    Args:
        array: `(z, y, x)` HU.
        affine: 4x4, from `(z, y, x, 1)` to LPS mm.
        slices: the images, in order.
        marker_hu: HU of the ball.

    Returns:
        None, or what is wrong.
    """
    linear, origin = affine[:3, :3], affine[:3, 3]
    index = np.stack(np.meshgrid(*(np.arange(n) for n in array.shape), indexing="ij"), axis=-1)
    world = index @ linear.T + origin
    inside, outside = _field(world, slices)
    settled, truth = _settled(world, slices, marker_hu)
    wrong = inside & settled & (np.abs(array.astype(np.float64) - truth) > 1)
    if wrong.any():
        at = tuple(np.argwhere(wrong)[0])
        return f"{wrong.sum()} voxels are wrong, {array[at]} instead of {truth[at]} at {at}"
    if (array[outside] > AIR_HU + 100).any():
        return "there is something outside the field of view"
    bright = array > (50 + marker_hu) / 2
    if not bright.any():
        return "the marker is gone"
    off_mm = linear.T @ (world[bright].mean(axis=0) - MARKER_MM)
    off = np.abs(off_mm) / np.linalg.norm(linear, axis=0) ** 2
    if off.max() > 0.5:
        return f"the marker is {off.round(2)} voxels off"
    inverse = np.linalg.inv(linear)
    for k, one in enumerate(slices):
        middle = one.place.world_mm()[one.hu.shape[0] // 2, one.hu.shape[1] // 2]
        there = inverse @ (middle - origin)
        if (there < -0.5).any() or (there > np.asarray(array.shape) - 0.5).any():
            return f"image {k} is not covered"
    return None


def _field(world: Points, slices: Sequence[Slice]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Points surely inside the images' field, and those surely outside."""
    first, last = slices[0].place, slices[-1].place
    row, column = np.asarray(first.orientation[:3]), np.asarray(first.orientation[3:])
    start = np.asarray(first.corner_mm)
    frame = np.stack([np.asarray(last.corner_mm) - start, column, row], axis=1)
    along = (world - start) @ np.linalg.inv(frame).T
    rows_mm, columns_mm = first.pixel_mm
    low = np.zeros(3)
    high = np.array([1.0, (first.matrix[0] - 1) * rows_mm, (first.matrix[1] - 1) * columns_mm])
    margin = np.array([1 / (len(slices) - 1), rows_mm, columns_mm])
    inside = ((along >= low - 1e-9) & (along <= high + 1e-9)).all(axis=-1)
    outside = ((along < low - margin) | (along > high + margin)).any(axis=-1)
    return inside, outside


def _settled(
    world: Points, slices: Sequence[Slice], marker_hu: int
) -> tuple[NDArray[np.bool_], Hu]:
    """Points around which the phantom is one tissue, and its HU there."""
    place = slices[0].place
    corners = np.array([one.place.corner_mm for one in slices])
    reach_mm = np.linalg.norm(np.diff(corners, axis=0), axis=1).max()
    axes = (
        reach_mm * place.normal,
        1.5 * place.pixel_mm[0] * np.asarray(place.orientation[3:]),
        1.5 * place.pixel_mm[1] * np.asarray(place.orientation[:3]),
    )
    truth = phantom(world, marker_hu)
    settled = np.ones(truth.shape, bool)
    for signs in np.ndindex(3, 3, 3):
        offset = sum((s - 1) * axis for s, axis in zip(signs, axes, strict=True))
        settled &= phantom(world + offset, marker_hu) == truth
    return settled, truth
