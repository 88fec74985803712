"""What is kept of the lesions of one case: tables of overlaps, never an image."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hepar.evaluate.lesion import (
    Instances,
    LesionMatch,
    LesionOverlaps,
    Mask,
    components,
    lesion_overlaps,
    match_one_to_one,
    occupied,
)
from hepar.evaluate.lits_detection import lits_components
from hepar.evaluate.surface import surface_distances
from hepar.geometry import Box
from hepar.study import LESION_TYPES, LIVER, TUMOR

UNCERTAIN = "uncertain"

_PREDICTED_TYPES = (*LESION_TYPES, UNCERTAIN)
_IGNORED = len(_PREDICTED_TYPES) + 1


@dataclass(frozen=True)
class LesionCase:
    """The lesions of one case, predicted and true.

    Attributes:
        case_id: name of the case.
        patient_id: whose case it is.
        overlaps: of the given instances, or of 26-connected components of the tumor label.
        ignore: reference ids in `overlaps` that do not count.
        lits: overlaps of 6-connected components of the tumor label, numbered as the LiTS server
            does.
        plan: overlaps of 26-connected components of the type maps.
        plan_ignore: reference ids in `plan` that do not count.
        assd_mm: average symmetric surface distance of each matched pair, by reference id.
        diagonal_mm: of the image.
        scores: confidence by predicted id.
        predicted_types: type by predicted id; absent ids and `uncertain` have none.
        reference_types: type by reference id.
    """

    case_id: str
    patient_id: str
    overlaps: LesionOverlaps
    ignore: frozenset[int]
    lits: LesionOverlaps
    plan: LesionOverlaps
    plan_ignore: frozenset[int]
    assd_mm: dict[int, float]
    diagonal_mm: float
    scores: dict[int, float] | None = None
    predicted_types: dict[int, str] | None = None
    reference_types: dict[int, str] | None = None

    @cached_property
    def match(self) -> LesionMatch:
        """One to one, at an IoU of at least 0.1."""
        return match_one_to_one(self.overlaps, ignore=self.ignore)

    @property
    def tumor_free(self) -> bool:
        """No reference lesion counts."""
        return self.match.counts.n_reference == 0

    def volumes_mm3(self) -> tuple[dict[str, float], dict[str, float]]:
        """Volume of each of `LESION_TYPES` in the reference and in the prediction."""
        sums = []
        for voxels, types in (
            (self.overlaps.reference, self.reference_types),
            (self.overlaps.predicted, self.predicted_types),
        ):
            volume = dict.fromkeys(LESION_TYPES, 0.0)
            for lesion, count in voxels.items():
                kind = (types or {}).get(lesion)
                if kind in volume:
                    volume[kind] += count * self.overlaps.voxel_mm3
            sums.append(volume)
        return sums[0], sums[1]

    def row(self) -> dict[str, int]:
        """The counts of the case for a table."""
        counts = self.match.counts
        return {
            "lesions_reference": counts.n_reference,
            "lesions_found": counts.tp_reference,
            "lesions_predicted": counts.n_predicted,
            "lesions_false": counts.n_predicted - counts.tp_predicted,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Every lesion that counts for a table: the true ones by id, then the false ones."""
        partner = {r: p for p, r, _ in self.match.pairs}
        true = [(partner.get(r), r) for r in sorted(self.match.reference_ml)]
        return [self._lesion(p, r) for p, r in (*true, *((p, None) for p in self.match.false))]

    def _lesion(self, predicted: int | None, reference: int | None) -> dict[str, Any]:
        table = self.overlaps
        row: dict[str, Any] = {
            "case_id": self.case_id,
            "patient_id": self.patient_id,
            "outcome": "found",
            **dict.fromkeys(("reference_id", "reference_ml", "reference_type")),
            **dict.fromkeys(("predicted_id", "predicted_ml", "predicted_type", "confidence")),
            **dict.fromkeys(("iou", "dice", "assd_mm")),
        }
        if reference is None:
            row["outcome"] = "false"
        else:
            row["reference_id"] = reference
            row["reference_ml"] = table.reference_ml[reference]
            row["reference_type"] = (self.reference_types or {}).get(reference)
        if predicted is None:
            row["outcome"] = "missed"
        else:
            row["predicted_id"] = predicted
            row["predicted_ml"] = table.predicted[predicted] * table.voxel_mm3 / 1000
            row["predicted_type"] = (self.predicted_types or {}).get(predicted)
            row["confidence"] = (self.scores or {}).get(predicted)
        if predicted is not None and reference is not None:
            row["iou"] = table.iou(predicted, reference)
            row["dice"] = table.dice(predicted, reference)
            row["assd_mm"] = self.assd_mm[reference]
        return row


def lesion_case(
    case_id: str,
    patient_id: str,
    predicted: Instances,
    reference: Instances,
    spacing_mm: tuple[float, float, float],
    *,
    predicted_instances: Instances | None = None,
    reference_instances: Instances | None = None,
    ignore: Mask | None = None,
    scores: Mapping[int, float] | None = None,
    predicted_types: Mapping[int, str] | None = None,
    reference_types: Mapping[int, str] | None = None,
) -> LesionCase:
    """Compare the lesions of two label maps (0 background, 1 liver, 2 tumor).

    Args:
        case_id: name of the case.
        patient_id: whose case it is; a patient may have several.
        predicted: `(z, y, x)` labels; may be memory-mapped, as every map here.
        reference: same shape.
        spacing_mm: (z, y, x).
        predicted_instances: lesion ids; 26-connected components of label 2 when absent.
        reference_instances: lesion ids; 26-connected components of label 2 when absent.
        ignore: voxels outside the reference lesions where a prediction is neither found nor false.
            The rules of LiTS, which see labels only, know of none.
        scores: confidence of every predicted lesion, by id.
        predicted_types: one of `LESION_TYPES` or `uncertain`, by id.
        reference_types: one of `LESION_TYPES`, by id.

    Raises:
        ValueError: maps of different shapes, a predicted lesion without a finite score where scores
            are given, or an unknown type.
    """
    _check_types(predicted_types, _PREDICTED_TYPES)
    _check_types(reference_types, LESION_TYPES)
    instances = predicted_instances, reference_instances
    maps = (reference, *instances, ignore)
    if any(m.shape != predicted.shape for m in maps if m is not None):
        raise ValueError(f"{case_id}: the maps differ in shape")
    box = _lesion_box((predicted, reference), instances, ignore)
    found_tumor, true_tumor = predicted[box] == TUMOR, reference[box] == TUMOR
    found = components(found_tumor) if predicted_instances is None else predicted_instances[box]
    truth = components(true_tumor) if reference_instances is None else reference_instances[box]
    outside = (truth == 0) & (False if ignore is None else ignore[box])

    voxel_mm3 = float(np.prod(spacing_mm))
    counted, ignored = _with_ignored(truth, outside)
    overlaps = lesion_overlaps(found, counted, voxel_mm3)
    types = _type_map(truth, reference_types)
    types[outside] = _IGNORED
    true_parts = _type_components(types)
    found_parts = _type_components(_type_map(found, predicted_types))
    return LesionCase(
        case_id,
        patient_id,
        overlaps,
        ignored,
        lits=lesion_overlaps(lits_components(found_tumor), lits_components(true_tumor), voxel_mm3),
        plan=lesion_overlaps(found_parts, true_parts, voxel_mm3),
        plan_ignore=frozenset(np.unique(true_parts[outside]).tolist()),
        assd_mm=_pair_distances(
            found, truth, match_one_to_one(overlaps, ignore=ignored), spacing_mm
        ),
        diagonal_mm=float(np.linalg.norm(np.multiply(predicted.shape, spacing_mm))),
        scores=_scores(scores, overlaps, case_id),
        predicted_types=None if predicted_types is None else dict(predicted_types),
        reference_types=None if reference_types is None else dict(reference_types),
    )


def _check_types(types: Mapping[int, str] | None, known: Collection[str]) -> None:
    if types is not None and (unknown := set(types.values()) - set(known)):
        raise ValueError(f"{sorted(unknown)} are no lesion types; known are {', '.join(known)}")


def _scores(
    scores: Mapping[int, float] | None, overlaps: LesionOverlaps, case_id: str
) -> dict[int, float] | None:
    if scores is None:
        return None
    unscored = [p for p in overlaps.predicted if not np.isfinite(scores.get(p, np.nan))]
    if unscored:
        raise ValueError(f"{case_id}: predicted lesions {unscored} have no finite score")
    return {p: float(scores[p]) for p in overlaps.predicted}


def _lesion_box(
    labels: tuple[Instances, Instances],
    instances: tuple[Instances | None, ...],
    ignore: Mask | None,
) -> tuple[slice, slice, slice]:
    """Everything but background and liver; a single voxel where there is nothing."""
    boxes = [occupied(each, above=LIVER) for each in labels]
    boxes += [occupied(each) for each in instances if each is not None]
    boxes += [] if ignore is None else [occupied(ignore.view(np.uint8))]
    found = [box for box in boxes if box is not None]
    return reduce(Box.union, found).slices if found else Box((0, 0, 0), (1, 1, 1)).slices


def _with_ignored(truth: Instances, outside: Mask) -> tuple[Instances, frozenset[int]]:
    """The reference with the ignored voxels as one more lesion, and the id of that."""
    if not outside.any():
        return truth, frozenset()
    extra = int(truth.max()) + 1
    return np.where(outside, np.int64(extra), truth), frozenset({extra})


def _type_map(instances: Instances, types: Mapping[int, str] | None) -> NDArray[np.uint8]:
    """1 + the index of each lesion's type; one and the same for all where none is known."""
    if types is None:
        return (instances > 0).astype(np.uint8)
    table = np.full(int(instances.max()) + 1, len(_PREDICTED_TYPES), dtype=np.uint8)
    table[0] = 0
    for number, name in types.items():
        if 0 < number < len(table):
            table[number] = 1 + _PREDICTED_TYPES.index(name)
    return np.asarray(table[instances])


def _type_components(types: NDArray[np.uint8]) -> Instances:
    return np.asarray(cc3d.connected_components(np.ascontiguousarray(types), connectivity=26))


def _pair_distances(
    found: Instances, truth: Instances, match: LesionMatch, spacing_mm: tuple[float, float, float]
) -> dict[int, float]:
    """Average symmetric surface distance of each matched pair, by reference id."""
    of_found, of_truth = ndimage.find_objects(found), ndimage.find_objects(truth)
    assd_mm = {}
    for p, r, _ in match.pairs:
        # Outside the box both masks are background, as outside the image.
        box = tuple(
            slice(min(a.start, b.start), max(a.stop, b.stop))
            for a, b in zip(of_found[p - 1], of_truth[r - 1], strict=True)
        )
        distances = surface_distances(found[box] == p, truth[box] == r, spacing_mm)
        if distances is not None:
            assd_mm[r] = distances.assd_mm
    return assd_mm
