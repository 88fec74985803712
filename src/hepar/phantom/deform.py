"""Deforming an anatomy: where each voxel of a new patient lies in the old one.

A warp is drawn first (numbers only) and applied afterwards: rotation, scale per axis, elastic
displacement at two scales, and radial bulges that make parts of the liver larger or smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

Triple = tuple[float, float, float]


def _bspline_basis(n: int, knots: int) -> Float32[np.ndarray, "n knots"]:
    """Uniform cubic B-spline weights of `n` points spread over `knots - 3` intervals."""
    position = np.linspace(0.0, knots - 3, n, endpoint=False)
    cell = np.floor(position).astype(int)
    t = position - cell
    weights = np.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1
    )
    basis = np.zeros((n, knots), dtype=np.float32)
    rows = np.arange(n)[:, None]
    basis[rows, cell[:, None] + np.arange(4)] = weights / 6.0
    return basis


def smooth_field(
    rng: np.random.Generator,
    shape: Sequence[int],
    spacing_mm: Triple,
    scale_mm: float,
    *,
    components: int = 1,
) -> Float32[np.ndarray, "components z y x"]:
    """Random fields without detail below `scale_mm`: cubic B-splines of standard normal controls.

    Their SD is about 0.4 (the spline averages its controls); multiply by the amplitude wanted.

    Args:
        rng: generator.
        shape: (z, y, x).
        spacing_mm: (z, y, x).
        scale_mm: distance between controls.
        components: independent fields.
    """
    bases = []
    for n, spacing in zip(shape, spacing_mm, strict=True):
        knots = max(1, round(n * spacing / scale_mm)) + 3
        bases.append(_bspline_basis(n, knots))
    controls = rng.standard_normal((components, *(b.shape[1] for b in bases)))
    field = controls.astype(np.float32)
    for basis in bases:
        # Contracting the leading spatial axis and appending it keeps the order z, y, x at the end.
        field = np.tensordot(field, basis, axes=(1, 1))
    return np.ascontiguousarray(field)


@dataclass(frozen=True)
class Bulge:
    """A place where the anatomy swells or shrinks.

    Attributes:
        center_mm: (z, y, x) in the template.
        radius_mm: SD of the Gaussian that fades it out.
        strength: 0.5 doubles lengths at the center, negative values shrink; below 0.7 and above
            -2 the map stays one to one.
    """

    center_mm: Triple
    radius_mm: float
    strength: float


@dataclass(frozen=True)
class Warp:
    """A new patient and a field of view, in terms of a template.

    Attributes:
        center_mm: (z, y, x) of the field's center in the template.
        angles_rad: rotations about z, y and x.
        scale: size of the new patient relative to the template along (z, y, x).
        elastic_mm: (control spacing, amplitude) of each elastic scale.
        bulges: local swellings.
        seed: draws the elastic controls.
    """

    center_mm: Triple
    angles_rad: Triple
    scale: Triple
    elastic_mm: tuple[tuple[float, float], ...]
    bulges: tuple[Bulge, ...]
    seed: int


def _rotation(angles_rad: Triple) -> Float[np.ndarray, "3 3"]:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles_rad):
        c, s = np.cos(angle), np.sin(angle)
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
        matrix = matrix @ turn
    return matrix


def draw_warp(
    rng: np.random.Generator,
    center_mm: Triple,
    liver_points_mm: Float[np.ndarray, "n 3"],
    *,
    strength: float = 1.0,
) -> Warp:
    """Numbers of a random patient.

    Args:
        rng: generator.
        center_mm: (z, y, x) of the field's center in the template.
        liver_points_mm: points of the liver, where bulges may sit.
        strength: 1 for a template that is used often, less for one of many.
    """
    overall = rng.uniform(0.9, 1.15)
    z, y, x = np.clip(overall * rng.uniform(0.9, 1.12, size=3), 0.85, 1.3)
    bulges = []
    for _ in range(rng.integers(0, 4) if len(liver_points_mm) else 0):
        pz, py, px = liver_points_mm[rng.integers(len(liver_points_mm))]
        bulges.append(
            Bulge(
                (float(pz), float(py), float(px)),
                float(rng.uniform(20, 60)),
                float(rng.uniform(-0.5, 0.55) * strength),
            )
        )
    rotation = np.deg2rad(rng.normal(0.0, 5.0, size=3)) * strength
    return Warp(
        center_mm=center_mm,
        angles_rad=(float(rotation[0]), float(rotation[1]), float(rotation[2])),
        scale=(float(z), float(y), float(x)),
        # The spline field has SD 0.4: amplitudes of 5-30 mm displace by 2-12 mm.
        elastic_mm=(
            (80.0, float(rng.uniform(5, 30) * strength)),
            (32.0, float(rng.uniform(1, 9) * strength)),
        ),
        bulges=tuple(bulges),
        seed=int(rng.integers(2**31)),
    )


def source_points_mm(
    warp: Warp, shape: tuple[int, int, int], spacing_mm: Triple
) -> Float32[np.ndarray, "3 z y x"]:
    """Where each voxel of the new patient's field lies in the template, in mm from its voxel 0.

    Args:
        warp: drawn numbers.
        shape: (z, y, x) of the field.
        spacing_mm: (z, y, x) of the field.
    """
    axes = [
        ((np.arange(n) - (n - 1) / 2) * s / scale).astype(np.float32)
        for n, s, scale in zip(shape, spacing_mm, warp.scale, strict=True)
    ]
    matrix = _rotation(warp.angles_rad).astype(np.float32)
    points = np.empty((3, *shape), dtype=np.float32)
    for row in range(3):
        points[row] = (
            matrix[row, 0] * axes[0][:, None, None]
            + matrix[row, 1] * axes[1][None, :, None]
            + matrix[row, 2] * axes[2][None, None, :]
            + np.float32(warp.center_mm[row])
        )
    rng = np.random.default_rng(warp.seed)
    for scale_mm, amplitude_mm in warp.elastic_mm:
        if amplitude_mm > 0:
            field = smooth_field(rng, shape, spacing_mm, scale_mm, components=3)
            points += np.float32(amplitude_mm) * field
    for bulge in warp.bulges:
        _swell(points, bulge)
    return points


def _swell(points: Float32[np.ndarray, "3 z y x"], bulge: Bulge) -> None:
    """Pull sampling points towards a bulge's center, in place: what lies there looks larger."""
    center = np.asarray(bulge.center_mm, dtype=np.float32).reshape(3, 1, 1, 1)
    offset = points - center
    weight = np.exp(-(offset**2).sum(0) / (2 * bulge.radius_mm**2)) * np.float32(bulge.strength)
    points -= offset * weight
