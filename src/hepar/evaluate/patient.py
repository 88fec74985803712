"""What a patient has: area under the ROC curve of each lesion type, by patient.

Source: the patient-wise evaluation of LIDIA and PLAN. A patient is positive
for every type whose reference volume exceeds that of a ball of 3 mm radius, so one patient may be
positive for several types. A type that every or no patient has is undefined and said to be so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

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


def positives(reference_mm3: Float[np.ndarray, "n 8"]) -> Bool[np.ndarray, "n 8"]:
    """Which patient has which type: reference volume above 113 mm^3.

    Args:
        reference_mm3: volume of each of `LESION_TYPES` in each patient.
    """
    return np.asarray(reference_mm3 > POSITIVE_ABOVE_MM3)


def auc(positive: Bool[np.ndarray, " n"], score: Float[np.ndarray, " n"]) -> float | None:
    """Area under the ROC curve by trapezoids, ties averaged.

    Equals P(score of a positive > score of a negative) + P(equal) / 2, the Mann-Whitney U statistic
    over the number of pairs; a constant score has 0.5.

    Args:
        positive: one a patient.
        score: higher for positives; infinite values are ranked, NaN is refused.

    Returns:
        None without positives or without negatives.

    Raises:
        ValueError: a score is NaN.
    """
    if np.isnan(score).any():
        raise ValueError("a patient's score is NaN; give the score of an unseen type as 0")
    n_positive = int(np.count_nonzero(positive))
    n_negative = len(positive) - n_positive
    if n_positive == 0 or n_negative == 0:
        return None
    ranks = np.asarray(rankdata(score, method="average"), dtype=np.float64)
    wins = ranks[positive].sum() - n_positive * (n_positive + 1) / 2
    return float(wins / (n_positive * n_negative))


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
    has = positives(reference_mm3)
    column = {name: k for k, name in enumerate(LESION_TYPES)}
    by_group = {}
    for group, members in GROUPS.items():
        picked = [column[name] for name in members]
        joined = scores[:, picked]
        score = joined.max(axis=1) if group_score == "max" else joined.sum(axis=1)
        by_group[group] = auc(np.asarray(has[:, picked].any(axis=1)), score)
    return PatientAuc(
        by_class={name: auc(has[:, k], scores[:, k]) for name, k in column.items()},
        by_group=by_group,
        n_positive={name: int(np.count_nonzero(has[:, k])) for name, k in column.items()},
        n_patients=len(has),
    )
