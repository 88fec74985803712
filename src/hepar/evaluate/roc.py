"""Receiver operating characteristic of a score: curve, area and operating points.

A score calls positive whoever reaches a threshold, so those with equal scores are called together
and every distinct score is one operating point. Points are kept as counts: areas and comparisons of
rates are then exact, whatever the ties.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray


@dataclass(frozen=True)
class RocCurve:
    """Operating points from nobody called positive to everybody.

    Attributes:
        threshold: the k distinct scores, falling; at point i + 1 a score of at least `threshold[i]`
            is called positive. Point 0 has none, because a score may be infinite.
        true_positives: positives called, at each of the k + 1 points.
        false_positives: negatives called.
    """

    threshold: Float[np.ndarray, " k"]
    true_positives: Int[np.ndarray, " k+1"]
    false_positives: Int[np.ndarray, " k+1"]

    @property
    def sensitivity(self) -> NDArray[np.float64]:
        """Share of the positives that are called, from 0 to 1."""
        return np.asarray(self.true_positives / self.true_positives[-1])

    @property
    def false_positive_rate(self) -> NDArray[np.float64]:
        """Share of the negatives that are called, from 0 to 1."""
        return np.asarray(self.false_positives / self.false_positives[-1])

    @property
    def specificity(self) -> NDArray[np.float64]:
        """Share of the negatives that are not called, from 1 to 0."""
        n_negative = self.false_positives[-1]
        return np.asarray((n_negative - self.false_positives) / n_negative)

    @property
    def points(self) -> list[list[float]]:
        """(false positive rate, sensitivity) of every point, from (0, 0) to (1, 1)."""
        rates = zip(self.false_positive_rate.tolist(), self.sensitivity.tolist(), strict=True)
        return [list(point) for point in rates]

    @property
    def area(self) -> float:
        """Area by trapezoids.

        Equals P(score of a positive > score of a negative) + P(equal) / 2, the Mann-Whitney U
        statistic over the number of pairs.
        """
        heights = self.true_positives[1:] + self.true_positives[:-1]
        twice = int(np.diff(self.false_positives) @ heights)
        return twice / (2 * int(self.true_positives[-1]) * int(self.false_positives[-1]))


@dataclass(frozen=True)
class OperatingPoint:
    """What calling positive from a threshold on does.

    Attributes:
        threshold: smallest score that is called positive.
        sensitivity: called / positives.
        specificity: not called / negatives.
        precision: positives / called.
    """

    threshold: float
    sensitivity: float
    specificity: float
    precision: float


def roc_curve(positive: Bool[np.ndarray, " n"], score: Float[np.ndarray, " n"]) -> RocCurve | None:
    """Every operating point of a score, one a distinct value.

    Args:
        positive: one a patient.
        score: higher for positives; infinite values are ranked, NaN is refused.

    Returns:
        None without positives or without negatives.

    Raises:
        ValueError: a score is NaN.
    """
    if np.isnan(score).any():
        raise ValueError("a score is NaN, which no threshold calls positive or negative")
    if positive.all() or not positive.any():
        return None
    distinct, rank = np.unique(score, return_inverse=True)

    def called(who: NDArray[np.bool_]) -> NDArray[np.int64]:
        at_score = np.bincount(rank[who], minlength=len(distinct))
        return np.concatenate([[0], np.cumsum(at_score[::-1])])

    return RocCurve(distinct[::-1], called(positive), called(~positive))


def auc(positive: Bool[np.ndarray, " n"], score: Float[np.ndarray, " n"]) -> float | None:
    """Area under the ROC curve, ties averaged; a constant score has 0.5.

    Args:
        positive: one a patient.
        score: higher for positives; infinite values are ranked, NaN is refused.

    Returns:
        None without positives or without negatives.

    Raises:
        ValueError: a score is NaN.
    """
    curve = roc_curve(positive, score)
    return None if curve is None else curve.area


def sensitivity_at_specificity(curve: RocCurve, specificity: float) -> float:
    """Best sensitivity among the operating points that are at least so specific.

    A step function of the specificity: nothing is interpolated, since no threshold acts between two
    points. Calling nobody is always specific enough, so the worst answer is 0.

    Args:
        curve: of the score.
        specificity: wanted, 0 to 1.

    Raises:
        ValueError: a specificity outside [0, 1].
    """
    if not 0.0 <= specificity <= 1.0:
        raise ValueError(f"no specificity is {specificity}")
    return float(curve.sensitivity[curve.specificity >= specificity].max())


def youden(curve: RocCurve) -> OperatingPoint:
    """The threshold with the highest sensitivity + specificity - 1 (Youden 1950).

    Among equals the highest threshold, hence the highest specificity. Calling nobody is no choice,
    so the precision is always defined.
    """
    true, false = curve.true_positives[1:], curve.false_positives[1:]
    best = int(np.argmax(true * false[-1] - false * true[-1]))
    return OperatingPoint(
        threshold=float(curve.threshold[best]),
        sensitivity=float(curve.sensitivity[best + 1]),
        specificity=float(curve.specificity[best + 1]),
        precision=float(true[best] / (true[best] + false[best])),
    )
