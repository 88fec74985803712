"""How `register` estimates maps between two scans of a patient, and judges them.

Everything happens on a coarse working grid over the body that both scans share. Linear maps come
from SimpleITK (Mattes mutual information), the deformable one from convexAdam (MIND features,
coupled convex optimization, Adam; Siebert et al. 2024, doi 10.1109/TMI.2024.3480118). A map is
judged by a measure none of them optimizes at this scale: normalized mutual information inside the
body.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings as python_warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hepar.geometry import Box, Displacement, Grid
from hepar.resampling import resample
from hepar.study import Volume

LOG = logging.getLogger(__name__)

AIR_HU = -1024
BODY_HU = -300
_COARSE_MM = 4.0
_WORKING_MM = 2.4
_WORKING_VOXELS = 1_000_000
_WINDOW_HU = (-200.0, 300.0)
_CONVEXADAM = {"grid_sp": 4, "disp_hw": 4, "selected_niter": 40}

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
        return _on_grid(self.moving, self.grid, displacement)


@dataclass(frozen=True)
class Map:
    """An estimated map and how good it is."""

    method: str
    displacement: Displacement
    similarity: float
    mean_mm: float
    folding: float


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


def _inside(grid: Grid, world_mm: NDArray[np.float64]) -> BoolArray:
    index = grid.world_to_index(world_mm)
    inside = (index >= -0.5) & (index <= np.asarray(grid.shape) - 0.5)
    return np.asarray(inside.all(axis=-1))


def coverage(body: Body, moving: Grid, displacement: Displacement | None) -> float:
    """Share of the reference's body that lies in the moving scan's field of view."""
    points = body.world_mm
    if displacement is not None:
        points = points + displacement.at(points)
    return float(_inside(moving, points).mean())


def working_pair(fixed: Volume, moving: Volume, body: Body) -> Pair | None:
    """Both scans on one grid over the shared body, fine enough to register and coarse enough to be
    quick; None where they share less than 5 % of the body or a few centimeters.
    """
    shared = np.zeros(body.mask.shape, dtype=bool)
    shared[body.mask] = _inside(moving.grid, body.world_mm)
    box = Box.around(shared)
    if box is None or shared.sum() < 0.05 * body.mask.sum():
        return None
    # A margin of air around the skin, but not beyond the end of the scan.
    around = ndimage.binary_dilation(shared, np.ones((3, 3, 3), dtype=bool), iterations=2)
    around[around] = _inside(moving.grid, body.grid.index_to_world(np.argwhere(around) * 1.0))
    box = Box.around(around) or box
    extent = np.asarray(body.grid.crop(box).extent_mm)
    spacing_mm = max(_WORKING_MM, float(np.cbrt(np.prod(extent) / _WORKING_VOXELS)))
    # convexAdam averages over blocks of 4: whole blocks keep its displacements undistorted.
    shape = np.maximum(4 * np.rint(extent / spacing_mm / 4), 8)
    if extent.min() < 24.0:
        return None
    z, y, x = (float(v) for v in extent / shape)
    grid = body.grid.crop(box).with_spacing((z, y, x))
    image = _on_grid(fixed, grid, None, antialias=True)
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


def _on_grid(
    volume: Volume, grid: Grid, displacement: Displacement | None, *, antialias: bool = False
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
        return np.full(grid.shape, _WINDOW_HU[0], dtype=np.float32)
    if outside.any():
        nearest = ndimage.distance_transform_edt(
            outside, grid.spacing_mm, return_distances=False, return_indices=True
        )
        image = image[tuple(nearest)]
    return _windowed(image)


def _windowed(image: NDArray[Any]) -> Float32Array:
    return np.asarray(np.clip(image, *_WINDOW_HU), dtype=np.float32)


def maps(pair: Pair, enough: float) -> Iterator[Map]:
    """Maps from the most to the least flexible; a method that is missing or fails is left out.

    Args:
        pair: both scans.
        enough: similarity from which the rigid map is worth starting the flexible one from.
    """
    rigid = _try("rigid", pair, None)
    start = rigid.matrix if rigid and rigid.found.similarity >= enough else None
    flexible = _try("convexadam", pair, start) or _try("affine", pair, start)
    if flexible:
        yield flexible.found
    if rigid:
        yield rigid.found


@dataclass(frozen=True)
class _Attempt:
    found: Map
    matrix: NDArray[np.float64] | None


def _try(method: str, pair: Pair, start: NDArray[np.float64] | None) -> _Attempt | None:
    """Run one method; None where its package is missing or it fails, which is logged."""
    try:
        if method == "convexadam":
            matrix, displacement = None, _convex_adam(pair, start)
        else:
            matrix = _linear(pair, start, rigid=method == "rigid")
            displacement = _field_of(matrix, pair.grid)
    except ImportError as error:
        LOG.warning("%s is not available: %s", method, error)
        return None
    except (RuntimeError, ValueError, IndexError, ArithmeticError, MemoryError) as error:
        LOG.warning("%s failed: %s", method, error)
        return None
    if not np.isfinite(displacement.field_mm).all():
        LOG.warning("%s gave displacements that are not finite", method)
        return None
    lengths = np.linalg.norm(displacement.field_mm, axis=0)
    return _Attempt(
        Map(
            method,
            displacement,
            similarity(pair, displacement),
            float(lengths[pair.body].mean()),
            _folding(displacement, pair.body),
        ),
        matrix,
    )


def similarity(pair: Pair, displacement: Displacement | None) -> float:
    """Normalized mutual information, 0 to 1, of the soft-tissue window inside the shared body.

    Both images are smoothed alike first, so that the blur of interpolating one of them counts
    little. NMI = 2 I(f; m) / (H(f) + H(m)).
    """
    images = (pair.fixed, pair.warped(displacement))
    fixed, moving = (ndimage.gaussian_filter(image, 1.0)[pair.body] for image in images)
    joint = np.histogram2d(fixed, moving, bins=32, range=(_WINDOW_HU, _WINDOW_HU))[0]
    joint /= joint.sum()

    def entropy(p: NDArray[np.float64]) -> float:
        p = p[p > 0]
        return float(-(p * np.log(p)).sum())

    single = entropy(joint.sum(axis=0)) + entropy(joint.sum(axis=1))
    return 2.0 * (single - entropy(joint)) / single if single > 0 else 0.0


def _folding(displacement: Displacement, body: BoolArray) -> float:
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


def _points(grid: Grid) -> NDArray[np.float64]:
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    return grid.index_to_world(index.astype(np.float64))


def _field_of(matrix: NDArray[np.float64], grid: Grid) -> Displacement:
    """The displacement of a 4x4 map of LPS points."""
    world = _points(grid)
    moved = world @ matrix[:3, :3].T + matrix[:3, 3] - world
    return Displacement(np.moveaxis(moved, -1, 0).astype(np.float32), grid)


def _convex_adam(pair: Pair, start: NDArray[np.float64] | None) -> Displacement:
    """Deformable map after a linear one: x -> start(x + u(x)), u by convexAdam.

    The package returns u in working voxels along (z, y, x), to be added to a fixed voxel to reach
    the moving one. Its optimizer scales voxels to [-1, 1] by (n - 1) / 2 for its n samples an axis
    but samples without aligned corners, where n / 2 is right: u comes out (n - 1) / n too short.
    """
    import torch

    with (
        contextlib.redirect_stdout(io.StringIO()),
        python_warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
    ):
        from convexAdam.convex_adam_MIND import convex_adam_pt

        python_warnings.simplefilter("ignore")  # importing it changes the filters too
        torch.manual_seed(0)
        voxels = convex_adam_pt(
            pair.fixed,
            pair.warped(_field_of(start, pair.grid) if start is not None else None),
            dtype=torch.float32,
            device=torch.device("cpu"),
            **_CONVEXADAM,
        )
    samples = np.asarray(pair.grid.shape) // 2
    voxels *= samples / np.maximum(samples - 1, 1)
    moved = voxels @ pair.grid.affine[:3, :3].T
    if start is not None:
        world = _points(pair.grid)
        moved = (world + moved) @ start[:3, :3].T + start[:3, 3] - world
    return Displacement(np.moveaxis(moved, -1, 0).astype(np.float32), pair.grid)


def _linear(pair: Pair, start: NDArray[np.float64] | None, *, rigid: bool) -> NDArray[np.float64]:
    """4x4 map of LPS points from the fixed to the moving scan, by Mattes mutual information."""
    import SimpleITK as sitk  # noqa: N813

    transform = sitk.Euler3DTransform() if rigid else sitk.AffineTransform(3)
    center = pair.grid.index_to_world((np.asarray(pair.grid.shape) - 1) / 2)
    transform.SetCenter(center.tolist())
    if start is not None:
        transform.SetMatrix(start[:3, :3].ravel().tolist())
        moved = start[:3, :3] @ center + start[:3, 3]
        transform.SetTranslation((moved - center).tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)  # sums in one order: the same result on every run
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.3, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 0.02, 60, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2])
    method.SetSmoothingSigmasPerLevel([4.0, 2.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(transform, inPlace=True)
    method.SetMetricFixedMask(_image(pair.body.astype(np.uint8), pair.grid))
    method.Execute(_image(pair.fixed, pair.grid), _image(pair.moving.array, pair.moving.grid))
    rotation = np.asarray(transform.GetMatrix()).reshape(3, 3)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = center + np.asarray(transform.GetTranslation()) - rotation @ center
    return matrix


def _image(array: NDArray[Any], grid: Grid) -> Any:
    """A SimpleITK image: its axes run x, y, z, its world is LPS."""
    import SimpleITK as sitk  # noqa: N813

    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing_mm[::-1])
    image.SetOrigin(grid.origin_mm)
    image.SetDirection(grid.matrix[:, ::-1].ravel().tolist())
    return image
