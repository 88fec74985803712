"""Free-response ROC: recall against false lesions per patient as the score threshold falls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from hepar.evaluate.lesion import match_one_to_one
from hepar.evaluate.lesion_case import LesionCase

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def froc(cases: Sequence[LesionCase]) -> dict[str, Any] | None:
    """The curve over all cases, and its recall at 1/8 to 8 false lesions per patient.

    There is one operating point for each distinct score: the predictions that reach it are kept and
    matched anew, one to one, so that equal scores are kept or dropped together. Recall at a rate is
    the largest recall of the points at or below that rate, without interpolation. Dropping every
    prediction is always possible, so it is 0 where even the highest scores bring more false
    lesions; where all predictions bring fewer it is the recall of all.

    Args:
        cases: of all patients; the rate is per patient, however many cases each has.

    Returns:
        None when a predicted lesion has no score, when no case has scores, or without reference
        lesions.
    """
    n_reference = sum(case.match.counts.n_reference for case in cases)
    unscored = any(case.scores is None and case.overlaps.predicted for case in cases)
    if unscored or not n_reference or all(case.scores is None for case in cases):
        return None
    n_patients = len({case.patient_id for case in cases})
    points = [
        {"threshold": score, "false_per_patient": false / n_patients, "recall": found / n_reference}
        for score, found, false in _sweep(cases)
    ]
    recall_at = {
        f"{rate:g}": max(
            (point["recall"] for point in points if point["false_per_patient"] <= rate), default=0.0
        )
        for rate in RATES
    }
    return {"points": points, "recall_at": recall_at}


def _sweep(cases: Sequence[LesionCase]) -> list[tuple[float, int, int]]:
    """(threshold, found lesions, false lesions), threshold falling."""
    touched: dict[float, set[int]] = defaultdict(set)
    for k, case in enumerate(cases):
        for score in (case.scores or {}).values():
            touched[score].add(k)
    found, false = [0] * len(cases), [0] * len(cases)
    points = []
    for threshold in sorted(touched, reverse=True):
        # Only the cases that gain a prediction can change.
        for k in touched[threshold]:
            kept = [p for p, score in (cases[k].scores or {}).items() if score >= threshold]
            match = match_one_to_one(cases[k].overlaps.keep(kept), ignore=cases[k].ignore)
            found[k], false[k] = len(match.pairs), len(match.false)
        points.append((threshold, sum(found), sum(false)))
    return points
