"""Giving a deformed anatomy the look of some scan: HU by organ and phase, texture, scanner.

Two ways in: `paint_tissue` paints tissue codes from nothing, `recolor` moves the HU of a real scan
to those of another phase and keeps its texture. `degrade` then adds blur, thick slices, shading and
noise. Numbers are drawn first (`draw_look`) and applied afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8
from scipy import ndimage

from hepar.phantom.deform import Triple, smooth_field
from hepar.phantom.tissue import Tissue

# Mean HU unenhanced, arterial, portal venous, delayed; spread between patients; texture.
_HU: dict[Tissue, tuple[float, float, float, float, float, float]] = {
    Tissue.AIR: (-1000, -1000, -1000, -1000, 5, 0),
    Tissue.FAT: (-105, -105, -103, -103, 10, 14),
    Tissue.MUSCLE: (50, 56, 62, 62, 9, 12),
    Tissue.BONE: (260, 270, 280, 280, 90, 110),
    Tissue.LUNG: (-830, -825, -820, -820, 50, 50),
    Tissue.HEART: (40, 200, 140, 110, 25, 15),
    Tissue.LIVER: (56, 70, 110, 95, 14, 6),
    Tissue.SPLEEN: (48, 115, 122, 100, 14, 8),
    Tissue.KIDNEY_CORTEX: (33, 150, 185, 150, 25, 15),
    Tissue.KIDNEY_MEDULLA: (32, 70, 165, 165, 30, 18),
    Tissue.STOMACH: (30, 35, 40, 40, 22, 18),
    Tissue.BOWEL: (28, 40, 48, 45, 22, 28),
    Tissue.BOWEL_GAS: (-850, -850, -850, -850, 100, 80),
    Tissue.GALLBLADDER: (10, 10, 10, 12, 9, 4),
    Tissue.PANCREAS: (40, 95, 90, 75, 14, 14),
    Tissue.AORTA: (42, 300, 155, 125, 35, 6),
    Tissue.CAVA: (42, 75, 135, 122, 22, 14),
    Tissue.PORTAL_VEIN: (42, 90, 170, 130, 22, 4),
    Tissue.HEPATIC_VEIN: (42, 60, 160, 128, 22, 4),
    Tissue.SKIN: (10, 15, 20, 20, 15, 10),
    Tissue.FLUID: (8, 8, 9, 15, 7, 3),
    Tissue.MASS: (35, 60, 70, 65, 25, 15),
    Tissue.TABLE: (-400, -400, -400, -400, 250, 120),
    Tissue.CORTICAL_BONE: (600, 600, 610, 610, 150, 120),
    Tissue.GUT_WALL: (40, 75, 90, 80, 15, 10),
    Tissue.MYOCARDIUM: (45, 95, 110, 100, 15, 8),
    Tissue.PERFUSION: (56, 90, 110, 95, 14, 6),
}
TISSUE_HU = np.array([_HU[t][:4] for t in Tissue], dtype=np.float32)
SPREAD_HU = np.array([_HU[t][4] for t in Tissue], dtype=np.float32)
TEXTURE_HU = np.array([_HU[t][5] for t in Tissue], dtype=np.float32)
# Soft organs whose HU goes wild in domain randomization; fat, air, lung and bone keep their order.
_WILD = np.array(
    [
        Tissue.MUSCLE,
        Tissue.HEART,
        Tissue.LIVER,
        Tissue.SPLEEN,
        Tissue.KIDNEY_CORTEX,
        Tissue.KIDNEY_MEDULLA,
        Tissue.STOMACH,
        Tissue.BOWEL,
        Tissue.GALLBLADDER,
        Tissue.PANCREAS,
        Tissue.AORTA,
        Tissue.CAVA,
        Tissue.PORTAL_VEIN,
        Tissue.HEPATIC_VEIN,
        Tissue.FLUID,
        Tissue.GUT_WALL,
        Tissue.MYOCARDIUM,
    ]
)


@dataclass(frozen=True)
class Look:
    """Numbers of one scan.

    Attributes:
        mean_hu: HU of each tissue code.
        texture_hu: SD of each tissue's coarse texture.
        texture_mm: its scale.
        blur_mm: SD of the point spread in the slice plane.
        slice_mm: SD of the slice profile along z.
        shading_hu: amplitude of the slow shading.
        noise_hu: SD of the white noise at working spacing.
        smooth_noise: whether the noise is correlated over neighbors, as in a soft kernel.
        seed: draws every field.
    """

    mean_hu: Float32[np.ndarray, " tissue"]
    texture_hu: Float32[np.ndarray, " tissue"]
    texture_mm: float
    blur_mm: float
    slice_mm: float
    shading_hu: float
    noise_hu: float
    smooth_noise: bool
    seed: int


def draw_means(rng: np.random.Generator, *, wild: float = 0.15) -> Float32[np.ndarray, " tissue"]:
    """HU of each tissue at a random time after injection, in a random patient.

    Args:
        rng: generator.
        wild: probability of soft organs in any order of brightness.
    """
    # A quarter unenhanced; the others anywhere between the arterial and the delayed phase.
    time = 0.0 if rng.random() < 0.25 else float(rng.uniform(0.7, 3.0))
    before = min(int(time), 2)
    mean = TISSUE_HU[:, before] * (1 - (time - before)) + TISSUE_HU[:, before + 1] * (time - before)
    # Weak and strong injections scale what the contrast medium adds.
    mean = TISSUE_HU[:, 0] + (mean - TISSUE_HU[:, 0]) * np.float32(rng.uniform(0.6, 1.3))
    mean = mean + SPREAD_HU * rng.standard_normal(len(mean)).astype(np.float32)
    if rng.random() < 0.25:
        mean[Tissue.LIVER] -= rng.uniform(10, 60)  # steatosis
    if rng.random() < 0.25:
        mean[Tissue.STOMACH] = rng.uniform(-20, 30)  # water and food
    if rng.random() < 0.2:
        mean[[Tissue.STOMACH, Tissue.BOWEL]] = rng.uniform(100, 400)  # oral contrast
    if rng.random() < 0.15:
        mean[Tissue.STOMACH] = mean[Tissue.LIVER] + rng.normal(0, 8)
    if rng.random() < wild:
        mean[_WILD] = rng.uniform(-20, 250, size=len(_WILD))
        mean[Tissue.FAT] = rng.uniform(-130, -70)
    mean[Tissue.PERFUSION] = mean[Tissue.LIVER]
    return mean.astype(np.float32)


def draw_look(rng: np.random.Generator, *, wild: float = 0.15) -> Look:
    """Numbers of a random scan."""
    thick = rng.random() < 0.3
    return Look(
        mean_hu=draw_means(rng, wild=wild),
        texture_hu=(TEXTURE_HU * rng.uniform(0.4, 1.6, size=len(TEXTURE_HU))).astype(np.float32),
        texture_mm=float(rng.uniform(10, 30)),
        blur_mm=float(rng.uniform(1.0, 4.0)),
        slice_mm=float(rng.uniform(3.0, 6.5)) if thick else float(rng.uniform(0.5, 2.5)),
        shading_hu=float(rng.uniform(0, 20)),
        noise_hu=float(35.0 * rng.random() ** 1.7),
        smooth_noise=bool(rng.random() < 0.4),
        seed=int(rng.integers(2**31)),
    )


def _texture(
    tissue: UInt8[np.ndarray, "z y x"], look: Look, spacing_mm: Triple, rng: np.random.Generator
) -> Float32[np.ndarray, "z y x"]:
    """Coarse and voxel-sized variation, as strong as each tissue's own."""
    coarse = smooth_field(rng, tissue.shape, spacing_mm, look.texture_mm)[0] * np.float32(1.6)
    fine = rng.standard_normal(tissue.shape, dtype=np.float32)
    return look.texture_hu[tissue] * (coarse + fine) * np.float32(0.7)


def paint_tissue(
    tissue: UInt8[np.ndarray, "z y x"], look: Look, spacing_mm: Triple
) -> Float32[np.ndarray, "z y x"]:
    """HU of a tissue map in a random scan, before the scanner's blur and noise."""
    rng = np.random.default_rng([look.seed, 1])
    return look.mean_hu[tissue] + _texture(tissue, look, spacing_mm, rng)


def recolor(
    hu: Float[np.ndarray, "z y x"],
    tissue: UInt8[np.ndarray, "z y x"],
    native_hu: Float[np.ndarray, " tissue"],
    look: Look,
    spacing_mm: Triple,
) -> Float32[np.ndarray, "z y x"]:
    """A real scan moved to another phase: each organ's mean is shifted, its texture kept.

    Args:
        hu: the real scan, already deformed.
        tissue: its tissue codes.
        native_hu: mean HU of each tissue in the real scan.
        look: what the organs should look like.
        spacing_mm: (z, y, x).
    """
    shift = look.mean_hu - native_hu
    # Air, gas, lung and table stay as they were scanned.
    shift[[Tissue.AIR, Tissue.LUNG, Tissue.BOWEL_GAS, Tissue.TABLE]] = 0.0
    moved = shift[tissue]
    sigma = [2.0 / s for s in spacing_mm]
    moved = ndimage.gaussian_filter(moved, sigma, truncate=3.0)
    rng = np.random.default_rng([look.seed, 2])
    coarse = smooth_field(rng, tissue.shape, spacing_mm, look.texture_mm)[0]
    result: Any = hu + moved + coarse * look.texture_hu[tissue] * np.float32(0.6)
    return result.astype(np.float32)


def degrade(
    hu: Float32[np.ndarray, "z y x"], look: Look, spacing_mm: Triple
) -> Float32[np.ndarray, "z y x"]:
    """Blur, slice profile, shading and noise of a scanner."""
    rng = np.random.default_rng([look.seed, 3])
    sigma = np.array([look.slice_mm, look.blur_mm, look.blur_mm]) / np.asarray(spacing_mm)
    hu = ndimage.gaussian_filter(hu, sigma, truncate=3.0)
    shading = smooth_field(rng, hu.shape, spacing_mm, 150.0)[0]
    hu += shading * np.float32(look.shading_hu) + np.float32(rng.normal(0, 4))
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    if look.smooth_noise:
        noise = ndimage.gaussian_filter(noise, 0.6, truncate=3.0) * np.float32(2.2)
    hu += noise * np.float32(look.noise_hu)
    return hu
