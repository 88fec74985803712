"""Overlap and volume of two masks of one case, and their means over cases.

Definitions: LiTS challenge scoring, DPC-Net Eq. 14 for the relative volume difference. What is
undefined is said, never averaged: policy `penalised` of the project (a miss counts as the worst
value; a case where both masks are empty is excluded and counted).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Overlap:
    """Voxel counts of one case; every overlap measure follows from them.

    Attributes:
        predicted: voxels of the prediction A.
        reference: voxels of the reference B.
        both: voxels of A and B.
        voxel_ml: volume of a voxel.
    """

    predicted: int
    reference: int
    both: int
    voxel_ml: float

    @property
    def missed(self) -> bool:
        """One mask is empty and the other is not."""
        return (self.predicted == 0) != (self.reference == 0)

    @property
    def undefined(self) -> bool:
        """Both masks are empty."""
        return self.predicted == 0 and self.reference == 0

    @property
    def dice(self) -> float | None:
        """2|A and B| / (|A| + |B|); None when both are empty."""
        total = self.predicted + self.reference
        return None if total == 0 else 2.0 * self.both / total

    @property
    def voe(self) -> float | None:
        """Volumetric overlap error 1 - |A and B| / |A or B|; None when both are empty."""
        union = self.predicted + self.reference - self.both
        return None if union == 0 else 1.0 - self.both / union

    @property
    def rvd(self) -> float | None:
        """Relative volume difference (|A| - |B|) / |B|, signed; None for an empty reference."""
        if self.reference == 0:
            return None
        return (self.predicted - self.reference) / self.reference

    @property
    def false_ml(self) -> float:
        """Predicted volume outside the reference, in milliliters."""
        return (self.predicted - self.both) * self.voxel_ml


def overlap(
    predicted: Mask,
    reference: Mask,
    voxel_ml: float,
    *,
    ignore: Mask | None = None,
) -> Overlap:
    """Count one case.

    Args:
        predicted: `(z, y, x)`.
        reference: same shape.
        voxel_ml: volume of a voxel in milliliters.
        ignore: voxels left out of every count.
    """
    if predicted.shape != reference.shape:
        raise ValueError(f"masks of shapes {predicted.shape} and {reference.shape}")
    if predicted.dtype != np.bool_ or reference.dtype != np.bool_:
        raise TypeError("masks must be boolean")
    if ignore is not None:
        predicted, reference = predicted & ~ignore, reference & ~ignore
    return Overlap(
        int(np.count_nonzero(predicted)),
        int(np.count_nonzero(reference)),
        int(np.count_nonzero(predicted & reference)),
        voxel_ml,
    )


@dataclass(frozen=True)
class Mean:
    """A mean that says what it stands on.

    Attributes:
        value: mean over the defined cases; None when there is none.
        std: standard deviation over the same cases (n - 1); None below two.
        n_defined: cases in the mean.
        n_missed: of those, cases where one mask was empty and the worst value was taken.
        n_undefined: cases left out.
    """

    value: float | None
    std: float | None
    n_defined: int
    n_missed: int
    n_undefined: int

    def as_dict(self) -> dict[str, Any]:
        """The mean as plain data."""
        return {
            "mean": self.value,
            "std": self.std,
            "n": self.n_defined,
            "n_missed": self.n_missed,
            "n_undefined": self.n_undefined,
        }


def mean_over_cases(values: Sequence[float | None], missed: Iterable[bool] = ()) -> Mean:
    """Average per-case values; None is left out and counted.

    Args:
        values: one a case.
        missed: whether the value of a case stands for a miss.
    """
    flags = list(missed) or [False] * len(values)
    kept = [v for v in values if v is not None]
    if any(not np.isfinite(v) for v in kept):
        raise ValueError("a per-case value is not finite; use None for what is undefined")
    hits = sum(f for f, v in zip(flags, values, strict=True) if v is not None)
    return Mean(
        float(np.mean(kept)) if kept else None,
        float(np.std(kept, ddof=1)) if len(kept) > 1 else None,
        len(kept),
        hits,
        len(values) - len(kept),
    )


def dice_global(cases: Iterable[Overlap]) -> float | None:
    """Dice of all cases pooled: 2 sum |A and B| / sum (|A| + |B|); None when all are empty."""
    both = total = 0
    for case in cases:
        both += case.both
        total += case.predicted + case.reference
    return None if total == 0 else 2.0 * both / total
