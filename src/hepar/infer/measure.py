"""Lesions in millimeters, milliliters and HU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import edt
import numpy as np
from jaxtyping import Bool, Float, UInt16
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, distance

from hepar.geometry import Box, Grid
from hepar.infer.imaging_features import imaging_features
from hepar.infer.lesion_regions import lesion_regions
from hepar.infer.lesion_view import OUTSIDE_HU, LesionView
from hepar.infer.liver_noise import liver_noise
from hepar.study import Lesion

_PARENCHYMA_MARGIN_MM = 4.0
_THIN = (slice(None), slice(None, None, 2), slice(None, None, 2))


def feret_axes_mm(
    mask: Bool[np.ndarray, "z y x"], spacing_mm: tuple[float, float, float]
) -> tuple[float, float]:
    """Long axis in the axial slice where it is greatest, and the width across it in that slice.

    Distances run between the middles of pixel edges, which is unbiased for smooth outlines; a
    single voxel is as long as it is wide.

    Args:
        mask: one lesion.
        spacing_mm: (z, y, x).

    Returns:
        (long, short) in mm, the short axis being the extent perpendicular to the long one.
    """
    _, dy, dx = spacing_mm
    bounds = []
    for z in np.flatnonzero(mask.any(axis=(1, 2))).tolist():
        rows, columns = np.flatnonzero(mask[z].any(1)), np.flatnonzero(mask[z].any(0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        bounds.append((float(np.hypot(height * dy, width * dx)), z))
    best = (0.0, 0.0)
    for bound, z in sorted(bounds, reverse=True):
        if bound <= best[0]:
            break
        axes = _slice_axes_mm(mask[z], dy, dx)
        if axes[0] > best[0]:
            best = axes
    return best


def _slice_axes_mm(mask: NDArray[np.bool_], dy: float, dx: float) -> tuple[float, float]:
    inner = ndimage.binary_erosion(mask)
    points = np.argwhere(mask & ~inner).astype(np.float64)
    steps = np.array([[0.5, 0.0], [-0.5, 0.0], [0.0, 0.5], [0.0, -0.5]])
    edges = (points[:, None] + steps).reshape(-1, 2) * (dy, dx)
    hull = edges[ConvexHull(edges).vertices]
    gaps = distance.cdist(hull, hull)
    first, second = np.unravel_index(int(gaps.argmax()), gaps.shape)
    long_axis = float(gaps[first, second])
    along = (hull[second] - hull[first]) / long_axis
    across = hull @ np.array([-along[1], along[0]])
    return long_axis, float(np.ptp(across))


def liver_hu(
    volumes: Mapping[str, NDArray[np.int16]],
    liver: Bool[np.ndarray, "z y x"],
    tumor: Bool[np.ndarray, "z y x"],
    grid: Grid,
) -> dict[str, float]:
    """HU of the liver parenchyma in each phase: away from lesions and border, without vessels.

    Every second in-plane voxel is looked at. Vessels leave with everything farther than 2.5 robust
    standard deviations from the first median.

    Args:
        volumes: `(z, y, x)` HU by phase.
        liver: the organ.
        tumor: all lesions.
        grid: of all arrays.
    """
    return parenchyma_hu(volumes, healthy_liver(liver, tumor, grid))


def healthy_liver(
    liver: Bool[np.ndarray, "z y x"], tumor: Bool[np.ndarray, "z y x"], grid: Grid
) -> Bool[np.ndarray, "z h w"]:
    """Liver away from lesions and border, on every second in-plane voxel of `grid`."""
    healthy = np.ascontiguousarray(liver[_THIN] & ~tumor[_THIN])
    dz, dy, dx = grid.spacing_mm
    depth = edt.edt(healthy, anisotropy=(dz, 2 * dy, 2 * dx), black_border=False, parallel=2)
    core = np.asarray(depth > _PARENCHYMA_MARGIN_MM)
    if core.sum() < 1000:
        core = healthy if healthy.any() else liver[_THIN]
    return core


def parenchyma_hu(
    volumes: Mapping[str, NDArray[np.int16]], core: Bool[np.ndarray, "z h w"]
) -> dict[str, float]:
    """`liver_hu` in what `healthy_liver` found."""
    found = {}
    for phase, volume in volumes.items():
        values = volume[_THIN][core].astype(np.float32)
        values = values[values > OUTSIDE_HU]
        if values.size == 0:
            continue
        center = np.median(values)
        spread = 1.4826 * np.median(np.abs(values - center)) + 1e-3
        found[phase] = float(np.median(values[np.abs(values - center) <= 2.5 * spread]))
    return found


def lesion_core(mask: Bool[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z y x"]:
    """The lesion without its border voxels where enough is left, so that HU are the lesion's own.

    Eroded by one voxel in 3D; where less than a quarter or 20 voxels would remain, in-plane only;
    else not at all.
    """
    enough = max(20, int(mask.sum()) // 4)
    padded = np.pad(mask, 1)
    for structure in (None, np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], dtype=bool)):
        core = ndimage.binary_erosion(padded, structure)[1:-1, 1:-1, 1:-1]
        if core.sum() >= enough:
            return np.asarray(core, dtype=bool)
    return mask


def measure_lesion(
    lesion_id: int,
    mask: Bool[np.ndarray, "z y x"],
    box: Box,
    grid: Grid,
    volumes: Mapping[str, NDArray[np.int16]],
    parenchyma_hu: Mapping[str, float],
    probability: Float[np.ndarray, "z y x"] | None,
) -> Lesion:
    """Everything that is reported of one lesion.

    Args:
        lesion_id: 1..K.
        mask: the lesion inside `box`.
        box: of the lesion on `grid`.
        grid: reference grid.
        volumes: HU by phase on `grid`.
        parenchyma_hu: `liver_hu`.
        probability: tumor probability inside `box`; None for a lesion that was given, which then
            has no confidence.
    """
    long_axis, short_axis = feret_axes_mm(mask, grid.spacing_mm)
    center = np.argwhere(mask).mean(axis=0) + box.start
    x, y, z = (round(float(v), 3) for v in grid.index_to_world(center))
    core = lesion_core(mask)
    mean_hu, std_hu = {}, {}
    for phase, volume in volumes.items():
        values = volume[box.slices][core].astype(np.float64)
        seen = values[values > OUTSIDE_HU]
        if seen.size >= max(1, values.size // 2):
            mean_hu[phase], std_hu[phase] = float(seen.mean()), float(seen.std())
    return Lesion(
        id=lesion_id,
        volume_ml=float(mask.sum()) * grid.voxel_ml,
        long_axis_mm=long_axis,
        short_axis_mm=short_axis,
        centroid_mm=(x, y, z),
        box_zyx=(box.start, box.stop),
        hu=mean_hu,
        hu_std=std_hu,
        liver_hu=dict(parenchyma_hu),
        wash_in_hu=_wash_in(mean_hu),
        washout_hu=_washout(mean_hu, parenchyma_hu),
        confidence=(
            None if probability is None else float(np.clip(probability[mask].mean(), 0.0, 1.0))
        ),
    )


def measure_lesions(
    instances: UInt16[np.ndarray, "z y x"],
    liver: Bool[np.ndarray, "z y x"],
    grid: Grid,
    volumes: Mapping[str, NDArray[np.int16]],
    probability: Float[np.ndarray, "z y x"] | None,
    *,
    misplaced: Sequence[str] = (),
) -> tuple[Lesion, ...]:
    """Measure the lesions of a liver, their imaging features included.

    Args:
        instances: 0, or the id of a lesion, from 1 on.
        liver: the organ, tumors included.
        grid: of all arrays.
        volumes: HU by phase.
        probability: of tumor; None where the lesions were given.
        misplaced: phases that no registration brought onto the grid. Their means are given as they
            are; features, which look at rims and borders, leave them out.

    Returns:
        One lesion an id; `Lesion.box_zyx` counts voxels of `grid`.
    """
    tumor = instances > 0
    core = healthy_liver(liver, tumor, grid)
    parenchyma = parenchyma_hu(volumes, core)
    placed = {phase: volume for phase, volume in volumes.items() if phase not in misplaced}
    _, rows, columns = grid.shape
    healthy = core.repeat(2, axis=1).repeat(2, axis=2)[:, :rows, :columns] & liver & ~tumor
    noise = liver_noise(placed, healthy, grid) if tumor.any() else {}
    found = []
    for number, place in enumerate(ndimage.find_objects(instances), 1):
        if place is None:
            continue
        box = Box(*(tuple(getattr(p, end) for p in place) for end in ("start", "stop")))
        mask = instances[place] == number
        chance = None if probability is None else probability[place]
        lesion = measure_lesion(number, mask, box, grid, volumes, parenchyma, chance)
        regions = lesion_regions(mask, box, liver, tumor, grid)
        cut = {phase: volume[regions.box.slices] for phase, volume in placed.items()}
        view = LesionView(regions, cut, parenchyma, noise, tuple(misplaced))
        features = imaging_features(view, lesion.long_axis_mm)
        found.append(lesion.model_copy(update={"features": features}))
    return tuple(found)


def _wash_in(hu: Mapping[str, float]) -> float | None:
    return hu["ART"] - hu["NC"] if "ART" in hu and "NC" in hu else None


def _washout(hu: Mapping[str, float], parenchyma: Mapping[str, float]) -> float | None:
    """Fall of the contrast to the liver from ART to DL, or to PV where there is no DL."""
    late = next((phase for phase in ("DL", "PV") if phase in hu and phase in parenchyma), None)
    if late is None or "ART" not in hu or "ART" not in parenchyma:
        return None
    return (hu["ART"] - parenchyma["ART"]) - (hu[late] - parenchyma[late])
