"""Lesions of a phantom: what they are, where they lie, and which voxel is rim, core or capsule.

Placement works on any liver mask, procedural or from a label map, in millimeters. A lesion is an
ellipsoid whose radius is modulated by low-frequency noise over the sphere, scaled so that its
volume stays that of the ellipsoid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

from hepar.study import LESION_TYPES


class Part(IntEnum):
    """Which part of a lesion a voxel belongs to; painting gives each its own enhancement."""

    NONE = 0
    BODY = 1
    RIM = 2
    CORE = 3
    CAPSULE = 4
    SCAR = 5
    NODULE = 6
    MOSAIC = 7


@dataclass(frozen=True)
class LesionSpec:
    """One lesion, in the patient's own millimeters.

    Attributes:
        id: value in the instance map, 1..K.
        type: one of `LESION_TYPES`.
        center_mm: (z, y, x) of the center in the anatomy's frame (`Anatomy.origin_mm`).
        radii_mm: semi-axes before rotation and shape noise.
        shape_seed: draws rotation, shape noise and parts.
        irregularity: relative SD of the radius over the sphere.
        rim_mm: thickness of the rim or capsule.
        traits: biological variants such as `capsule`, `no_washout`, `hypervascular`.
    """

    id: int
    type: str
    center_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]
    shape_seed: int
    irregularity: float
    rim_mm: float
    traits: tuple[str, ...] = ()


# Median diameter (mm), log SD, and mean number of a type in a patient who has it.
_SIZES = {
    "hcc": (30.0, 0.65, 1.6),
    "icc": (42.0, 0.45, 1.1),
    "metastasis": (18.0, 0.6, 3.0),
    "hemangioma": (20.0, 0.6, 1.5),
    "fnh": (32.0, 0.45, 1.1),
    "cyst": (12.0, 0.7, 2.2),
    "calcification": (7.0, 0.4, 1.3),
    "other": (22.0, 0.6, 1.5),
}
_PRIMARY_SHARE = (0.28, 0.11, 0.22, 0.12, 0.08, 0.08, 0.03, 0.08)
_INCIDENTAL = ("cyst", "hemangioma", "calcification")
_MAX_LESIONS = 8
_DIAMETER_MM = (4.0, 80.0)
TUMOR_FREE_SHARE = 0.2


def draw_lesions(
    liver: Bool[np.ndarray, "z y x"],
    spacing_mm: tuple[float, float, float],
    origin_mm: tuple[float, float, float],
    rng: np.random.Generator,
) -> tuple[LesionSpec, ...]:
    """Draw a patient's lesions inside a liver mask, none in 20 % of patients.

    Args:
        liver: bool (z, y, x); a coarse mask is enough, positions are jittered within a voxel.
        spacing_mm: of the mask.
        origin_mm: (z, y, x) of its first voxel.
        rng: explicit generator.

    Returns:
        Specs with ids 1..K, largest first; they lie in the liver up to a limited exposure and do
        not overlap by more than their shape noise. A lesion that finds no room is made smaller,
        then left out.
    """
    wanted = _draw_kinds(rng)
    if not wanted or not liver.any():
        return ()
    depth_mm = ndimage.distance_transform_edt(liver, sampling=spacing_mm).astype(np.float32)
    where = np.argwhere(liver)
    spots_mm = where * np.asarray(spacing_mm) + np.asarray(origin_mm)
    spots_mm = spots_mm + rng.uniform(-0.5, 0.5, spots_mm.shape) * np.asarray(spacing_mm)
    depth = depth_mm[liver]
    placed: list[LesionSpec] = []
    for kind, diameter in wanted:
        spec = _place(kind, diameter, spots_mm, depth, placed, rng)
        if spec is not None:
            placed.append(replace(spec, id=len(placed) + 1))
    return tuple(placed)


def _draw_kinds(rng: np.random.Generator) -> list[tuple[str, float]]:
    if rng.random() < TUMOR_FREE_SHARE:
        return []
    primary = str(rng.choice(LESION_TYPES, p=_PRIMARY_SHARE))
    kinds = [primary] * (1 + rng.poisson(_SIZES[primary][2] - 1))
    if rng.random() < 0.25:
        kinds.append(str(rng.choice(_INCIDENTAL, p=(0.6, 0.25, 0.15))))
    drawn = []
    for kind in kinds[:_MAX_LESIONS]:
        median, log_sd, _ = _SIZES[kind]
        diameter = float(np.clip(median * np.exp(rng.normal(0, log_sd)), *_DIAMETER_MM))
        drawn.append((kind, diameter))
    return sorted(drawn, key=lambda pair: -pair[1])


def _place(
    kind: str,
    diameter_mm: float,
    spots_mm: np.ndarray,
    depth_mm: np.ndarray,
    placed: list[LesionSpec],
    rng: np.random.Generator,
) -> LesionSpec | None:
    """Choose a spot deep enough and far enough from the others; shrink when there is none."""
    # A lesion may touch or indent the capsule but at most about a third of it lies outside:
    # exposed masses teach a network that anything dark beside the liver is liver.
    cover = 1.05 if rng.random() < 0.7 else 0.55
    stretch = np.exp(rng.normal(0, 0.12, 3))
    stretch /= stretch.prod() ** (1 / 3)
    irregularity = rng.uniform(*_IRREGULARITY.get(kind, (0.06, 0.14)))
    for _ in range(6):
        reach = diameter_mm / 2 * float(stretch.max()) * (1 + irregularity)
        free = depth_mm >= cover * diameter_mm / 2
        for other in placed:
            gap = np.linalg.norm(spots_mm - np.asarray(other.center_mm), axis=1)
            free &= gap > reach + max(other.radii_mm) * (1 + other.irregularity) + 2
        candidates = np.flatnonzero(free)
        if len(candidates):
            center = spots_mm[candidates[rng.integers(len(candidates))]]
            return LesionSpec(
                id=0,
                type=kind,
                center_mm=(float(center[0]), float(center[1]), float(center[2])),
                radii_mm=tuple(float(diameter_mm / 2 * v) for v in stretch),  # type: ignore[arg-type]
                shape_seed=int(rng.integers(2**31)),
                irregularity=float(irregularity),
                rim_mm=_draw_rim(kind, diameter_mm, rng),
                traits=_draw_traits(kind, diameter_mm, rng),
            )
        diameter_mm = max(diameter_mm * 0.75, _DIAMETER_MM[0])
    return None


_IRREGULARITY = {"icc": (0.14, 0.26), "cyst": (0.02, 0.08), "calcification": (0.15, 0.3)}


def _draw_rim(kind: str, diameter_mm: float, rng: np.random.Generator) -> float:
    if kind == "hcc":
        return float(rng.uniform(1.2, 2.4))
    if kind == "hemangioma":
        return float(diameter_mm * rng.uniform(0.12, 0.2))
    return float(np.clip(diameter_mm * rng.uniform(0.1, 0.22), 1.5, 10))


def _draw_traits(kind: str, diameter_mm: float, rng: np.random.Generator) -> tuple[str, ...]:
    """Biological variants, with the shares of issue 3 where it names them."""
    share = {
        "hcc": {
            "no_arterial": 0.15,
            "no_washout": 0.15,
            "capsule": 0.55 if diameter_mm > 20 else 0.15,
            "mosaic": 0.5 if diameter_mm > 30 else 0.05,
            "necrosis": 0.3 if diameter_mm > 50 else 0.0,
        },
        "metastasis": {"hypervascular": 0.2, "necrosis": 0.5 if diameter_mm > 25 else 0.1},
        "hemangioma": {"flash": 0.4 if diameter_mm < 20 else 0.0},
        "fnh": {"scar": 0.6},
        "other": {"hypervascular": 0.35, "fatty": 0.15, "fluid": 0.25},
    }.get(kind, {})
    return tuple(name for name, p in share.items() if rng.random() < p)


def rasterize(
    specs: tuple[LesionSpec, ...],
    liver: Bool[np.ndarray, "z y x"],
    spacing_mm: tuple[float, float, float],
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> tuple[UInt8[np.ndarray, "z y x"], UInt8[np.ndarray, "z y x"], tuple[LesionSpec, ...]]:
    """Draw lesions on a grid, clipped to the liver; earlier lesions keep their voxels.

    Returns:
        instances uint8 (z, y, x), parts uint8 (z, y, x), and the specs that own at least one
        voxel, renumbered 1..K in the same order.
    """
    instances = np.zeros(liver.shape, np.uint8)
    parts = np.zeros(liver.shape, np.uint8)
    kept: list[LesionSpec] = []
    spacing, origin = np.asarray(spacing_mm), np.asarray(origin_mm)
    for spec in specs:
        center = np.asarray(spec.center_mm)
        reach = max(spec.radii_mm) * (1 + 2.5 * spec.irregularity)
        low = np.maximum(np.floor((center - reach - origin) / spacing).astype(int), 0)
        high = np.minimum(np.ceil((center + reach - origin) / spacing).astype(int) + 1, liver.shape)
        if (high <= low).any():
            continue
        box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        axes = [origin[i] + spacing[i] * np.arange(low[i], high[i]) - center[i] for i in range(3)]
        offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float32)
        rho, part = _shape(spec, offsets)
        own = (rho < 1) & liver[box] & (instances[box] == 0)
        if not own.any():
            continue
        kept.append(replace(spec, id=len(kept) + 1))
        instances[box][own] = len(kept)
        parts[box][own] = part[own]
    return instances, parts, tuple(kept)


def _waves(
    directions: np.ndarray, rng: np.random.Generator, low: float, high: float, count: int = 7
) -> np.ndarray:
    """Sum of plane waves over the last axis, unit variance: noise without a lattice."""
    vectors = rng.normal(size=(count, 3))
    vectors *= rng.uniform(low, high, (count, 1)) / np.linalg.norm(vectors, axis=1, keepdims=True)
    phases = rng.uniform(0, 2 * np.pi, count)
    total = np.zeros(directions.shape[:-1], np.float32)
    for vector, phase in zip(vectors.astype(np.float32), phases, strict=True):
        total += np.cos(directions @ vector + np.float32(phase))
    return total * np.float32(np.sqrt(2 / count))


def _sphere(count: int = 600) -> np.ndarray:
    """Evenly spread unit vectors (Fibonacci)."""
    k = np.arange(count) + 0.5
    z, angle = 1 - 2 * k / count, np.pi * (1 + 5**0.5) * k
    r = np.sqrt(1 - z * z)
    return np.stack([z, r * np.cos(angle), r * np.sin(angle)], axis=-1).astype(np.float32)


def _radius(spec: LesionSpec, directions: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng([spec.shape_seed, 2])
    bumps = np.clip(_waves(directions, rng, 1.5, 4.5), -2.2, 2.2)
    return np.maximum(1 + np.float32(spec.irregularity) * bumps, 0.35)


def _shape(spec: LesionSpec, offsets_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normalized radius (1 at the surface) and part codes, over offsets (..., 3) in mm."""
    rng = np.random.default_rng([spec.shape_seed, 1])
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    local = (offsets_mm @ turn.astype(np.float32)) / np.asarray(spec.radii_mm, np.float32)
    length = np.linalg.norm(local, axis=-1) + np.float32(1e-6)
    # The mean cube over the sphere keeps the lesion's volume that of its ellipsoid.
    cube = float(np.mean(_radius(spec, _sphere()) ** 3)) ** (1 / 3)
    rho = length / _radius(spec, local / length[..., None]) * np.float32(cube)
    mean_mm = float(np.prod(spec.radii_mm)) ** (1 / 3)
    depth_mm = (1 - rho) * mean_mm
    blobs = _waves(offsets_mm, np.random.default_rng([spec.shape_seed, 3]), 0.25, 0.7)
    return rho, _parts(spec, rho, depth_mm, blobs)


def _parts(
    spec: LesionSpec, rho: np.ndarray, depth_mm: np.ndarray, blobs: np.ndarray
) -> np.ndarray:
    part = np.full(rho.shape, Part.BODY, np.uint8)
    rim = depth_mm < spec.rim_mm * (1 + 0.25 * blobs)
    if spec.type == "hcc":
        if "mosaic" in spec.traits:
            part[blobs > 0.45] = Part.MOSAIC
        if "necrosis" in spec.traits:
            part[rho < 0.5 + 0.1 * blobs] = Part.CORE
        if "capsule" in spec.traits:
            part[depth_mm < spec.rim_mm] = Part.CAPSULE
    elif spec.type in ("icc", "metastasis", "other"):
        part[rim] = Part.RIM
        part[rho < 0.52 + 0.12 * blobs] = Part.CORE
    elif spec.type == "hemangioma":
        part[(rho > 0.58) & (blobs > -0.2)] = Part.NODULE
        part[rho < 0.42 + 0.1 * blobs] = Part.CORE
    elif spec.type == "fnh" and "scar" in spec.traits:
        part[rho < 0.16 + 0.12 * np.abs(blobs)] = Part.SCAR
    return part
