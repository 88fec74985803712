"""How a volume is cut into pieces: blended windows, slabs, padded sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray


def padded_size(shape: Sequence[int], stride: int) -> int:
    """Voxels of a shape whose axes are rounded up to multiples of the stride."""
    return int(np.prod([size + -size % stride for size in shape]))


def windows(
    length: int, size: int, overlap: float, stride: int, *, uniform: bool = False
) -> tuple[list[int], list[NDArray[np.float32]]]:
    """Starts along one axis and, for each, weights that add up to one at every voxel.

    The Gaussian, whose sigma is an eighth of the window, is a product over the axes and so is the
    sum over all windows: dividing along each axis by itself is exact, and no volume of weights is
    needed.

    Whatever the weights, windows give at a voxel what a pass over the whole volume gives there if
    every window that covers it does. With a network of receptive field 2r + 1 that is so for voxels
    farther than r from the borders of all windows that cover them, the volume's own borders not
    counted; with r = 0 it is so everywhere. A network that normalizes over what it sees has no r.

    Args:
        length: voxels along the axis.
        size: of a window.
        overlap: share of a window that its neighbor covers too.
        stride: steps are multiples of it, but the last.
        uniform: every window that covers a voxel counts the same.
    """
    if size >= length:
        return [0], [np.ones(length, dtype=np.float32)]
    step = int(size * (1.0 - overlap))
    # A window shorter than two strides, along an axis that needs less than the largest of them.
    step = step // stride * stride or max(1, step)
    starts = sorted({*range(0, length - size, step), length - size})
    distance = (np.arange(size) - (size - 1) / 2) / (size / 8)
    bell = np.ones(size) if uniform else np.maximum(np.exp(-0.5 * distance**2), 1e-3)
    total = np.zeros(length)
    for start in starts:
        total[start : start + size] += bell
    return starts, [(bell / total[s : s + size]).astype(np.float32) for s in starts]


def slabs(count: int, voxels_each: int, limit: int = 8_000_000) -> Iterator[tuple[int, int]]:
    """Ranges along an axis that hold at most `limit` voxels each."""
    rows = max(1, limit // max(1, voxels_each))
    for start in range(0, count, rows):
        yield start, min(count, start + rows)
