"""The two estimators of a map between two images: linear by SimpleITK, deformable by convexAdam.

They know of images on a grid, not of patients. A map of a fixed to a moving image says for a point
of the fixed one where its anatomy lies in the moving one, in LPS mm. Neither depends on how many
threads the machine has.
"""

from __future__ import annotations

import contextlib
import io
import warnings as python_warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hepar.geometry import Displacement, Grid
from hepar.study import Volume

Float32Array = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

_CONVEXADAM: dict[str, Any] = {"grid_sp": 4, "disp_hw": 4, "selected_niter": 40}


def points_of(grid: Grid) -> NDArray[np.float64]:
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    return grid.index_to_world(index.astype(np.float64))


def field_of(matrix: NDArray[np.float64], grid: Grid) -> Displacement:
    """The displacement of a 4x4 map of LPS points."""
    world = points_of(grid)
    moved = world @ matrix[:3, :3].T + matrix[:3, 3] - world
    return Displacement(np.moveaxis(moved, -1, 0).astype(np.float32), grid)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Torch on one thread: the order of sums, and so the map, is the same on every machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def deform(
    fixed: Float32Array,
    moving: Float32Array,
    grid: Grid,
    start: NDArray[np.float64] | None,
    **settings: float,
) -> Displacement:
    """Deformable map after a linear one: x -> start(x + u(x)), u by convexAdam.

    The package returns u in working voxels along (z, y, x), to be added to a fixed voxel to reach
    the moving one. Its optimizer scales voxels to [-1, 1] by (n - 1) / 2 for its n samples an axis
    but samples without aligned corners, where n / 2 is right: u comes out (n - 1) / n too short.

    Args:
        fixed: `(z, y, x)` on `grid`.
        moving: `(z, y, x)` on `grid`, already moved by `start`.
        grid: of both.
        start: 4x4 map of LPS points, or None.
        **settings: of convexAdam, where they differ from those for the body.
    """
    import torch

    with (
        contextlib.redirect_stdout(io.StringIO()),
        python_warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
        _one_thread(),
    ):
        from convexAdam.convex_adam_MIND import convex_adam_pt

        python_warnings.simplefilter("ignore")  # importing it changes the filters too
        torch.manual_seed(0)
        voxels = convex_adam_pt(
            fixed,
            moving,
            dtype=torch.float32,
            device=torch.device("cpu"),
            **{**_CONVEXADAM, **settings},
        )
    samples = np.asarray(grid.shape) // 2
    voxels *= samples / np.maximum(samples - 1, 1)
    moved = voxels @ grid.affine[:3, :3].T
    if start is not None:
        world = points_of(grid)
        moved = (world + moved) @ start[:3, :3].T + start[:3, 3] - world
    return Displacement(np.moveaxis(moved, -1, 0).astype(np.float32), grid)


@dataclass(frozen=True)
class Scene:
    """What a linear map is estimated from.

    Attributes:
        fixed: `(z, y, x)` on `grid`, windowed.
        mask: where it counts.
        grid: of both.
        moving: the other scan, windowed, on its own grid.
        step_mm: first step of the optimizer.
        share: of the voxels that are looked at.
        levels: how much is left out, and the smoothing in mm, a level.
    """

    fixed: Float32Array
    mask: BoolArray
    grid: Grid
    moving: Volume
    step_mm: float = 2.0
    share: float = 0.3
    levels: tuple[tuple[int, float], ...] = ((4, 4.0), (2, 2.0))


def _rotation(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation nearest to a 3x3 matrix."""
    u, _, v = np.linalg.svd(matrix)
    return np.asarray(u @ np.diag([1.0, 1.0, np.linalg.det(u @ v)]) @ v)


def linear(
    scene: Scene,
    start: NDArray[np.float64] | None,
    *,
    rigid: bool,
    center_mm: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """4x4 map of LPS points from the fixed to the moving scan, by Mattes mutual information."""
    import SimpleITK as sitk  # noqa: N813

    grid = scene.grid
    transform = sitk.Euler3DTransform() if rigid else sitk.AffineTransform(3)
    center = grid.index_to_world((np.asarray(grid.shape) - 1) / 2)
    center = center if center_mm is None else center_mm
    transform.SetCenter(center.tolist())
    if start is not None:
        turn = _rotation(start[:3, :3]) if rigid else start[:3, :3]
        transform.SetMatrix(turn.ravel().tolist())
        moved = start[:3, :3] @ center + start[:3, 3]
        transform.SetTranslation((moved - center).tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(scene.share, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(scene.step_mm, 0.02, 60, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([shrink for shrink, _ in scene.levels])
    method.SetSmoothingSigmasPerLevel([sigma for _, sigma in scene.levels])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(transform, inPlace=True)
    method.SetMetricFixedMask(_image(scene.mask.astype(np.uint8), grid))
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    # Also for the filters inside: sums in one order give the same map on every machine.
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        method.Execute(_image(scene.fixed, grid), _image(scene.moving.array, scene.moving.grid))
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    turn = np.asarray(transform.GetMatrix()).reshape(3, 3)
    matrix = np.eye(4)
    matrix[:3, :3] = turn
    matrix[:3, 3] = center + np.asarray(transform.GetTranslation()) - turn @ center
    return matrix


def _image(array: NDArray[Any], grid: Grid) -> Any:
    """A SimpleITK image: its axes run x, y, z, its world is LPS."""
    import SimpleITK as sitk  # noqa: N813

    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing_mm[::-1])
    image.SetOrigin(grid.origin_mm)
    image.SetDirection(grid.matrix[:, ::-1].ravel().tolist())
    return image
