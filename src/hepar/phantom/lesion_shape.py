"""The voxels of lesions: surface, parts, infiltrated margin, capsule retraction, perfusion wedge.

A lesion is an ellipsoid whose radius is modulated by low-frequency noise over the sphere, scaled so
that its volume stays that of the ellipsoid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

from hepar.phantom.lesion_kinds import Part
from hepar.phantom.lesions import LesionSpec, Triple, Wedge

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Rasterized:
    """Lesions on a grid.

    Attributes:
        instances: lesion ids, 0 elsewhere.
        parts: `Part` codes inside lesions.
        fringe: id of the lesion whose tumor cells mix with this voxel, 0 where none does.
        mixed: share of the minority in a mixed voxel, in 255ths: liver inside a lesion, tumor
            outside it.
        specs: those that own at least one voxel, renumbered 1..K in the same order.
    """

    instances: UInt8[np.ndarray, "z y x"]
    parts: UInt8[np.ndarray, "z y x"]
    fringe: UInt8[np.ndarray, "z y x"]
    mixed: UInt8[np.ndarray, "z y x"]
    specs: tuple[LesionSpec, ...]


def rasterize(
    specs: tuple[LesionSpec, ...],
    liver: Bool[np.ndarray, "z y x"],
    spacing_mm: Triple,
    origin_mm: Triple = (0.0, 0.0, 0.0),
) -> Rasterized:
    """Draw lesions on a grid, clipped to the liver; earlier lesions keep their voxels."""
    empty = np.zeros(liver.shape, np.uint8)
    found = Rasterized(empty, empty.copy(), empty.copy(), empty.copy(), ())
    kept: list[LesionSpec] = []
    for spec in specs:
        reach = max(spec.radii_mm) * (1 + 2.5 * spec.irregularity) + spec.margin_mm
        at = _box(spec.center_mm, reach, liver.shape, spacing_mm, origin_mm)
        if at is None:
            continue
        box, offsets = at
        rho, part = _shape(spec, offsets)
        free = liver[box] & (found.instances[box] == 0)
        own = (rho < 1) & free
        if not own.any():
            continue
        kept.append(replace(spec, id=len(kept) + 1))
        found.instances[box][own] = len(kept)
        found.parts[box][own] = part[own]
        found.fringe[box][own] = 0
        if spec.margin_mm > 0:
            _infiltrate(found, box, free, (1 - rho) * spec.mean_radius_mm, len(kept), spec)
    return replace(found, specs=tuple(kept))


def _infiltrate(
    found: Rasterized,
    box: Box,
    free: np.ndarray,
    depth_mm: np.ndarray,
    number: int,
    spec: LesionSpec,
) -> None:
    """Mix tumor and liver across the border, half and half on it, in place."""
    minority = np.clip(0.5 - np.abs(depth_mm) / spec.margin_mm, 0, 0.5)
    mixed = np.rint(255 * minority).astype(np.uint8)
    here = free & (mixed > 0) & (found.fringe[box] == 0)
    found.fringe[box][here] = number
    found.mixed[box][here] = mixed[here]


def _box(
    center_mm: Triple,
    reach_mm: float,
    shape: tuple[int, ...],
    spacing_mm: Triple,
    origin_mm: Triple,
) -> tuple[Box, np.ndarray] | None:
    """The box around a point, and offsets (z, y, x, 3) in mm from it; None when outside."""
    spacing, origin, center = (np.asarray(v) for v in (spacing_mm, origin_mm, center_mm))
    low = np.maximum(np.floor((center - reach_mm - origin) / spacing).astype(int), 0)
    high = np.minimum(np.ceil((center + reach_mm - origin) / spacing).astype(int) + 1, shape)
    if (high <= low).any():
        return None
    axes = [origin[i] + spacing[i] * np.arange(low[i], high[i]) - center[i] for i in range(3)]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float32)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return (z, y, x), offsets


def retract(
    spec: LesionSpec, liver: Bool[np.ndarray, "z y x"], spacing_mm: Triple, origin_mm: Triple
) -> Bool[np.ndarray, "z y x"] | None:
    """Liver that a scarring lesion near the capsule has pulled in, or None.

    A dent a third of the lesion's radius deep, at the capsule nearest to its center.
    """
    radius = spec.mean_radius_mm
    if "retraction" not in spec.traits or spec.depth_mm > 1.6 * radius + 6:
        return None
    dent_mm = float(np.clip(radius / 3, 3.0, 9.0))
    ball_mm = float(np.clip(1.1 * radius, 10.0, 30.0))
    middle = np.asarray(spec.center_mm) + np.asarray(spec.outward) * (
        spec.depth_mm - dent_mm + ball_mm
    )
    z, y, x = (float(v) for v in middle)
    at = _box((z, y, x), ball_mm, liver.shape, spacing_mm, origin_mm)
    if at is None:
        return None
    box, offsets = at
    dent = np.zeros(liver.shape, bool)
    dent[box] = (np.linalg.norm(offsets, axis=-1) < ball_mm) & liver[box]
    return dent


def wedge_mask(
    wedge: Wedge, parenchyma: Bool[np.ndarray, "z y x"], spacing_mm: Triple, origin_mm: Triple
) -> Bool[np.ndarray, "z y x"]:
    """Parenchyma inside a wedge; its edge is straight, as a portal territory's is."""
    mask = np.zeros(parenchyma.shape, bool)
    length = min(wedge.length_mm, 60.0)
    at = _box(wedge.apex_mm, 1.5 * length + 8, parenchyma.shape, spacing_mm, origin_mm)
    if at is not None:
        box, offsets = at
        along = offsets @ np.asarray(wedge.outward, np.float32)
        across = np.sqrt(np.clip((offsets**2).sum(-1) - along**2, 0, None))
        inside = (along > 0) & (across < wedge.slope * along + 2) & (along < 1.5 * length)
        mask[box] = inside & parenchyma[box]
    return mask


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
    depth_mm = (1 - rho) * spec.mean_radius_mm
    # Blobs of 9-25 mm, finer in a small lesion so that it still shows both.
    scale = float(np.clip(15.0 / spec.mean_radius_mm, 0.8, 2.5))
    blobs = _waves(
        offsets_mm, np.random.default_rng([spec.shape_seed, 3]), 0.25 * scale, 0.7 * scale
    )
    return rho, _parts(spec, rho, depth_mm, blobs)


def _parts(
    spec: LesionSpec, rho: np.ndarray, depth_mm: np.ndarray, blobs: np.ndarray
) -> np.ndarray:
    part = np.full(rho.shape, Part.BODY, np.uint8)
    has = spec.traits.__contains__
    if has("mosaic"):
        part[blobs > 0.45] = Part.MOSAIC
    if has("core"):
        part[rho < 0.55 + 0.12 * blobs] = Part.CORE
    if has("necrosis"):
        part[rho < 0.5 + 0.1 * blobs] = Part.CORE
    if has("rim"):
        part[depth_mm < spec.rim_mm * (1 + 0.25 * blobs)] = Part.RIM
    if has("nodules"):
        part[(blobs > 0.7) & (rho < 0.9)] = Part.NODULE
    if has("capsule"):
        part[depth_mm < spec.rim_mm] = Part.CAPSULE
    if has("scar"):
        part[rho < 0.16 + 0.12 * np.abs(blobs)] = Part.SCAR
    if spec.kind == "hemangioma":
        part[(rho > 0.62) & (blobs > 0.3)] = Part.NODULE
        part[rho < 0.42 + 0.1 * blobs] = Part.CORE
    return part


def readers_view(
    instances: UInt8[np.ndarray, "z y x"],
    liver: Bool[np.ndarray, "z y x"],
    spacing_mm: Triple,
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "z y x"]:
    """The lesions as one of three readers outlines them: within about 1 mm of the truth.

    A reader draws generously (+0.6 mm), as it is, or tightly (-0.6 mm), each with a hand that
    wanders smoothly by 0.3 mm. A lesion that would vanish is drawn as it is.

    Args:
        instances: the truth.
        liver: outlines stay inside it.
        spacing_mm: (z, y, x).
        rng: draws the reader and the hand.
    """
    bias_mm = (-0.6, 0.0, 0.6)[int(rng.integers(3))]
    drawn = np.zeros_like(instances)
    reach = [int(np.ceil(2.5 / s)) for s in spacing_mm]
    for number, found in enumerate(ndimage.find_objects(instances), start=1):
        if found is None:
            continue
        z, y, x = (
            slice(max(s.start - r, 0), s.stop + r) for s, r in zip(found, reach, strict=True)
        )
        box: Box = (z, y, x)
        mask = instances[box] == number
        hand = ndimage.gaussian_filter(rng.standard_normal(mask.shape), [8 / s for s in spacing_mm])
        hand *= 0.3 / max(float(hand.std()), 1e-9)
        # Distances are to voxel centers: half a voxel lies between a border and either side.
        inside = ndimage.distance_transform_edt(mask, sampling=spacing_mm)
        outside = ndimage.distance_transform_edt(~mask, sampling=spacing_mm)
        half = 0.5 * min(spacing_mm)
        depth = np.where(mask, inside - half, half - outside)
        outline = (depth + bias_mm + np.clip(hand, -0.6, 0.6) > 0) & liver[box]
        outline &= (instances[box] == number) | (instances[box] == 0)
        if not outline.any():
            outline = mask
        drawn[box][outline & (drawn[box] == 0)] = number
    return drawn
