"""What a case counts for where a mask is empty, and means that say what they stand on.

Papers and servers differ exactly here, and a metric that leaves misses out improves with every
miss. Three policies:

| | value | missed (prediction empty) | false (reference empty) | both empty |
|---|---|---|---|---|
| `penalised` | similarity | 0 | 0 | left out, counted |
| | error (VOE) | 1 | 1 | left out, counted |
| | RVD | -1 | left out, counted | left out, counted |
| | distance | diagonal of the reference's image | the same | left out, counted |
| `paper` | similarity, error, RVD | as `penalised` | as `penalised` | left out, counted |
| | distance | left out, counted | left out, counted | left out, counted |
| `lits` | similarity, error | 0, 1 | 0, 1 | 1, 0 |
| | RVD, distance | 9001 | 9001 | 9001 |

Under `penalised` nothing is worse than a miss: every similarity lies above 0, every error below 1,
every distance below the diagonal. |RVD| alone has no upper end, so its mean takes values above 1 as
1 and counts them; the mean over detected cases beside it takes them as they are. (`lits`: the
scoring server of the LiTS challenge.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from hepar.evaluate.statistics import mean_of_cases

Policy = Literal["penalised", "paper", "lits"]
Outcome = Literal["both", "missed", "false", "empty"]
Kind = Literal["similarity", "error", "volume", "volume_abs", "distance"]

POLICIES: tuple[Policy, ...] = get_args(Policy)
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
DEFAULT: Policy = "penalised"
LITS_LARGE = 9001.0


@dataclass(frozen=True)
class Mean:
    """A mean that says what it stands on.

    Attributes:
        value: mean over the counted cases; None when there is none.
        std: standard deviation over the same cases (n - 1); None below two.
        interval: 95 % bootstrap interval, patients resampled; None below two patients.
        n: cases in the mean.
        n_missed: of those, cases where one mask was empty and the other was not.
        n_undefined: cases left out.
        n_capped: cases whose |RVD| above 1 was taken as 1.
        detected: mean over the cases with both masks, uncapped; None when there is none.
        n_detected: cases in that mean.
    """

    value: float | None
    std: float | None
    interval: tuple[float, float] | None
    n: int
    n_missed: int
    n_undefined: int
    n_capped: int
    detected: float | None
    n_detected: int

    def as_dict(self) -> dict[str, Any]:
        """The mean as plain data."""
        return {
            "mean": self.value,
            "std": self.std,
            "interval": None if self.interval is None else list(self.interval),
            "n": self.n,
            "n_missed": self.n_missed,
            "n_undefined": self.n_undefined,
            "n_capped": self.n_capped,
            "detected_mean": self.detected,
            "n_detected": self.n_detected,
        }


def outcome_of(predicted: int, reference: int) -> Outcome:
    """Which of two masks of so many voxels are there."""
    if predicted and reference:
        return "both"
    if reference:
        return "missed"
    return "false" if predicted else "empty"


def counted(
    kind: Kind,
    value: float | None,
    outcome: Outcome,
    diagonal_mm: float,
    policy: Policy = DEFAULT,
) -> float | None:
    """What one case contributes to a mean; None where it is left out.

    Args:
        kind: how the measure behaves where a mask is empty.
        value: as measured; None where a mask is empty and nothing can be measured.
        outcome: which masks are there.
        diagonal_mm: of the reference's image.
        policy: see the table above.

    Raises:
        ValueError: a case with both masks has no finite value.
    """
    if outcome == "both":
        if value is None or not np.isfinite(value):
            raise ValueError(f"a case with both masks has the value {value}")
        return min(value, 1.0) if kind == "volume_abs" and policy == "penalised" else value
    if kind in ("similarity", "error"):
        if outcome == "empty":
            return None if policy != "lits" else float(kind == "similarity")
        return float(kind == "error")
    if policy == "lits":
        return LITS_LARGE
    if kind == "distance":
        return diagonal_mm if policy == "penalised" and outcome != "empty" else None
    if outcome == "missed":
        return -1.0 if kind == "volume" else 1.0
    return None


def summarize_measure(
    kind: Kind,
    values: Sequence[float | None],
    outcomes: Sequence[Outcome],
    diagonals_mm: Sequence[float],
    policy: Policy = DEFAULT,
    patients: Sequence[str] | None = None,
) -> Mean:
    """Average a measure over cases.

    Args:
        kind: how the measure behaves where a mask is empty.
        values: one a case, as measured.
        outcomes: one a case.
        diagonals_mm: one a case.
        policy: what empty masks count for.
        patients: whose case each is; each case is a patient of its own when absent.
    """
    counts = [
        counted(kind, value, outcome, diagonal, policy)
        for value, outcome, diagonal in zip(values, outcomes, diagonals_mm, strict=True)
    ]
    both = [v for v, o in zip(values, outcomes, strict=True) if o == "both" and v is not None]
    owners = list(patients) if patients is not None else [str(k) for k in range(len(counts))]
    mean = mean_of_cases(counts, owners)
    one_sided = [o in ("missed", "false") for o in outcomes]
    capped = kind == "volume_abs" and policy == "penalised"
    return Mean(
        value=mean.mean,
        std=mean.std,
        interval=mean.interval,
        n=mean.n,
        n_missed=sum(m for m, c in zip(one_sided, counts, strict=True) if c is not None),
        n_undefined=mean.n_undefined,
        n_capped=sum(v > 1.0 for v in both) if capped else 0,
        detected=float(np.mean(both)) if both else None,
        n_detected=len(both),
    )
