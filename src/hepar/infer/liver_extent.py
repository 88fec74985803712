"""How far a liver mask reaches, found or given: margin of its box, doubts about its extent."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from hepar.geometry import Grid
from hepar.infer.refine import USUAL_ML

BOX_MARGIN_MM = 10.0
# A cut through the dome or the tip is small; a cut through the organ is not.
TRUNCATED_MM2 = 1000.0


def extent_doubts(liver: Bool[np.ndarray, "z y x"], grid: Grid, liver_ml: float) -> tuple[str, ...]:
    """Warnings of a liver that the field of view cuts, or whose volume is unusual.

    Args:
        liver: the mask.
        grid: axial, of the mask.
        liver_ml: its volume.

    Returns:
        `W_LIVER_TRUNCATED`, one a border, and `W_LIVER_VOLUME`.
    """
    found = []
    dz, dy, dx = grid.spacing_mm
    for axis, pixel_mm2, ends in (
        (0, dy * dx, ("first slice", "last slice")),
        (1, dz * dx, ("front border", "back border")),
        (2, dz * dy, ("right border", "left border")),
    ):
        for end, at in zip(ends, (0, -1), strict=True):
            area_mm2 = float(liver.take(at, axis).sum()) * pixel_mm2
            if area_mm2 >= TRUNCATED_MM2:
                found.append(
                    f"W_LIVER_TRUNCATED: {area_mm2 / 100:.0f} cm2 of liver lie on the {end}; the "
                    "organ is cut by the field of view and its volume is a lower bound"
                )
    if not USUAL_ML[0] <= liver_ml <= USUAL_ML[1]:
        found.append(f"W_LIVER_VOLUME: a liver of {liver_ml:.0f} ml is unusual; check the mask")
    return tuple(found)
