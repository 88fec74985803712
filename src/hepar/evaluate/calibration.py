"""Whether probabilities mean what they say: reliability by bins, calibration errors, Brier score.

Sources: Guo et al. 2017 (expected and maximum calibration error), Brier 1950.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions of about the same probability.

    Attributes:
        low: lower edge, not in the bin unless it is the first.
        high: upper edge, in the bin.
        n: predictions in it.
        mean_probability: what was said on average; None in an empty bin.
        observed: share that came true; None in an empty bin.
    """

    low: float
    high: float
    n: int
    mean_probability: float | None
    observed: float | None

    @property
    def gap(self) -> float:
        """|observed - mean probability|; 0 in an empty bin, which adds to no error."""
        if self.observed is None or self.mean_probability is None:
            return 0.0
        return abs(self.observed - self.mean_probability)


@dataclass(frozen=True)
class Reliability:
    """Probabilities against outcomes.

    Attributes:
        bins: by rising probability, empty ones included.
        n: predictions.
        brier: mean squared difference of probability and outcome; 0 is perfect.
    """

    bins: tuple[ReliabilityBin, ...]
    n: int
    brier: float

    @property
    def ece(self) -> float:
        """Expected calibration error: mean gap over the bins, weighted by their predictions."""
        return sum(b.n * b.gap for b in self.bins) / self.n

    @property
    def mce(self) -> float:
        """Maximum calibration error: the widest gap of a bin."""
        return max(b.gap for b in self.bins)


def reliability(
    probability: Float[np.ndarray, " n"],
    outcome: Bool[np.ndarray, " n"],
    *,
    n_bins: int = 10,
    bins: Literal["width", "mass"] = "width",
) -> Reliability:
    """Compare probabilities with what came true.

    The first bin is closed on both sides, [0, high]; every other is (low, high].

    Args:
        probability: said, one a prediction.
        outcome: whether it came true.
        n_bins: how many bins.
        bins: `width` cuts [0, 1] into equal parts at i / n_bins; `mass` cuts at the order
            statistics of rank ceil(i n / n_bins), so that bins hold equally many predictions. Equal
            probabilities are never parted: with ties, or fewer predictions than bins, there are
            fewer bins, none of them empty, and they end at the highest probability.

    Raises:
        ValueError: no predictions, fewer than one bin, or a probability that is NaN or outside
            [0, 1].
    """
    n = len(probability)
    if n == 0 or n_bins < 1:
        raise ValueError(f"{n} predictions in {n_bins} bins")
    p = probability.astype(np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("a probability is NaN or outside [0, 1]")
    high = _upper_edges(p, n_bins, bins)
    inside = np.searchsorted(high, p, side="left")
    counts = np.bincount(inside, minlength=len(high)).tolist()
    said = np.bincount(inside, weights=p, minlength=len(high)).tolist()
    came = np.bincount(inside[outcome], minlength=len(high)).tolist()
    edges = [0.0, *high.tolist()]
    return Reliability(
        bins=tuple(
            ReliabilityBin(
                low=edges[b],
                high=edges[b + 1],
                n=count,
                mean_probability=said[b] / count if count else None,
                observed=came[b] / count if count else None,
            )
            for b, count in enumerate(counts)
        ),
        n=n,
        brier=float(np.mean((p - outcome) ** 2)),
    )


def _upper_edges(
    p: NDArray[np.float64], n_bins: int, bins: Literal["width", "mass"]
) -> NDArray[np.float64]:
    cuts = np.arange(1, n_bins + 1)
    if bins == "width":
        # Quotients, not steps added up: a probability written 0.3 lies on the third of ten edges.
        return np.asarray(cuts / n_bins)
    rank = -(-cuts * len(p) // n_bins)
    return np.unique(np.sort(p)[rank - 1])
