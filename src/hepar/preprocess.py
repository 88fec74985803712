"""From HU to what a network sees: pure functions, the only implementation.

The training cache and the stages call the same lines, so training and use cannot drift apart.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float32, Shaped
from numpy.typing import NDArray
from torch.nn import functional

from hepar.geometry import Box, Grid

AIR_HU = -1024


def window(
    hu: NDArray[np.integer] | NDArray[np.floating], window_hu: tuple[float, float]
) -> NDArray[np.float32]:
    """Clip HU to a window and scale it to [0, 1].

    Args:
        hu: any shape.
        window_hu: (low, high).
    """
    low, high = window_hu
    scaled = hu.astype(np.float32)
    scaled -= np.float32(low)
    scaled /= np.float32(high - low)
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def liver_box(liver: NDArray[np.bool_], grid: Grid, margin_mm: float) -> Box | None:
    """The box around a liver mask with a margin in mm; None for an empty mask."""
    z, y, x = (int(np.ceil(margin_mm / s)) for s in grid.spacing_mm)
    return Box.around(liver, (z, y, x))


def working_grid(grid: Grid, spacing_mm: tuple[float, float, float] | None) -> Grid:
    """The grid a system works on: its spacing over the same extent, never finer along z.

    Slices thicker than the system's own stay as they are: a slice cannot be made thinner.
    """
    if spacing_mm is None:
        return grid
    z, y, x = spacing_mm
    return grid.with_spacing((max(z, grid.spacing_mm[0]), y, x))


def context_indices(
    n_slices: int,
    index: int,
    offsets_mm: tuple[float, ...],
    spacing_z_mm: float,
    offsets: tuple[int, ...] | None = None,
) -> list[int]:
    """Slices at given distances from a slice; beyond either end the edge slice repeats.

    Args:
        n_slices: slices in the volume.
        index: the center slice.
        offsets_mm: distances along z. A non-zero offset is at least one slice away, so that thick
            slices still give three different slices.
        spacing_z_mm: distance between slices.
        offsets: distances counted in slices instead; three adjacent slices are then 1.2 mm of one
            scan and 10 mm of another.
    """
    if offsets is None:
        offsets = tuple(_steps(offset, spacing_z_mm) for offset in offsets_mm)
    return [min(max(index + steps, 0), n_slices - 1) for steps in offsets]


@runtime_checkable
class SliceContext(Protocol):
    """Which slices a system sees beside a slice; see `systems.base.InputSpec`."""

    @property
    def slice_offsets_mm(self) -> tuple[float, ...]:
        """Distances in mm."""
        ...

    @property
    def slice_offsets(self) -> tuple[int, ...] | None:
        """Distances in slices; None where those in mm hold."""
        ...


def slice_context(spec: SliceContext, n_slices: int, index: int, spacing_z_mm: float) -> list[int]:
    """The slices that a system sees at a slice; see `context_indices`."""
    return context_indices(n_slices, index, spec.slice_offsets_mm, spacing_z_mm, spec.slice_offsets)


def _steps(offset_mm: float, spacing_z_mm: float) -> int:
    steps = round(offset_mm / spacing_z_mm)
    if steps == 0 and offset_mm != 0:
        return 1 if offset_mm > 0 else -1
    return steps


def slice_input(
    hu: NDArray[np.int16] | NDArray[np.float32],
    chosen: list[int],
    *,
    windows_hu: tuple[tuple[float, float], ...],
    liver: NDArray[np.bool_] | None,
) -> NDArray[np.float32]:
    """One slice with its context as channels, windowed and masked.

    Args:
        hu: `(z, y, x)` of one phase.
        chosen: slices of the context, see `context_indices`.
        windows_hu: one window an intensity channel.
        liver: `(z, y, x)`; voxels outside become 0, the lower bound of the window; None keeps all.

    Returns:
        `(windows x offsets, y, x)` in [0, 1].
    """
    channels = []
    for limits in windows_hu:
        for z in chosen:
            plane = window(hu[z], limits)
            if liver is not None:
                plane = np.where(liver[z], plane, np.float32(0.0))
            channels.append(plane)
    return np.stack(channels)


Plane = tuple[slice, slice]


def slice_box(liver: Bool[np.ndarray, "y x"], pad_px: tuple[int, int, int, int]) -> Plane | None:
    """The rows and columns around the liver of a slice; None for a slice without.

    Args:
        liver: of one slice.
        pad_px: pixels added above, below, left and right; what would lie beyond the slice is left
            out.
    """
    rows, columns = np.flatnonzero(liver.any(axis=1)), np.flatnonzero(liver.any(axis=0))
    if rows.size == 0:
        return None
    above, below, left, right = pad_px
    height, width = liver.shape
    return (
        slice(max(0, int(rows[0]) - above), min(height, int(rows[-1]) + 1 + below)),
        slice(max(0, int(columns[0]) - left), min(width, int(columns[-1]) + 1 + right)),
    )


def resized(
    planes: Float32[np.ndarray, "c y x"], size: tuple[int, int]
) -> Float32[np.ndarray, "c y2 x2"]:
    """Intensities or probabilities of a box at another size: bilinear, averaging when it shrinks.

    Pixels keep the area they stand for (no aligned corners), so that there and back lands on the
    same place.
    """
    if planes.shape[1:] == size:
        return planes
    given = torch.from_numpy(np.ascontiguousarray(planes))[None]
    found = functional.interpolate(
        given, size=size, mode="bilinear", align_corners=False, antialias=True
    )
    return found[0].numpy()


def resized_labels(
    planes: Shaped[np.ndarray, "*c y x"], size: tuple[int, int]
) -> Shaped[np.ndarray, "*c y2 x2"]:
    """Labels or masks of a box at another size: each pixel takes the one that its center is in."""
    rows, columns = (
        np.minimum((np.arange(n) + 0.5) * (old / n), old - 1).astype(np.intp)
        for n, old in zip(size, planes.shape[-2:], strict=True)
    )
    return planes[..., rows[:, None], columns]
