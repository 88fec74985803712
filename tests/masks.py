"""Pairs of masks on which metrics go wrong: random, thin, at the border, anisotropic, tiny."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

Spacing = tuple[float, float, float]


def ball(shape, center_mm, radius_mm, spacing_mm: Spacing = (1.0, 1.0, 1.0)) -> np.ndarray:
    axes = np.meshgrid(
        *[np.arange(n) * s for n, s in zip(shape, spacing_mm, strict=True)], indexing="ij"
    )
    return sum((a - c) ** 2 for a, c in zip(axes, center_mm, strict=True)) <= radius_mm**2


def blobs(seed: int, shape=(9, 17, 15)) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, 1.6)
    return smooth > 0.6 * smooth.std()


def _box(shape, *slices) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[slices] = True
    return mask


def _line(shape) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    for k in range(min(shape)):
        mask[k, k, k] = True
    return mask


def pairs() -> dict[str, tuple[np.ndarray, np.ndarray, Spacing]]:
    """Name -> (prediction, reference, spacing), neither mask empty."""
    rng = np.random.default_rng(5)
    shape = (8, 12, 11)
    sheet, hollow = _box(shape, 3), ball((12, 14, 14), (6, 7, 7), 5.5)
    hollow &= ~ball((12, 14, 14), (6, 7, 7), 3.5)
    full = np.ones(shape, dtype=bool)
    return {
        "random": (rng.random(shape) < 0.4, rng.random(shape) < 0.5, (1.0, 1.0, 1.0)),
        "blobs": (blobs(1), blobs(51), (2.5, 0.8, 1.1)),
        "shifted": (blobs(3), np.roll(blobs(3), (1, 2, 1), (0, 1, 2)), (5.0, 0.7, 0.7)),
        "thin sheet": (sheet, np.roll(sheet, 2, 0), (1.3, 0.9, 0.6)),
        "diagonal line": (_line(shape), np.roll(_line(shape), 3, 2), (1.0, 2.0, 3.0)),
        "at the border": (_box(shape, slice(0, 3)), _box(shape, slice(5, 8)), (1.5, 1.0, 1.0)),
        "corner voxel": (_box(shape, 0, 0, 0), _box(shape, 7, 11, 10), (2.0, 0.5, 0.5)),
        "one voxel inside": (_box(shape, 4, 5, 5), ball(shape, (4, 5, 5), 3.2), (1.0, 1.0, 1.0)),
        "full image": (full, ball(shape, (4, 6, 5), 3), (1.0, 0.8, 0.8)),
        "shell and ball": (hollow, ball((12, 14, 14), (6, 7, 7), 5), (1.0, 1.0, 1.0)),
        "equal": (blobs(8), blobs(8), (3.0, 1.0, 1.0)),
        "one slice": (blobs(2, (1, 20, 20)), blobs(4, (1, 20, 20)), (5.0, 0.7, 0.7)),
        "two parts": (
            ball((10, 20, 40), (5, 10, 6), 4) | ball((10, 20, 40), (5, 10, 33), 3),
            ball((10, 20, 40), (5, 9, 7), 4),
            (1.0, 1.0, 1.0),
        ),
        "anisotropic": (blobs(6, (6, 24, 24)), blobs(16, (6, 24, 24)), (8.0, 0.6, 0.6)),
    }
