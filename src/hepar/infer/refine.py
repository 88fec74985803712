"""A coarse liver mask and a finer network's opinion of it: the border may move, the organ not."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import ndimage

from hepar.errors import InputRefused

USUAL_ML = (600.0, 4000.0)
MOVE_MM = 8.0
# Distance from the coarse border at which its word is as good as a probability of 1 / (1 + e).
BELIEF_MM = 3.0
# Below this agreement the finer network's border is not to be believed.
MIN_DICE = 0.85


def no_liver(stage: str, detail: str) -> InputRefused:
    """`E_NO_LIVER`: what a stage found is none."""
    return InputRefused(
        "E_NO_LIVER",
        stage,
        f"no liver was found in the reference phase: {detail}",
        "check that the series shows the upper abdomen, in HU, and is the right way up",
    )


def refined_liver(
    coarse: Bool[np.ndarray, "z y x"],
    organ: Float[np.ndarray, "z y x"],
    spacing_mm: tuple[float, float, float],
) -> tuple[NDArray[np.float32] | None, float]:
    """The probability of liver, tumors included, with the coarse mask as its guard.

    Farther than 8 mm from the coarse border the coarse mask decides. Nearer it is the mean of two
    opinions: the finer network's, and the coarse mask's, a logistic of the distance to its border.

    Args:
        coarse: the liver as it was found.
        organ: probability of liver or tumor from a finer network, same grid.
        spacing_mm: (z, y, x).

    Returns:
        The probability on the same grid, its border at one half, or None when the two agree too
        little to believe the finer one; and how well they agree: the Dice of the two within 8 mm of
        the coarse mask.
    """
    fine = organ >= 0.5
    inside = ndimage.distance_transform_edt(coarse, sampling=spacing_mm)
    outside = ndimage.distance_transform_edt(~coarse, sampling=spacing_mm)
    fine &= outside <= MOVE_MM
    total = int(coarse.sum()) + int(fine.sum())
    agreement = 2 * int((coarse & fine).sum()) / total if total else 0.0
    if agreement < MIN_DICE:
        return None, agreement
    signed = (inside - outside).clip(-MOVE_MM, MOVE_MM)
    mean = 0.5 * (organ + 1 / (1 + np.exp(-signed / BELIEF_MM)))
    refined = np.where(outside > MOVE_MM, 0.0, np.where(inside > MOVE_MM, 1.0, mean))
    return np.asarray(refined, np.float32), agreement
