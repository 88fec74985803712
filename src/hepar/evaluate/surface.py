"""Distances between the surfaces of two masks, in millimeters.

The surface of X is X minus its erosion with the 18-neighborhood, outside the image is background
(LiTS challenge scoring, MedPy). Distances come from an exact Euclidean transform with anisotropic
spacing inside the joint box of both masks, which changes no value.
"""

from __future__ import annotations

from dataclasses import dataclass

import edt
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hepar.geometry import Box

Mask = NDArray[np.bool_]
_EIGHTEEN = ndimage.generate_binary_structure(3, 2)


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances of one case.

    Attributes:
        assd_mm: average symmetric surface distance.
        rmsd_mm: root mean square symmetric surface distance.
        hd_mm: Hausdorff distance.
        hd95_mm: larger of the two directed 95th percentiles.
        missed: one mask was empty: every value is the image diagonal.
    """

    assd_mm: float
    rmsd_mm: float
    hd_mm: float
    hd95_mm: float
    missed: bool = False


def surface_of(mask: Mask) -> Mask:
    """Voxels of a mask that touch the outside through a face or an edge."""
    inner = ndimage.binary_erosion(np.pad(mask, 1), _EIGHTEEN)[1:-1, 1:-1, 1:-1]
    return np.asarray(mask & ~inner)


def surface_distances(
    predicted: Mask, reference: Mask, spacing_mm: tuple[float, float, float]
) -> SurfaceDistances | None:
    """Compare two surfaces.

    Args:
        predicted: `(z, y, x)`.
        reference: same shape.
        spacing_mm: (z, y, x).

    Returns:
        The distances; the image diagonal for each when one mask is empty (policy `penalised`);
        None when both are empty.
    """
    if predicted.shape != reference.shape:
        raise ValueError(f"masks of shapes {predicted.shape} and {reference.shape}")
    box = Box.around(predicted | reference, (1, 1, 1))
    if box is None:
        return None
    if not predicted.any() or not reference.any():
        diagonal = float(np.linalg.norm(np.asarray(predicted.shape) * np.asarray(spacing_mm)))
        return SurfaceDistances(diagonal, diagonal, diagonal, diagonal, missed=True)
    a = surface_of(predicted[box.slices])
    b = surface_of(reference[box.slices])
    to_b = _distance_to(b, spacing_mm)[a].astype(np.float64)
    to_a = _distance_to(a, spacing_mm)[b].astype(np.float64)
    count = to_a.size + to_b.size
    squares = float((to_a**2).sum() + (to_b**2).sum())
    return SurfaceDistances(
        assd_mm=float((to_a.sum() + to_b.sum()) / count),
        rmsd_mm=float(np.sqrt(squares / count)),
        hd_mm=float(max(to_a.max(), to_b.max())),
        hd95_mm=float(max(np.percentile(to_a, 95), np.percentile(to_b, 95))),
    )


def _distance_to(surface: Mask, spacing_mm: tuple[float, float, float]) -> NDArray[np.float32]:
    outside = np.ascontiguousarray(~surface)
    distances = edt.edt(outside, anisotropy=spacing_mm, black_border=False, parallel=2)
    return np.asarray(distances, dtype=np.float32)
