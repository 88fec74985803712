"""What a scan that ends inside the liver did not show: dome, lungs and heart above its last slice.

A training set whose anatomies end at the dome teaches that livers are flat on top. Above the last
slice the chest wall goes on as a mirror image of the slices below, and the cavity is filled by
rule: the diaphragm is a pair of domes standing on the outline of the abdominal organs, below it the
organs of the last slice go on, above it lie heart and lungs.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from hepar.phantom.labelmap import NOT_SCANNED, Template
from hepar.phantom.tissue import Tissue

_WALL = (Tissue.AIR, Tissue.FAT, Tissue.MUSCLE, Tissue.BONE, Tissue.SKIN, Tissue.TABLE)
_SUBPHRENIC = (Tissue.LIVER, Tissue.SPLEEN, Tissue.STOMACH, Tissue.BOWEL, Tissue.BOWEL_GAS)


def ends_in_liver(template: Template) -> bool:
    """Whether the last slice still cuts the liver."""
    return bool(template.liver[-1].any())


def _cavity(plane: UInt8[np.ndarray, "y x"], spacing_mm: float) -> Bool[np.ndarray, "y x"]:
    """The inside of the rib cage on one slice: organs and lungs, closed, without spine and wall."""
    core = np.isin(plane, [*_SUBPHRENIC, Tissue.LUNG, Tissue.HEART, Tissue.AORTA, Tissue.CAVA])
    closed = ndimage.binary_closing(
        np.pad(core, 20), structure=_disk(30.0 / spacing_mm), iterations=1
    )[20:-20, 20:-20]
    return ndimage.binary_fill_holes(closed) & (core | ~np.isin(plane, [Tissue.BONE, Tissue.AIR]))


def _disk(radius: float) -> Bool[np.ndarray, "k k"]:
    n = max(1, int(radius))
    y, x = np.ogrid[-n : n + 1, -n : n + 1]
    return y**2 + x**2 <= n**2 + 1


def _diaphragm_mm(
    below: Bool[np.ndarray, "y x"],
    spacing_mm: tuple[float, float],
    midline: float,
    rng: np.random.Generator,
) -> Float[np.ndarray, "y x"]:
    """Height of the diaphragm above the last slice, 0 outside the outline of what lies below it.

    An elliptic profile over the distance from the outline, higher on the right than on the left.
    """
    depth = ndimage.distance_transform_edt(below, sampling=spacing_mm)
    depth = ndimage.gaussian_filter(depth, 2.0) * below
    reach = np.minimum(depth / max(0.85 * depth.max(), 1e-6), 1.0)
    profile = np.sqrt(1.0 - (1.0 - reach) ** 2) ** rng.uniform(0.9, 1.4)
    x_mm = (np.arange(below.shape[1]) - midline) * spacing_mm[1]
    right, left = rng.uniform(38, 78), rng.uniform(25, 60)
    side = 1.0 / (1.0 + np.exp(x_mm / 15.0))  # 1 on the patient's right (small x), 0 on the left
    # The central tendon under the heart lies a little lower than either dome.
    sag = 1.0 - rng.uniform(0.0, 0.3) * np.exp(-((x_mm - 15.0) ** 2) / (2 * 25.0**2))
    return profile * ((right * side + left * (1 - side)) * sag)[None, :]


def complete_dome(
    template: Template, rng: np.random.Generator, *, height_mm: float = 120.0
) -> Template:
    """The template with synthetic slices on top, or unchanged when its liver ends below the top.

    Args:
        template: an anatomy; its last slice is the uppermost.
        rng: draws the heights of the domes and the heart.
        height_mm: extent of the added slices.
    """
    if not ends_in_liver(template):
        return template
    dz, dy, dx = template.spacing_mm
    top = template.tissue[-1]
    n = round(height_mm / dz)
    cavity = _cavity(top, min(dy, dx))
    spine = np.isin(template.tissue[-3:], [Tissue.BONE]).any(0) & ndimage.binary_erosion(
        ndimage.binary_fill_holes(top != Tissue.AIR), iterations=6
    )
    columns = np.argwhere(spine | cavity)
    midline = float(np.median(np.argwhere(spine)[:, 1]) if spine.any() else columns[:, 1].mean())
    below = cavity & (top != Tissue.LUNG) & ~np.isin(top, [Tissue.AORTA, Tissue.BONE])
    # The crura and the fat beside the spine end at the outline of the organs.
    organs = np.isin(top, _SUBPHRENIC)
    below &= ndimage.binary_closing(np.pad(organs, 20), structure=_disk(25.0 / dy))[20:-20, 20:-20]
    diaphragm = _diaphragm_mm(below, (dy, dx), midline, rng)
    slices = []
    for k in range(1, n + 1):
        wall = template.tissue[-1 - _mirror(k, round(30.0 / dz))]
        slices.append(_chest_slice(top, wall, cavity, diaphragm, k * dz))
    added = np.stack(slices)
    _place_heart(added, cavity, diaphragm, template.spacing_mm, midline, rng)
    _continue_great_vessels(added, top, dz)
    return _join(template, added)


def _mirror(k: int, period: int) -> int:
    """Triangle wave 1..period..0..: the slice below the top that stands in for slice k above it."""
    phase = k % (2 * period)
    return phase if phase <= period else 2 * period - phase


def _chest_slice(
    top: UInt8[np.ndarray, "y x"],
    wall: UInt8[np.ndarray, "y x"],
    cavity: Bool[np.ndarray, "y x"],
    diaphragm_mm: Float[np.ndarray, "y x"],
    height_mm: float,
) -> UInt8[np.ndarray, "y x"]:
    """One slice above the last: mirrored wall, organs under the diaphragm, lung over it."""
    plane = np.where(np.isin(wall, _WALL), wall, np.uint8(Tissue.FAT)).astype(np.uint8)
    under = cavity & (diaphragm_mm > height_mm)
    lung = cavity & ~under & (top != Tissue.AORTA) & (top != Tissue.BONE)
    plane[lung] = Tissue.LUNG
    # A voxel of diaphragm muscle between lung and what lies below.
    rim = under & ~ndimage.binary_erosion(under) & ~np.isin(top, [Tissue.LIVER, Tissue.SPLEEN])
    plane[under] = top[under]
    plane[rim] = Tissue.MUSCLE
    return plane


def _place_heart(
    added: UInt8[np.ndarray, "n y x"],
    cavity: Bool[np.ndarray, "y x"],
    diaphragm_mm: Float[np.ndarray, "y x"],
    spacing_mm: tuple[float, float, float],
    midline: float,
    rng: np.random.Generator,
) -> None:
    """An ellipsoidal heart in its fat on the diaphragm, in front and to the left, in place."""
    dz, dy, dx = spacing_mm
    rows = np.flatnonzero(cavity.any(1))
    radii = rng.uniform((38, 36, 45), (58, 55, 65))
    radii *= np.ptp(rows) * dy / 190.0
    y0 = rows[0] * dy + radii[1] * rng.uniform(0.9, 1.3)
    x0 = midline * dx + rng.uniform(5, 30)
    iy, ix = min(int(y0 / dy), cavity.shape[0] - 1), min(int(x0 / dx), cavity.shape[1] - 1)
    z0 = float(diaphragm_mm[iy, ix]) + radii[0] * rng.uniform(0.55, 0.8)
    z, y, x = np.ogrid[: added.shape[0], : added.shape[1], : added.shape[2]]
    zmm, ymm, xmm = (z + 1) * dz - z0, y * dy - y0, x * dx - x0
    tilt = rng.uniform(-0.35, 0.0)
    zmm = zmm - tilt * xmm
    distance = np.sqrt((zmm / radii[0]) ** 2 + (ymm / radii[1]) ** 2 + (xmm / radii[2]) ** 2)
    fat = 1.0 + rng.uniform(0.03, 0.25)
    free = (added == Tissue.LUNG) | (added == Tissue.FAT)
    added[free & (distance < fat) & cavity] = Tissue.FAT
    added[free & (distance < 1.0) & cavity] = Tissue.HEART
    # Mediastinum: soft tissue between the lungs behind and above the heart.
    column = (np.abs(x * dx - midline * dx) < 25.0) & (ymm > -radii[1])
    added[(added == Tissue.LUNG) & column & (distance >= 1.0)] = Tissue.FAT


def _continue_great_vessels(
    added: UInt8[np.ndarray, "n y x"], top: UInt8[np.ndarray, "y x"], dz: float
) -> None:
    """Aorta and esophagus go on; the cava ends where it enters the heart, in place."""
    for k, plane in enumerate(added):
        plane[top == Tissue.AORTA] = Tissue.AORTA
        reach = np.isin(plane, [Tissue.LIVER, Tissue.FAT, Tissue.MUSCLE, Tissue.LUNG])
        if (k + 1) * dz < 60.0:
            plane[(top == Tissue.CAVA) & reach] = Tissue.CAVA


def _join(template: Template, added: UInt8[np.ndarray, "n y x"]) -> Template:
    """Template and added slices as one; mirrored wall keeps its HU, the cavity has none."""
    liver = np.concatenate([template.liver, added == Tissue.LIVER])
    tissue = np.concatenate([template.tissue, added])
    hu = None
    if template.hu is not None:
        period = round(30.0 / template.spacing_mm[0])
        source = [-1 - _mirror(k, period) for k in range(1, added.shape[0] + 1)]
        same = template.tissue[source] == added
        wall = np.isin(added, _WALL) & same
        extra = np.where(wall, template.hu[source], np.int16(NOT_SCANNED)).astype(np.int16)
        hu = np.concatenate([template.hu, extra])
    return Template(tissue, liver, hu, template.spacing_mm)
