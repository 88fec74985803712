"""HU of every tissue and lesion part as a function of time since injection.

Curves are enhancement over the unenhanced HU at fixed times of a reference patient, interpolated
monotonically; a patient's cardiac output stretches time, dose over weight scales enhancement.
Centers at 0/35/70/180 s follow the project's phantom figures (liver 55/65/110/95, aorta
40/300/160/120, portal vein 40/110/175/125, hepatic veins 40/50/165/125).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator

from hepar.phantom.lesions import LesionSpec, Part
from hepar.phantom.tissue import Tissue

KNOTS_S = (0.0, 12.0, 25.0, 35.0, 50.0, 70.0, 120.0, 180.0, 300.0, 600.0)

# Tissue: unenhanced HU, its SD between patients, enhancement at KNOTS_S.
_Curve = tuple[float, float, tuple[float, ...]]
_FLAT = (0.0,) * 10
_CURVES: dict[Tissue, _Curve] = {
    Tissue.AIR: (-1000, 0, _FLAT),
    Tissue.TABLE: (-350, 60, _FLAT),
    Tissue.LUNG: (-840, 30, (0, 5, 20, 25, 20, 18, 15, 12, 9, 5)),
    Tissue.FAT: (-104, 5, _FLAT),
    Tissue.SKIN: (-5, 15, (0, 0, 3, 6, 9, 12, 12, 10, 8, 4)),
    Tissue.MUSCLE: (54, 7, (0, 0, 2, 4, 7, 10, 11, 10, 8, 4)),
    Tissue.BONE: (150, 25, (0, 2, 10, 20, 22, 20, 15, 12, 9, 5)),
    Tissue.CORTICAL_BONE: (620, 90, (0, 0, 3, 6, 8, 8, 6, 5, 4, 2)),
    Tissue.HEART: (40, 3, (0, 130, 205, 215, 150, 118, 95, 80, 62, 35)),
    Tissue.MYOCARDIUM: (45, 3, (0, 10, 50, 75, 78, 68, 52, 44, 35, 20)),
    Tissue.AORTA: (40, 3, (0, 40, 215, 260, 175, 120, 95, 80, 62, 35)),
    Tissue.CAVA: (40, 3, (0, 2, 25, 48, 75, 105, 96, 82, 64, 36)),
    Tissue.PORTAL_VEIN: (40, 3, (0, 0, 22, 70, 128, 135, 104, 85, 64, 36)),
    Tissue.HEPATIC_VEIN: (40, 3, (0, 0, 2, 10, 66, 125, 102, 85, 65, 36)),
    Tissue.LIVER: (57, 4, (0, 0, 3, 10, 33, 55, 49, 40, 30, 17)),
    Tissue.SPLEEN: (48, 3, (0, 5, 48, 72, 86, 82, 68, 57, 45, 25)),
    Tissue.KIDNEY_CORTEX: (32, 3, (0, 15, 100, 138, 162, 158, 148, 138, 118, 80)),
    Tissue.KIDNEY_MEDULLA: (32, 3, (0, 0, 9, 28, 78, 138, 160, 158, 140, 100)),
    Tissue.PANCREAS: (38, 10, (0, 5, 48, 68, 66, 52, 38, 30, 22, 12)),
    Tissue.GUT_WALL: (38, 5, (0, 3, 22, 36, 46, 46, 36, 30, 24, 14)),
    Tissue.STOMACH: (22, 14, _FLAT),
    Tissue.BOWEL: (28, 12, (0, 0, 3, 6, 9, 10, 8, 6, 4, 2)),
    Tissue.BOWEL_GAS: (-930, 30, _FLAT),
    Tissue.GALLBLADDER: (8, 5, _FLAT),
    Tissue.FLUID: (7, 5, _FLAT),
    Tissue.MASS: (40, 10, (0, 2, 15, 28, 38, 42, 38, 34, 28, 16)),
}

# Lesion part: unenhanced HU and HU at ART 35 s, PV 70 s, DL 180 s.
_PARTS: dict[str, dict[Part, tuple[float, float, float, float]]] = {
    "hcc": {
        Part.BODY: (48, 95, 95, 72),
        Part.MOSAIC: (42, 68, 76, 62),
        Part.CORE: (28, 32, 36, 38),
        Part.CAPSULE: (48, 70, 105, 112),
    },
    "icc": {Part.BODY: (42, 60, 68, 85), Part.RIM: (42, 80, 78, 75), Part.CORE: (40, 50, 60, 95)},
    "metastasis": {
        Part.BODY: (40, 50, 64, 62),
        Part.RIM: (40, 75, 68, 66),
        Part.CORE: (38, 45, 52, 54),
    },
    "fnh": {Part.BODY: (50, 125, 115, 98), Part.SCAR: (42, 70, 90, 108)},
    "other": {
        Part.BODY: (42, 65, 80, 78),
        Part.RIM: (42, 78, 95, 92),
        Part.CORE: (36, 45, 58, 62),
    },
}
_PART_TIMES_S = (0.0, 35.0, 70.0, 180.0)
LESION_SD_HU = 9.0
PART_COUNT = len(Part)
TISSUE_COUNT = len(Tissue)


@dataclass(frozen=True)
class Contrast:
    """One patient's response to one injection, shared by all phases.

    Attributes:
        iodine: enhancement factor (dose over weight).
        tempo: speed of the circulation; 1 is the reference patient.
        baseline_hu: (n tissues,) shift of the unenhanced HU.
        gain: (n tissues,) enhancement factor by tissue.
        fill_hu: unenhanced HU of stomach content, including oral contrast where given.
    """

    iodine: float
    tempo: float
    baseline_hu: np.ndarray
    gain: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, steatosis: float) -> Contrast:
        """Draw a response; steatosis takes up to 55 HU from the unenhanced liver."""
        spread = np.zeros(TISSUE_COUNT)
        for tissue, (_, sd, _) in _CURVES.items():
            spread[tissue] = sd
        baseline = rng.normal(0, 1, TISSUE_COUNT).clip(-2.2, 2.2) * spread
        baseline[Tissue.LIVER] -= 55 * steatosis
        if rng.random() < 0.12:
            baseline[Tissue.STOMACH] += rng.uniform(40, 220)
            baseline[Tissue.BOWEL] += rng.uniform(0, 180)
        gain = np.exp(rng.normal(0, 0.06, TISSUE_COUNT))
        for wet in (Tissue.AORTA, Tissue.HEART, Tissue.CAVA, Tissue.PORTAL_VEIN):
            baseline[wet] = baseline[Tissue.HEPATIC_VEIN]
        return cls(
            iodine=float(np.clip(np.exp(rng.normal(0, 0.14)), 0.7, 1.4)),
            tempo=float(np.clip(np.exp(rng.normal(0, 0.09)), 0.78, 1.28)),
            baseline_hu=baseline,
            gain=gain,
        )


def draw_time_s(rng: np.random.Generator, phase: str) -> float:
    """Seconds since injection at which a phase is scanned; about 10 % are badly timed."""
    badly = rng.random() < 0.1
    z = float(np.clip(rng.normal(), -2, 2))
    late = rng.random() < 0.5
    if phase == "NC":
        return 0.0
    if phase == "ART":
        if badly:
            return float(rng.uniform(46, 56) if late else rng.uniform(17, 23))
        return 34.0 + 3.0 * z
    if phase == "PV":
        if badly:
            return float(rng.uniform(92, 110) if late else rng.uniform(48, 58))
        return 71.0 + 5.0 * z
    return float(rng.uniform(120, 300)) if badly else 190.0 + 30.0 * z


def tissue_hu(contrast: Contrast, time_s: float) -> np.ndarray:
    """Mean HU of every tissue code at a time, float32 (n tissues,); time 0 is unenhanced."""
    at = np.clip(time_s * contrast.tempo, KNOTS_S[0], KNOTS_S[-1])
    table = np.zeros((len(KNOTS_S), TISSUE_COUNT))
    start = np.zeros(TISSUE_COUNT)
    for tissue, (hu, _, enhancement) in _CURVES.items():
        start[tissue] = hu
        table[:, tissue] = enhancement
    rise = PchipInterpolator(KNOTS_S, table, axis=0)(at)
    hu = start + contrast.baseline_hu + contrast.iodine * contrast.gain * rise
    return hu.astype(np.float32)


def lesion_hu(
    spec: LesionSpec, contrast: Contrast, time_s: float, shift: np.ndarray, tissue: np.ndarray
) -> np.ndarray:
    """Mean HU of every part of a lesion at a time.

    Args:
        spec: the lesion.
        contrast: the patient's response.
        time_s: since injection.
        shift: (2,) standard normal draws of this lesion, for unenhanced HU and for enhancement.
        tissue: `tissue_hu` at the same time; blood and liver are taken from it.

    Returns:
        float32 (n parts,); parts the type does not use hold its body's value.
    """
    blood = float(tissue[Tissue.AORTA])
    hu = np.zeros(PART_COUNT)
    if spec.type == "cyst":
        hu[:] = 5 + 6 * shift[0]
        return hu.astype(np.float32)
    if spec.type == "calcification":
        hu[:] = 380 + 120 * shift[0]
        return hu.astype(np.float32)
    if spec.type == "hemangioma":
        hu[:] = _hemangioma(spec, contrast, time_s, shift, blood)
        return hu.astype(np.float32)
    table = _PARTS[spec.type]
    for part in Part:
        hu[part] = _part(spec, table.get(part, table[Part.BODY]), contrast, time_s, part)
    scale = min(1.0, time_s / 30)
    return (hu + LESION_SD_HU * (0.5 * shift[0] + 0.85 * scale * shift[1])).astype(np.float32)


def _part(
    spec: LesionSpec,
    centers: tuple[float, float, float, float],
    contrast: Contrast,
    time_s: float,
    part: Part,
) -> float:
    nc, art, pv, dl = centers
    body = part in (Part.BODY, Part.MOSAIC, Part.RIM)
    if spec.type == "hcc" and body:
        if "no_arterial" in spec.traits:
            art = 65.0
        if "no_washout" in spec.traits:
            pv, dl = max(pv, 106.0), 94.0
    if "hypervascular" in spec.traits and body:
        nc, art, pv, dl = 45, 100, 95, 85
    if "necrosis" in spec.traits and part is Part.CORE:
        nc, art, pv, dl = 24, 27, 30, 32
    if spec.type == "other" and "fatty" in spec.traits and body:
        nc, art, pv, dl = -25, -8, 2, 0
    if spec.type == "other" and "fluid" in spec.traits and part is not Part.RIM:
        nc, art, pv, dl = 18, 20, 22, 22
    times = (*_PART_TIMES_S, 600.0)
    rises = (0.0, art - nc, pv - nc, dl - nc, 0.4 * (dl - nc))
    at = float(np.clip(time_s * contrast.tempo, 0, 600))
    rise = float(PchipInterpolator(times, rises)(at))
    if at < 35.0:
        # Little reaches a lesion before the aorta is full: a late sigmoid, not a straight line.
        rise = rises[1] * float(np.clip((at - 10) / 25, 0, 1)) ** 1.5
    return nc + contrast.iodine * rise


def _hemangioma(
    spec: LesionSpec, contrast: Contrast, time_s: float, shift: np.ndarray, blood: float
) -> np.ndarray:
    """Nodules follow the blood pool; body and center fill inward with time."""
    at = time_s * contrast.tempo
    base = 42 + 3 * shift[0]
    pool = max(blood - 40, 0.0) * float(np.clip(0.9 + 0.05 * shift[1], 0.8, 1.0))
    fill = {
        Part.NODULE: float(np.interp(at, (15, 35, 70), (0, 0.62, 0.95))),
        Part.BODY: float(np.interp(at, (25, 35, 70, 180), (0, 0.06, 0.55, 0.92))),
        Part.CORE: float(np.interp(at, (40, 70, 180, 400), (0, 0.15, 0.7, 0.95))),
    }
    if "flash" in spec.traits:
        fill = dict.fromkeys(fill, float(np.interp(at, (15, 35, 50), (0, 0.75, 1.0))))
    return np.array([base + pool * fill.get(part, fill[Part.BODY]) for part in Part])
