"""How far the mean HU of a region is to be trusted: the spread of healthy liver over equal volumes.

CT noise is correlated, and a liver has texture, vessels and shading, so the error of a mean is not
the spread of voxels over the square root of their number. It is measured instead: healthy liver is
cut into blocks of several sizes, and the spread of their means is the standard uncertainty of the
mean of any region of that volume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from einops import reduce
from jaxtyping import Bool
from numpy.typing import NDArray

from hepar.geometry import Grid

BLOCK_EDGES_MM = (4.0, 8.0, 16.0)
MIN_BLOCKS = 12


@dataclass(frozen=True)
class LiverNoise:
    """Standard uncertainty of a mean by the volume that it is over.

    Attributes:
        volume_ml: ascending, that of one voxel first.
        sd_hu: spread of the means of healthy liver over such volumes.
    """

    volume_ml: tuple[float, ...]
    sd_hu: tuple[float, ...]

    def of(self, volume_ml: float) -> float:
        """In HU; on a log-log scale between what was measured, and the nearest of it beyond."""
        return float(
            np.exp(np.interp(np.log(volume_ml), np.log(self.volume_ml), np.log(self.sd_hu)))
        )


def liver_noise(
    volumes: Mapping[str, NDArray[np.int16]],
    healthy: Bool[np.ndarray, "z y x"],
    grid: Grid,
    edges_mm: Sequence[float] = BLOCK_EDGES_MM,
) -> dict[str, LiverNoise]:
    """Measure the noise of each phase in the liver.

    Args:
        volumes: `(z, y, x)` HU by phase.
        healthy: liver away from lesions and border (`measure.healthy_liver`).
        grid: of all arrays.
        edges_mm: of the blocks; sizes of which fewer than `MIN_BLOCKS` fit are left out.

    Returns:
        Empty where not even voxels are enough.
    """
    sizes = {(1, 1, 1)}
    for edge in edges_mm:
        z, y, x = (max(1, round(edge / step)) for step in grid.spacing_mm)
        sizes.add((z, y, x))
    found: dict[str, LiverNoise] = {}
    for phase, volume in volumes.items():
        measured = []
        for size in sorted(sizes, key=lambda s: float(np.prod(s))):
            means = _block_means(volume, healthy, size)
            if means.size >= MIN_BLOCKS:
                measured.append((float(np.prod(size)) * grid.voxel_ml, _spread(means)))
        if measured:
            volume_ml, sd_hu = zip(*measured, strict=True)
            found[phase] = LiverNoise(volume_ml, sd_hu)
    return found


def _block_means(
    volume: NDArray[np.int16], healthy: NDArray[np.bool_], size: tuple[int, int, int]
) -> NDArray[np.float64]:
    """Means of the blocks of a regular tiling that lie in healthy liver altogether."""
    if size == (1, 1, 1):
        return volume[healthy].astype(np.float64)
    whole = tuple(slice(0, n - n % step) for n, step in zip(volume.shape, size, strict=True))
    steps = dict(zip("def", size, strict=True))
    pattern = "(z d) (y e) (x f) -> z y x"
    inside = reduce(healthy[whole].astype(np.uint8), pattern, "min", **steps)
    means = reduce(volume[whole].astype(np.float32), pattern, "mean", **steps)
    return np.asarray(means[inside > 0], dtype=np.float64)


def _spread(values: NDArray[np.float64]) -> float:
    """Robust SD, so that the few blocks with a vessel do not decide; at least 0.1 HU."""
    return max(0.1, 1.4826 * float(np.median(np.abs(values - np.median(values)))))
