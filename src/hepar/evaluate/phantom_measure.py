"""One phantom patient, measured for `phantom_check`: a pure function of seed and spacing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int16, UInt8
from scipy import ndimage

from hepar.evaluate.phantom_voxels import LiverVoxels, around, best_dice, noise_sd
from hepar.phantom.anatomy import anatomy
from hepar.phantom.scanner import PHASES, paint
from hepar.phantom.tissue import Tissue
from hepar.systems.baselines.hu_threshold import HuThresholdSettings, smooth_inside

Triple = tuple[float, float, float]

SPACING_MM: Triple = (2.5, 1.5, 1.5)
ABDOMEN_SPACING_MM: Triple = (5.0, 3.0, 3.0)
MISALIGNMENT_MM = 2.0
SMOOTHING_MM = HuThresholdSettings().sigma_mm
# Smoothed HU are kept in eighths, which int16 holds.
_SMOOTH_SCALE = 0.125
# An organ with fewer inner voxels than this is measured to its borders.
_FEWEST_INNER_VOXELS = 20

ORGANS = (
    Tissue.LIVER,
    Tissue.AORTA,
    Tissue.PORTAL_VEIN,
    Tissue.HEPATIC_VEIN,
    Tissue.SPLEEN,
    Tissue.KIDNEY_CORTEX,
)
# Rows PHASES, columns ORGANS; what a well-timed scan of an average patient shows.
CENTERS_HU = np.array(
    [
        (55.0, 40.0, 40.0, 40.0, 48.0, 32.0),
        (65.0, 300.0, 110.0, 50.0, 120.0, 170.0),
        (110.0, 160.0, 175.0, 165.0, 130.0, 190.0),
        (95.0, 120.0, 125.0, 125.0, 105.0, 170.0),
    ]
)


@dataclass(frozen=True)
class LesionMeasure:
    """A lesion as its voxels are, phases in the order of `PHASES`.

    Attributes:
        type: one of `LESION_TYPES`.
        volume_mm3: of its voxels.
        mean_hu: `(p,)`.
        contrast_hu: `(p,)`, mean of the lesion less the median of the parenchyma around it.
    """

    type: str
    volume_mm3: float
    mean_hu: Float[np.ndarray, " p"]
    contrast_hu: Float[np.ndarray, " p"]


@dataclass(frozen=True)
class PatientMeasure:
    """What the check needs of a patient; a few MB with lesions, nothing without.

    Attributes:
        seed: the patient.
        noise_sd_hu: `(p,)`.
        parenchyma_hu: `(p,)`, median of liver tissue without vessels and lesions.
        lesions: those with voxels.
        best_dice: `(p, 2)` best Dice of any threshold on smoothed and on plain HU; None without
            lesions.
        voxels: smoothed and plain HU of the liver; None without lesions.
        organs_hu: `(p, o)` median of each of `ORGANS`, NaN where an organ is not in the field.
    """

    seed: int
    noise_sd_hu: Float[np.ndarray, " p"]
    parenchyma_hu: Float[np.ndarray, " p"]
    lesions: tuple[LesionMeasure, ...]
    best_dice: Float[np.ndarray, "p 2"] | None
    voxels: tuple[LiverVoxels, LiverVoxels] | None
    organs_hu: Float[np.ndarray, "p o"]


def measure(seed: int, spacing_mm: Triple = SPACING_MM) -> PatientMeasure:
    """Make a patient, scan it in all phases and measure it.

    Args:
        seed: the patient and the visit.
        spacing_mm: (z, y, x) of the liver's field; organs are measured at 5 x 3 x 3 mm or coarser.
    """
    patient = anatomy(seed, field="liver", spacing_mm=spacing_mm)
    scan = paint(patient, seed, misalignment_mm=MISALIGNMENT_MM)
    hu = np.stack([scan.hu[phase] for phase in PHASES])
    smooth = np.stack([smooth_inside(h, scan.liver, spacing_mm, SMOOTHING_MM) for h in hu])
    # The label is what a reader marked, and need not be all that is there.
    lesions, liver = scan.instances, scan.liver
    parenchyma = (
        (patient.tissue == Tissue.LIVER) & liver & (patient.instances == 0) & (lesions == 0)
    )
    dice, voxels = None, None
    tumor = lesions[liver] > 0
    if tumor.any():
        eighths = np.rint(smooth[:, liver].T / _SMOOTH_SCALE).astype(np.int16)
        plain = np.ascontiguousarray(hu[:, liver].T)
        voxels = LiverVoxels(eighths, tumor, _SMOOTH_SCALE), LiverVoxels(plain, tumor)
        dice = np.array([[best_dice(v.hu[:, p], tumor) for v in voxels] for p in range(len(hu))])
    return PatientMeasure(
        seed=seed,
        noise_sd_hu=np.array(
            [noise_sd(*pair, parenchyma) for pair in zip(hu, smooth, strict=True)]
        ),
        parenchyma_hu=np.median(hu[:, parenchyma], axis=1),
        lesions=tuple(
            measure_lesion(spec.type, lesions == spec.id, hu, parenchyma, spacing_mm)
            for spec in patient.lesions
            if (lesions == spec.id).any()
        ),
        best_dice=dice,
        voxels=voxels,
        organs_hu=measure_organs(seed, spacing_mm),
    )


def measure_lesion(
    kind: str,
    lesion: Bool[np.ndarray, "z y x"],
    hu: Int16[np.ndarray, "p z y x"],
    parenchyma: Bool[np.ndarray, "z y x"],
    spacing_mm: Triple,
) -> LesionMeasure:
    """Volume, mean HU and contrast of one lesion in every phase."""
    beside = around(lesion, parenchyma, spacing_mm)
    mean_hu = hu[:, lesion].mean(axis=1, dtype=np.float64)
    return LesionMeasure(
        type=kind,
        volume_mm3=float(np.count_nonzero(lesion) * np.prod(spacing_mm)),
        mean_hu=mean_hu,
        contrast_hu=mean_hu - np.median(hu[:, beside], axis=1),
    )


def measure_organs(seed: int, spacing_mm: Triple = SPACING_MM) -> Float[np.ndarray, "p o"]:
    """Median HU of `ORGANS` in every phase, found by the true anatomy of the whole abdomen."""
    coarse = np.maximum(spacing_mm, ABDOMEN_SPACING_MM).tolist()
    whole = anatomy(seed, field="abdomen", spacing_mm=(coarse[0], coarse[1], coarse[2]))
    scan = paint(whole, seed, misalignment_mm=MISALIGNMENT_MM)
    medians = np.full((len(PHASES), len(ORGANS)), np.nan)
    for k, organ in enumerate(ORGANS):
        inside = organ_voxels(whole.tissue, whole.instances, organ)
        if inside.any():
            medians[:, k] = [float(np.median(scan.hu[phase][inside])) for phase in PHASES]
    return medians


def organ_voxels(
    tissue: UInt8[np.ndarray, "z y x"], instances: UInt8[np.ndarray, "z y x"], organ: Tissue
) -> Bool[np.ndarray, "z y x"]:
    """Voxels of an organ away from its border, or all of them where few lie inside."""
    whole = (tissue == organ) & (instances == 0)
    inner = np.asarray(ndimage.binary_erosion(whole), dtype=bool)
    return inner if np.count_nonzero(inner) >= _FEWEST_INNER_VOXELS else whole


def nearest_phase(organs_hu: Float[np.ndarray, "p o"]) -> tuple[str, ...]:
    """The phase whose organ centers lie nearest to each row, absent organs (NaN) left out.

    All organs weigh alike: an SD of 20 HU for each, or of any other size, names the same center.
    """
    apart = organs_hu[:, None] - CENTERS_HU
    distance = np.where(np.isnan(apart), 0.0, apart) ** 2
    return tuple(PHASES[k] for k in distance.sum(axis=2).argmin(axis=1))
