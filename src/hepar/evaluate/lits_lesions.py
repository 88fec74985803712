"""Outlines of detected lesions as the LiTS challenge measures them: over lesions, not over cases.

A detected lesion is a group that `lits_detection` accepts (intersection over union above one half):
what it holds on either side, taken as one mask each. Means over a set run over all detected lesions
of all its cases. A figure of these is no figure of whole tumor masks: what was missed, or marked
in vain, is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hepar.evaluate.lesion import DetectionCounts, LesionOverlaps
from hepar.evaluate.lits_detection import accepted_groups, lits_components, lits_detection
from hepar.evaluate.surface import surface_distances
from hepar.geometry import Box
from hepar.study import TUMOR

THRESHOLD = 0.5


@dataclass(frozen=True)
class DetectedLesion:
    """One detected lesion.

    Attributes:
        dice: of its masks.
        rvd: predicted volume less the true one, over the true one.
        assd_mm: average symmetric surface distance.
        msd_mm: maximum symmetric surface distance.
    """

    dice: float
    rvd: float
    assd_mm: float
    msd_mm: float


@dataclass(frozen=True)
class ServerLesions:
    """The lesions of a case under the challenge's rule.

    Attributes:
        counts: of lesions at IoU > 0.5.
        detected: those that were found.
    """

    counts: DetectionCounts
    detected: tuple[DetectedLesion, ...]


def server_lesions(
    predicted: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    spacing_mm: tuple[float, float, float],
    overlaps: LesionOverlaps,
) -> ServerLesions:
    """Detected lesions of one case and how they were outlined.

    Args:
        predicted: `(z, y, x)` label map.
        reference: same shape.
        spacing_mm: (z, y, x).
        overlaps: of the components of both that `lits_components` numbers.
    """
    groups = accepted_groups(overlaps, THRESHOLD)
    found = []
    if groups:
        ours, true = lits_components(predicted == TUMOR), lits_components(reference == TUMOR)
    for group in groups:
        a, b = np.isin(ours, group.predicted), np.isin(true, group.reference)
        box = Box.around(a | b)
        assert box is not None
        a, b = a[box.slices], b[box.slices]
        surface = surface_distances(a, b, spacing_mm)
        assert surface is not None
        n_a, n_b, both = int(a.sum()), int(b.sum()), int((a & b).sum())
        found.append(
            DetectedLesion(
                dice=2 * both / (n_a + n_b),
                rvd=(n_a - n_b) / n_b,
                assd_mm=surface.assd_mm,
                msd_mm=surface.hd_mm,
            )
        )
    return ServerLesions(lits_detection(overlaps, THRESHOLD), tuple(found))
