"""Tumor by a HU threshold: no learning, and what every trained network has to beat.

Source: none. Portal venous tumors are mostly darker than the liver around them: smooth inside the
liver, keep what lies well below the liver's median, open away what is thin.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage


class HuThresholdSettings(BaseModel):
    """Switches of the threshold.

    Attributes:
        name: the method.
        spacing_mm: (z, y, x) working spacing.
        sigma_mm: standard deviation of the Gaussian, in mm.
        below_hu: a voxel is tumor where it is this far below the liver's median.
        opening_mm: radius of the ball of the opening.
        erosion_mm: rim of the liver that is not searched, on top of what the opening removes.
        min_volume_ml: smaller components are dropped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["hu_threshold"] = "hu_threshold"
    spacing_mm: tuple[float, float, float] = (2.0, 2.0, 2.0)
    sigma_mm: float = Field(default=2.4, gt=0)
    below_hu: float = 20.0
    opening_mm: float = Field(default=3.0, ge=0)
    erosion_mm: float = Field(default=0.0, ge=0)
    min_volume_ml: float = Field(default=0.1, ge=0)


def hu_threshold(
    hu: NDArray[np.integer] | NDArray[np.floating],
    liver: Bool[np.ndarray, "z y x"],
    spacing_mm: tuple[float, float, float],
    settings: HuThresholdSettings | None = None,
) -> Bool[np.ndarray, "z y x"]:
    """Voxels of the liver that are clearly darker than the liver.

    Args:
        hu: `(z, y, x)`, reference phase.
        liver: the organ, tumors included.
        spacing_mm: (z, y, x).
        settings: defaults when None.

    Returns:
        The tumor mask; empty for an empty liver.
    """
    settings = settings or HuThresholdSettings()
    if not liver.any():
        return np.zeros_like(liver)
    median = float(np.median(hu[liver]))
    smooth = smooth_inside(hu, liver, spacing_mm, settings.sigma_mm)
    inner = liver
    if settings.erosion_mm > 0:
        depth = ndimage.distance_transform_edt(np.pad(liver, 1), sampling=spacing_mm)
        inner = np.asarray(depth)[1:-1, 1:-1, 1:-1] > settings.erosion_mm
    dark = inner & (smooth < median - settings.below_hu)
    return np.asarray(
        ndimage.binary_opening(dark, structure=ball(settings.opening_mm, spacing_mm)), dtype=bool
    )


def smooth_inside(
    hu: NDArray[np.integer] | NDArray[np.floating],
    mask: Bool[np.ndarray, "z y x"],
    spacing_mm: tuple[float, float, float],
    sigma_mm: float,
) -> NDArray[np.float32]:
    """Gaussian mean over the mask alone, so that what lies outside does not leak in."""
    sigma = [sigma_mm / s for s in spacing_mm]
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma, mode="constant")
    values = np.where(mask, hu, 0).astype(np.float32)
    total = ndimage.gaussian_filter(values, sigma, mode="constant")
    return np.asarray(total / np.maximum(weight, 1e-6), dtype=np.float32)


def ball(radius_mm: float, spacing_mm: tuple[float, float, float]) -> Bool[np.ndarray, "z y x"]:
    """A ball as a structuring element, the center voxel always included."""
    reach = [int(radius_mm / s) for s in spacing_mm]
    z, y, x = np.ogrid[tuple(slice(-r, r + 1) for r in reach)]
    dz, dy, dx = spacing_mm
    return np.asarray((z * dz) ** 2 + (y * dy) ** 2 + (x * dx) ** 2 <= radius_mm**2 + 1e-9)
