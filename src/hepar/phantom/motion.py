"""Motion: breathing between phases, what registration leaves of it, and a restless patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from scipy import ndimage
from torch.nn import functional

from hepar.phantom.shapes import Lattice, Triple
from hepar.phantom.tissue import Tissue

MOVED_SHARE, STREAKED_SHARE = 0.1, 0.12
FIELD_PITCH_MM = 45.0
_WALL = (
    Tissue.AIR,
    Tissue.SKIN,
    Tissue.MUSCLE,
    Tissue.BONE,
    Tissue.CORTICAL_BONE,
    Tissue.TABLE,
)


@dataclass(frozen=True)
class Motion:
    """Which one phase of a visit is spoilt.

    Attributes:
        moved: phase with motion blur, or empty.
        streaked: phase with streaks, or empty.
    """

    moved: str
    streaked: str

    @classmethod
    def draw(cls, rng: np.random.Generator, phases: Sequence[str]) -> Motion:
        """Draw a visit's mishaps; most have none."""
        happens, which = rng.random(2), rng.integers(len(phases), size=2)
        return cls(
            phases[int(which[0])] if happens[0] < MOVED_SHARE else "",
            phases[int(which[1])] if happens[1] < STREAKED_SHARE else "",
        )


def smooth_displacement(
    shape: tuple[int, ...], spacing_mm: Triple, amplitude_mm: float, rng: np.random.Generator
) -> Float32[np.ndarray, "3 z y x"]:
    """A field varying over 45 mm whose largest displacement is `amplitude_mm`."""
    axes = tuple(
        (np.arange(n) * s).astype(np.float32) for n, s in zip(shape, spacing_mm, strict=True)
    )
    low: Triple = (0.0, 0.0, 0.0)
    high: Triple = (float(axes[0][-1]), float(axes[1][-1]), float(axes[2][-1]))
    draws = [Lattice.draw(rng, FIELD_PITCH_MM, 1.0, low, high) for _ in range(3)]
    field = np.stack([lattice.on_axes(axes, low) for lattice in draws])
    largest = float(np.sqrt((field**2).sum(axis=0)).max())
    field *= np.float32(amplitude_mm / max(largest, 1e-6))
    return field


def pull(
    image: Float32[np.ndarray, "z y x"],
    displacement_mm: Float32[np.ndarray, "3 z y x"],
    spacing_mm: Triple,
) -> Float32[np.ndarray, "z y x"]:
    """The image at each voxel's position plus displacement, linear, edges repeated."""
    # grid_sample wants (x, y, z) in [-1, 1] between the centers of the outer voxels.
    place = np.empty((*image.shape, 3), np.float32)
    for axis in range(3):
        n = max(image.shape[axis] - 1, 1)
        index = np.arange(image.shape[axis], dtype=np.float32)
        line = index.reshape([-1 if a == axis else 1 for a in range(3)])
        np.divide(displacement_mm[axis], np.float32(spacing_mm[axis]), out=place[..., 2 - axis])
        place[..., 2 - axis] += line
        place[..., 2 - axis] *= np.float32(2 / n)
        place[..., 2 - axis] -= 1
    source = torch.from_numpy(np.ascontiguousarray(image))[None, None]
    moved = functional.grid_sample(
        source, torch.from_numpy(place)[None], padding_mode="border", align_corners=True
    )
    return moved[0, 0].numpy()


def displace(
    image: Float32[np.ndarray, "z y x"],
    spacing_mm: Triple,
    amplitude_mm: float,
    rng: np.random.Generator,
) -> Float32[np.ndarray, "z y x"]:
    """Move an image by a smooth field: what registration leaves between two phases."""
    field = smooth_displacement(image.shape, spacing_mm, amplitude_mm, rng)
    return pull(image, field, spacing_mm)


def breathe(
    image: Float32[np.ndarray, "z y x"],
    tissue: UInt8[np.ndarray, "z y x"],
    cavity: Bool[np.ndarray, "z y x"],
    spacing_mm: Triple,
    amplitude_mm: float,
    rng: np.random.Generator,
) -> tuple[Float32[np.ndarray, "z y x"], Float32[np.ndarray, "3 z y x"]]:
    """Shift the organs along z, sliding along a body wall that stays.

    Args:
        image: HU.
        tissue: codes; the spine and the muscles beside it stay.
        cavity: inside the muscle wall.
        spacing_mm: (z, y, x).
        amplitude_mm: largest shift; a fifth of it also moves organs to the front, and a quarter
            bends them.
        rng: draws direction and bending.

    Returns:
        The image, and from where each voxel's anatomy comes, relative to it, in mm.
    """
    inside = cavity & ~np.isin(tissue, [int(t) for t in _WALL])
    sign = 1.0 if rng.random() < 0.5 else -1.0
    field = smooth_displacement(image.shape, spacing_mm, 0.25 * amplitude_mm, rng)
    field[0] += np.float32(sign * 0.75 * amplitude_mm)
    field[1] += np.float32(sign * 0.15 * amplitude_mm)
    field *= inside
    moved = pull(image, field, spacing_mm)
    from_inside = pull(inside.astype(np.float32), field, spacing_mm)
    # What would be pulled out of the wall is the fat or lung next to it.
    torn = inside & (from_inside < 0.5)
    if torn.any():
        nearest = ndimage.distance_transform_edt(
            torn | ~inside, return_distances=False, return_indices=True
        )
        moved[torn] = moved[tuple(nearest[:, torn])]
    return moved, field


def sway(
    image: Float32[np.ndarray, "z y x"], spacing_mm: Triple, rng: np.random.Generator
) -> Float32[np.ndarray, "z y x"]:
    """Motion during the scan: each slice averaged with itself shifted by 2-5 mm in plane.

    The shift comes and goes along z, as a breath during a helical scan does.
    """
    angle, size = rng.uniform(0, 2 * np.pi), rng.uniform(2, 5)
    z = np.arange(image.shape[0]) * spacing_mm[0]
    strength = 0.5 * np.clip(
        1.4 * np.sin(2 * np.pi * z / rng.uniform(60, 160) + rng.uniform(0, 6)), 0, 1
    )
    step = (0, size * np.sin(angle) / spacing_mm[1], size * np.cos(angle) / spacing_mm[2])
    ghost = ndimage.shift(image, step, order=1, mode="nearest", prefilter=False)
    share = strength.astype(np.float32)[:, None, None]
    return image * (1 - share) + ghost * share
