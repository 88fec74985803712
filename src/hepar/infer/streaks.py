"""Photon starvation seen in the image: noise of the liver drawn out from left to right."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Integer
from scipy import ndimage

# Two points this far apart, along the rows or across them.
LAG_MM = 3.0
BAND_MM = 20.0
# Away from the border, whose slope is no noise.
MARGIN_MM = 4.0
# Fewer differences than this area has tell nothing about a band.
MIN_BAND_MM2 = 400.0
# Nine in ten slices of the three clean scans at hand stay below 1.25; the two spoiled ones reach
# 1.45 and 1.64.
DRAWN_OUT = 1.3


def streaked_share(
    hu: Integer[np.ndarray, "z y x"],
    liver: Bool[np.ndarray, "z y x"],
    spacing_mm: tuple[float, float, float],
) -> float:
    """The share of the liver's slices with a band of rows whose noise is drawn out along them.

    In a band of 20 mm, noise is drawn out where the median of |HU differences| over 3 mm across the
    rows exceeds 1.3 times that along the rows.

    Args:
        hu: of an axial series, rows from right to left of the patient.
        liver: where to look.
        spacing_mm: (z, y, x).

    Returns:
        0 to 1; 0 where no slice shows enough liver.
    """
    judged, drawn_out = 0, 0
    for image, mask in zip(hu, liver, strict=True):
        worst = _worst_band(image, mask, spacing_mm[1:])
        judged += worst is not None
        drawn_out += worst is not None and worst > DRAWN_OUT
    return drawn_out / judged if judged else 0.0


def _worst_band(
    image: Integer[np.ndarray, "y x"],
    mask: Bool[np.ndarray, "y x"],
    spacing_mm: tuple[float, ...],
) -> float | None:
    """The highest ratio of differences across and along the rows over the bands of a slice."""
    dy, dx = spacing_mm
    inside = ndimage.binary_erosion(mask, iterations=max(1, round(MARGIN_MM / dy)))
    across, along = max(1, round(LAG_MM / dy)), max(1, round(LAG_MM / dx))
    rows, needed = max(1, round(BAND_MM / dy)), MIN_BAND_MM2 / (dy * dx)
    worst = None
    for start in range(0, len(image) - across, rows):
        part = slice(start, start + rows + across)
        band, seen = image[part].astype(np.float32), inside[part]
        vertical = np.abs(band[across:] - band[:-across])[seen[across:] & seen[:-across]]
        row, seen_row = band[:rows], seen[:rows]
        level = np.abs(row[:, along:] - row[:, :-along])[seen_row[:, along:] & seen_row[:, :-along]]
        if min(len(vertical), len(level)) < needed:
            continue
        ratio = float(np.median(vertical)) / max(1.0, float(np.median(level)))
        worst = ratio if worst is None else max(worst, ratio)
    return worst
