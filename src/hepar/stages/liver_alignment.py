"""The last step of registration: inside the liver, where the results are looked for.

The liver glides along a wall that stays, so that a smooth map of the whole body errs most at its
border. Here the liver alone is followed: rigidly, by mutual information in a window of HU around
its own median in either scan; then, only where the images ask for it clearly, bent, by a residual
that is smoothed over centimeters, because an unsmoothed one follows noise in so even an organ. Both
livers come from the coarse network (`infer.organs`), which also gives a measure that no estimator
optimizes: how far the two masks overlap.

Bounds: at most 600,000 voxels, 60 steps for the rigid map, 40 for the bent one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hepar.geometry import Box, Displacement, Grid
from hepar.infer.bundle import Model
from hepar.infer.components import largest
from hepar.infer.organs import coarse_view
from hepar.infer.tiling import Tiling
from hepar.resampling import resample
from hepar.stages.alignment import (
    BoolArray,
    Float32Array,
    Map,
    Pair,
    folding,
    inside_of,
    judged,
    mutual_information,
    on_grid,
)
from hepar.stages.estimates import Scene, deform, field_of, linear
from hepar.study import Volume

LOG = logging.getLogger(__name__)

MIN_LIVER_ML = 150.0  # less is no organ to follow
_AROUND_MM = 8.0  # surface of the liver, with what lies on it: the strongest structure of all
_BOX_MM = 18.0
_FULL_MM, _NONE_MM = 6.0, 20.0  # distance to the liver at which its map counts wholly, not at all
_WINDOW_HU = 100.0
_SPACING_MM = 2.5
_VOXELS = 600_000
_DENOISE_MM = 3.0
_SMOOTH_MM = 15.0
_BEND_GAIN = 0.02  # of the similarity inside the liver, over the rigid map
_BEND = {"lambda_weight": 5.0}


@dataclass(frozen=True)
class Region:
    """A liver as the coarse network outlines it, and its median HU."""

    mask: BoolArray
    grid: Grid
    median_hu: float

    @property
    def volume_ml(self) -> float:
        """Of the mask."""
        return float(self.mask.sum()) * self.grid.voxel_ml

    @property
    def center_mm(self) -> NDArray[np.float64]:
        """LPS centroid."""
        return self.grid.index_to_world(np.argwhere(self.mask).mean(axis=0))

    @property
    def window_hu(self) -> tuple[float, float]:
        """HU in which the liver shows its vessels."""
        return self.median_hu - _WINDOW_HU, self.median_hu + _WINDOW_HU

    def distance_mm(self, grid: Grid) -> Float32Array:
        """Signed distance to the liver's surface on a grid, negative inside."""
        distance = ndimage.distance_transform_edt(~self.mask, self.grid.spacing_mm)
        distance -= ndimage.distance_transform_edt(self.mask, self.grid.spacing_mm)
        values = resample(distance.astype(np.float32), self.grid, grid, fill=None)
        return np.asarray(values, dtype=np.float32)


def find_region(volume: Volume, model: Model) -> Region | None:
    """The liver of a scan; None where there is none to follow."""
    quiet = Tiling(warn=lambda text: None)  # `find_liver` warns of the same
    grid, hu, found = coarse_view(volume, model, ("liver",), tiling=quiet)
    mask = largest(found[0] >= 0.5)
    if float(mask.sum()) * grid.voxel_ml < MIN_LIVER_ML:
        return None
    return Region(mask, grid, float(np.median(hu[mask])))


@dataclass(frozen=True)
class LiverFit:
    """How well a map brings two livers together.

    Attributes:
        similarity: normalized mutual information around the liver, its own windows.
        overlap: Dice of the two masks where both scans see.
        coverage: share of the reference's liver inside the other scan's field of view.
        folding: share of the liver where the map folds.
    """

    similarity: float
    overlap: float
    coverage: float
    folding: float


@dataclass(frozen=True)
class Livers:
    """The livers of a pair on a fine grid around the reference's."""

    fixed: Region
    moving: Region | None
    grid: Grid
    image: Float32Array
    distance_mm: Float32Array
    scan: Volume

    @staticmethod
    def of(reference: Volume, fixed: Region, scan: Volume, moving: Region | None) -> Livers:
        """Cut out of both scans what lies around the liver."""
        reach = fixed.distance_mm(fixed.grid) < _BOX_MM
        box = Box.around(reach) or Box.full(fixed.grid.shape)
        extent = np.asarray(fixed.grid.crop(box).extent_mm)
        spacing = max(_SPACING_MM, float(np.cbrt(np.prod(extent) / _VOXELS)))
        # convexAdam averages over blocks of 4: whole blocks keep its displacements undistorted.
        shape = np.maximum(4 * np.rint(extent / spacing / 4), 8)
        z, y, x = (float(v) for v in extent / shape)
        grid = fixed.grid.crop(box).with_spacing((z, y, x))
        image = on_grid(reference, grid, None, antialias=True, window_hu=fixed.window_hu)
        return Livers(fixed, moving, grid, image, fixed.distance_mm(grid), scan)

    @property
    def window_hu(self) -> tuple[float, float]:
        """Window of the other scan."""
        return (self.moving or self.fixed).window_hu

    def warped(self, displacement: Displacement | None) -> Float32Array:
        """The other scan around the reference's liver."""
        return on_grid(self.scan, self.grid, displacement, window_hu=self.window_hu)

    def fit(self, displacement: Displacement | None) -> LiverFit:
        """Judge a map; None: world coordinates."""
        index = np.argwhere(self.fixed.mask)
        points = self.fixed.grid.index_to_world(index.astype(np.float64))
        if displacement is not None:
            points = points + displacement.at(points)
        seen = inside_of(self.scan.grid, points)
        near = self.distance_mm < _AROUND_MM
        windows = (self.fixed.window_hu, self.window_hu)
        alike = mutual_information(self.image, self.warped(displacement), near, windows)
        folded = 0.0
        if displacement is not None:
            folded = folding(displacement, self.fixed.distance_mm(displacement.grid) < 0)
        return LiverFit(alike, self._overlap(displacement), float(seen.mean()), folded)

    def _overlap(self, displacement: Displacement | None) -> float:
        """Dice on the reference's coarse grid, of what lies in the other scan's field of view."""
        if self.moving is None:
            return 0.0
        grid = self.fixed.grid
        moved = resample(
            self.moving.mask.astype(np.float32),
            self.moving.grid,
            grid,
            antialias=False,
            displacement=displacement,
        )
        points = grid.index_to_world(np.argwhere(np.ones(grid.shape, dtype=bool)).astype(float))
        if displacement is not None:
            points = points + displacement.at(points)
        seen = inside_of(self.scan.grid, points).reshape(grid.shape)
        fixed, other = self.fixed.mask & seen, (moved >= 0.5) & seen
        total = int(fixed.sum()) + int(other.sum())
        return 2.0 * float((fixed & other).sum()) / total if total else 0.0


def refine(
    pair: Pair, livers: Livers, body: Map, start: NDArray[np.float64], late: Callable[[], bool]
) -> Map | None:
    """A map of the body, replaced by the liver's own around the liver.

    Args:
        pair: both scans on the body's working grid.
        livers: both livers; the other scan's must have been found.
        body: what holds away from the liver.
        start: the best linear map of the body, 4x4 of LPS points.
        late: whether time is up; the liver is then not bent.

    Returns:
        The map with `+liver` in its name; None where it cannot be estimated, which is logged.
    """
    near = livers.distance_mm < _AROUND_MM
    moving = replace(pair.moving, array=np.clip(pair.moving.array, *livers.window_hu))
    levels = ((2, 3.0), (1, 1.5))
    scene = Scene(livers.image, near, livers.grid, moving, 1.0, 0.4, levels)
    try:
        matrix = linear(scene, start, rigid=True, center_mm=livers.fixed.center_mm)
        local = field_of(matrix, livers.grid)
        if not late():
            local = _bent(livers, matrix, local)
    except ImportError as error:
        LOG.warning("the liver's own alignment is not available: %s", error)
        return None
    except (RuntimeError, ValueError, IndexError, ArithmeticError, MemoryError) as error:
        LOG.warning("the liver's own alignment failed: %s", error)
        return None
    if not np.isfinite(local.field_mm).all():
        return None
    field = _joined(body.displacement, local, livers.fixed.distance_mm(body.displacement.grid))
    return judged(f"{body.method}+liver", pair, field)


def _bent(livers: Livers, matrix: NDArray[np.float64], rigid: Displacement) -> Displacement:
    """The rigid map with a smooth residual, where that raises the similarity clearly."""
    sigma = [_DENOISE_MM / s for s in livers.grid.spacing_mm]
    plain = livers.warped(rigid)
    fixed, moving = (ndimage.gaussian_filter(image, sigma) for image in (livers.image, plain))
    free = deform(fixed, moving, livers.grid, matrix, **_BEND)
    # Weights keep what glides past the liver out of the mean.
    inside = (livers.distance_mm < 4.0).astype(np.float32)
    wide = [_SMOOTH_MM / s for s in livers.grid.spacing_mm]
    weight = ndimage.gaussian_filter(inside, wide, truncate=3) + np.float32(1e-4)
    residual = free.field_mm - rigid.field_mm
    smooth = [ndimage.gaussian_filter(r * inside, wide, truncate=3) / weight for r in residual]
    bent = Displacement(rigid.field_mm + np.stack(smooth).astype(np.float32), livers.grid)
    near = livers.distance_mm < _AROUND_MM
    windows = (livers.fixed.window_hu, livers.window_hu)
    before = mutual_information(livers.image, plain, near, windows)
    after = mutual_information(livers.image, livers.warped(bent), near, windows)
    LOG.info("bending the liver: similarity %.3f -> %.3f", before, after)
    return bent if after >= before + _BEND_GAIN else rigid


def _joined(body: Displacement, local: Displacement, distance_mm: Float32Array) -> Displacement:
    """The local map around the liver, the body's elsewhere, and a smooth passage between."""
    weight = np.clip((_NONE_MM - distance_mm) / (_NONE_MM - _FULL_MM), 0.0, 1.0)
    weight *= weight * (3.0 - 2.0 * weight)
    field = body.field_mm.copy()
    for part, own in zip(field, local.field_mm, strict=True):
        around = resample(own, local.grid, body.grid, fill=None, antialias=False)
        part += weight * (around - part)
    return Displacement(field, body.grid)
