"""What a cohort's patients have, as plain data: AUC by type, ROC, calibration, specificity."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from hepar.evaluate.calibration import reliability
from hepar.evaluate.patient import (
    GROUPS,
    MeanAuc,
    OneVersusRest,
    auc_interval,
    one_versus_rest,
    positives,
)
from hepar.evaluate.roc import roc_curve, sensitivity_at_specificity
from hepar.evaluate.statistics import wilson
from hepar.study import LESION_TYPES

Problems = Mapping[str, OneVersusRest]
Table = NDArray[np.float64]

_SPECIFICITY = 0.9


@dataclass(frozen=True)
class TypedCase:
    """One case of a patient: what it truly holds, and what was said of it.

    Attributes:
        patient_id: cases of one patient are joined before anything is scored.
        reference_mm3: type -> reference volume; types left out are absent from the case.
        score: type -> probability or predicted volume in mm^3, for every type.
    """

    patient_id: str
    reference_mm3: Mapping[str, float]
    score: Mapping[str, float]


@dataclass(frozen=True)
class ReportedCase:
    """One case of a patient: whether there is a tumor, and whether one was reported.

    Attributes:
        patient_id: cases of one patient are joined.
        tumor_free: the reference has no tumor, of whatever type or size.
        reported: the prediction has one.
    """

    patient_id: str
    tumor_free: bool
    reported: bool


def summarize_patients(
    cases: Iterable[TypedCase],
    score: Literal["probability", "volume"],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """How well scores tell which patient has which type.

    Cases of one patient are joined first: reference volumes and predicted volumes are summed, of
    probabilities the highest counts. A group's score is the highest probability, or the sum of the
    volumes, of its types. A type or group that every or no patient has is None everywhere, has no
    ROC points, and is named in `undefined` of the mean it is left out of.

    Calibration is of probabilities only and pooled: each type in each patient is one prediction
    with one outcome, 8 n in all. Predictions of one patient are not independent, the many types
    that a patient plainly lacks weigh as much as those that are hard to tell, and errors of
    opposite sign in two types cancel within a bin.

    A missing score is not a score of 0. Each case states one for every type, 0 where nothing of the
    type was found; a cohort in which some cases have none is refused, because scoring them as 0
    would rank patients by whether the prediction could speak at all.

    Args:
        cases: of all patients, in any order.
        score: what the scores are.
        draws: resampled cohorts of a bootstrap interval.
        seed: of the draws.

    Raises:
        ValueError: no cases; cases without a score of exactly the known types, or with an unknown
            type in the reference, by patient; a volume that is negative or not finite; a
            probability outside [0, 1].
    """
    _, reference_mm3, scores = join_patients(list(cases), score)
    group_score: Literal["max", "sum"] = "max" if score == "probability" else "sum"
    problems = one_versus_rest(reference_mm3, scores, group_score=group_score)
    types = {name: problems[name] for name in LESION_TYPES}
    groups = {name: problems[name] for name in GROUPS}
    curves = {name: roc_curve(p.positive, p.score) for name, p in problems.items()}

    def interval(of: Problems) -> list[float] | None:
        return _plain(auc_interval(of, draws=draws, seed=seed))

    return {
        "score": score,
        "n_patients": len(scores),
        "auc": {name: _area(p, interval({name: p})) for name, p in types.items()},
        "groups": {name: _area(p, interval({name: p})) for name, p in groups.items()},
        "auc_8": _mean(types, interval(types)),
        "auc_2": _mean(groups, interval(groups)),
        "sensitivity_at_specificity": {
            str(_SPECIFICITY): {
                name: None if c is None else sensitivity_at_specificity(c, _SPECIFICITY)
                for name, c in curves.items()
            }
        },
        "roc": {name: [] if c is None else c.points for name, c in curves.items()},
        "calibration": _calibration(scores, positives(reference_mm3))
        if score == "probability"
        else None,
    }


def summarize_specificity(cases: Iterable[ReportedCase]) -> dict[str, Any]:
    """In how many tumor-free patients nothing was reported, with Wilson's 95 % interval.

    A patient is tumor free when every case is, and without a finding when no case has one.
    """
    tumor_free: dict[str, bool] = defaultdict(lambda: True)
    reported: dict[str, bool] = defaultdict(bool)
    for case in cases:
        tumor_free[case.patient_id] &= case.tumor_free
        reported[case.patient_id] |= case.reported
    free = [patient for patient, is_free in tumor_free.items() if is_free]
    silent = sum(not reported[patient] for patient in free)
    return {
        "tumor_free_patients": len(free),
        "without_finding": silent,
        "specificity": silent / len(free) if free else None,
        "interval": _plain(wilson(silent, len(free))),
    }


def join_patients(
    cases: Sequence[TypedCase], score: Literal["probability", "volume"]
) -> tuple[list[str], Float[np.ndarray, "n 8"], Float[np.ndarray, "n 8"]]:
    """Patients by id, and a row for each: volumes and scores, a column each of `LESION_TYPES`.

    Sorted patients and exact sums make the order of the cases irrelevant to the last bit.

    Raises:
        ValueError: as `summarize_patients`.
    """
    if not cases:
        raise ValueError("no cases to summarize")
    ids = [case.patient_id for case in cases]
    absent = dict.fromkeys(LESION_TYPES, 0.0)
    volumes = _table("reference volume", ids, [absent | dict(c.reference_mm3) for c in cases])
    largest = 1.0 if score == "probability" else math.inf
    scores = _table(score, ids, [case.score for case in cases], largest)
    rows: dict[str, list[int]] = defaultdict(list)
    for row, patient_id in enumerate(ids):
        rows[patient_id].append(row)

    def by_patient(table: Table, join: Callable[[Any], float]) -> Table:
        patients = [table[rows[patient_id]] for patient_id in sorted(rows)]
        return np.array([[join(column) for column in patient.T] for patient in patients])

    join = max if score == "probability" else math.fsum
    return sorted(rows), by_patient(volumes, math.fsum), by_patient(scores, join)


def _table(
    what: str,
    ids: Sequence[str],
    rows: Sequence[Mapping[str, float]],
    largest: float = math.inf,
) -> Table:
    """One row a case, one column a type; refuses what is missing, unknown or impossible."""
    wrong = [i for i, row in zip(ids, rows, strict=True) if set(row) != set(LESION_TYPES)]
    if wrong:
        raise ValueError(
            f"not a {what} of each of {', '.join(LESION_TYPES)} and of nothing else: "
            f"{_some(wrong)}; where it is unknown, it is not 0"
        )
    table = np.array([[row[name] for name in LESION_TYPES] for row in rows], dtype=np.float64)
    sound = np.all(np.isfinite(table) & (table >= 0) & (table <= largest), axis=1)
    wrong = [i for i, is_sound in zip(ids, sound.tolist(), strict=True) if not is_sound]
    if wrong:
        raise ValueError(f"a {what} is negative, not finite, or above {largest:g}: {_some(wrong)}")
    return table


def _some(patient_ids: Sequence[str]) -> str:
    """The first patients by name, and how many there are."""
    names = sorted(set(patient_ids))
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"


def _plain(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _area(problem: OneVersusRest, interval: list[float] | None) -> dict[str, Any]:
    return {
        "auc": problem.auc(),
        "interval": interval,
        "n_positive": problem.n_positive,
        "n_negative": problem.n_negative,
    }


def _mean(problems: Problems, interval: list[float] | None) -> dict[str, Any]:
    mean = MeanAuc.over({name: problem.auc() for name, problem in problems.items()})
    return {
        "value": mean.value,
        "interval": interval,
        "n_defined": mean.n_defined,
        "undefined": list(mean.undefined),
    }


def _calibration(
    probability: Float[np.ndarray, "n 8"], outcome: Bool[np.ndarray, "n 8"]
) -> dict[str, Any]:
    found = reliability(probability.ravel(), outcome.ravel())
    return {
        "ece": found.ece,
        "brier": found.brier,
        "n": found.n,
        "bins": [asdict(b) for b in found.bins],
    }
