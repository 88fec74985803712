"""How the lesions of two maps overlap, and which were found one to one.

Every rule of finding lesions is a function of one sparse table: the voxels of each predicted
lesion, of each reference lesion and of each pair that shares any. The table is made in one pass
over slabs of slices, so that whole-body maps, on disk or in memory, cost little.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import cc3d
import numpy as np
from numpy.typing import NDArray

from hepar.geometry import Box

Instances = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]
Measure = Literal["iou", "dice"]

MIN_IOU = 0.1

_SLAB_VOXELS = 2**22
_MOSTLY = 0.5
_ID_BITS = 32


@dataclass(frozen=True)
class DetectionCounts:
    """Lesions counted under one rule.

    A prediction may cover several reference lesions and the reverse, so found reference lesions
    (for recall) and predictions that found something (for precision) are counted apart.

    Attributes:
        n_reference: reference lesions that count.
        n_predicted: predicted lesions that count.
        tp_reference: found reference lesions.
        tp_predicted: predicted lesions that found one.
    """

    n_reference: int
    n_predicted: int
    tp_reference: int
    tp_predicted: int


@dataclass(frozen=True)
class LesionOverlaps:
    """Voxels of the lesions of one case and of the pairs that overlap.

    Attributes:
        predicted: voxels by predicted id.
        reference: voxels by reference id.
        shared: voxels by (predicted id, reference id); pairs without any are left out.
        voxel_mm3: volume of a voxel.
    """

    predicted: dict[int, int]
    reference: dict[int, int]
    shared: dict[tuple[int, int], int]
    voxel_mm3: float

    def iou(self, predicted: int, reference: int) -> float:
        """Intersection over union of two lesions."""
        both = self.shared.get((predicted, reference), 0)
        return both / (self.predicted[predicted] + self.reference[reference] - both)

    def dice(self, predicted: int, reference: int) -> float:
        """Dice of two lesions."""
        both = self.shared.get((predicted, reference), 0)
        return 2 * both / (self.predicted[predicted] + self.reference[reference])

    @cached_property
    def reference_ml(self) -> dict[int, float]:
        """Volume by reference id."""
        return {r: n * self.voxel_mm3 / 1000 for r, n in self.reference.items()}

    def keep(
        self, predicted: Collection[int] | None = None, reference: Collection[int] | None = None
    ) -> LesionOverlaps:
        """The table of these lesions only; None keeps all of a side."""
        kept_p = self.predicted.keys() if predicted is None else set(predicted)
        kept_r = self.reference.keys() if reference is None else set(reference)
        return LesionOverlaps(
            {p: n for p, n in self.predicted.items() if p in kept_p},
            {r: n for r, n in self.reference.items() if r in kept_r},
            {(p, r): n for (p, r), n in self.shared.items() if p in kept_p and r in kept_r},
            self.voxel_mm3,
        )


@dataclass(frozen=True)
class LesionMatch:
    """How the lesions of one case were matched.

    Attributes:
        pairs: (predicted id, reference id, IoU or Dice), one a matched lesion.
        missed: reference ids without a partner.
        false: predicted ids without a partner.
        reference_ml: volume of every reference lesion that counts, by id.
    """

    pairs: tuple[tuple[int, int, float], ...]
    missed: tuple[int, ...]
    false: tuple[int, ...]
    reference_ml: dict[int, float]

    @property
    def counts(self) -> DetectionCounts:
        """The match in numbers; a prediction on an ignored lesion counts neither way."""
        n = len(self.pairs)
        return DetectionCounts(n + len(self.missed), n + len(self.false), n, n)

    @property
    def recall(self) -> float | None:
        """Matched / reference lesions; None without reference lesions."""
        total = self.counts.n_reference
        return None if total == 0 else len(self.pairs) / total

    @property
    def precision(self) -> float | None:
        """Matched / predicted lesions that count; None without predictions."""
        total = self.counts.n_predicted
        return None if total == 0 else len(self.pairs) / total


def lesion_overlaps(predicted: Instances, reference: Instances, voxel_mm3: float) -> LesionOverlaps:
    """Count the voxels of every lesion and of every overlap, in one pass.

    Args:
        predicted: `(z, y, x)` ids below 2^31, 0 background; may be memory-mapped.
        reference: same shape.
        voxel_mm3: volume of a voxel.

    Raises:
        ValueError: the shapes differ or an id is negative.
    """
    if predicted.shape != reference.shape:
        raise ValueError(f"maps of shapes {predicted.shape} and {reference.shape}")
    runs = [_runs(predicted[slab], reference[slab]) for slab in _slabs(predicted.shape)]
    codes, lengths = (np.concatenate(part) for part in zip(*runs, strict=True))
    distinct, where = np.unique(codes, return_inverse=True)
    voxels = np.bincount(where, weights=lengths, minlength=len(distinct)).astype(np.int64)
    sizes_p: dict[int, int] = {}
    sizes_r: dict[int, int] = {}
    shared: dict[tuple[int, int], int] = {}
    for code, n in zip(distinct.tolist(), voxels.tolist(), strict=True):
        p, r = code >> _ID_BITS, code & (2**_ID_BITS - 1)
        if p:
            sizes_p[p] = sizes_p.get(p, 0) + n
        if r:
            sizes_r[r] = sizes_r.get(r, 0) + n
        if p and r:
            shared[p, r] = n
    return LesionOverlaps(sizes_p, dict(sorted(sizes_r.items())), shared, voxel_mm3)


def match_one_to_one(
    overlaps: LesionOverlaps,
    *,
    measure: Measure = "iou",
    at_least: float = MIN_IOU,
    ignore: frozenset[int] = frozenset(),
) -> LesionMatch:
    """Match lesions one to one, in order of falling overlap.

    A pair counts when its overlap reaches the threshold and neither side is taken yet; of equal
    overlaps the lower predicted id goes first, then the lower reference id. An ignored reference
    lesion is neither found nor missed, and a prediction that lies mostly on it, or reaches the
    threshold with it, is not a false lesion.

    Args:
        overlaps: of one case.
        measure: what is compared with the threshold.
        at_least: smallest overlap of a match.
        ignore: reference ids that do not count.
    """
    overlap: Callable[[int, int], float] = overlaps.iou if measure == "iou" else overlaps.dice
    candidates = []
    on_ignored: set[int] = set()
    for (p, r), both in overlaps.shared.items():
        value = overlap(p, r)
        if r not in ignore:
            if value >= at_least:
                candidates.append((-value, p, r))
        elif value >= at_least or both >= _MOSTLY * overlaps.predicted[p]:
            on_ignored.add(p)
    pairs = []
    free_p, free_r = set(overlaps.predicted), set(overlaps.reference) - ignore
    for negative, p, r in sorted(candidates):
        if p in free_p and r in free_r:
            pairs.append((p, r, -negative))
            free_p.remove(p)
            free_r.remove(r)
    return LesionMatch(
        tuple(pairs),
        tuple(sorted(free_r)),
        tuple(sorted(free_p - on_ignored)),
        {r: ml for r, ml in overlaps.reference_ml.items() if r not in ignore},
    )


def match_lesions(
    predicted: Instances,
    reference: Instances,
    voxel_ml: float,
    *,
    min_iou: float = MIN_IOU,
    ignore: frozenset[int] = frozenset(),
) -> LesionMatch:
    """Match the lesions of two maps one to one by IoU.

    Args:
        predicted: `(z, y, x)` ids, 0 background.
        reference: same shape.
        voxel_ml: volume of a voxel in milliliters.
        min_iou: smallest intersection over union of a match.
        ignore: reference ids that do not count.
    """
    overlaps = lesion_overlaps(predicted, reference, 1000 * voxel_ml)
    return match_one_to_one(overlaps, at_least=min_iou, ignore=ignore)


def components(mask: Mask, min_voxels: int = 1) -> NDArray[np.uint32]:
    """26-connected components of a mask, numbered from 1, smaller ones dropped."""
    labels = np.zeros(mask.shape, dtype=np.uint32)
    box = occupied(mask.view(np.uint8))
    if box is None:
        return labels
    found = cc3d.connected_components(np.ascontiguousarray(mask[box.slices]), connectivity=26)
    if min_voxels > 1:
        keep = np.bincount(found.ravel()) >= min_voxels
        keep[0] = False
        found = np.where(keep, np.cumsum(keep), 0)[found]
    labels[box.slices] = found
    return labels


def occupied(values: Instances, above: int = 0) -> Box | None:
    """The smallest box around every value above a bound, found slab by slab; None without any."""
    shape = values.shape
    planes = np.zeros(shape[0], dtype=np.bool_)
    footprint = np.zeros(shape[1:], dtype=np.bool_)
    for slab in _slabs(shape):
        hits = values[slab] > above
        planes[slab] = hits.any(axis=(1, 2))
        footprint |= hits.any(axis=0)
    if not planes.any():
        return None
    sides = (planes, footprint.any(axis=1), footprint.any(axis=0))
    z, y, x = ((int(hits[0]), int(hits[-1]) + 1) for hits in map(np.flatnonzero, sides))
    return Box((z[0], y[0], x[0]), (z[1], y[1], x[1]))


def _slabs(shape: tuple[int, ...]) -> Iterator[slice]:
    step = max(1, _SLAB_VOXELS // (shape[1] * shape[2]))
    return (slice(start, start + step) for start in range(0, shape[0], step))


def _runs(
    predicted: Instances, reference: Instances
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of ids packed in one integer, and how many touched voxels in a row hold them."""
    touched = (predicted != 0) | (reference != 0)
    p, r = predicted[touched].astype(np.int64), reference[touched].astype(np.int64)
    if p.size and min(p.min(), r.min()) < 0:
        raise ValueError("a lesion has a negative id")
    codes = (p << _ID_BITS) | r
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    return codes[starts], np.diff(starts, append=codes.size)
