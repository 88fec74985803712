"""Lesion detection as PLAN and LIDIA count it: component Dice, many to one.

Components are 26-connected on the map of lesion types, so that touching lesions of different types
stay apart. A predicted component below 113 mm^3 (a ball of 3 mm radius) is dropped; a reference
component below 113 mm^3 is ignored, and below 25 mm^3 it is removed. A pair hits at a Dice of 0.2.

Predictions are taken in order of falling best Dice (in the original by score, but there all scores
are equal), of equal ones the lower id first. One that hits nothing is false; one that hits only
ignored lesions, or only lesions hit before, is ignored; any other is true, and every lesion it hits
is found.

Source: evaluation code of PLAN (pixel-lesion-patient network), lesion level; LIDIA states no
criterion and is taken to use the same.
"""

from __future__ import annotations

from collections import defaultdict

from hepar.evaluate.lesion import DetectionCounts, LesionOverlaps

MIN_DICE = 0.2
COUNTED_MM3 = 113.0
KEPT_MM3 = 25.0


def plan_detection(
    overlaps: LesionOverlaps,
    *,
    ignore: frozenset[int] = frozenset(),
    min_dice: float = MIN_DICE,
    count_ignored: bool = False,
) -> DetectionCounts:
    """Count the detected lesions of one case.

    Args:
        overlaps: of the components of two type maps.
        ignore: reference ids that do not count whatever their size.
        min_dice: smallest Dice of a hit.
        count_ignored: as the original does, count an ignored lesion as found where one prediction
            hits it together with one that counts; recall may then exceed 1.
    """
    voxel = overlaps.voxel_mm3
    table = overlaps.keep(
        [p for p, n in overlaps.predicted.items() if n * voxel >= COUNTED_MM3],
        [r for r, n in overlaps.reference.items() if n * voxel >= KEPT_MM3],
    )
    ignored = {r for r, n in table.reference.items() if n * voxel < COUNTED_MM3 or r in ignore}
    hits: dict[int, dict[int, float]] = defaultdict(dict)
    for p, r in table.shared:
        if (dice := table.dice(p, r)) >= min_dice:
            hits[p][r] = dice
    found: set[int] = set()
    true = 0
    for p in sorted(hits, key=lambda p: (-max(hits[p].values()), p)):
        fresh = hits[p].keys() - found
        if not hits[p].keys() <= ignored and (fresh if count_ignored else fresh - ignored):
            true += 1
            found |= fresh
    return DetectionCounts(
        n_reference=len(table.reference) - len(ignored),
        n_predicted=true + len(table.predicted) - len(hits),
        tp_reference=len(found if count_ignored else found - ignored),
        tp_predicted=true,
    )
