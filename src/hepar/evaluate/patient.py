"""What a patient has: area under the ROC curve of each lesion type, by patient.

Source: the patient-wise evaluation of LIDIA and PLAN. A patient is positive
for every type whose reference volume exceeds that of a ball of 3 mm radius, so one patient may be
positive for several types. A type that every or no patient has is undefined and said to be so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from hepar.evaluate.roc import auc
from hepar.evaluate.statistics import bootstrap
from hepar.study import LESION_TYPES

POSITIVE_ABOVE_MM3 = 113.0

# `other` is in neither group.
GROUPS: dict[str, tuple[str, ...]] = {
    "malignant": ("hcc", "icc", "metastasis"),
    "benign": ("hemangioma", "fnh", "cyst", "calcification"),
}


@dataclass(frozen=True)
class MeanAuc:
    """A mean over classes that says what it stands on.

    Attributes:
        value: unweighted mean over the defined classes; None when there is none.
        n_defined: classes in the mean.
        undefined: classes left out, for want of positives or of negatives.
    """

    value: float | None
    n_defined: int
    undefined: tuple[str, ...]

    @classmethod
    def over(cls, by_name: Mapping[str, float | None]) -> MeanAuc:
        """The mean of what is defined."""
        kept = [value for value in by_name.values() if value is not None]
        missing = tuple(name for name, value in by_name.items() if value is None)
        return cls(float(np.mean(kept)) if kept else None, len(kept), missing)


@dataclass(frozen=True)
class PatientAuc:
    """AUC of a cohort.

    Attributes:
        by_class: type -> AUC of having it against not having it; None when undefined.
        by_group: malignant and benign, each against the rest.
        n_positive: type -> patients who have it.
        n_patients: patients in the cohort.
    """

    by_class: dict[str, float | None]
    by_group: dict[str, float | None]
    n_positive: dict[str, int]
    n_patients: int

    @property
    def auc_8(self) -> MeanAuc:
        """Unweighted mean over the lesion types."""
        return MeanAuc.over(self.by_class)

    @property
    def auc_2(self) -> MeanAuc:
        """Mean of malignant against the rest and benign against the rest."""
        return MeanAuc.over(self.by_group)


@dataclass(frozen=True)
class OneVersusRest:
    """Who has a type or a group, and the score of having it.

    Attributes:
        positive: one a patient.
        score: higher for positives.
    """

    positive: Bool[np.ndarray, " n"]
    score: Float[np.ndarray, " n"]

    @property
    def n_positive(self) -> int:
        """Patients who have it."""
        return int(np.count_nonzero(self.positive))

    @property
    def n_negative(self) -> int:
        """Patients who do not."""
        return len(self.positive) - self.n_positive

    def auc(self, index: Int[np.ndarray, " drawn"] | None = None) -> float | None:
        """AUC of all patients, or of drawn ones; None without positives or negatives."""
        if index is None:
            return auc(self.positive, self.score)
        return auc(self.positive[index], self.score[index])


def positives(reference_mm3: Float[np.ndarray, "n 8"]) -> Bool[np.ndarray, "n 8"]:
    """Which patient has which type: reference volume above 113 mm^3.

    Args:
        reference_mm3: volume of each of `LESION_TYPES` in each patient.
    """
    return np.asarray(reference_mm3 > POSITIVE_ABOVE_MM3)


def group_scores(scores: Mapping[str, float], how: Literal["max", "sum"]) -> dict[str, float]:
    """The score of each group of one patient: `max` of probabilities, `sum` of volumes.

    Args:
        scores: of every type.
        how: scores of types become that of a group.
    """
    join = max if how == "max" else math.fsum
    return {group: join([scores[name] for name in members]) for group, members in GROUPS.items()}


def one_versus_rest(
    reference_mm3: Float[np.ndarray, "n 8"],
    scores: Float[np.ndarray, "n 8"],
    *,
    group_score: Literal["max", "sum"] = "max",
) -> dict[str, OneVersusRest]:
    """Every type and both groups, each against the rest.

    Args:
        reference_mm3: volume of each of `LESION_TYPES` in each patient, in that order.
        scores: any score of having the type.
        group_score: how scores of types become that of a group: `max` for probabilities, `sum` for
            volumes.
    """
    has = positives(reference_mm3)
    column = {name: k for k, name in enumerate(LESION_TYPES)}
    problems = {name: OneVersusRest(has[:, k], scores[:, k]) for name, k in column.items()}
    for group, members in GROUPS.items():
        picked = [column[name] for name in members]
        joined = scores[:, picked]
        score = joined.max(axis=1) if group_score == "max" else joined.sum(axis=1)
        problems[group] = OneVersusRest(np.asarray(has[:, picked].any(axis=1)), score)
    return problems


def auc_interval(
    problems: Mapping[str, OneVersusRest], *, draws: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """95 % bootstrap interval, by patient, of the mean AUC of some problems on the same patients.

    Of one problem it is the interval of its AUC. A draw without positives, or without negatives, of
    a problem leaves that problem undefined there and out of that draw's mean, so the interval of an
    AUC-8 leans to the common types. A draw with no problem defined has no value; where more than a
    tenth have none, as for a type of one or two patients, there is no interval. An AUC of 0 or 1
    has an interval without width, which does not make it certain.

    Args:
        problems: at least one, by name; every type for the interval of AUC-8.
        draws: resampled cohorts.
        seed: of the draws.

    Returns:
        None where the AUC itself, or too many of its draws, are undefined.
    """
    n = len(next(iter(problems.values())).score)

    def mean(index: Int[np.ndarray, " n"]) -> float | None:
        return MeanAuc.over({name: p.auc(index) for name, p in problems.items()}).value

    return bootstrap(n, mean, draws=draws, seed=seed)[1]


def patient_auc(
    reference_mm3: Float[np.ndarray, "n 8"],
    scores: Float[np.ndarray, "n 8"],
    *,
    group_score: Literal["max", "sum"] = "max",
) -> PatientAuc:
    """AUC of every type and of both groups.

    Args:
        reference_mm3: volume of each of `LESION_TYPES` in each patient, in that order.
        scores: any score of having the type; only its order among patients counts.
        group_score: how scores of types become that of a group: `max` for probabilities, `sum` for
            volumes.

    Raises:
        ValueError: a score is NaN.
    """
    problems = one_versus_rest(reference_mm3, scores, group_score=group_score)
    areas = {name: problem.auc() for name, problem in problems.items()}
    return PatientAuc(
        by_class={name: areas[name] for name in LESION_TYPES},
        by_group={name: areas[name] for name in GROUPS},
        n_positive={name: problems[name].n_positive for name in LESION_TYPES},
        n_patients=len(reference_mm3),
    )
