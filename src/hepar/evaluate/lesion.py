"""Which lesions were found: components matched one to one by overlap.

Pairs of a predicted and a reference lesion are taken in order of falling intersection over union;
a pair counts when it reaches the threshold and neither side is taken yet. A reference lesion that
is marked `ignore` is neither a hit nor a miss, and a prediction on it is not a false lesion.
"""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np
from numpy.typing import NDArray

Instances = NDArray[np.integer]


@dataclass(frozen=True)
class LesionMatch:
    """How the lesions of one case were matched.

    Attributes:
        pairs: (predicted id, reference id, IoU), one a matched lesion.
        missed: reference ids without a partner.
        false: predicted ids without a partner.
        reference_ml: volume of every reference lesion that counts, by id.
    """

    pairs: tuple[tuple[int, int, float], ...]
    missed: tuple[int, ...]
    false: tuple[int, ...]
    reference_ml: dict[int, float]

    @property
    def recall(self) -> float | None:
        """Matched / reference lesions; None without reference lesions."""
        total = len(self.pairs) + len(self.missed)
        return None if total == 0 else len(self.pairs) / total

    @property
    def precision(self) -> float | None:
        """Matched / predicted lesions that count; None without predictions."""
        total = len(self.pairs) + len(self.false)
        return None if total == 0 else len(self.pairs) / total


def components(mask: NDArray[np.bool_], min_voxels: int = 1) -> NDArray[np.uint32]:
    """26-connected components of a mask, numbered from 1, smaller ones dropped."""
    found = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=26)
    labels: NDArray[np.uint32] = np.asarray(found).astype(np.uint32)
    if min_voxels > 1:
        sizes = np.bincount(labels.ravel())
        keep = sizes >= min_voxels
        keep[0] = False
        ids = np.zeros(len(sizes), dtype=np.uint32)
        ids[keep] = np.arange(1, int(keep.sum()) + 1)
        labels = np.asarray(ids[labels], dtype=np.uint32)
    return labels


def match_lesions(
    predicted: Instances,
    reference: Instances,
    voxel_ml: float,
    *,
    min_iou: float = 0.1,
    ignore: frozenset[int] = frozenset(),
) -> LesionMatch:
    """Match the lesions of one case.

    Args:
        predicted: `(z, y, x)` ids, 0 background.
        reference: same shape.
        voxel_ml: volume of a voxel in milliliters.
        min_iou: smallest intersection over union of a match.
        ignore: reference ids that do not count.
    """
    if predicted.shape != reference.shape:
        raise ValueError(f"maps of shapes {predicted.shape} and {reference.shape}")
    touched = (predicted > 0) | (reference > 0)
    a = predicted[touched].astype(np.int64)
    b = reference[touched].astype(np.int64)
    size_a = dict(zip(*(v.tolist() for v in np.unique(a, return_counts=True)), strict=True))
    size_b = dict(zip(*(v.tolist() for v in np.unique(b, return_counts=True)), strict=True))
    size_a.pop(0, None)
    size_b.pop(0, None)
    both = (a > 0) & (b > 0)
    width = int(b.max(initial=0)) + 1
    joint, counts = np.unique(a[both] * width + b[both], return_counts=True)
    candidates = []
    on_ignored: set[int] = set()
    for code, count in zip(joint.tolist(), counts.tolist(), strict=True):
        p, r = divmod(code, width)
        iou = count / (size_a[p] + size_b[r] - count)
        if r in ignore:
            if count >= 0.5 * size_a[p] or iou >= min_iou:
                on_ignored.add(p)
        elif iou >= min_iou:
            candidates.append((-iou, p, r))
    pairs = []
    free_a, free_b = set(size_a), set(size_b) - ignore
    for negative_iou, p, r in sorted(candidates):
        if p in free_a and r in free_b:
            pairs.append((p, r, -negative_iou))
            free_a.remove(p)
            free_b.remove(r)
    return LesionMatch(
        tuple(pairs),
        tuple(sorted(free_b)),
        tuple(sorted(free_a - on_ignored)),
        {r: n * voxel_ml for r, n in size_b.items() if r not in ignore},
    )
