"""One stack of images: ordered by position along the normal, and checked to be regular.

Spacing comes from ImagePositionPatient, never from SliceThickness or SpacingBetweenSlices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hepar.geometry import Grid
from hepar.io.dicom_headers import Header
from hepar.io.refusal import refuse

MIN_SLICES = 3
SAME_POSITION_MM = 0.02
_MAX_NOT_ORTHONORMAL = 2e-3
_MAX_SIDEWAYS_MM = 0.1
_GAP_FACTOR = 1.5
_EVEN_MM, _EVEN_SHARE, _UNEVEN_SHARE = 0.01, 0.01, 0.05
_PLAUSIBLE_PIXEL_MM = (0.02, 20.0)


@dataclass(frozen=True)
class Stack:
    """Images in order along the normal, and their grid.

    Attributes:
        headers: one a slice, z index ascending.
        grid: `(z, y, x)`: along the normal, down the rows, along the columns.
        code: a warning, when something was noticed or repaired.
        note: what that was.
        repaired: whether images were left out because others are identical.
    """

    headers: tuple[Header, ...]
    grid: Grid
    code: str | None = None
    note: str = ""
    repaired: bool = False


def stack(headers: Sequence[Header]) -> Stack:
    """Order images of one orientation and matrix, and check that they form one regular stack.

    Raises:
        InputRefused: `E_TOO_FEW_SLICES`, `E_DUPLICATE_SLICE`, `E_SLICE_GAP`, `E_NON_UNIFORM`,
            `E_GANTRY_TILT` or `E_MIXED_GEOMETRY`, saying where in mm.
    """
    if len(headers) < MIN_SLICES:
        raise refuse("E_TOO_FEW_SLICES", f"{len(headers)} image(s).")
    ordered = sorted(headers, key=depth_mm)
    depths = np.array([depth_mm(h) for h in ordered])
    steps = np.diff(depths)
    step = float(np.median(steps))
    twins = np.flatnonzero(steps < SAME_POSITION_MM)
    if twins.size:
        a, b = ordered[twins[0]].path.name, ordered[twins[0] + 1].path.name
        raise refuse("E_DUPLICATE_SLICE", f"{a} and {b} lie at {depths[twins[0]]:.2f} mm.")
    gaps = np.flatnonzero(steps >= _GAP_FACTOR * step)
    if gaps.size:
        places = ", ".join(f"{depths[g]:.2f} to {depths[g + 1]:.2f} mm" for g in gaps[:5])
        raise refuse(
            "E_SLICE_GAP",
            f"{gaps.size} gap(s) along the normal, {places}, where slices are {step:.3f} mm apart.",
        )
    _refuse_sideways(ordered, depths)
    if len({h.frame_of_reference for h in ordered}) > 1:
        raise refuse("E_MIXED_GEOMETRY", "the images name several FrameOfReferenceUIDs.")
    spacing_mm, shift_mm, note = _spacing(depths)
    grid = _grid(ordered, spacing_mm, shift_mm)
    return Stack(tuple(ordered), grid, "W_SPACING_NOISE" if note else None, note)


def _spacing(depths_mm: NDArray[np.float64]) -> tuple[float, float, str]:
    """One slice distance for all, how far the first slice is off it, and a note when uneven.

    Up to 1 % (or 0.01 mm) off an even distance is rounding; up to 5 % is fitted and said.

    Raises:
        InputRefused: `E_NON_UNIFORM`.
    """
    count = np.arange(len(depths_mm))
    first = float(depths_mm[0])
    spacing, start = (float(depths_mm[-1]) - first) / (len(depths_mm) - 1), first
    off = float(np.abs(depths_mm - start - spacing * count).max())
    if off <= max(_EVEN_MM, _EVEN_SHARE * spacing):
        return spacing, 0.0, ""
    spacing, start = (float(v) for v in np.polyfit(count, depths_mm, 1))
    off = float(np.abs(depths_mm - start - spacing * count).max())
    if off <= max(_EVEN_MM, _UNEVEN_SHARE * spacing):
        note = f"slices lie up to {off:.3f} mm from an even distance of {spacing:.3f} mm"
        return spacing, start - first, note
    steps = np.diff(depths_mm)
    raise refuse(
        "E_NON_UNIFORM",
        f"slices are {steps.min():.3f} to {steps.max():.3f} mm apart, up to {off:.3f} mm from "
        "an even distance.",
    )


def lacks_geometry(header: Header) -> str | None:
    name = header.path.name
    if header.position_mm is None:
        return f"{name} has no usable ImagePositionPatient"
    if header.orientation is None:
        return f"{name} has no usable ImageOrientationPatient"
    axes = np.asarray(header.orientation).reshape(2, 3)
    deviation = float(np.abs(axes @ axes.T - np.eye(2)).max())
    if deviation > _MAX_NOT_ORTHONORMAL:
        return f"{name} has an ImageOrientationPatient {deviation:.3g} away from orthonormal"
    low, high = _PLAUSIBLE_PIXEL_MM
    if header.pixel_spacing_mm is None or not all(low < s < high for s in header.pixel_spacing_mm):
        return f"{name} has no usable PixelSpacing"
    return None


def depth_mm(header: Header) -> float:
    """Position along the normal in mm."""
    return float(np.asarray(header.position_mm) @ _axes(header)[:, 0])


def positions(headers: Sequence[Header]) -> list[float]:
    """Distinct positions along the normal, ascending."""
    distinct: list[float] = []
    for value in sorted(depth_mm(h) for h in headers):
        if not distinct or value - distinct[-1] >= SAME_POSITION_MM:
            distinct.append(value)
    return distinct


def _axes(header: Header) -> NDArray[np.float64]:
    """Unit vectors as columns: normal, down the rows, along the columns; nearest orthonormal."""
    assert header.orientation is not None
    along_row, down = np.asarray(header.orientation, dtype=np.float64).reshape(2, 3)
    raw = np.stack([np.cross(along_row, down), down, along_row], axis=1)
    left, _, right = np.linalg.svd(raw)
    return np.asarray(left @ right)


def _refuse_sideways(ordered: Sequence[Header], depths_mm: NDArray[np.float64]) -> None:
    """Refuse a stack whose images are not above one another along the normal."""
    axes = _axes(ordered[0])
    corners = np.array([h.position_mm for h in ordered], dtype=np.float64)
    sideways = (corners - corners[0]) @ axes[:, 1:]
    if np.abs(sideways).max() <= _MAX_SIDEWAYS_MM:
        return
    run = depths_mm - depths_mm[0]
    slope = sideways[-1] / run[-1]
    if np.abs(sideways - run[:, None] * slope).max() <= _MAX_SIDEWAYS_MM:
        angle = float(np.degrees(np.arctan(np.linalg.norm(slope))))
        raise refuse("E_GANTRY_TILT", f"the stack leans {angle:.2f} degrees off its normal.")
    shift = float(np.abs(np.diff(sideways, axis=0)).max())
    raise refuse("E_MIXED_GEOMETRY", f"neighboring images are shifted by up to {shift:.2f} mm.")


def _grid(ordered: Sequence[Header], step_mm: float, shift_mm: float) -> Grid:
    """The grid of a stack whose first slice is `shift_mm` further along the normal than it says."""
    first = ordered[0]
    assert first.position_mm is not None
    assert first.pixel_spacing_mm is not None
    rows_mm, columns_mm = first.pixel_spacing_mm
    axes = _axes(first)
    x, y, z = (float(v) for v in np.asarray(first.position_mm) + shift_mm * axes[:, 0])
    return Grid(
        (len(ordered), first.rows, first.columns),
        (step_mm, rows_mm, columns_mm),
        (x, y, z),
        tuple(float(v) for v in axes.ravel()),
    )
