"""Registered studies and solids whose measures are known, for tests of the stages."""

from __future__ import annotations

import numpy as np

from hepar.geometry import Grid
from hepar.study import AlignedStudy, Phase, PhasedStudy, Study, Volume, reference_phase


def aligned_study(volumes: dict[str, np.ndarray], grid: Grid) -> AlignedStudy:
    """A study that was registered already."""
    on_grid = {Phase(name): Volume(array, grid) for name, array in volumes.items()}
    phased = PhasedStudy(on_grid, (), Study((), ()), dict.fromkeys(on_grid, grid))
    return AlignedStudy(on_grid, reference_phase(on_grid), phased, ())


def oblique_grid(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Grid:
    """A tilted grid with two of its axes running backwards."""
    a, b = np.deg2rad(17.0), np.deg2rad(-9.0)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    columns = np.array([[0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]])
    matrix = about_z @ about_x @ columns
    return Grid(shape, spacing_mm, (31.0, -12.5, 240.0), tuple(float(v) for v in matrix.ravel()))


def ellipsoid(
    grid: Grid, center_world_mm: tuple[float, float, float], radii_mm: tuple[float, float, float]
) -> np.ndarray:
    """Voxels inside an ellipsoid whose radii (z, y, x) lie along the grid's own axes."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    center = grid.world_to_index(np.array(center_world_mm))
    offset = (index - center) * np.array(grid.spacing_mm) / np.array(radii_mm)
    return (offset**2).sum(-1) <= 1
