"""Distances between the surfaces of two masks, in millimeters.

Ours, as in the LiTS challenge: the surface of X is X minus its erosion with the 18-neighborhood,
outside the image is background; the average is pooled over both surfaces, HD95 is the larger of
the two directed 95th percentiles. Other tools differ in the neighborhood (6: MedPy, MONAI), in the
percentile (pooled: MedPy) or take the filled masks (SimpleITK); each is a switch or an attribute
here, and held to its tool by a test. Only the joint box of both masks is worked on, which changes
no value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from hepar.evaluate.point_sets import Spacing, boundary, distances
from hepar.geometry import Box

Mask = NDArray[np.bool_]
Surface = Literal[6, 18, 26, "filled"]


@dataclass(frozen=True)
class Directed:
    """Distances from every element of one surface to the other surface.

    Attributes:
        n: elements.
        mean_mm: mean.
        rms_mm: root mean square.
        max_mm: directed Hausdorff distance.
        p95_mm: 95th percentile, linear between elements.
    """

    n: int
    mean_mm: float
    rms_mm: float
    max_mm: float
    p95_mm: float

    @classmethod
    def of(cls, distances_mm: Float[np.ndarray, " n"]) -> Directed:
        """Summarize distances; there is at least one."""
        return cls(
            n=len(distances_mm),
            mean_mm=float(distances_mm.mean()),
            rms_mm=float(np.sqrt(np.mean(distances_mm**2))),
            max_mm=float(distances_mm.max()),
            p95_mm=float(np.percentile(distances_mm, 95)),
        )


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances of one structure in one case.

    Attributes:
        forth: from the prediction to the reference.
        back: from the reference to the prediction.
        hd95_pooled_mm: 95th percentile over both at once (MedPy).
    """

    forth: Directed
    back: Directed
    hd95_pooled_mm: float

    @property
    def assd_mm(self) -> float:
        """Average symmetric surface distance (ASD): mean over the elements of both surfaces."""
        a, b = self.forth, self.back
        return (a.n * a.mean_mm + b.n * b.mean_mm) / (a.n + b.n)

    @property
    def rmsd_mm(self) -> float:
        """Root mean square symmetric surface distance."""
        a, b = self.forth, self.back
        return float(np.sqrt((a.n * a.rms_mm**2 + b.n * b.rms_mm**2) / (a.n + b.n)))

    @property
    def hd_mm(self) -> float:
        """Hausdorff distance, the maximum symmetric surface distance (MSD)."""
        return max(self.forth.max_mm, self.back.max_mm)

    @property
    def hd95_mm(self) -> float:
        """Larger of the two directed 95th percentiles."""
        return max(self.forth.p95_mm, self.back.p95_mm)


def surface_distances(
    predicted: Mask, reference: Mask, spacing_mm: Spacing, *, surface: Surface = 18
) -> SurfaceDistances | None:
    """Compare two surfaces.

    Args:
        predicted: `(z, y, x)`.
        reference: same shape.
        spacing_mm: (z, y, x).
        surface: neighborhood that tells surface voxels from inner ones, or `filled` for all voxels.

    Returns:
        None when a mask is empty: there is nothing to measure, and what such a case counts for is
        a matter of policy.

    Raises:
        ValueError: the shapes differ.
    """
    cropped = joint_crop(predicted, reference)
    if cropped is None:
        return None
    a, b = (np.flatnonzero(m) if surface == "filled" else boundary(m, surface) for m in cropped)
    shape = cropped[0].shape
    forth = distances(a, b, shape, spacing_mm)
    back = distances(b, a, shape, spacing_mm)
    pooled = float(np.percentile(np.concatenate([forth, back]), 95))
    return SurfaceDistances(Directed.of(forth), Directed.of(back), pooled)


def joint_crop(predicted: Mask, reference: Mask) -> tuple[Mask, Mask] | None:
    """Both masks in their joint box; None when a mask is empty.

    Raises:
        ValueError: the shapes differ.
    """
    if predicted.shape != reference.shape:
        raise ValueError(f"masks of shapes {predicted.shape} and {reference.shape}")
    boxes = [Box.around(mask) for mask in (predicted, reference)]
    if boxes[0] is None or boxes[1] is None:
        return None
    box = boxes[0].union(boxes[1])
    return predicted[box.slices], reference[box.slices]
