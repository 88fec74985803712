"""Analytic shapes in continuous patient millimeters, sampled on any grid.

Everything is a function of canonical coordinates: the patient's millimeters scaled by habitus and
bent by a smooth displacement drawn once a patient. The same seed on another grid is therefore the
same patient. Distances are approximate, negative inside. All triples are (z, y, x).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline

Triple = tuple[float, float, float]

# Canonical extent that every lattice covers, mm: wider than any field of view.
LATTICE_LOW = (-330.0, -230.0, -280.0)
LATTICE_HIGH = (280.0, 230.0, 280.0)


@dataclass(frozen=True)
class Lattice:
    """A smooth random field: cubic B-splines on a fixed lattice, values within +-`amplitude`."""

    coefficients: np.ndarray
    pitch_mm: float

    @classmethod
    def draw(
        cls, rng: np.random.Generator, pitch_mm: float, amplitude: float, low: Triple, high: Triple
    ) -> Lattice:
        counts = [int(np.ceil((b - a) / pitch_mm)) + 4 for a, b in zip(low, high, strict=True)]
        values = rng.uniform(-amplitude, amplitude, counts).astype(np.float32)
        return cls(values, pitch_mm)

    def on_axes(self, axes_mm: tuple[np.ndarray, ...], low: Triple) -> np.ndarray:
        """Values on a separable grid, float32 (nz, ny, nx); three small matrix products."""
        value = self.coefficients
        for axis, (positions, start) in enumerate(zip(axes_mm, low, strict=True)):
            knots = np.arange(value.shape[axis], dtype=np.float32)
            distance = np.abs(((positions - start) / self.pitch_mm + 1.5)[:, None] - knots)
            near = 2 / 3 - distance**2 + distance**3 / 2
            far = np.clip(2 - distance, 0, None) ** 3 / 6
            basis = np.where(distance < 1, near, far).astype(np.float32)
            value = np.moveaxis(np.tensordot(basis, value, axes=(1, axis)), 0, axis)
        return np.ascontiguousarray(value)


@dataclass(frozen=True)
class Noise:
    """A scalar lattice over a box of patient millimeters, fading to zero outside it."""

    lattice: Lattice
    low: Triple

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        pitch_mm: float,
        low: Triple = LATTICE_LOW,
        high: Triple = LATTICE_HIGH,
    ) -> Noise:
        return cls(Lattice.draw(rng, pitch_mm, 1.7, low, high), low)


@dataclass(frozen=True)
class View:
    """A box of a frame: its slices and the canonical coordinates in it."""

    slices: tuple[slice, slice, slice]
    z: np.ndarray
    y: np.ndarray
    x: np.ndarray


@dataclass(frozen=True)
class Bend:
    """Patient millimeters -> canonical millimeters: scale about a fixed point, then displace."""

    scale: Triple
    fixed_mm: Triple
    displacement: tuple[Lattice, Lattice, Lattice]
    amplitude_mm: float

    @classmethod
    def draw(cls, rng: np.random.Generator, scale: Triple, amplitude_mm: float = 8.0) -> Bend:
        fields = tuple(
            Lattice.draw(rng, 65.0, amplitude_mm, LATTICE_LOW, LATTICE_HIGH) for _ in range(3)
        )
        return cls(scale, (0.0, 30.0, 0.0), fields, amplitude_mm)  # type: ignore[arg-type]


class Frame:
    """A sampling grid with canonical coordinates at every voxel.

    Args:
        shape: voxels (z, y, x).
        spacing_mm: (z, y, x).
        origin_mm: patient millimeters (z, y, x) of voxel (0, 0, 0).
        bend: the patient's map to canonical millimeters.
    """

    def __init__(
        self, shape: tuple[int, int, int], spacing_mm: Triple, origin_mm: Triple, bend: Bend
    ) -> None:
        self.shape = shape
        self.spacing_mm = spacing_mm
        self.origin_mm = origin_mm
        self.bend = bend
        self.axes_mm = tuple(
            (start + step * np.arange(n)).astype(np.float32)
            for start, step, n in zip(origin_mm, spacing_mm, shape, strict=True)
        )
        coordinates = []
        for axis in range(3):
            value = bend.displacement[axis].on_axes(self.axes_mm, LATTICE_LOW)
            fixed, scale = bend.fixed_mm[axis], bend.scale[axis]
            line = fixed + (self.axes_mm[axis] - fixed) * np.float32(scale)
            value += line.astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
            coordinates.append(value)
        self.z, self.y, self.x = coordinates

    def finer(self, count: int) -> Frame:
        """The same box with every slice cut into `count` subslices."""
        if count == 1:
            return self
        dz = self.spacing_mm[0] / count
        z = self.origin_mm[0] - (count - 1) / 2 * dz
        return Frame(
            (self.shape[0] * count, *self.shape[1:]),
            (dz, *self.spacing_mm[1:]),
            (z, *self.origin_mm[1:]),
            self.bend,
        )

    def whole(self) -> View:
        """The view of every voxel."""
        return View((slice(None), slice(None), slice(None)), self.z, self.y, self.x)

    def view(self, low: Triple, high: Triple) -> View | None:
        """The smallest box sure to hold the canonical box `low`..`high`; None when outside."""
        slices = []
        for axis in range(3):
            fixed, scale = self.bend.fixed_mm[axis], self.bend.scale[axis]
            reach = self.bend.amplitude_mm
            start = fixed + (low[axis] - reach - fixed) / scale
            stop = fixed + (high[axis] + reach - fixed) / scale
            first = int(np.floor((start - self.origin_mm[axis]) / self.spacing_mm[axis]))
            last = int(np.ceil((stop - self.origin_mm[axis]) / self.spacing_mm[axis])) + 1
            first, last = max(first, 0), min(last, self.shape[axis])
            if first >= last:
                return None
            slices.append(slice(first, last))
        box = (slices[0], slices[1], slices[2])
        return View(box, self.z[box], self.y[box], self.x[box])

    def around(self, center: Triple, reach_mm: float) -> View | None:
        """The view of a cube of half width `reach_mm` about a canonical point."""
        z, y, x = center
        r = reach_mm
        return self.view((z - r, y - r, x - r), (z + r, y + r, x + r))

    def sample(self, view: View, noise: Noise) -> np.ndarray:
        """Smooth noise within about +-1 over a view, float32: the same on every grid."""
        axes = tuple(a[s] for a, s in zip(self.axes_mm, view.slices, strict=True))
        return noise.lattice.on_axes(axes, noise.low)


def superellipse_depth(
    y: np.ndarray, x: np.ndarray, front: float, back: float, half_width: float
) -> np.ndarray:
    """Radial distance to an axial superellipse of exponent 2.5, negative inside, mm."""
    middle, half_depth = (front + back) / 2, (back - front) / 2
    dy, dx = y - middle, x
    v, u = np.abs(dy) / half_depth, np.abs(dx) / half_width
    k = (v * v * np.sqrt(v) + u * u * np.sqrt(u)) ** np.float32(0.4) + np.float32(1e-4)
    return np.hypot(dy, dx) * (1 - 1 / k)


def ellipsoid(
    view: View, center: Triple, radii: Triple, axes: np.ndarray | None = None, boxy: bool = False
) -> np.ndarray:
    """Radial distance to an ellipsoid, or to a boxier superellipsoid (exponent 2.5), mm."""
    d = [view.z - center[0], view.y - center[1], view.x - center[2]]
    if axes is not None:
        m = axes.astype(np.float32)
        d = [m[i, 0] * d[0] + m[i, 1] * d[1] + m[i, 2] * d[2] for i in range(3)]
    s = [np.abs(p) / np.float32(r) for p, r in zip(d, radii, strict=True)]
    if boxy:
        k = sum(p * p * np.sqrt(p) for p in s) ** np.float32(0.4)
    else:
        k = np.sqrt(s[0] * s[0] + s[1] * s[1] + s[2] * s[2])
    k = k + np.float32(1e-4)
    length = np.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
    return length * (1 - 1 / k)


def rotation(tilt_deg: float, turn_deg: float) -> np.ndarray:
    """Rows are the axes of a shape tilted in the coronal plane, then turned in the axial one."""
    a, b = np.deg2rad(tilt_deg), np.deg2rad(turn_deg)
    tilt = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    turn = np.array([[1, 0, 0], [0, np.cos(b), np.sin(b)], [0, -np.sin(b), np.cos(b)]])
    return tilt @ turn


def smooth_union(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    """Union whose seam is rounded over `blend_mm`."""
    h = np.clip(0.5 + 0.5 * (b - a) / blend_mm, 0, 1).astype(np.float32)
    return b + (a - b) * h - blend_mm * h * (1 - h)


def smooth_cut(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    """`a` without `b`, the edge rounded over `blend_mm`."""
    return -smooth_union(-a, b, blend_mm)


def curve(points: Sequence[Triple], samples: int = 24) -> np.ndarray:
    """A smooth (samples, 3) polyline through the points."""
    knots = np.asarray(points, dtype=float)
    steps = np.r_[0, np.cumsum(np.linalg.norm(np.diff(knots, axis=0), axis=1) + 1e-3)]
    return CubicSpline(steps, knots)(np.linspace(0, steps[-1], samples))


def tube(view: View, path: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Distance to a tube of varying radius along a polyline (n, 3), mm."""
    best = np.full(view.z.shape, 1e3, np.float32)
    for a, b, ra, rb in zip(path[:-1], path[1:], radius[:-1], radius[1:], strict=True):
        np.minimum(best, _capsule(view, a, b, float(ra), float(rb)), out=best)
    return best


def _capsule(view: View, a: np.ndarray, b: np.ndarray, ra: float, rb: float) -> np.ndarray:
    axis = (b - a).astype(np.float32)
    a = a.astype(np.float32)
    squared = float(axis @ axis) + 1e-6
    dz, dy, dx = view.z - a[0], view.y - a[1], view.x - a[2]
    t = np.clip((dz * axis[0] + dy * axis[1] + dx * axis[2]) / np.float32(squared), 0, 1)
    dz, dy, dx = dz - t * axis[0], dy - t * axis[1], dx - t * axis[2]
    return np.sqrt(dz * dz + dy * dy + dx * dx) - (np.float32(ra) + t * np.float32(rb - ra))


def tube_pieces(
    frame: Frame, path: np.ndarray, radius: np.ndarray, margin_mm: float = 0.0
) -> list[tuple[View, np.ndarray]]:
    """A long tube as short pieces, each evaluated in its own box only."""
    pieces = []
    for a, b, ra, rb in zip(path[:-1], path[1:], radius[:-1], radius[1:], strict=True):
        reach = max(ra, rb) + margin_mm
        view = frame.view(tuple(np.minimum(a, b) - reach), tuple(np.maximum(a, b) + reach))
        if view is not None:
            pieces.append((view, _capsule(view, a, b, float(ra), float(rb))))
    return pieces
