"""Overlap and volume of two masks of one case, from voxel counts.

Definitions: LiTS challenge scoring, DPC-Net Eq. 14 for the relative volume difference. What a case
counts for where a mask is empty is decided in `policy.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

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
        return relative_volume_difference(self.predicted, self.reference)

    @property
    def predicted_ml(self) -> float:
        """Volume of the prediction."""
        return self.predicted * self.voxel_ml

    @property
    def reference_ml(self) -> float:
        """Volume of the reference."""
        return self.reference * self.voxel_ml

    @property
    def false_ml(self) -> float:
        """Predicted volume outside the reference."""
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


def relative_volume_difference(
    predicted: float, reference: float, convention: Literal["reference", "lits"] = "reference"
) -> float | None:
    """Signed relative volume difference of two volumes.

    Args:
        predicted: |A|.
        reference: |B|.
        convention: `reference` is (|A| - |B|) / |B| (DPC-Net Eq. 14); `lits` is (|B| - |A|) / |A|,
            what the scoring server of the LiTS challenge gets by calling its library with the
            arguments exchanged: other sign and other denominator.

    Returns:
        None where the denominator is empty.
    """
    of, base = (predicted, reference) if convention == "reference" else (reference, predicted)
    return None if base == 0 else (of - base) / base


def dice_global(cases: Iterable[Overlap]) -> float | None:
    """Dice of all cases pooled: 2 sum |A and B| / sum (|A| + |B|); None when all are empty."""
    both = total = 0
    for case in cases:
        both += case.both
        total += case.predicted + case.reference
    return None if total == 0 else 2.0 * both / total


def tumor_burden(tumor_ml: float, liver_ml: float) -> float:
    """Tumor / liver (tumors included) by volume, between 0 and 1; 0 where there is no liver."""
    return tumor_ml / liver_ml if liver_ml > 0 else 0.0


@dataclass(frozen=True)
class BurdenError:
    """Error of the tumor burden over cases.

    Attributes:
        rmse: root of the mean squared difference; None without cases.
        max_error: largest difference in size.
        lits_max_error: largest signed difference reference - prediction, as the scoring server of
            the LiTS challenge prints it: an overestimate never shows in it.
        n: cases.
    """

    rmse: float | None
    max_error: float | None
    lits_max_error: float | None
    n: int


def burden_error(predicted: Iterable[float], reference: Iterable[float]) -> BurdenError:
    """Compare tumor burdens, one a case."""
    difference = np.asarray(list(reference), np.float64) - np.asarray(list(predicted), np.float64)
    if difference.size == 0:
        return BurdenError(None, None, None, 0)
    return BurdenError(
        rmse=float(np.sqrt(np.mean(difference**2))),
        max_error=float(np.abs(difference).max()),
        lits_max_error=float(difference.max()),
        n=difference.size,
    )
