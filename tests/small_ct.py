"""Small volumes for tests of the doors: plausible HU in which every flip and shift shows."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from hepar.geometry import Grid
from hepar.study import Volume


def body(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Air around noisy soft tissue, int16, no two slices alike."""
    rng = np.random.default_rng(seed)
    hu = rng.integers(-80, 200, shape).astype(np.int16)
    hu[:, : max(1, shape[1] // 4)] = -1000 + rng.integers(0, 20)
    return hu


def volume(
    seed: int = 0, shape: tuple[int, int, int] = (6, 8, 10), slice_mm: float = 2.5
) -> Volume:
    """An axial volume with a different spacing along each axis."""
    grid = Grid.axial(shape, (slice_mm, 0.8, 0.7), (-100.0, -120.0, 55.5))
    return Volume(body(shape, seed), grid)


Pose = tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...], int, bool]

# Drawn as plain numbers: checked types may not be built inside a strategy, because beartype draws
# from `random`.
POSES: st.SearchStrategy[Pose] = st.tuples(
    st.tuples(*[st.integers(3, 7)] * 3),
    st.tuples(*[st.floats(0.4, 6.0)] * 3),
    st.tuples(*[st.floats(-900.0, 900.0)] * 3),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)


def grid_of(pose: Pose) -> Grid:
    """A grid of any orientation: turned or oblique, mirrored or not."""
    shape, spacing, origin, seed, oblique = pose
    rng = np.random.default_rng(seed)
    matrix = Rotation.random(rng=rng).as_matrix() if oblique else np.eye(3)[rng.permutation(3)]
    matrix = matrix * rng.choice([-1.0, 1.0], 3)
    return Grid(shape, spacing, origin, tuple(float(v) for v in matrix.ravel()))  # type: ignore[arg-type]


def corners(grid: Grid) -> np.ndarray:
    """`(8, 3)` indices of the corner voxels, `(z, y, x)`."""
    return np.array(list(np.ndindex(2, 2, 2)), dtype=float) * (np.asarray(grid.shape) - 1)
