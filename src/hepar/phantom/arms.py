"""Arms that a patient could not raise: beside the trunk, cut off by the field of view."""

from __future__ import annotations

import numpy as np

from hepar.phantom.canvas import Canvas
from hepar.phantom.shapes import Triple, curve, tube_pieces
from hepar.phantom.tissue import Tissue


def paint_arms(canvas: Canvas, skin_box_mm: Triple, bulk: float, rng: np.random.Generator) -> None:
    """Both arms from above the field to below it, painted over air only.

    Args:
        canvas: with the torso painted.
        skin_box_mm: canonical front, back and half width of the trunk's skin.
        bulk: 0 < bulk <= 1, from slender to heavy arms.
        rng: explicit generator; the arms of a pair differ a little.
    """
    _, back, half_width = skin_box_mm
    air = canvas.tissue == Tissue.AIR
    for side in (-1, 1):
        radius = 35 + 14 * bulk + rng.normal(0, 1.5)
        out = half_width + 0.35 * radius + rng.uniform(-6, 4)
        elbow = rng.uniform(-140, -50)
        y = back - radius - 3
        points = [
            (280, y - 6, side * (out - 8)),
            (elbow + 70, y + rng.uniform(-8, 2), side * out),
            (elbow, y, side * (out + 5)),
            (elbow - 90, y - rng.uniform(20, 55), side * (out - 8)),
            (-330, y - 60, side * (out - 16)),
        ]
        path = curve(points, 14)
        shares = [0.6, 0.95, 0.9, 1, 1.15]
        size = radius * np.interp(path[:, 0] - elbow, [-200, -60, 0, 60, 300], shares)
        fat_mm = rng.uniform(3, 7) + 8 * bulk
        _arm(canvas, path, size, elbow, fat_mm, air)


def _arm(
    canvas: Canvas,
    path: np.ndarray,
    size: np.ndarray,
    elbow: float,
    fat_mm: float,
    air: np.ndarray,
) -> None:
    """Skin, fat, muscle, then humerus above the elbow, radius and ulna below it."""
    depth = _depth(canvas, path, size)
    tissue = canvas.tissue
    tissue[air & (depth < 0)] = Tissue.SKIN
    tissue[air & (depth < -2.0)] = Tissue.FAT
    muscle = air & (depth < -2.0 - fat_mm)
    tissue[muscle] = Tissue.MUSCLE
    bones = [((0.0, 0.0), elbow - 6, 400.0, 11.5)]
    bones += [((-10.0, 9.0), -400.0, elbow - 4, 7.5), ((9.0, -9.0), -400.0, elbow + 14, 8.5)]
    for (dy, dx), low, high, radius in bones:
        shift = np.array([0.0, dy, dx])
        bone = _depth(canvas, path + shift, np.full(len(path), radius))
        here = muscle & (bone < 0) & (canvas.frame.z > low) & (canvas.frame.z < high)
        tissue[here] = Tissue.CORTICAL_BONE
        tissue[here & (bone < -0.45 * radius)] = Tissue.FAT  # marrow


def _depth(canvas: Canvas, path: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Distance to a tube over the whole grid, mm; far outside it simply large."""
    depth = np.full(canvas.frame.shape, 1e3, np.float32)
    for view, f in tube_pieces(canvas.frame, path, size):
        np.minimum(depth[view.slices], f, out=depth[view.slices])
    return depth
