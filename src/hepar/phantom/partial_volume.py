"""From fine subslices to voxels that hold two tissues: which, and how much of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8, UInt16

FINE_MM = 1.6
MOST_SUBSLICES = 3


@dataclass(frozen=True)
class Mixture:
    """Two codes a voxel.

    Attributes:
        first: the code that fills most of the voxel.
        second: the runner-up; `first` where the voxel is pure.
        share: of the second in the two, in 255ths, at most a half.
    """

    first: UInt16[np.ndarray, "z y x"]
    second: UInt16[np.ndarray, "z y x"]
    share: UInt8[np.ndarray, "z y x"]


def subslices(spacing_z_mm: float) -> int:
    """Fine slices a slice is made of, so that none is thicker than 1.6 mm, three at most."""
    return int(np.clip(np.ceil(spacing_z_mm / FINE_MM), 1, MOST_SUBSLICES))


def mix(fine: Mixture, count: int) -> Mixture:
    """Combine each `count` fine slices into one.

    Args:
        fine: codes of (count * z, y, x) fine voxels.
        count: fine slices a slice.
    """
    if count == 1:
        return fine
    _, ny, nx = fine.first.shape
    first = fine.first.reshape(-1, count, ny, nx)
    second = fine.second.reshape(-1, count, ny, nx)
    share = fine.share.reshape(-1, count, ny, nx)
    pure = (first == first[:, :1]).all(axis=1) & (share == 0).all(axis=1)
    z, y, x = np.nonzero(~pure)
    candidates = np.concatenate([first[z, :, y, x], second[z, :, y, x]], axis=1)
    part = share[z, :, y, x].astype(np.float32) / 255
    weight = np.concatenate([1 - part, part], axis=1)
    total = np.stack(
        [(weight * (candidates == candidates[:, i : i + 1])).sum(1) for i in range(2 * count)], 1
    )
    rows = np.arange(len(z))
    best = candidates[rows, total.argmax(1)]
    most = total.max(1)
    rest = np.where(candidates == best[:, None], -1.0, total)
    chosen = rest.argmax(1)
    runner = np.where(rest[rows, chosen] > 0, candidates[rows, chosen], best)
    left = np.clip(rest[rows, chosen], 0, None)
    result = Mixture(first[:, 0].copy(), first[:, 0].copy(), np.zeros(pure.shape, np.uint8))
    result.first[z, y, x], result.second[z, y, x] = best, runner
    result.share[z, y, x] = np.rint(255 * left / (most + left)).astype(np.uint8)
    return result
