"""Liver and tumor of two label maps in one pass: voxel counts, and the box that holds both masks.

Everything later works inside the boxes. The maps are read slab by slab, once, so that they may be
memory-mapped and larger than what fits in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hepar.evaluate.voxel import Overlap
from hepar.geometry import Box
from hepar.study import LIVER, TUMOR

Labels = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]

# The liver includes its tumors.
STRUCTURES = ("liver", "tumor")
_SLAB_VOXELS = 4_000_000


@dataclass(frozen=True)
class Structure:
    """One structure of one case.

    Attributes:
        overlap: voxel counts.
        box: smallest box around both masks; None where both are empty.
    """

    overlap: Overlap
    box: Box | None


@dataclass
class _Count:
    shape: tuple[int, ...]
    predicted: int = 0
    reference: int = 0
    both: int = 0
    planes: list[int] = field(default_factory=list)
    footprint: Mask | None = None

    def add(self, at: int, predicted: Mask, reference: Mask, keep: Mask | None) -> None:
        union = predicted | reference
        hits = union.any(axis=(1, 2))
        if not hits.any():
            return
        self.planes += (np.flatnonzero(hits) + at).tolist()
        seen: Mask = np.asarray(union.any(axis=0))
        self.footprint = seen if self.footprint is None else self.footprint | seen
        if keep is not None:
            predicted, reference = predicted & keep, reference & keep
        self.predicted += int(np.count_nonzero(predicted))
        self.reference += int(np.count_nonzero(reference))
        self.both += int(np.count_nonzero(predicted & reference))

    def structure(self, voxel_ml: float) -> Structure:
        counts = Overlap(self.predicted, self.reference, self.both, voxel_ml)
        if self.footprint is None:
            return Structure(counts, None)
        rows = np.flatnonzero(self.footprint.any(axis=1))
        columns = np.flatnonzero(self.footprint.any(axis=0))
        start = (self.planes[0], int(rows[0]), int(columns[0]))
        stop = (self.planes[-1] + 1, int(rows[-1]) + 1, int(columns[-1]) + 1)
        return Structure(counts, Box(start, stop))


def mask_of(structure: str, labels: Labels) -> Mask:
    """The mask of a structure in a label map (0 background, 1 liver, 2 tumor)."""
    return np.asarray(labels >= LIVER if structure == "liver" else labels == TUMOR)


def count_structures(
    predicted: Labels,
    reference: Labels,
    voxel_ml: float,
    *,
    ignore: Mask | None = None,
) -> dict[str, Structure]:
    """Count liver and tumor of one case.

    Args:
        predicted: `(z, y, x)`, labels 0, 1, 2; may be memory-mapped.
        reference: same shape.
        voxel_ml: volume of a voxel in milliliters.
        ignore: voxels left out of the tumor's counts (not of its box).

    Raises:
        ValueError: the shapes differ, or a label is not 0, 1 or 2.
    """
    if predicted.shape != reference.shape or predicted.ndim != 3:
        raise ValueError(f"maps of shapes {predicted.shape} and {reference.shape}")
    depth, height, width = predicted.shape
    rows = max(1, _SLAB_VOXELS // max(1, height * width))
    counts = {name: _Count(predicted.shape) for name in STRUCTURES}
    for begin in range(0, depth, rows):
        slab = slice(begin, begin + rows)
        a, b = np.asarray(predicted[slab]), np.asarray(reference[slab])
        for labels in (a, b):
            if labels.size and (labels.max() > TUMOR or labels.min() < 0):
                raise ValueError(f"labels from {labels.min()} to {labels.max()}, not 0, 1, 2")
        for name, count in counts.items():
            keep = ~ignore[slab] if ignore is not None and name == "tumor" else None
            count.add(begin, mask_of(name, a), mask_of(name, b), keep)
    return {name: count.structure(voxel_ml) for name, count in counts.items()}
