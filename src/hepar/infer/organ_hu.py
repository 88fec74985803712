"""HU of the organs that show which contrast phase a scan is: measured in what `organs` names.

Everything is measured at 5 x 2.5 x 2.5 mm, after a light smoothing in the slice, by medians, so
that kernel and dose matter little. Whatever the scan does not show is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32
from numpy.typing import NDArray
from scipy import ndimage

from hepar.geometry import Grid, canonical
from hepar.infer.components import largest
from hepar.infer.organs import Organs
from hepar.preprocess import AIR_HU, working_grid
from hepar.resampling import resample
from hepar.study import Volume

# What is measured, in the order of the classifier's features; all in HU.
MEASURES = {
    "aorta": "aorta",
    "cava": "inferior vena cava",
    "heart": "heart",
    "liver": "liver",
    "liver_vessels": "brightest vessels of the liver above its median",
    "spleen": "spleen",
    "spleen_mottling": "unevenness of the spleen",
    "kidney_cortex": "kidney, outer shell",
    "kidney_depth": "kidney, depth",
}

_SPACING_MM = (5.0, 2.5, 2.5)
_SMOOTH_MM = 2.0
_ENOUGH_ML = 1.0
# Around the front of the vertebral body: how far the great vessels lie from its midline and front.
_BESIDE_MM, _BEFORE_MM, _BEHIND_MM = 45.0, 45.0, 15.0
_MIDLINE_MM = 4.0
_SHELL_MM, _DEPTH_MM = (1.5, 6.5), 9.0
# Vessels fill about a twentieth of what lies deep in the liver.
_VESSEL_PERCENTILE = 97
# Between the tenth and the ninetieth percentile: no liver spreads so far, full of tumors or not.
_WIDEST_HU = 150.0
_TISSUE_HU = (-30.0, 600.0)


@dataclass(frozen=True)
class _Scan:
    """A scan on the grid where it is measured."""

    grid: Grid
    smooth: Float32[np.ndarray, "z y x"]
    organs: Organs

    @classmethod
    def of(cls, volume: Volume, organs: Organs) -> _Scan:
        array, grid = canonical(volume.array, volume.grid)
        target = working_grid(grid, _SPACING_MM)
        hu = resample(np.clip(array, AIR_HU, 3071), grid, target, fill=AIR_HU)
        sigma = [0.0, *(_SMOOTH_MM / s for s in target.spacing_mm[1:])]
        return cls(target, ndimage.gaussian_filter(hu, sigma), organs)

    def mask(self, name: str, inside_mm: float = 0.0) -> NDArray[np.bool_]:
        """An organ in one piece, without what lies nearer than `inside_mm` to its outline."""
        mask = self.organs.mask(name)
        return self.fine(mask, inside_mm)

    def fine(self, mask: NDArray[np.bool_], inside_mm: float = 0.0) -> NDArray[np.bool_]:
        """A mask on the organs' grid, rounded by interpolation, without its rim."""
        share = resample(
            mask.astype(np.float32), self.organs.grid, self.grid, fill=None, antialias=False
        )
        found = share >= 0.5
        return found if inside_mm == 0.0 else self.deep(found, inside_mm)

    def deep(self, mask: NDArray[np.bool_], inside_mm: float) -> NDArray[np.bool_]:
        """What lies farther than so many mm from the outline in its slice."""
        return np.asarray(self.depth_mm(mask) > inside_mm)

    def depth_mm(self, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Distance from the outline within the slice; the field's border is no outline."""
        depth = np.zeros(mask.shape, np.float32)
        for z in np.flatnonzero(mask.any(axis=(1, 2))):
            depth[z] = ndimage.distance_transform_edt(mask[z], sampling=self.grid.spacing_mm[1:])
        return depth

    def values(self, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """HU of soft tissue in a mask; none where there is too little of it."""
        found = self.smooth[mask]
        found = found[(found > _TISSUE_HU[0]) & (found < _TISSUE_HU[1])]
        return found if found.size * self.grid.voxel_ml >= _ENOUGH_ML else found[:0]


def organ_hu(volume: Volume, organs: Organs) -> dict[str, float]:
    """Measure what tells a phase.

    Args:
        volume: HU of the scan in which the organs were found, any orientation.
        organs: from `find_organs`.

    Returns:
        Name in `MEASURES` -> HU; a name is absent where the scan does not show the organ. Nothing
        where no liver is seen, or none that is of one tissue: a network that was made to find
        livers names organs in anything, noise included.
    """
    scan = _Scan.of(volume, organs)
    liver = _liver(scan)
    if liver["liver"] is None:
        return {}
    aorta, cava = great_vessels(organs)
    found: dict[str, float | None] = {
        "aorta": _median(scan.values(scan.fine(aorta, 3.0))),
        "cava": _median(scan.values(scan.fine(cava, 3.0))),
        "heart": _percentile(scan.values(scan.mask("heart", 5.0)), 75),
    }
    found |= liver | _spleen(scan) | _kidney(scan)
    return {name: round(found[name] or 0.0, 1) for name in MEASURES if found[name] is not None}


def great_vessels(
    organs: Organs,
) -> tuple[Bool[np.ndarray, "z y x"], Bool[np.ndarray, "z y x"]]:
    """Aorta and inferior vena cava: vessels before the vertebral column, left and right of it.

    Args:
        organs: axial, z to Superior, y to Posterior, x to the patient's Left.

    Returns:
        Two masks on the organs' grid, empty where no vertebral column or no vessel is seen.
    """
    vessels = organs.mask("vessels")
    nothing = np.zeros_like(vessels)
    column = _column(organs)
    if column is None:
        return nothing, nothing
    _, dy, dx = organs.grid.spacing_mm
    middle, front = column
    y, x = np.ogrid[: vessels.shape[1], : vessels.shape[2]]
    aside = (x - middle) * dx
    before = (front - y) * dy
    near = (np.abs(aside) <= _BESIDE_MM) & (before <= _BEFORE_MM) & (before >= -_BEHIND_MM)
    aorta = vessels & near & (aside > -_MIDLINE_MM)
    cava = vessels & near & (aside < -_MIDLINE_MM)
    return largest(aorta), largest(cava)


def _column(organs: Organs) -> tuple[float, float] | None:
    """Midline (x) and front (y) of the vertebral bodies, in voxels."""
    bone = organs.mask("bone")
    if not bone.any():
        return None
    _, dy, dx = organs.grid.spacing_mm
    # Ribs wander from slice to slice, the column stays.
    often = ndimage.gaussian_filter(bone.mean(axis=0), (7.0 / dy, 7.0 / dx))
    row, column = (int(k) for k in np.unravel_index(int(often.argmax()), often.shape))
    first = max(0, column - round(15.0 / dx))
    weight = often[:, first : column + round(15.0 / dx) + 1].sum(axis=0)
    middle = float((weight * np.arange(weight.size)).sum() / weight.sum()) + first
    rows = np.flatnonzero(bone[:, :, round(middle)].mean(axis=0) >= 0.4)
    rows = rows[np.abs(rows - row) * dy <= 45.0]
    return middle, float(rows.min() if rows.size else row)


def _liver(scan: _Scan) -> dict[str, float | None]:
    values = scan.values(scan.mask("liver", 7.5))
    if not values.size or np.ptp(np.percentile(values, (10, 90))) > _WIDEST_HU:
        return {"liver": None, "liver_vessels": None}
    median = float(np.median(values))
    bright = float(np.percentile(values, _VESSEL_PERCENTILE))
    return {"liver": median, "liver_vessels": bright - median}


def _spleen(scan: _Scan) -> dict[str, float | None]:
    values = scan.values(scan.mask("spleen", 4.0))
    if values.size * scan.grid.voxel_ml < 10.0:
        return {"spleen": _median(values), "spleen_mottling": None}
    low, high = np.percentile(values, (15, 85))
    return {"spleen": _median(values), "spleen_mottling": float(high - low) / 2.07}


def _kidney(scan: _Scan) -> dict[str, float | None]:
    depth = scan.depth_mm(scan.mask("kidney"))
    shell = scan.values((depth > _SHELL_MM[0]) & (depth <= _SHELL_MM[1]))
    inner = scan.values(depth > _DEPTH_MM)
    return {"kidney_cortex": _percentile(shell, 60), "kidney_depth": _median(inner)}


def _median(values: NDArray[np.float32]) -> float | None:
    return _percentile(values, 50)


def _percentile(values: NDArray[np.float32], share: float) -> float | None:
    return float(np.percentile(values, share)) if values.size else None
