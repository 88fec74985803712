"""Painting: timing, HU, texture, kernel, slice thickness and noise over an anatomy.

Every draw belongs either to the patient and the session (shared by all phases) or to one phase,
and comes from its own generator; which phases are asked for, and in which order, therefore
changes no voxel of any of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int16, UInt8
from scipy import ndimage

from hepar.errors import UsageError
from hepar.phantom.anatomy import Anatomy, label_map
from hepar.phantom.enhancement import (
    PART_COUNT,
    TISSUE_COUNT,
    Contrast,
    draw_time_s,
    lesion_hu,
    tissue_hu,
)
from hepar.phantom.shapes import Lattice, Triple
from hepar.phantom.tissue import Tissue
from hepar.study import PHASE_ORDER

PHASES = tuple(str(phase) for phase in PHASE_ORDER)
HU_RANGE = (-1024, 3071)
NOISE_SD_HU = (6.0, 25.0)

# SD of texture, HU, at a fine and a coarse scale; what the map holds as one code is not uniform.
_TEXTURE_HU: dict[Tissue, tuple[float, float]] = {
    Tissue.FAT: (5, 4),
    Tissue.MUSCLE: (13, 9),
    Tissue.BONE: (45, 30),
    Tissue.CORTICAL_BONE: (60, 60),
    Tissue.LUNG: (35, 22),
    Tissue.HEART: (3, 6),
    Tissue.LIVER: (2.5, 2.5),
    Tissue.SPLEEN: (2, 2),
    Tissue.KIDNEY_CORTEX: (5, 3),
    Tissue.KIDNEY_MEDULLA: (6, 4),
    Tissue.PANCREAS: (18, 7),
    Tissue.STOMACH: (10, 14),
    Tissue.BOWEL: (16, 14),
    Tissue.GUT_WALL: (6, 4),
    Tissue.CAVA: (2, 4),
    Tissue.MASS: (5, 5),
}
_LESION_TEXTURE_HU = (5.0, 4.0)


@dataclass(frozen=True)
class Painted:
    """One scan session of an anatomy.

    Attributes:
        hu: phase -> int16 (z, y, x), on the anatomy's grid.
        times_s: phase -> seconds since the start of injection (0 for NC).
        label: uint8 (z, y, x) 0/1/2.
        instances: uint8 (z, y, x) lesion ids.
        liver: bool (z, y, x).
    """

    hu: dict[str, Int16[np.ndarray, "z y x"]]
    times_s: dict[str, float]
    label: UInt8[np.ndarray, "z y x"]
    instances: UInt8[np.ndarray, "z y x"]
    liver: Bool[np.ndarray, "z y x"]


@dataclass(frozen=True)
class Session:
    """What all phases of one visit share.

    Attributes:
        contrast: the patient's response to the injection.
        lesion_shift: (n lesions, 2) standard normal draws, unenhanced HU and enhancement.
        noise_sd_hu: at 1.5 mm in plane.
        kernel_mm: SD of the in-plane point spread.
        thickness_mm: slice thickness, at least the slice spacing.
        sharpness: 0 smooth .. 1 edge-enhancing reconstruction: how much low frequency the noise
            lacks.
    """

    contrast: Contrast
    lesion_shift: np.ndarray
    noise_sd_hu: float
    kernel_mm: float
    thickness_mm: float
    sharpness: float

    @classmethod
    def draw(cls, anatomy: Anatomy, seed: int) -> Session:
        rng = np.random.default_rng([seed, anatomy.texture_seed, 50])
        contrast = Contrast.draw(rng, anatomy.steatosis)
        noise = float(np.clip(np.exp(rng.normal(np.log(11.0), 0.35)), *NOISE_SD_HU))
        # One draw a possible id: a lesion lost on a coarse grid must not shift the others.
        return cls(
            contrast=contrast,
            noise_sd_hu=noise,
            kernel_mm=float(rng.uniform(0.55, 0.95)),
            thickness_mm=float(anatomy.spacing_mm[0] * rng.uniform(1.0, 1.35)),
            sharpness=float(rng.uniform(0.1, 0.8)),
            lesion_shift=rng.normal(size=(256, 2)).clip(-2.2, 2.2),
        )


def paint(
    anatomy: Anatomy,
    seed: int,
    *,
    phases: tuple[str, ...] = PHASES,
    misalignment_mm: float = 0.0,
) -> Painted:
    """Scan an anatomy: a pure function of (anatomy, seed), phase by phase.

    Args:
        anatomy: the patient.
        seed: the visit; draws timing, enhancement, kernel and noise.
        phases: any subset of NC, ART, PV, DL.
        misalignment_mm: largest residual displacement of the other phases against PV, on whose
            grid the truth lies.

    Raises:
        UsageError: E_RECIPE for an unknown phase or a negative misalignment.
    """
    unknown = [phase for phase in phases if str(phase) not in PHASES]
    if unknown or misalignment_mm < 0:
        raise UsageError(
            "E_RECIPE",
            "phantom",
            f"phases {unknown} unknown or misalignment_mm {misalignment_mm} below zero",
            f"choose among {', '.join(PHASES)} and a misalignment of 0 or more",
        )
    session = Session.draw(anatomy, seed)
    codes = _codes(anatomy)
    fine, coarse = _texture(anatomy)
    hu, times_s = {}, {}
    for phase in (str(phase) for phase in phases):
        rng = np.random.default_rng([seed, anatomy.texture_seed, 60, PHASES.index(phase)])
        times_s[phase] = draw_time_s(rng, phase)
        image = _clean(anatomy, session, codes, times_s[phase], fine, coarse)
        if misalignment_mm > 0 and phase != "PV":
            image = _displace(image, anatomy.spacing_mm, misalignment_mm, rng)
        image = _blur(image, session, anatomy.spacing_mm)
        image += _noise(image.shape, session, anatomy.spacing_mm, rng)
        np.clip(np.rint(image, out=image), *HU_RANGE, out=image)
        hu[phase] = image.astype(np.int16)
    return Painted(hu, times_s, label_map(anatomy), anatomy.instances, anatomy.liver)


def _codes(anatomy: Anatomy) -> np.ndarray:
    """One uint16 code a voxel: tissue, or behind all tissues lesion id and part."""
    codes = anatomy.tissue.astype(np.uint16)
    inside = anatomy.instances > 0
    codes[inside] = (
        TISSUE_COUNT
        + (anatomy.instances[inside].astype(np.uint16) - 1) * PART_COUNT
        + anatomy.parts[inside]
    )
    return codes


def _texture(anatomy: Anatomy) -> tuple[np.ndarray, np.ndarray]:
    """Unit-SD texture of the patient at about 6 and 20 mm, the same in every phase and visit."""
    rng = np.random.default_rng([anatomy.texture_seed, 70])
    extent = [n * s for n, s in zip(anatomy.tissue.shape, anatomy.spacing_mm, strict=True)]
    axes = tuple(
        (np.arange(n) * s).astype(np.float32)
        for n, s in zip(anatomy.tissue.shape, anatomy.spacing_mm, strict=True)
    )
    low: Triple = (0.0, 0.0, 0.0)
    high: Triple = (extent[0], extent[1], extent[2])
    # A uniform lattice of amplitude 1 has SD 0.58 x 0.33 after three spline smoothings.
    fields = [Lattice.draw(rng, pitch, 5.2, low, high).on_axes(axes, low) for pitch in (5.0, 18.0)]
    return fields[0], fields[1]


def _clean(
    anatomy: Anatomy,
    session: Session,
    codes: np.ndarray,
    time_s: float,
    fine: np.ndarray,
    coarse: np.ndarray,
) -> np.ndarray:
    """Noiseless HU on the grid, float32: tables by code plus texture by code."""
    tissue = tissue_hu(session.contrast, time_s)
    tables = [tissue]
    for spec in anatomy.lesions:
        shift = session.lesion_shift[spec.id - 1]
        tables.append(lesion_hu(spec, session.contrast, time_s, shift, tissue))
    amplitude = np.zeros((sum(len(t) for t in tables), 2), np.float32)
    amplitude[TISSUE_COUNT:] = _LESION_TEXTURE_HU
    for code, pair in _TEXTURE_HU.items():
        amplitude[code] = pair
    for spec in anatomy.lesions:
        if spec.type == "cyst":
            first = TISSUE_COUNT + (spec.id - 1) * PART_COUNT
            amplitude[first : first + PART_COUNT] = 1.0
    # Red and white pulp fill at different times: the spleen is mottled in the arterial phase.
    early = float(np.clip(1 - abs(time_s - 30) / 22, 0, 1))
    amplitude[Tissue.SPLEEN, 1] += 26 * early
    amplitude[Tissue.LIVER] *= 1 + 1.5 * anatomy.cirrhosis + 1.2 * anatomy.steatosis
    image = np.concatenate(tables).astype(np.float32).take(codes)
    image += amplitude[:, 0].take(codes) * fine
    image += amplitude[:, 1].take(codes) * coarse
    return image


def _displace(
    image: np.ndarray, spacing_mm: Triple, amplitude_mm: float, rng: np.random.Generator
) -> np.ndarray:
    """Move an image by a smooth field whose largest displacement is `amplitude_mm`."""
    axes = tuple(
        (np.arange(n) * s).astype(np.float32) for n, s in zip(image.shape, spacing_mm, strict=True)
    )
    low: Triple = (0.0, 0.0, 0.0)
    high: Triple = (float(axes[0][-1]), float(axes[1][-1]), float(axes[2][-1]))
    field = np.stack([Lattice.draw(rng, 55.0, 1.0, low, high).on_axes(axes, low) for _ in range(3)])
    largest = float(np.sqrt((field**2).sum(axis=0)).max())
    field *= np.float32(amplitude_mm / max(largest, 1e-6))
    for axis in range(3):
        index = np.arange(image.shape[axis], dtype=np.float32)
        field[axis] /= np.float32(spacing_mm[axis])
        field[axis] += index.reshape([-1 if a == axis else 1 for a in range(3)])
    moved: np.ndarray = ndimage.map_coordinates(image, field, order=1, mode="nearest")
    return moved


def _gauss(sigma: float) -> np.ndarray:
    reach = max(1, int(np.ceil(2.5 * sigma)))
    k = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2)
    return (k / k.sum()).astype(np.float32)


def _blur(image: np.ndarray, session: Session, spacing_mm: Triple) -> np.ndarray:
    """Point spread and pixel in plane; slice thickness along z as the matching Gaussian."""
    for axis in (1, 2):
        sigma = np.sqrt((session.kernel_mm / spacing_mm[axis]) ** 2 + 1 / 12)
        image = ndimage.correlate1d(image, _gauss(sigma), axis=axis, mode="nearest")
    sigma = session.thickness_mm / spacing_mm[0] / np.sqrt(12)
    image = ndimage.correlate1d(image, _gauss(sigma), axis=0, mode="nearest")
    return image


def _noise(
    shape: tuple[int, ...], session: Session, spacing_mm: Triple, rng: np.random.Generator
) -> np.ndarray:
    """Correlated noise of the session's SD: band-passed in plane, slightly shared by slices.

    On grids coarser than 2 mm in plane the noise is that of the averaged pixels.
    """
    sd = session.noise_sd_hu * np.exp(rng.normal(0, 0.08)) * min(1.0, 2.0 / max(spacing_mm[1:]))
    white = rng.standard_normal(shape, dtype=np.float32)
    narrow = [_gauss(0.95 * session.kernel_mm / spacing_mm[axis]) for axis in (1, 2)]
    image = white
    for axis, kernel in zip((1, 2), narrow, strict=True):
        image = ndimage.correlate1d(image, kernel, axis=axis, mode="wrap")
    wide = ndimage.uniform_filter1d(image, 5, axis=1, mode="wrap")
    wide = ndimage.uniform_filter1d(wide, 5, axis=2, mode="wrap")
    image -= np.float32(session.sharpness) * wide
    along = np.array([0.12, 0.76, 0.12], np.float32)
    image = ndimage.correlate1d(image, along, axis=0, mode="wrap")
    image *= np.float32(sd / max(float(image[:: max(1, shape[0] // 8)].std()), 1e-6))
    return image
