"""From scored cases to the document of a set: every mean with its denominators, under each policy.

The document is plain data, the content of `scores.json`; the page and the console draw it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hepar.evaluate.detection import summarize_lesions
from hepar.evaluate.patient_summary import ReportedCase, summarize_specificity
from hepar.evaluate.policy import (
    DEFAULT,
    LITS_LARGE,
    OUTCOMES,
    POLICIES,
    Policy,
    summarize_measure,
)
from hepar.evaluate.score import MEASURES, CaseScore, StructureScore
from hepar.evaluate.structures import STRUCTURES
from hepar.evaluate.voxel import burden_error, dice_global, relative_volume_difference


def summarize(cases: Sequence[CaseScore]) -> dict[str, Any]:
    """Everything said of a set of cases.

    Args:
        cases: at least one; all with or all without lesions.

    Returns:
        Plain data: `structures`, `tumor_burden`, `lesions`, `specificity`, `cases`, `warnings`.

    Raises:
        ValueError: no cases, or lesions compared in some cases only.
    """
    if not cases:
        raise ValueError("no case to summarize")
    lesions = [case.lesions for case in cases if case.lesions is not None]
    if lesions and len(lesions) != len(cases):
        raise ValueError("lesions were compared in some cases only")
    return {
        "n_cases": len(cases),
        "n_patients": len({case.patient_id for case in cases}),
        "tolerance_mm": cases[0].tolerance_mm,
        "policy": DEFAULT,
        "structures": {name: _structure(name, cases) for name in STRUCTURES},
        "tumor_burden": _burden(cases),
        "lesions": summarize_lesions(lesions) if lesions else None,
        "specificity": summarize_specificity(
            ReportedCase(
                case.patient_id,
                case.structures["tumor"].overlap.reference == 0,
                case.structures["tumor"].overlap.predicted > 0,
            )
            for case in cases
        ),
        "cases": [case.row() for case in cases],
        "warnings": _warnings(cases),
    }


def _structure(name: str, cases: Sequence[CaseScore]) -> dict[str, Any]:
    scores = [case.structures[name] for case in cases]
    outcomes = [score.outcome for score in scores]
    diagonals_mm = [case.diagonal_mm for case in cases]
    patients = [case.patient_id for case in cases]

    def mean(measure: str, policy: Policy) -> dict[str, Any]:
        values = [_value(score, measure, policy) for score in scores]
        kind = MEASURES[measure]
        return summarize_measure(kind, values, outcomes, diagonals_mm, policy, patients).as_dict()

    return {
        "outcomes": {outcome: outcomes.count(outcome) for outcome in OUTCOMES},
        "measures": {m: {policy: mean(m, policy) for policy in POLICIES} for m in MEASURES},
        "dice_global": dice_global(score.overlap for score in scores),
    }


def _value(score: StructureScore, measure: str, policy: Policy) -> float | None:
    """A measure as the policy's authors define it."""
    if policy == "lits" and measure in ("rvd", "rvd_abs"):
        counts = score.overlap
        rvd = relative_volume_difference(counts.predicted, counts.reference, "lits")
        return abs(rvd) if rvd is not None and measure == "rvd_abs" else rvd
    return score.measures()[measure]


def _burden(cases: Sequence[CaseScore]) -> dict[str, Any]:
    """Errors of the tumor burden where there is a liver to relate the tumor to."""
    kept = [case for case in cases if case.structures["liver"].overlap.reference]
    predicted, reference = zip(*(c.burdens for c in kept), strict=True) if kept else ((), ())
    error = burden_error(predicted, reference)
    # The scoring server of the LiTS challenge asks for voxels of label 1, not for a liver.
    server = burden_error(
        [b if _plain_liver(c) else LITS_LARGE for b, c in zip(predicted, kept, strict=True)],
        reference,
    )
    return {
        "rmse": error.rmse,
        "max_error": error.max_error,
        "n": error.n,
        "n_undefined": len(cases) - len(kept),
        "lits": {"rmse": server.rmse, "max_error": server.lits_max_error},
    }


def _plain_liver(case: CaseScore) -> bool:
    """Some predicted voxel is liver and not tumor."""
    liver, tumor = case.structures["liver"].overlap, case.structures["tumor"].overlap
    return liver.predicted > tumor.predicted


def _warnings(cases: Sequence[CaseScore]) -> list[str]:
    found = []
    without = [c.case_id for c in cases if c.structures["liver"].outcome == "missed"]
    if without:
        found.append(
            f"W_LIVER_MISSED: {_some(without)} predicted without a liver; the tumor burden there "
            "counts as 0."
        )
    no_truth = [c.case_id for c in cases if not c.structures["liver"].overlap.reference]
    if no_truth:
        found.append(
            f"W_NO_LIVER_TRUTH: {_some(no_truth)} without a reference liver; no tumor burden."
        )
    return found


def _some(case_ids: Sequence[str]) -> str:
    shown = ", ".join(case_ids[:5]) + (f" and {len(case_ids) - 5} more" if case_ids[5:] else "")
    return f"{len(case_ids)} {'case' if len(case_ids) == 1 else 'cases'} ({shown})"
