"""How well the lesions of a set of cases were found, under every rule of the field.

Intervals resample patients, since lesions of one patient are not independent. Recall by size alone
takes Wilson's interval, because few lesions fall in a bin and a bootstrap has no width where all or
none of them are found; it takes lesions as independent and is somewhat too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Int

from hepar.evaluate.froc import froc
from hepar.evaluate.lesion import DetectionCounts
from hepar.evaluate.lesion_case import LesionCase
from hepar.evaluate.lesion_classes import classify_lesions
from hepar.evaluate.lits_detection import lits_detection
from hepar.evaluate.plan_detection import plan_detection
from hepar.evaluate.policy import POLICIES, Outcome, summarize_measure
from hepar.evaluate.statistics import Interval, bootstrap, wilson

SIZES_ML: tuple[tuple[float, float | None], ...] = (
    (0.0, 1.0),
    (1.0, 5.0),
    (5.0, 20.0),
    (20.0, None),
)

_COUNTS = fields(DetectionCounts)


@dataclass(frozen=True)
class Rule:
    """One way to count lesions.

    Attributes:
        name: as a reader sees it.
        count: the lesions of a case.
        of_nothing: recall without reference lesions, precision without predictions.
    """

    name: str
    count: Callable[[LesionCase], DetectionCounts]
    of_nothing: float | None = None


RULES = (
    Rule("one to one, IoU >= 0.1", lambda case: case.match.counts),
    Rule("LiTS, IoU > 0", lambda case: lits_detection(case.lits, 0.0)),
    Rule("LiTS, IoU > 0.5", lambda case: lits_detection(case.lits, 0.5)),
    Rule("LiTS server, IoU > 0.5", lambda case: lits_detection(case.lits, 0.5, "compat"), 0.0),
    Rule("PLAN, Dice >= 0.2", lambda case: plan_detection(case.plan, ignore=case.plan_ignore)),
)


def summarize_lesions(cases: Sequence[LesionCase]) -> dict[str, Any]:
    """Every figure of the lesions of a set, as plain data.

    Args:
        cases: in any order; a patient may have several.

    Returns:
        `rules`, false lesions, `by_size`, `froc`, `per_lesion` and `classes`; None where a figure
        is undefined.
    """
    ordered = sorted(cases, key=lambda case: (case.patient_id, case.case_id))
    return {
        "rules": [_detection(rule, ordered) for rule in RULES],
        **_false_lesions(ordered),
        "by_size": [_found_of_size(ordered, low, high) for low, high in SIZES_ML],
        "froc": froc(ordered),
        "per_lesion": _per_lesion(ordered),
        "classes": classify_lesions(ordered),
    }


def _per_patient(cases: Sequence[LesionCase], values: Sequence[int]) -> Int[np.ndarray, " n"]:
    """Sums over the cases of each patient, in order of the patients' ids."""
    ids, owner = np.unique([case.patient_id for case in cases], return_inverse=True)
    sums = np.zeros(len(ids), dtype=np.int64)
    np.add.at(sums, owner, np.asarray(values, dtype=np.int64))
    return sums


def _ratio(
    top: Int[np.ndarray, " n"], bottom: Int[np.ndarray, " n"], of_nothing: float | None
) -> tuple[float | None, Interval | None]:
    """Sum over sum, patients resampled."""

    def statistic(index: Int[np.ndarray, " n"]) -> float | None:
        below = int(bottom[index].sum())
        return int(top[index].sum()) / below if below else of_nothing

    return bootstrap(len(top), statistic)


def _f1(precision: float | None, recall: float | None) -> float | None:
    """Harmonic mean; 0 where one of them is 0 and the other 0 or undefined, None without either."""
    if precision is None and recall is None:
        return None
    if not precision or not recall:
        return 0.0
    return 2 * precision * recall / (precision + recall)


def _detection(rule: Rule, cases: Sequence[LesionCase]) -> dict[str, Any]:
    counts = [rule.count(case) for case in cases]
    each = {f.name: _per_patient(cases, [getattr(c, f.name) for c in counts]) for f in _COUNTS}
    recall, around_recall = _ratio(each["tp_reference"], each["n_reference"], rule.of_nothing)
    precision, around = _ratio(each["tp_predicted"], each["n_predicted"], rule.of_nothing)
    return {
        "name": rule.name,
        **{name: int(column.sum()) for name, column in each.items()},
        "recall": recall,
        "precision": precision,
        "f1": _f1(precision, recall),
        "recall_interval": _listed(around_recall),
        "precision_interval": _listed(around),
    }


def _false_lesions(cases: Sequence[LesionCase]) -> dict[str, Any]:
    """A patient is tumor-free when every case of the patient is."""
    false = _per_patient(cases, [len(case.match.false) for case in cases])
    free = _per_patient(cases, [not case.tumor_free for case in cases]) == 0
    mean, interval = _ratio(false, np.ones_like(false), None)
    return {
        "false_per_patient": mean,
        "false_per_patient_interval": _listed(interval),
        "tumor_free_patients": int(free.sum()),
        "false_in_tumor_free": int(false[free].sum()),
    }


def _found_of_size(
    cases: Sequence[LesionCase], low_ml: float, high_ml: float | None
) -> dict[str, Any]:
    """Recall of the reference lesions of low <= volume < high."""
    found = total = 0
    for case in cases:
        hit = {r for _, r, _ in case.match.pairs}
        for r, ml in case.match.reference_ml.items():
            if low_ml <= ml and (high_ml is None or ml < high_ml):
                total += 1
                found += r in hit
    return {
        "low_ml": low_ml,
        "high_ml": high_ml,
        "found": found,
        "total": total,
        "recall": found / total if total else None,
        "interval": _listed(wilson(found, total)),
    }


def _per_lesion(cases: Sequence[LesionCase]) -> dict[str, Any]:
    """Dice and surface distance over reference lesions, under every policy."""
    dice: list[float | None] = []
    assd_mm: list[float | None] = []
    outcomes: list[Outcome] = []
    owners: list[LesionCase] = []
    for case in cases:
        for p, r, _ in case.match.pairs:
            dice.append(case.overlaps.dice(p, r))
            assd_mm.append(case.assd_mm[r])
            outcomes.append("both")
            owners.append(case)
        for _ in case.match.missed:
            dice.append(None)
            assd_mm.append(None)
            outcomes.append("missed")
            owners.append(case)
    summarize = partial(
        summarize_measure,
        outcomes=outcomes,
        diagonals_mm=[case.diagonal_mm for case in owners],
        patients=[case.patient_id for case in owners],
    )
    return {
        "dice": {p: summarize("similarity", dice, policy=p).as_dict() for p in POLICIES},
        "assd_mm": {p: summarize("distance", assd_mm, policy=p).as_dict() for p in POLICIES},
    }


def _listed(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)
