"""Everything said of one predicted label map beside its truth, and of a set of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hepar.evaluate.lesion import LesionMatch, components, match_lesions
from hepar.evaluate.surface import SurfaceDistances, surface_distances
from hepar.evaluate.voxel import Overlap, dice_global, mean_over_cases, overlap
from hepar.study import LIVER, TUMOR

Labels = NDArray[np.integer[Any]]
STRUCTURES = ("liver", "tumor")


@dataclass(frozen=True)
class CaseScore:
    """Scores of one case.

    Attributes:
        case_id: name of the case.
        overlap: by structure; the liver includes the tumor.
        surface: by structure; None where both masks are empty.
        lesions: matched tumors.
    """

    case_id: str
    overlap: dict[str, Overlap]
    surface: dict[str, SurfaceDistances | None]
    lesions: LesionMatch

    def row(self) -> dict[str, Any]:
        """The case as one flat row of a table."""
        row: dict[str, Any] = {"case_id": self.case_id}
        for name in STRUCTURES:
            counts, distances = self.overlap[name], self.surface[name]
            row |= {
                f"{name}_dice": counts.dice,
                f"{name}_voe": counts.voe,
                f"{name}_rvd": counts.rvd,
                f"{name}_assd_mm": distances.assd_mm if distances else None,
                f"{name}_rmsd_mm": distances.rmsd_mm if distances else None,
                f"{name}_predicted_ml": counts.predicted * counts.voxel_ml,
                f"{name}_reference_ml": counts.reference * counts.voxel_ml,
            }
        row |= {
            "lesions_reference": len(self.lesions.pairs) + len(self.lesions.missed),
            "lesions_found": len(self.lesions.pairs),
            "lesions_false": len(self.lesions.false),
            "tumor_false_ml": self.overlap["tumor"].false_ml,
        }
        return row


def score_case(
    case_id: str,
    predicted: Labels,
    reference: Labels,
    spacing_mm: tuple[float, float, float],
    *,
    predicted_instances: Labels | None = None,
    reference_instances: Labels | None = None,
    ignore: NDArray[np.bool_] | None = None,
    min_iou: float = 0.1,
) -> CaseScore:
    """Score one label map (0 background, 1 liver, 2 tumor).

    Args:
        case_id: name of the case.
        predicted: `(z, y, x)`.
        reference: same shape.
        spacing_mm: (z, y, x).
        predicted_instances: lesion ids; components of label 2 when absent.
        reference_instances: lesion ids; components of label 2 when absent.
        ignore: voxels left out of the tumor's overlap; a predicted lesion that lies mostly there is
            not a false one.
        min_iou: smallest intersection over union of a found lesion.
    """
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    masks = {
        "liver": (predicted >= LIVER, reference >= LIVER),
        "tumor": (predicted == TUMOR, reference == TUMOR),
    }
    counts = {
        "liver": overlap(*masks["liver"], voxel_ml),
        "tumor": overlap(*masks["tumor"], voxel_ml, ignore=ignore),
    }
    surface = {name: surface_distances(a, b, spacing_mm) for name, (a, b) in masks.items()}
    found = components(masks["tumor"][0]) if predicted_instances is None else predicted_instances
    truth = components(masks["tumor"][1]) if reference_instances is None else reference_instances
    ignored: frozenset[int] = frozenset()
    if ignore is not None and ignore.any():
        truth = truth.astype(np.int64)
        spare = int(truth.max(initial=0)) + 1
        truth[ignore & (truth == 0)] = spare
        ignored = frozenset({spare})
    lesions = match_lesions(found, truth, voxel_ml, min_iou=min_iou, ignore=ignored)
    return CaseScore(case_id, counts, surface, lesions)


def summarize(cases: Sequence[CaseScore]) -> dict[str, Any]:
    """Means over cases with their denominators, pooled Dice and lesion counts."""
    summary: dict[str, Any] = {"n_cases": len(cases)}
    for name in STRUCTURES:
        counts = [case.overlap[name] for case in cases]
        surfaces = [case.surface[name] for case in cases]
        missed = [c.missed for c in counts]
        summary[name] = {
            "dice_per_case": mean_over_cases([c.dice for c in counts], missed).as_dict(),
            "dice_global": dice_global(counts),
            "voe": mean_over_cases([c.voe for c in counts], missed).as_dict(),
            "rvd": mean_over_cases([c.rvd for c in counts], missed).as_dict(),
            "rvd_abs": mean_over_cases(
                [None if c.rvd is None else abs(c.rvd) for c in counts], missed
            ).as_dict(),
            "assd_mm": mean_over_cases(
                [s.assd_mm if s else None for s in surfaces], missed
            ).as_dict(),
            "rmsd_mm": mean_over_cases(
                [s.rmsd_mm if s else None for s in surfaces], missed
            ).as_dict(),
        }
    found = sum(len(c.lesions.pairs) for c in cases)
    missed_lesions = sum(len(c.lesions.missed) for c in cases)
    false = sum(len(c.lesions.false) for c in cases)
    free = [c for c in cases if c.overlap["tumor"].reference == 0]
    summary["lesions"] = {
        "reference": found + missed_lesions,
        "found": found,
        "recall": found / (found + missed_lesions) if found + missed_lesions else None,
        "false": false,
        "false_per_patient": false / len(cases) if cases else None,
        "tumor_free_patients": len(free),
        "false_in_tumor_free": sum(len(c.lesions.false) for c in free),
    }
    return summary
