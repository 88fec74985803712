"""One physical body of known HU, sampled by any header: where each voxel lies can be checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from hepar.geometry import Grid

SHAPE = (48, 64, 12)  # (x, y, z)
AFFINE = np.array(
    [[-1.0, 0.0, 0.0, 24.0], [0.0, -1.0, 0.0, 32.0], [0.0, 0.0, 5.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
)
MARKER_MM = np.array([8.0, -10.0, 30.0])  # LPS
MARKER_HU = 300


def hu_at(world_lps: np.ndarray) -> np.ndarray:
    """HU of the body at LPS positions `(..., 3)`: an ellipse of tissue with a bright ball in it."""
    hu = np.full(world_lps.shape[:-1], -1000, np.int16)
    hu[(world_lps[..., 0] / 22) ** 2 + (world_lps[..., 1] / 28) ** 2 < 1] = 50
    hu[((world_lps - MARKER_MM) ** 2).sum(-1) < 49] = MARKER_HU
    return hu


def voxels(affine_ras: np.ndarray = AFFINE) -> np.ndarray:
    """The body as stored by a header with this affine, `(x, y, z)`."""
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    world = index @ affine_ras[:3, :3].T + affine_ras[:3, 3]
    return hu_at(world * [-1, -1, 1])


def image(values: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> Any:
    """A NIfTI-1 image whose qform and sform agree."""
    made = nib.Nifti1Image(voxels(affine) if values is None else values, affine)
    made.set_qform(affine, 1)
    made.set_sform(affine, 1)
    return made


def saved(path: Path, made: Any | None = None) -> Path:
    """An image in a file."""
    nib.save(image() if made is None else made, path)
    return path


def expected(grid: Grid) -> np.ndarray:
    """What a right reading of the body on a grid holds, `(z, y, x)`."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    return hu_at(grid.index_to_world(index.astype(float)))
