"""How `register` estimates maps between two scans of a patient, over the body they share.

Everything happens on a coarse working grid. Linear maps come from SimpleITK (Mattes mutual
information), the deformable one from convexAdam (MIND features, coupled convex optimization, Adam;
Siebert et al. 2024, doi 10.1109/TMI.2024.3480118). A map is judged by a measure none of them
optimizes at this scale: normalized mutual information inside the body. What follows inside the
liver is `liver_alignment`'s.

Time and memory are bounded by the working grid, whatever the scans: at most a million voxels, 60
steps a level of the linear maps, 40 of the deformable one. Every sum runs on one thread, so that a
machine's number of threads changes no map.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hepar.geometry import Box, Displacement, Grid
from hepar.resampling import resample
from hepar.stages.estimates import Scene, deform, field_of, linear
from hepar.study import Volume

LOG = logging.getLogger(__name__)

AIR_HU = -1024
BODY_HU = -300
_COARSE_MM = 4.0
_WORKING_MM = 2.4
_WORKING_VOXELS = 1_000_000
WINDOW_HU = (-200.0, 300.0)
_AFFINE_GAIN = 0.01

Float32Array = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Body:
    """The reference's body on a coarse grid: where similarity and coverage count."""

    mask: BoolArray
    grid: Grid

    @property
    def world_mm(self) -> NDArray[np.float64]:
        """LPS positions `(n, 3)` of the body's voxels."""
        return self.grid.index_to_world(np.argwhere(self.mask).astype(np.float64))


@dataclass(frozen=True)
class Pair:
    """Both scans on the working grid, and the moving one at its own place for sampling again."""

    grid: Grid
    fixed: Float32Array
    body: BoolArray
    moving: Volume

    def warped(self, displacement: Displacement | None) -> Float32Array:
        """The moving scan on the working grid."""
        return on_grid(self.moving, self.grid, displacement)


@dataclass(frozen=True)
class Map:
    """An estimated map and how good it is.

    Attributes:
        method: `rigid`, `affine`, `convexadam`, with `+liver` where the liver was refined.
        displacement: from the fixed to the moving scan.
        similarity: inside the body, see `similarity`.
        mean_mm: mean length of the displacement over the body.
        folding: share of the body where it folds.
        matrix: the same map of LPS points as 4x4, for linear maps.
    """

    method: str
    displacement: Displacement
    similarity: float
    mean_mm: float
    folding: float
    matrix: NDArray[np.float64] | None = None


def find_body(fixed: Volume) -> Body:
    """The patient without the table, at 4 mm; lungs and bowel gas count as body."""
    grid = fixed.grid.with_spacing((_COARSE_MM,) * 3)
    tissue = resample(fixed.array, fixed.grid, grid, fill=AIR_HU) > BODY_HU
    # Opened within slices only, so that a stack of two slices keeps its body.
    opened = ndimage.binary_opening(tissue, np.ones((1, 3, 3), dtype=bool))
    labels, count = ndimage.label(opened)
    if count == 0:
        return Body(np.ones(grid.shape, dtype=bool), grid)
    mask = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    for plane in mask:
        plane |= ndimage.binary_fill_holes(plane)
    return Body(mask, grid)


def inside_of(grid: Grid, world_mm: NDArray[np.float64]) -> BoolArray:
    index = grid.world_to_index(world_mm)
    inside = (index >= -0.5) & (index <= np.asarray(grid.shape) - 0.5)
    return np.asarray(inside.all(axis=-1))


def coverage(body: Body, moving: Grid, displacement: Displacement | None) -> float:
    """Share of the reference's body that lies in the moving scan's field of view."""
    points = body.world_mm
    if displacement is not None:
        points = points + displacement.at(points)
    return float(inside_of(moving, points).mean())


def working_pair(fixed: Volume, moving: Volume, body: Body) -> Pair | None:
    """Both scans on one grid over the shared body, fine enough to register and coarse enough to be
    quick; None where they share less than 5 % of the body or a few centimeters.
    """
    shared = np.zeros(body.mask.shape, dtype=bool)
    shared[body.mask] = inside_of(moving.grid, body.world_mm)
    box = Box.around(shared)
    if box is None or shared.sum() < 0.05 * body.mask.sum():
        return None
    # A margin of air around the skin, but not beyond the end of the scan.
    around = ndimage.binary_dilation(shared, np.ones((3, 3, 3), dtype=bool), iterations=2)
    around[around] = inside_of(moving.grid, body.grid.index_to_world(np.argwhere(around) * 1.0))
    box = Box.around(around) or box
    extent = np.asarray(body.grid.crop(box).extent_mm)
    spacing_mm = max(_WORKING_MM, float(np.cbrt(np.prod(extent) / _WORKING_VOXELS)))
    # convexAdam averages over blocks of 4: whole blocks keep its displacements undistorted.
    shape = np.maximum(4 * np.rint(extent / spacing_mm / 4), 8)
    if extent.min() < 24.0:
        return None
    z, y, x = (float(v) for v in extent / shape)
    grid = body.grid.crop(box).with_spacing((z, y, x))
    image = on_grid(fixed, grid, None, antialias=True)
    mask = resample(shared.astype(np.uint8), body.grid, grid, order=0).astype(bool)
    small = moving.grid.with_spacing(
        (
            max(z, moving.grid.spacing_mm[0]),
            max(y, moving.grid.spacing_mm[1]),
            max(x, moving.grid.spacing_mm[2]),
        )
    )
    moved = resample(moving.array, moving.grid, small, fill=AIR_HU)
    return Pair(grid, image, mask, Volume(_windowed(moved), small))


def on_grid(
    volume: Volume,
    grid: Grid,
    displacement: Displacement | None,
    *,
    antialias: bool = False,
    window_hu: tuple[float, float] = WINDOW_HU,
) -> Float32Array:
    """Windowed HU on a grid; outside the scan its nearest voxel repeats.

    Air there would look like an edge of the patient, towards which methods pull the image.
    """
    image = resample(
        volume.array,
        volume.grid,
        grid,
        fill=np.nan,
        antialias=antialias,
        displacement=displacement,
    )
    outside = np.isnan(image)
    if outside.all():
        return np.full(grid.shape, window_hu[0], dtype=np.float32)
    if outside.any():
        nearest = ndimage.distance_transform_edt(
            outside, grid.spacing_mm, return_distances=False, return_indices=True
        )
        image = image[tuple(nearest)]
    return np.asarray(np.clip(image, *window_hu), dtype=np.float32)


def _windowed(image: NDArray[Any]) -> Float32Array:
    return np.asarray(np.clip(image, *WINDOW_HU), dtype=np.float32)


def maps(pair: Pair, enough: float, late: Callable[[], bool] = lambda: False) -> tuple[Map, ...]:
    """Maps from the least to the most flexible; a method that is missing or fails is left out.

    Args:
        pair: both scans.
        enough: similarity from which a linear map is worth starting the next one from.
        late: whether time is up; what is more flexible is then not begun.
    """
    found: list[Map] = []
    start: Map | None = None
    for method in ("rigid", "affine", "convexadam"):
        if found and late():
            LOG.warning("no time is left for %s", method)
            break
        one = _try(method, pair, start.matrix if start else None)
        if one is None:
            continue
        found.append(one)
        # Twelve parameters must earn their place over six before the next map starts from them.
        if one.matrix is not None and one.similarity >= max(
            enough, start.similarity + _AFFINE_GAIN if start else enough
        ):
            start = one
    return tuple(found)


def _try(method: str, pair: Pair, start: NDArray[np.float64] | None) -> Map | None:
    """Run one method; None where its package is missing or it fails, which is logged."""
    matrix = None
    try:
        if method == "convexadam":
            before = field_of(start, pair.grid) if start is not None else None
            displacement = deform(pair.fixed, pair.warped(before), pair.grid, start)
        else:
            scene = Scene(pair.fixed, pair.body, pair.grid, pair.moving)
            matrix = linear(scene, start, rigid=method == "rigid")
            displacement = field_of(matrix, pair.grid)
    except ImportError as error:
        LOG.warning("%s is not available: %s", method, error)
        return None
    except (RuntimeError, ValueError, IndexError, ArithmeticError, MemoryError) as error:
        LOG.warning("%s failed: %s", method, error)
        return None
    if not np.isfinite(displacement.field_mm).all():
        LOG.warning("%s gave displacements that are not finite", method)
        return None
    return judged(method, pair, displacement, matrix)


def judged(
    method: str, pair: Pair, displacement: Displacement, matrix: NDArray[np.float64] | None = None
) -> Map:
    """A map with the measures of the body; the displacement sits on the pair's grid."""
    return Map(
        method,
        displacement,
        similarity(pair, displacement),
        float(np.linalg.norm(displacement.field_mm, axis=0)[pair.body].mean()),
        folding(displacement, pair.body),
        matrix,
    )


def similarity(pair: Pair, displacement: Displacement | None) -> float:
    """Normalized mutual information of the soft-tissue window inside the shared body."""
    return mutual_information(
        pair.fixed, pair.warped(displacement), pair.body, (WINDOW_HU, WINDOW_HU)
    )


def mutual_information(
    fixed: Float32Array,
    moving: Float32Array,
    where: BoolArray,
    windows: tuple[tuple[float, float], tuple[float, float]],
) -> float:
    """NMI = 2 I(f; m) / (H(f) + H(m)), 0 to 1, of the voxels `where`, 32 bins a window.

    Both images are smoothed alike first, so that the blur of interpolating one of them counts
    little.
    """
    a, b = (ndimage.gaussian_filter(image, 1.0)[where] for image in (fixed, moving))
    joint = np.histogram2d(a, b, bins=32, range=windows)[0]
    joint /= max(joint.sum(), 1.0)

    def entropy(p: NDArray[np.float64]) -> float:
        p = p[p > 0]
        return float(-(p * np.log(p)).sum())

    single = entropy(joint.sum(axis=0)) + entropy(joint.sum(axis=1))
    return 2.0 * (single - entropy(joint)) / single if single > 0 else 0.0


def folding(displacement: Displacement, body: BoolArray) -> float:
    """Share of the body where x -> x + displacement(x) has a Jacobian determinant <= 0."""
    thin = (slice(None), *(slice(None, None, 2),) * 3)  # as fine as convexAdam optimizes
    field = displacement.field_mm[thin].astype(np.float64)
    step = displacement.grid.affine[:3, :3] * 2.0
    jacobian = np.stack(
        [np.gradient(field, axis=a) for a in (1, 2, 3)], axis=-1
    )  # (3, z, y, x, index)
    jacobian = np.moveaxis(jacobian, 0, -2) + step
    inside = body[thin[1:]]
    folded = np.linalg.det(jacobian[inside]) * np.sign(np.linalg.det(step)) <= 0
    return float(folded.mean()) if folded.size else 0.0
