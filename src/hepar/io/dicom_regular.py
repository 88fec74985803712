"""Images that lean or lie unevenly, resampled by their true positions onto a regular grid.

A tilted gantry shifts each image within its own plane against the one before; some reconstructions
change the distance between images on the way. Both are exact in ImagePositionPatient. A voxel is
interpolated once: within its image for a tilt, between two images for uneven distances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hepar.geometry import Grid
from hepar.io.hounsfield import AIR_HU
from hepar.study import Frames

_EXACT = 1e-4


@dataclass(frozen=True)
class Placement:
    """Where images lie and where the voxels made of them will lie.

    Attributes:
        depths_mm: `(n,)` of each image along the normal, ascending, the first is 0.
        shifts_mm: `(n, 2)` of each image's first pixel down the rows and along the columns,
            against the first image.
        grid: of the volume; its planes are parallel to the images.
    """

    depths_mm: NDArray[np.float64]
    shifts_mm: NDArray[np.float64]
    grid: Grid


def place(frames: Frames, depths_mm: NDArray[np.float64], *, lean: bool, uneven: bool) -> Placement:
    """A regular grid around images.

    Args:
        frames: of the images.
        depths_mm: `(n,)` along the normal, ascending.
        lean: whether the images are shifted within their planes.
        uneven: whether their distances differ; else the mean distance is the grid's.

    Returns:
        The grid covers every pixel. Its pixels are those of the first image; its slice distance,
        for uneven ones, the smallest there is, but not below half of the median.
    """
    axes, pixel = frames.axes, np.asarray(frames.pixel_mm)
    relative = frames.origins_mm - frames.origins_mm[0]
    shifts = relative @ axes[:, 1:] if lean else np.zeros((len(depths_mm), 2))
    depths = depths_mm - depths_mm[0]
    steps = np.diff(depths)
    count = len(steps)
    if uneven:
        spacing = max(float(steps.min()), float(np.median(steps)) / 2)
        count = int(np.ceil(depths[-1] / spacing - 1e-6))
    # Whole pixels, so that the first image is copied as it is.
    before = np.floor(shifts.min(axis=0) / pixel + _EXACT).astype(int)
    after = np.ceil(shifts.max(axis=0) / pixel - _EXACT).astype(int)
    rows, columns = (int(v) for v in np.asarray(frames.shape) + after - before)
    x, y, z = (float(v) for v in frames.origins_mm[0] + axes[:, 1:] @ (before * pixel))
    grid = Grid(
        (count + 1, rows, columns),
        (float(depths[-1]) / count, *frames.pixel_mm),
        (x, y, z),
        tuple(float(v) for v in axes.ravel()),
    )
    return Placement(depths, shifts - before * pixel, grid)


def regular(images: NDArray[np.int16], placement: Placement) -> NDArray[np.int16]:
    """The volume that images make.

    Args:
        images: `(n, rows, columns)` HU, padding already made air, so that none leaks in.
        placement: from `place`.

    Returns:
        HU `(z, y, x)` on `placement.grid`, linear between neighbors, air beyond the images.
    """
    grid, depths = placement.grid, placement.depths_mm
    out = np.empty(grid.shape, dtype=np.int16)
    pixel = np.asarray(grid.spacing_mm[1:])
    kept: dict[int, NDArray[np.float32]] = {}
    for index in range(grid.shape[0]):
        at = min(index * grid.spacing_mm[0], float(depths[-1]))
        above = min(int(np.searchsorted(depths, at, side="right")), len(depths) - 1)
        below = max(above - 1, 0)
        gap = float(depths[above] - depths[below])
        weight = (at - float(depths[below])) / gap if gap > 0 else 0.0
        # Positions are rounded to some decimals: an image that is there is taken as it is.
        parts = {below: 1.0 - weight, above: weight} if _EXACT < weight < 1 - _EXACT else {}
        parts = parts or {above if weight > 0.5 else below: 1.0}
        plane = np.zeros(grid.shape[1:], dtype=np.float32)
        for number, share in parts.items():
            if number not in kept:
                kept[number] = _shifted(
                    images[number], placement.shifts_mm[number] / pixel, grid.shape[1:]
                )
            plane += np.float32(share) * kept[number]
        kept = {number: image for number, image in kept.items() if number >= below}
        out[index] = np.rint(plane)
    return out


def _shifted(
    image: NDArray[np.int16], shift: NDArray[np.float64], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """An image whose first pixel lies `shift` pixels from the corner of a larger plane."""
    plane = image.astype(np.float32)
    for axis in (0, 1):
        plane = np.moveaxis(plane, axis, 0)
        whole = int(np.floor(shift[axis] + _EXACT))
        part = float(shift[axis]) - whole
        if part > _EXACT:
            # Neither end is mixed with the air beyond it; the pixel less than half in is air.
            ends = np.concatenate([plane[:1], plane, plane[-1:]])
            plane = ends[1:] + np.float32(part) * (ends[:-1] - ends[1:])
            plane = plane[:-1] if part <= 0.5 else plane[1:]
            whole += part > 0.5
        after = shape[axis] - whole - len(plane)
        plane = np.pad(plane, ((whole, after), (0, 0)), constant_values=AIR_HU)
        plane = np.moveaxis(plane, 0, axis)
    return plane


def onto_frames(mask: NDArray[Any], grid: Grid, frames: Frames) -> NDArray[Any]:
    """A mask on the pixels of the images that its grid was made of, by the nearest voxel.

    Args:
        mask: `(z, y, x)` on `grid`, of any integer type.
        grid: of the volume.
        frames: where the images lie.

    Returns:
        `(n, rows, columns)` of the same type; 0 outside the grid.
    """
    rows, columns = frames.shape
    down, along = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    steps = np.stack([down * frames.pixel_mm[0], along * frames.pixel_mm[1]], axis=-1)
    inside_plane = steps @ frames.axes[:, 1:].T
    out = np.zeros((len(frames.origins_mm), rows, columns), dtype=mask.dtype)
    for number, origin in enumerate(frames.origins_mm):
        index = np.rint(grid.world_to_index(origin + inside_plane)).astype(int)
        good = ((index >= 0) & (index < np.asarray(grid.shape))).all(axis=-1)
        z, y, x = index[good].T
        out[number][good] = mask[z, y, x]
    return out
