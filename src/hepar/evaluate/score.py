"""Everything measured of one predicted label map beside its truth, before any policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hepar.evaluate.lesion import LesionMatch
from hepar.evaluate.lesion_case import LesionCase, lesion_case
from hepar.evaluate.policy import Kind, Outcome, outcome_of
from hepar.evaluate.structures import Labels, Mask, Structure, count_structures, mask_of
from hepar.evaluate.surface import SurfaceDistances, surface_distances
from hepar.evaluate.surfels import surfel_distances
from hepar.evaluate.voxel import Overlap, tumor_burden

TOLERANCE_MM = 2.0

# How each measure behaves where a mask is empty.
MEASURES: dict[str, Kind] = {
    "dice": "similarity",
    "voe": "error",
    "rvd": "volume",
    "rvd_abs": "volume_abs",
    "surface_dice": "similarity",
    "assd_mm": "distance",
    "rmsd_mm": "distance",
    "hd_mm": "distance",
    "hd95_mm": "distance",
}


@dataclass(frozen=True)
class StructureScore:
    """One structure of one case.

    Attributes:
        overlap: voxel counts.
        surface: distances; None where a mask is empty.
        surface_dice: by area, within the tolerance; None where a mask is empty.
    """

    overlap: Overlap
    surface: SurfaceDistances | None
    surface_dice: float | None

    @property
    def outcome(self) -> Outcome:
        """Which masks are there."""
        return outcome_of(self.overlap.predicted, self.overlap.reference)

    def measures(self) -> dict[str, float | None]:
        """Each of `MEASURES` as measured; None where it is not defined."""
        counts, surface = self.overlap, self.surface
        return {
            "dice": counts.dice,
            "voe": counts.voe,
            "rvd": counts.rvd,
            "rvd_abs": None if counts.rvd is None else abs(counts.rvd),
            "surface_dice": self.surface_dice,
            "assd_mm": surface.assd_mm if surface else None,
            "rmsd_mm": surface.rmsd_mm if surface else None,
            "hd_mm": surface.hd_mm if surface else None,
            "hd95_mm": surface.hd95_mm if surface else None,
        }


@dataclass(frozen=True)
class CaseScore:
    """Scores of one case.

    Attributes:
        case_id: name of the case.
        patient_id: whose case it is.
        diagonal_mm: of the image, voxel borders included: no distance in it is longer.
        tolerance_mm: of the surface Dice.
        structures: liver (tumors included) and tumor.
        lesions: None where they were not compared.
    """

    case_id: str
    patient_id: str
    diagonal_mm: float
    tolerance_mm: float
    structures: dict[str, StructureScore]
    lesions: LesionCase | None = None

    @property
    def match(self) -> LesionMatch:
        """Which lesions were found.

        Raises:
            ValueError: lesions were not compared.
        """
        if self.lesions is None:
            raise ValueError(f"{self.case_id}: lesions were not compared")
        return self.lesions.match

    @property
    def burdens(self) -> tuple[float, float]:
        """Tumor burden of the prediction and of the reference; 0 without a liver."""
        liver, tumor = self.structures["liver"].overlap, self.structures["tumor"].overlap
        return (
            tumor_burden(tumor.predicted_ml, liver.predicted_ml),
            tumor_burden(tumor.reference_ml, liver.reference_ml),
        )

    def row(self) -> dict[str, Any]:
        """The case as one flat row of a table, as measured."""
        row: dict[str, Any] = {"case_id": self.case_id, "patient_id": self.patient_id}
        for name, structure in self.structures.items():
            row[f"{name}_outcome"] = structure.outcome
            measured = structure.measures()
            row |= {f"{name}_{key}": measured[key] for key in MEASURES if key != "rvd_abs"}
            row |= {
                f"{name}_predicted_ml": structure.overlap.predicted_ml,
                f"{name}_reference_ml": structure.overlap.reference_ml,
                f"{name}_false_ml": structure.overlap.false_ml,
            }
        row["diagonal_mm"] = self.diagonal_mm
        return row | (self.lesions.row() if self.lesions else {})


def score_case(
    case_id: str,
    predicted: Labels,
    reference: Labels,
    spacing_mm: tuple[float, float, float],
    *,
    patient_id: str | None = None,
    tolerance_mm: float = TOLERANCE_MM,
    lesions: bool = True,
    predicted_instances: Labels | None = None,
    reference_instances: Labels | None = None,
    ignore: Mask | None = None,
    scores: Mapping[int, float] | None = None,
    predicted_types: Mapping[int, str] | None = None,
    reference_types: Mapping[int, str] | None = None,
) -> CaseScore:
    """Score one label map (0 background, 1 liver, 2 tumor).

    Args:
        case_id: name of the case.
        predicted: `(z, y, x)`; may be memory-mapped, as every map here.
        reference: same shape.
        spacing_mm: (z, y, x).
        patient_id: whose case it is; the case's name when absent.
        tolerance_mm: of the surface Dice.
        lesions: compare single lesions too.
        predicted_instances: lesion ids; components of label 2 when absent.
        reference_instances: lesion ids; components of label 2 when absent.
        ignore: voxels left out of both tumor masks; a predicted lesion that lies mostly there is
            not a false one.
        scores: confidence of each predicted lesion.
        predicted_types: type of each predicted lesion.
        reference_types: type of each reference lesion.

    Raises:
        ValueError: maps of different shapes, labels other than 0, 1, 2, or what `lesion_case`
            refuses.
    """
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    counts = count_structures(predicted, reference, voxel_ml, ignore=ignore)
    structures = {}
    for name, structure in counts.items():
        left_out = ignore if name == "tumor" else None
        structures[name] = _structure(
            name, structure, predicted, reference, spacing_mm, tolerance_mm, left_out
        )
    patient = patient_id or case_id
    found = None
    if lesions:
        found = lesion_case(
            case_id,
            patient,
            predicted,
            reference,
            spacing_mm,
            predicted_instances=predicted_instances,
            reference_instances=reference_instances,
            ignore=ignore,
            scores=scores,
            predicted_types=predicted_types,
            reference_types=reference_types,
        )
    diagonal_mm = float(np.linalg.norm(np.multiply(reference.shape, spacing_mm)))
    return CaseScore(case_id, patient, diagonal_mm, tolerance_mm, structures, found)


def _structure(
    name: str,
    counted: Structure,
    predicted: Labels,
    reference: Labels,
    spacing_mm: tuple[float, float, float],
    tolerance_mm: float,
    ignore: Mask | None,
) -> StructureScore:
    if counted.box is None or not counted.overlap.predicted or not counted.overlap.reference:
        return StructureScore(counted.overlap, None, None)
    box = counted.box.slices
    a, b = mask_of(name, predicted[box]), mask_of(name, reference[box])
    if ignore is not None:
        a, b = a & ~ignore[box], b & ~ignore[box]
    surfels = surfel_distances(a, b, spacing_mm)
    return StructureScore(
        counted.overlap,
        surface_distances(a, b, spacing_mm),
        None if surfels is None else surfels.surface_dice(tolerance_mm),
    )
