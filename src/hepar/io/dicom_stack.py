"""One stack of images: ordered by position along the normal, and checked to be regular.

Spacing comes from ImagePositionPatient, never from SliceThickness or SpacingBetweenSlices. Stacks
that lean (gantry tilt) or whose distances vary are resampled by position; a lost slice is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hepar.geometry import Grid
from hepar.io.dicom_headers import Header
from hepar.io.dicom_regular import Placement, place
from hepar.io.refusal import refuse
from hepar.study import Frames

MIN_SLICES = 3
SAME_POSITION_MM = 0.02
_MAX_NOT_ORTHONORMAL = 2e-3
_MAX_SIDEWAYS_MM = 0.1
_MAX_LEAN_DEGREES = 45.0
_GAP_FACTOR = 1.5
_LOST_ONE = 2.25  # times the usual distance: with more, more than one slice is missing
_MAX_CHANGE = 3.0
_NEIGHBORS = 3
_EVEN_MM, _EVEN_SHARE, _UNEVEN_SHARE = 0.01, 0.01, 0.05
_PLAUSIBLE_PIXEL_MM = (0.02, 20.0)

Note = tuple[str, str]


@dataclass(frozen=True)
class Stack:
    """Images in order along the normal, and their grid.

    Attributes:
        headers: one an image, z index ascending.
        grid: `(z, y, x)`: along the normal, down the rows, along the columns.
        frames: where the images truly lie.
        placement: how they are resampled onto the grid; None where they lie on it.
        notes: code and words of what was noticed or repaired.
        repaired: whether copies were left out, or images resampled.
    """

    headers: tuple[Header, ...]
    grid: Grid
    frames: Frames
    placement: Placement | None = None
    notes: tuple[Note, ...] = ()
    repaired: bool = False


def stack(headers: Sequence[Header], *, interpolate_gaps: bool = False) -> Stack:
    """Order images of one orientation and matrix, and check that they form one stack.

    Args:
        headers: of one orientation, matrix and pixel size.
        interpolate_gaps: whether single lost slices may be made up from their neighbors.

    Raises:
        InputRefused: `E_TOO_FEW_SLICES`, `E_DUPLICATE_SLICE`, `E_SLICE_GAP` or
            `E_MIXED_GEOMETRY`, saying where in mm.
    """
    if len(headers) < MIN_SLICES:
        raise refuse("E_TOO_FEW_SLICES", f"{len(headers)} image(s).")
    ordered = sorted(headers, key=depth_mm)
    depths = np.array([depth_mm(h) for h in ordered])
    twins = np.flatnonzero(np.diff(depths) < SAME_POSITION_MM)
    if twins.size:
        a, b = ordered[twins[0]].path.name, ordered[twins[0] + 1].path.name
        raise refuse("E_DUPLICATE_SLICE", f"{a} and {b} lie at {depths[twins[0]]:.2f} mm.")
    notes = _gaps(ordered, depths, interpolate_gaps)
    if len({h.frame_of_reference for h in ordered}) > 1:
        raise refuse("E_MIXED_GEOMETRY", "the images name several FrameOfReferenceUIDs.")
    lean, shift_mm, spacing = _lean(ordered, depths), 0.0, None
    if not notes:
        spacing, shift_mm, noise = _spacing(depths)
        notes += noise
    if lean:
        notes.append(("W_GANTRY_TILT", f"{lean}; the images were moved back by their positions"))
    frames = _frames(ordered)
    if lean or spacing is None:
        frames = replace(frames, on_grid=False)
        placement = place(frames, depths, lean=bool(lean), uneven=spacing is None)
        return Stack(tuple(ordered), placement.grid, frames, placement, tuple(notes), True)
    return Stack(tuple(ordered), _grid(frames, spacing, shift_mm), frames, None, tuple(notes))


def _gaps(
    ordered: Sequence[Header], depths_mm: NDArray[np.float64], interpolate: bool
) -> list[Note]:
    """Refuse lost slices, or say which are made up.

    A distance is a gap when it is 1.5 times what is usual around it, or when it is that much more
    than the smallest and InstanceNumber counts on beside it. A longer run of wider distances is a
    reconstruction that changes, not a loss.
    """
    steps = np.diff(depths_mm)
    usual = np.array([_usual(steps, k) for k in range(len(steps))])
    counts = np.abs(np.diff([h.instance for h in ordered]))
    numbered = len({h.instance for h in ordered}) == len(ordered) and counts.min() == 1
    lost = steps >= _GAP_FACTOR * usual
    if numbered:
        lost |= (counts > 1) & (steps >= _GAP_FACTOR * steps.min())
    lost |= steps >= _MAX_CHANGE * steps.min()
    gaps = np.flatnonzero(lost)
    if not gaps.size:
        return []
    step = float(np.median(steps))
    places = ", ".join(f"{depths_mm[g]:.2f} to {depths_mm[g + 1]:.2f} mm" for g in gaps[:5])
    text = f"{gaps.size} gap(s) along the normal, {places}, where slices are {step:.3f} mm apart"
    if not interpolate or (steps[gaps] > _LOST_ONE * usual[gaps]).any():
        raise refuse("E_SLICE_GAP", f"{text}.")
    return [("W_SLICE_INTERPOLATED", f"{text}; a slice in each was made up from its neighbors")]


def _usual(steps_mm: NDArray[np.float64], at: int) -> float:
    """The median of the distances around one, without it."""
    around = np.r_[steps_mm[max(0, at - _NEIGHBORS) : at], steps_mm[at + 1 : at + 1 + _NEIGHBORS]]
    return float(np.median(around)) if around.size else float(steps_mm[at])


def _spacing(depths_mm: NDArray[np.float64]) -> tuple[float | None, float, list[Note]]:
    """One slice distance for all (None: there is none), how far the first slice is off it, and
    what to say of it.

    Up to 1 % (or 0.01 mm) off an even distance is rounding; up to 5 % is fitted and said; more is
    resampled by true position.
    """
    count = np.arange(len(depths_mm))
    first = float(depths_mm[0])
    spacing, start = (float(depths_mm[-1]) - first) / (len(depths_mm) - 1), first
    off = float(np.abs(depths_mm - start - spacing * count).max())
    if off <= max(_EVEN_MM, _EVEN_SHARE * spacing):
        return spacing, 0.0, []
    spacing, start = (float(v) for v in np.polyfit(count, depths_mm, 1))
    off = float(np.abs(depths_mm - start - spacing * count).max())
    if off <= max(_EVEN_MM, _UNEVEN_SHARE * spacing):
        note = f"slices lie up to {off:.3f} mm from an even distance of {spacing:.3f} mm"
        return spacing, start - first, [("W_SPACING_NOISE", note)]
    steps = np.diff(depths_mm)
    note = f"slices are {steps.min():.3f} to {steps.max():.3f} mm apart and were resampled"
    return None, 0.0, [("W_NON_UNIFORM", note)]


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


def _lean(ordered: Sequence[Header], depths_mm: NDArray[np.float64]) -> str:
    """How far a stack leans off its normal, in words; empty where its images lie above one another.

    Raises:
        InputRefused: `E_MIXED_GEOMETRY`: single images are shifted.
    """
    axes = _axes(ordered[0])
    corners = np.array([h.position_mm for h in ordered], dtype=np.float64)
    sideways = (corners - corners[0]) @ axes[:, 1:]
    if np.abs(sideways).max() <= _MAX_SIDEWAYS_MM:
        return ""
    run = depths_mm - depths_mm[0]
    slope = sideways[-1] / run[-1]
    angle = float(np.degrees(np.arctan(np.linalg.norm(slope))))
    even = np.abs(sideways - run[:, None] * slope).max() <= _MAX_SIDEWAYS_MM
    if even and angle <= _MAX_LEAN_DEGREES:
        return f"the stack leans {angle:.2f} degrees off its normal"
    shift = float(np.abs(np.diff(sideways, axis=0)).max())
    raise refuse("E_MIXED_GEOMETRY", f"neighboring images are shifted by up to {shift:.2f} mm.")


def _frames(ordered: Sequence[Header]) -> Frames:
    """Where the images lie."""
    first = ordered[0]
    assert first.pixel_spacing_mm is not None
    rows_mm, columns_mm = first.pixel_spacing_mm
    return Frames(
        files=tuple(str(h.path) for h in ordered),
        numbers=tuple(h.frame or 0 for h in ordered),
        origins_mm=np.array([h.position_mm for h in ordered], dtype=np.float64),
        axes=_axes(first),
        pixel_mm=(rows_mm, columns_mm),
        shape=(first.rows, first.columns),
    )


def _grid(frames: Frames, step_mm: float, shift_mm: float) -> Grid:
    """The grid of a stack whose first slice is `shift_mm` further along the normal than it says."""
    x, y, z = (float(v) for v in frames.origins_mm[0] + shift_mm * frames.axes[:, 0])
    return Grid(
        (len(frames.files), *frames.shape),
        (step_mm, *frames.pixel_mm),
        (x, y, z),
        tuple(float(v) for v in frames.axes.ravel()),
    )
