"""HU of every tissue as a function of time since injection, and when each phase is scanned.

A tissue's row names the enhancement it should reach in the reference patient; `circulation` turns
it into compartments. Centers near liver 55/65/110/95, aorta 40/300/160/120, portal vein
40/110/175/125, hepatic veins 40/50/165/125 HU (NC, 35 s, 70 s, 180 s) are the project's figures for
the phantom; docs/phantom.md names sources.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hepar.phantom.circulation import (
    INJECTION_S,
    Circulation,
    at_time,
    compartments,
    weights,
)
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
    Tissue.SKIN: (30, 15, (0, 0, 3, 6, 9, 12, 12, 10, 8, 4)),
    Tissue.MUSCLE: (54, 7, (0, 0, 2, 4, 7, 10, 11, 10, 8, 4)),
    Tissue.BONE: (150, 25, (0, 2, 10, 20, 22, 20, 15, 12, 9, 5)),
    Tissue.CORTICAL_BONE: (620, 90, (0, 0, 3, 6, 8, 8, 6, 5, 4, 2)),
    Tissue.HEART: (40, 3, (0, 130, 205, 215, 150, 118, 95, 80, 62, 35)),
    Tissue.MYOCARDIUM: (45, 3, (0, 10, 50, 75, 78, 68, 52, 44, 35, 20)),
    Tissue.AORTA: (40, 3, (0, 28, 212, 260, 168, 120, 95, 80, 62, 35)),
    Tissue.CAVA: (40, 3, (0, 2, 25, 48, 75, 105, 96, 82, 64, 36)),
    Tissue.PORTAL_VEIN: (40, 3, (0, 0, 22, 70, 128, 135, 104, 85, 64, 36)),
    Tissue.HEPATIC_VEIN: (40, 3, (0, 0, 2, 10, 66, 125, 102, 85, 65, 36)),
    Tissue.LIVER: (56, 4, (0, 0, 3, 10, 33, 55, 49, 40, 30, 17)),
    # Fed by arteries where the portal branch is shut or compressed: bright early, then as liver.
    Tissue.PERFUSION: (56, 4, (0, 0, 16, 36, 46, 57, 49, 40, 30, 17)),
    Tissue.SPLEEN: (48, 3, (0, 5, 48, 72, 86, 82, 68, 57, 45, 25)),
    Tissue.KIDNEY_CORTEX: (32, 3, (0, 15, 100, 138, 162, 158, 148, 138, 118, 80)),
    Tissue.KIDNEY_MEDULLA: (32, 3, (0, 0, 9, 28, 78, 138, 160, 158, 140, 100)),
    Tissue.PANCREAS: (38, 10, (0, 5, 48, 68, 66, 52, 38, 30, 22, 12)),
    Tissue.GUT_WALL: (38, 5, (0, 3, 22, 36, 46, 46, 36, 30, 24, 14)),
    Tissue.STOMACH: (22, 14, _FLAT),
    Tissue.BOWEL: (28, 12, (0, 0, 3, 6, 9, 10, 8, 6, 4, 2)),
    Tissue.BOWEL_GAS: (-930, 30, _FLAT),
    Tissue.GALLBLADDER: (9, 6, _FLAT),
    Tissue.FLUID: (8, 6, _FLAT),
    Tissue.MASS: (40, 10, (0, 2, 15, 28, 38, 42, 38, 34, 28, 16)),
}
TISSUE_COUNT = len(Tissue)
BADLY_TIMED_SHARE = 0.1
STEATOSIS_HU = 50.0


@dataclass(frozen=True)
class Contrast:
    """One patient's response to one injection, shared by all phases.

    Attributes:
        circulation: cardiac output, dose, injection.
        baseline_hu: (n tissues,) shift of the unenhanced HU.
        gain: (n tissues,) enhancement factor by tissue.
    """

    circulation: Circulation
    baseline_hu: np.ndarray
    gain: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, steatosis: float) -> Contrast:
        """Draw a response; steatosis takes up to 50 HU from the unenhanced liver."""
        spread = np.zeros(TISSUE_COUNT)
        for tissue, (_, sd, _) in _CURVES.items():
            spread[tissue] = sd
        baseline = rng.normal(0, 1, TISSUE_COUNT).clip(-2.2, 2.2) * spread
        baseline[Tissue.LIVER] -= STEATOSIS_HU * steatosis
        baseline[Tissue.PERFUSION] = baseline[Tissue.LIVER]
        meal = rng.random()
        if meal < 0.12:  # oral contrast
            baseline[Tissue.STOMACH] += rng.uniform(40, 220)
            baseline[Tissue.BOWEL] += rng.uniform(0, 180)
        elif meal < 0.35:  # food as dense as liver
            baseline[Tissue.STOMACH] = rng.uniform(20, 95)
        if rng.random() < 0.08:  # sludge, or contrast excreted into bile
            baseline[Tissue.GALLBLADDER] += rng.uniform(15, 60)
        gain = np.exp(rng.normal(0, 0.07, TISSUE_COUNT))
        gain[Tissue.PERFUSION] = gain[Tissue.LIVER]
        for wet in (Tissue.AORTA, Tissue.HEART, Tissue.CAVA, Tissue.PORTAL_VEIN):
            baseline[wet] = baseline[Tissue.HEPATIC_VEIN]
        circulation = Circulation(
            cardiac_output=float(np.clip(np.exp(rng.normal(0, 0.13)), 0.7, 1.4)),
            iodine=float(np.clip(np.exp(rng.normal(0, 0.15)), 0.68, 1.45)),
            injection_s=float(np.clip(rng.normal(INJECTION_S, 2.5), 14, 27)),
        )
        return cls(circulation, baseline, gain)


def draw_time_s(rng: np.random.Generator, phase: str) -> float:
    """Seconds since injection at which a phase is scanned; about 10 % are badly timed.

    Arterial 20-40 s, portal venous 60-90 s, delayed 120-300 s; a badly timed arterial or portal
    venous scan usually shows portal inflow, 45-60 s.
    """
    badly = rng.random() < BADLY_TIMED_SHARE
    z = float(np.clip(rng.normal(), -2, 2))
    inflow = rng.random() < 0.7
    if phase == "NC":
        return 0.0
    if phase == "ART":
        if badly:
            return float(rng.uniform(45, 60) if inflow else rng.uniform(14, 20))
        return 32.0 + 4.0 * z
    if phase == "PV":
        if badly:
            return float(rng.uniform(45, 58) if inflow else rng.uniform(91, 112))
        return 73.0 + 6.5 * z
    if badly:
        return float(rng.uniform(92, 119) if inflow else rng.uniform(301, 420))
    return float(np.clip(195.0 + 38.0 * z, 120, 300))


def tissue_hu(contrast: Contrast, time_s: float) -> np.ndarray:
    """Mean HU of every tissue code at a time, float32 (n tissues,); time 0 is unenhanced."""
    now = at_time(compartments(contrast.circulation), time_s)
    hu = np.zeros(TISSUE_COUNT)
    for tissue, (start, _, row) in _CURVES.items():
        rise = float(weights(row, KNOTS_S) @ now) if any(row) else 0.0
        hu[tissue] = start + contrast.gain[tissue] * rise
    return (hu + contrast.baseline_hu).astype(np.float32)
