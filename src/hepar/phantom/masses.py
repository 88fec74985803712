"""Blobs for domain randomization: lesions inside the liver, their doubles outside, arms, borders.

Dark lesions in the training liver alone teach that any big dark thing beside the liver is liver;
each larger one is therefore paired with a mass of the same look outside. The phantom's lesions
(`phantom.lesions`) are the ones with types and truth; these only disturb the organ's HU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from hepar.phantom.deform import Triple, smooth_field
from hepar.phantom.tissue import Tissue

_SOLID = (Tissue.AIR, Tissue.BONE, Tissue.LUNG, Tissue.AORTA, Tissue.CAVA, Tissue.TABLE)
_WORST_EXPOSURE = 0.35


@dataclass(frozen=True)
class Scene:
    """A field while it is being painted; arrays are changed in place.

    Attributes:
        hu: float32 (z, y, x).
        label: uint8 (z, y, x) context classes.
        tissue: uint8 (z, y, x).
        liver: bool (z, y, x).
        spacing_mm: (z, y, x).
    """

    hu: Float32[np.ndarray, "z y x"]
    label: UInt8[np.ndarray, "z y x"]
    tissue: UInt8[np.ndarray, "z y x"]
    liver: Bool[np.ndarray, "z y x"]
    spacing_mm: Triple


def _blob(
    rng: np.random.Generator, scene: Scene, center: np.ndarray, radius_mm: float
) -> tuple[tuple[slice, slice, slice], Float32[np.ndarray, "z y x"]]:
    """An irregular ellipsoid: its box in the field and the relative radius there (1 at the border).

    Args:
        center: (z, y, x) voxel.
    """
    spacing = np.asarray(scene.spacing_mm)
    radii = radius_mm * rng.uniform(0.75, 1.3, size=3)
    reach = np.ceil(1.5 * radii / spacing).astype(int)
    start = np.maximum(center - reach, 0)
    stop = np.minimum(center + reach + 1, scene.hu.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    axes = [
        ((np.arange(a, b) - c) * s / r).astype(np.float32)
        for a, b, c, s, r in zip(start, stop, center, spacing, radii, strict=True)
    ]
    squared = axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2] ** 2
    shape = tuple(len(a) for a in axes)
    wobble = smooth_field(rng, shape, scene.spacing_mm, max(radius_mm, 8.0))[0]
    return (box[0], box[1], box[2]), np.sqrt(squared) * (1 + np.float32(0.3) * wobble)


def _profile(
    rng: np.random.Generator, relative: Float32[np.ndarray, "z y x"], delta_hu: float
) -> Float32[np.ndarray, "z y x"]:
    """Contrast of a blob against its surroundings: body, sometimes a rim, sometimes a core."""
    contrast = np.full(relative.shape, delta_hu, dtype=np.float32)
    if rng.random() < 0.3:
        contrast[relative > 0.75] += rng.uniform(-20, 60)
    if rng.random() < 0.3:
        contrast[relative < 0.5] += rng.uniform(-40, 15)
    return contrast


def _draw_contrast(rng: np.random.Generator, liver_hu: float) -> float:
    """HU of a lesion minus that of the liver: mostly darker, some fluid, some brighter."""
    kind = rng.random()
    if kind < 0.7:
        return float(-rng.uniform(15, 75))
    if kind < 0.85:
        return float(rng.uniform(0, 20) - liver_hu)
    return float(rng.uniform(15, 90))


def add_masses(scene: Scene, rng: np.random.Generator, liver_hu: float) -> None:
    """Lesions in the liver of some fields and their doubles outside it, in place.

    Args:
        scene: the field, painted.
        rng: generator.
        liver_hu: the parenchyma's mean.
    """
    inside = np.argwhere(scene.liver)
    count = int(rng.integers(1, 8)) if rng.random() < 0.5 and len(inside) else 0
    for _ in range(count):
        radius_mm = float(np.exp(rng.normal(np.log(9.0), 0.7)))
        radius_mm = min(radius_mm, 45.0)
        delta = _draw_contrast(rng, liver_hu)
        center = inside[rng.integers(len(inside))]
        _lesion(scene, rng, center, radius_mm, delta)
        if radius_mm > 10.0 and rng.random() < 0.8:
            _outside(scene, rng, inside, radius_mm, liver_hu + delta)
    if rng.random() < 0.25:
        hu = liver_hu + _draw_contrast(rng, liver_hu)
        _outside(scene, rng, inside, float(rng.uniform(15, 55)), hu)


def _lesion(
    scene: Scene, rng: np.random.Generator, center: np.ndarray, radius_mm: float, delta: float
) -> None:
    """One lesion cut at the liver's border, in place; too exposed a large one is left out."""
    box, relative = _blob(rng, scene, center, radius_mm)
    blob = relative < 1.0
    where = blob & scene.liver[box]
    exposed = 1.0 - where.sum() / max(int(blob.sum()), 1)
    if radius_mm > 12.0 and exposed > _WORST_EXPOSURE:
        return
    scene.hu[box][where] += _profile(rng, relative, delta)[where]


def _outside(
    scene: Scene, rng: np.random.Generator, inside: np.ndarray, radius_mm: float, hu: float
) -> None:
    """A mass of a given HU near the liver or anywhere in the body, in place; its class is other."""
    shape = np.asarray(scene.hu.shape)
    if len(inside) and rng.random() < 0.7:
        step = rng.standard_normal(3)
        step *= (radius_mm + rng.uniform(5, 60)) / max(float(np.linalg.norm(step)), 1e-6)
        center = inside[rng.integers(len(inside))] + np.round(step / scene.spacing_mm).astype(int)
    else:
        center = rng.integers(0, shape)
    if np.any(center < 0) or np.any(center >= shape) or scene.liver[tuple(center)]:
        return
    box, relative = _blob(rng, scene, center, radius_mm)
    where = (relative < 1.0) & ~scene.liver[box] & ~np.isin(scene.tissue[box], _SOLID)
    if where.any():
        scene.hu[box][where] = hu + _profile(rng, relative, 0.0)[where]
        scene.label[box][where] = 0


def add_arms(scene: Scene, rng: np.random.Generator, bone: int, muscle: int) -> None:
    """Two arms beside the body where there is air, in place.

    Args:
        bone: class index of bone.
        muscle: class index of muscle.
    """
    body = np.argwhere(scene.tissue != Tissue.AIR)
    if len(body) == 0:
        return
    _, dy, dx = scene.spacing_mm
    low, high = body.min(0), body.max(0)
    y0 = float(rng.uniform(low[1], high[1]))
    radius = float(rng.uniform(35, 50))
    _, y, x = np.ogrid[:1, : scene.hu.shape[1], : scene.hu.shape[2]]
    free = np.isin(scene.tissue, (Tissue.AIR, Tissue.TABLE))
    for x0 in (low[2] - radius / dx, high[2] + radius / dx):
        distance = np.hypot((y - y0) * dy, (x - x0) * dx)
        for limit, hu, label in ((radius, 50.0, muscle), (9.0, 350.0, bone)):
            where = free & (distance < limit)
            scene.hu[where] = hu
            scene.label[where] = label


def limit_field(scene: Scene, rng: np.random.Generator) -> None:
    """End the scan inside the field, as real ones do: above, below, or at a round border; in place.

    What the scan did not reach is air of the class other: padding at inference looks the same.
    """
    n, ny, nx = scene.hu.shape
    outside = np.zeros(scene.hu.shape, dtype=bool)
    # One scan in ten is a short stack; the others lose some slices at most.
    least_mm = 50.0 if rng.random() < 0.1 else 130.0
    least = min(n, max(4, round(least_mm / scene.spacing_mm[0])))
    if rng.random() < 0.3:
        outside[int(rng.integers(least, n + 1)) :] = True
    if rng.random() < 0.3:
        top = n - int(outside.any((1, 2)).sum())
        outside[: int(rng.integers(0, max(top - least, 0) + 1))] = True
    if rng.random() < 0.2:
        y, x = np.ogrid[:ny, :nx]
        _, dy, dx = scene.spacing_mm
        y0, x0 = rng.uniform(0.4, 0.6) * ny, rng.uniform(0.4, 0.6) * nx
        radius = rng.uniform(140, 220)
        outside |= np.hypot((y - y0) * dy, (x - x0) * dx) > radius
    scene.hu[outside] = -1000.0
    scene.label[outside] = 0
