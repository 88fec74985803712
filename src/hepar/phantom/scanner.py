"""Painting: timing, HU, texture, motion, kernel, slice thickness and noise over an anatomy.

Every draw belongs either to the patient and the session (shared by all phases) or to one phase,
and comes from its own generator; which phases are asked for, and in which order, therefore
changes no voxel of any of them.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float32, Int16, UInt8

from hepar.errors import UsageError
from hepar.phantom.anatomy import PART_COUNT, TISSUE_COUNT, Anatomy, codes, label_map
from hepar.phantom.enhancement import Contrast, draw_time_s, tissue_hu
from hepar.phantom.lesion_enhancement import SHIFTS, lesion_hu
from hepar.phantom.lesion_shape import readers_view
from hepar.phantom.motion import Motion, breathe, displace, sway
from hepar.phantom.reconstruction import (
    HU_RANGE,
    SCANNERS,
    Reconstruction,
    blur,
    limit_view,
    noise,
    noise_gain,
    shading,
    streaks,
)
from hepar.phantom.shapes import Lattice, Triple
from hepar.phantom.tissue import Tissue
from hepar.study import PHASE_ORDER

PHASES = tuple(str(phase) for phase in PHASE_ORDER)
REFERENCE = "PV"

# SD of texture, HU, at a fine and a coarse scale; what the map holds as one code is not uniform.
_TEXTURE_HU: dict[Tissue, tuple[float, float]] = {
    Tissue.FAT: (4, 2),
    Tissue.MUSCLE: (6, 4),
    Tissue.BONE: (45, 30),
    Tissue.CORTICAL_BONE: (60, 60),
    Tissue.LUNG: (35, 22),
    Tissue.HEART: (3, 6),
    Tissue.LIVER: (1.3, 1.3),
    Tissue.PERFUSION: (1.3, 1.3),
    Tissue.SPLEEN: (2.5, 4),
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
_THREADED_VOXELS = 500_000


@dataclass(frozen=True)
class Painted:
    """One scan session of an anatomy.

    Attributes:
        hu: phase -> int16 (z, y, x), on the anatomy's grid.
        times_s: phase -> seconds since the start of injection (0 for NC).
        label: uint8 (z, y, x) 0/1/2, as a reader outlines it in PV.
        instances: uint8 (z, y, x) lesion ids, as a reader outlines them.
        liver: bool (z, y, x).
        displacement_mm: phase -> float32 (3, z, y, x), from where (relative to the voxel) the
            anatomy that a phase shows at a voxel comes; only where `breathing_mm` was above zero.
    """

    hu: dict[str, Int16[np.ndarray, "z y x"]]
    times_s: dict[str, float]
    label: UInt8[np.ndarray, "z y x"]
    instances: UInt8[np.ndarray, "z y x"]
    liver: Bool[np.ndarray, "z y x"]
    displacement_mm: dict[str, Float32[np.ndarray, "3 z y x"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Session:
    """What all phases of one visit share.

    Attributes:
        contrast: the patient's response to the injection.
        lesion_shift: (n lesions, SHIFTS) standard normal draws.
        reconstruction: kernel, slice thickness, noise.
        motion: which phase suffers from motion or streaks.
    """

    contrast: Contrast
    lesion_shift: np.ndarray
    reconstruction: Reconstruction
    motion: Motion

    @classmethod
    def draw(cls, anatomy: Anatomy, seed: int, scanner: str = "home") -> Session:
        rng = np.random.default_rng([seed, anatomy.texture_seed, 50])
        contrast = Contrast.draw(rng, anatomy.steatosis)
        recon = Reconstruction.draw(rng, SCANNERS[scanner], anatomy.spacing_mm[0], anatomy.arms)
        motion = Motion.draw(rng, PHASES)
        # One draw a possible id: a lesion lost on a coarse grid must not shift the others.
        shift = rng.normal(size=(256, SHIFTS)).clip(-2.2, 2.2)
        return cls(contrast, shift, recon, motion)


def paint(
    anatomy: Anatomy,
    seed: int,
    *,
    phases: tuple[str, ...] = PHASES,
    misalignment_mm: float = 0.0,
    breathing_mm: float = 0.0,
    scanner: str = "home",
) -> Painted:
    """Scan an anatomy: a pure function of (anatomy, seed), phase by phase.

    Args:
        anatomy: the patient.
        seed: the visit; draws timing, enhancement, kernel, noise and the reader.
        phases: any subset of NC, ART, PV, DL.
        misalignment_mm: largest residual displacement of the other phases against PV, on whose
            grid the truth lies, varying over space; what registration leaves over.
        breathing_mm: largest shift of the organs along z between the other phases and PV, sliding
            along the body wall; what registration is for.
        scanner: key of `reconstruction.SCANNERS`.

    Raises:
        UsageError: E_RECIPE for an unknown phase or scanner, or a displacement below zero.
    """
    unknown = [phase for phase in phases if str(phase) not in PHASES]
    if unknown or misalignment_mm < 0 or breathing_mm < 0 or scanner not in SCANNERS:
        raise UsageError(
            "E_RECIPE",
            "phantom",
            f"phases {unknown} unknown, misalignment_mm {misalignment_mm} or breathing_mm "
            f"{breathing_mm} below zero, or scanner {scanner!r} unknown",
            f"choose among {', '.join(PHASES)}, displacements of 0 or more, and scanners "
            f"{', '.join(SCANNERS)}",
        )
    scene = _Scene.of(anatomy, Session.draw(anatomy, seed, scanner), seed)

    def one(phase: str) -> tuple[np.ndarray, float, np.ndarray | None]:
        return _paint_phase(scene, phase, misalignment_mm, breathing_mm)

    names = tuple(str(phase) for phase in phases)
    threads = min(2, len(names)) if anatomy.tissue.size > _THREADED_VOXELS else 1
    with ThreadPoolExecutor(threads) as pool:
        done = dict(zip(names, pool.map(one, names), strict=True))
    reader = np.random.default_rng([seed, anatomy.texture_seed, 80])
    instances = readers_view(anatomy.instances, anatomy.liver, anatomy.spacing_mm, reader)
    return Painted(
        hu={phase: hu for phase, (hu, _, _) in done.items()},
        times_s={phase: time for phase, (_, time, _) in done.items()},
        label=label_map(anatomy.liver, instances),
        instances=instances,
        liver=anatomy.liver,
        displacement_mm={phase: d for phase, (_, _, d) in done.items() if d is not None},
    )


@dataclass(frozen=True)
class _Scene:
    """An anatomy ready to be painted at any time."""

    anatomy: Anatomy
    session: Session
    seed: int
    first: np.ndarray
    mixed: tuple[np.ndarray, ...]
    second: np.ndarray
    share: np.ndarray
    fine: np.ndarray
    coarse: np.ndarray
    gain: np.ndarray | None

    @property
    def cavity(self) -> np.ndarray:
        """Inside the wall; everything, for an anatomy that does not say."""
        known = self.anatomy.cavity
        return np.ones(self.first.shape, bool) if known is None else known

    @classmethod
    def of(cls, anatomy: Anatomy, session: Session, seed: int) -> _Scene:
        first = codes(anatomy.tissue, anatomy.instances, anatomy.parts)
        share = np.zeros(first.shape, np.uint8) if anatomy.share is None else anatomy.share
        mixed = np.nonzero(share)
        second = first if anatomy.second is None else anatomy.second
        return cls(
            anatomy,
            session,
            seed,
            first,
            mixed,
            second[mixed],
            share[mixed].astype(np.float32) / np.float32(255),
            *_texture(anatomy),
            noise_gain(anatomy.tissue == Tissue.AIR, anatomy.spacing_mm),
        )


def _paint_phase(
    scene: _Scene, phase: str, misalignment_mm: float, breathing_mm: float
) -> tuple[np.ndarray, float, np.ndarray | None]:
    """One phase: HU, its time, and the displacement where the patient breathed."""
    anatomy, session, spacing = scene.anatomy, scene.session, scene.anatomy.spacing_mm
    number = PHASES.index(phase)
    rng = np.random.default_rng([scene.seed, anatomy.texture_seed, 60, number])
    time_s = draw_time_s(rng, phase)
    image = _clean(scene, time_s)
    moved = None
    if phase != REFERENCE and breathing_mm > 0:
        image, moved = breathe(image, anatomy.tissue, scene.cavity, spacing, breathing_mm, rng)
    if phase != REFERENCE and misalignment_mm > 0:
        image = displace(image, spacing, misalignment_mm, rng)
    artifacts = np.random.default_rng([scene.seed, anatomy.texture_seed, 61, number])
    if session.motion.moved == phase:
        image = sway(image, spacing, artifacts)
    image = blur(image, session.reconstruction, spacing)
    if session.motion.streaked == phase:
        image += streaks(image.shape, spacing, artifacts)
    grain = noise(image.shape, session.reconstruction, spacing, rng)
    if scene.gain is not None:
        grain *= scene.gain
    image += grain
    image += shading(image.shape, session.reconstruction, artifacts)
    np.clip(np.rint(image, out=image), *HU_RANGE, out=image)
    if anatomy.field == "abdomen":
        limit_view(image, session.reconstruction)
    return image.astype(np.int16), time_s, moved


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


def _clean(scene: _Scene, time_s: float) -> np.ndarray:
    """Noiseless HU on the grid, float32: tables by code, mixtures, and texture by code."""
    anatomy, contrast = scene.anatomy, scene.session.contrast
    tables = [tissue_hu(contrast, time_s)]
    shifts = scene.session.lesion_shift
    tables += [lesion_hu(s, contrast, time_s, shifts[s.id - 1]) for s in anatomy.lesions]
    hu = np.concatenate(tables).astype(np.float32)
    amplitude = _amplitude(anatomy, time_s)
    image = hu.take(scene.first)
    image[scene.mixed] += scene.share * (hu[scene.second] - image[scene.mixed])
    image += amplitude[:, 0].take(scene.first) * scene.fine
    image += amplitude[:, 1].take(scene.first) * scene.coarse
    return image


def _amplitude(anatomy: Anatomy, time_s: float) -> np.ndarray:
    """SD of fine and coarse texture of every code, float32 (n codes, 2)."""
    count = TISSUE_COUNT + len(anatomy.lesions) * PART_COUNT
    amplitude = np.zeros((count, 2), np.float32)
    amplitude[TISSUE_COUNT:] = _LESION_TEXTURE_HU
    for code, pair in _TEXTURE_HU.items():
        amplitude[code] = pair
    for spec in anatomy.lesions:
        if spec.kind in ("cyst", "cystadenoma", "hydatid"):
            first = TISSUE_COUNT + (spec.id - 1) * PART_COUNT
            amplitude[first : first + PART_COUNT] = 1.0
    # Red and white pulp fill at different times: the spleen is mottled in the arterial phase.
    amplitude[Tissue.SPLEEN, 1] += 26 * float(np.clip(1 - abs(time_s - 30) / 22, 0, 1))
    for code in (Tissue.LIVER, Tissue.PERFUSION):
        amplitude[code] *= 1 + 3.0 * anatomy.cirrhosis + 2.0 * anatomy.steatosis
    return amplitude
