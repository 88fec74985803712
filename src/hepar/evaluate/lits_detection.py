"""Lesion detection as the LiTS challenge counts it, in two modes.

Lesions are 6-connected components of the tumor label. Reference lesions whose most overlapping
prediction is the same are merged into one group; each prediction goes to the group it overlaps
most; a group is accepted when the intersection over union of all it holds on either side lies
above the threshold, strictly. What overlaps nothing is false or missed. Of equal overlaps the
lower id wins.

`clean` counts what was found: every reference lesion and every prediction of an accepted group.
`compat` gives the numbers of the scoring server, whose known faults it repeats:

1. A group is one detection when accepted, however many lesions it holds, yet is taken off once for
   each of its reference lesions when rejected. A prediction that covers three lesions perfectly is
   one hit and two misses; the same prediction, too large, counts -2 hits.
2. The union is taken with the predictions of whichever group bears the number of the group's own
   first prediction. Where the numbers differ it is mostly the reference alone, so that a prediction
   three times too large is detected; it depends on the order in which lesions are numbered.
3. A volume without reference lesions stops the server; here nothing is detected in it.

(The server also writes group numbers in 8 bits, which more than 255 lesions in a volume overflow:
not repeated.)

Source: the scoring program of the LiTS challenge, version of September 2017.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hepar.evaluate.lesion import DetectionCounts, LesionOverlaps, Mask

Mode = Literal["clean", "compat"]

THRESHOLDS = (0.0, 0.5)


@dataclass(frozen=True)
class Group:
    """Reference lesions taken as one, and the predictions that go to them; ids rise."""

    reference: tuple[int, ...]
    predicted: tuple[int, ...]


def lits_components(mask: Mask) -> NDArray[np.int32]:
    """6-connected components, numbered as the server meets them: x slowest, z fastest."""
    labels, _ = ndimage.label(mask.T, output=np.int32)
    return np.asarray(labels.T)


def lits_detection(
    overlaps: LesionOverlaps, threshold: float = 0.5, mode: Mode = "clean"
) -> DetectionCounts:
    """Count the detected lesions of one case.

    Args:
        overlaps: of the components that `lits_components` numbers.
        threshold: the intersection over union that has to be exceeded.
        mode: `clean`, or `compat` for the server's numbers.

    Returns:
        The counts. Under `compat` both true positives are the server's, which may be negative; its
        false positives and false negatives are what is left of either side.
    """
    groups = _groups(overlaps)
    if mode == "compat":
        found = _server_detections(overlaps, groups, threshold)
        return DetectionCounts(len(overlaps.reference), len(overlaps.predicted), found, found)
    accepted = accepted_groups(overlaps, threshold)
    return DetectionCounts(
        len(overlaps.reference),
        len(overlaps.predicted),
        sum(len(g.reference) for g in accepted),
        sum(len(g.predicted) for g in accepted),
    )


def accepted_groups(overlaps: LesionOverlaps, threshold: float) -> list[Group]:
    """The groups whose intersection over union lies above the threshold."""
    return [group for group in _groups(overlaps) if _iou(overlaps, group) > threshold]


def _groups(overlaps: LesionOverlaps) -> list[Group]:
    """The groups that some prediction goes to."""
    best: dict[int, tuple[int, int]] = {}
    for (p, r), voxels in overlaps.shared.items():
        best[r] = min(best.get(r, (0, 0)), (-voxels, p))
    merged: dict[int, list[int]] = defaultdict(list)
    for r in sorted(best):
        merged[best[r][1]].append(r)
    group_of = {r: tuple(members) for members in merged.values() for r in members}

    on_group: dict[int, Counter[tuple[int, ...]]] = defaultdict(Counter)
    for (p, r), voxels in overlaps.shared.items():
        on_group[p][group_of[r]] += voxels
    gathered: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for p in sorted(on_group):
        _, goes_to = min((-voxels, group) for group, voxels in on_group[p].items())
        gathered[goes_to].append(p)
    return [Group(reference, tuple(predicted)) for reference, predicted in gathered.items()]


def _iou(overlaps: LesionOverlaps, group: Group) -> float:
    both = _shared(overlaps, group.predicted, group.reference)
    total = sum(overlaps.predicted[p] for p in group.predicted)
    return both / (total + sum(overlaps.reference[r] for r in group.reference) - both)


def _shared(
    overlaps: LesionOverlaps, predicted: tuple[int, ...], reference: tuple[int, ...]
) -> int:
    return sum(overlaps.shared.get((p, r), 0) for p in predicted for r in reference)


def _server_detections(overlaps: LesionOverlaps, groups: list[Group], threshold: float) -> int:
    """The server's count of detections, faults included."""
    standing = {g.reference[0]: g.predicted for g in groups}
    detected = len(groups)
    for group in sorted(groups, key=lambda g: g.predicted[0]):
        own = _shared(overlaps, group.predicted, group.reference)
        named_alike = standing.get(group.predicted[0], ())
        union = sum(overlaps.predicted[p] for p in named_alike)
        union += sum(overlaps.reference[r] for r in group.reference)
        union -= _shared(overlaps, named_alike, group.reference)
        if own / union <= threshold:
            detected -= len(group.reference)
            del standing[group.reference[0]]
    return detected
