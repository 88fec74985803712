"""Above the diaphragm: lungs with their vessels, mediastinum, heart and pericardial fat."""

from __future__ import annotations

import numpy as np

from hepar.phantom.canvas import Canvas
from hepar.phantom.shapes import (
    Noise,
    Triple,
    View,
    curve,
    ellipsoid,
    rotation,
    smooth_union,
    tube_pieces,
)
from hepar.phantom.tissue import Tissue

# Where the cava leaves the liver and enters the right atrium, canonical mm.
ATRIUM_MM: Triple = (103.0, -12.0, -14.0)


def paint_chest(
    canvas: Canvas, saddle_top_mm: float, heart_scale: float, rng: np.random.Generator
) -> None:
    """Lungs and heart above `canvas.dome`.

    Args:
        canvas: with the body wall painted.
        saddle_top_mm: height of the diaphragm's middle, on which the heart rests.
        heart_scale: relative size of the heart.
        rng: explicit generator.
    """
    frame, tissue = canvas.frame, canvas.tissue
    view = frame.whole()
    # One generator a part: a field that holds no heart must not change the vessels.
    own, lobes, heart, vessels = rng.spawn(4)
    chest = (canvas.cavity < 0) & (canvas.dome > 0)
    if not chest.any():
        return
    diaphragm = own.uniform(1.6, 3.0)
    above = canvas.dome > diaphragm
    tissue[chest & ~above] = Tissue.MUSCLE
    lung = chest & above & (canvas.cavity < -1.5)
    # The mediastinum narrows between heart and spine.
    half = 14 + 10 * np.clip((view.y - 10) / 30, 0, 1)
    lung &= np.abs(view.x - 4) > half
    tissue[chest & above] = Tissue.FAT
    tissue[lung] = Tissue.LUNG
    _lower_lobes(canvas, lobes, diaphragm)
    top = saddle_top_mm
    box = frame.view((top - 60, -130, -90), (top + 160, 60, 140))
    if box is not None:
        center = (top + 32 * heart_scale, -44.0, 26.0)
        _heart(canvas, box, center, heart_scale, diaphragm, heart)
    for side in (-1, 1):
        _lung_vessels(canvas, vessels, side)


def _lower_lobes(canvas: Canvas, rng: np.random.Generator, diaphragm_mm: float) -> None:
    """Dependent atelectasis, and in some patients a pleural effusion behind the lungs."""
    effusion = rng.uniform(6, 34, 2) * (rng.random(2) < (0.09, 0.07))
    collapse = rng.uniform(0, 7, 2) * (rng.random(2) < 0.4)
    view = canvas.frame.view((-120, 30, -160), (280, 130, 160))
    if view is None:
        return
    # Fluid lies level at the back; the collapsed lung floats on it.
    back = view.y - 84
    for number, side in enumerate((-1, 1)):
        half = view.x * side > 0
        level = back + effusion[number] + 0.05 * canvas.cavity[view.slices]
        over = (Tissue.LUNG,)
        chest = (canvas.dome[view.slices] > diaphragm_mm) & half
        chest &= canvas.cavity[view.slices] < -1.5
        if collapse[number] + effusion[number] > 0:
            edge = 3 * np.sin(view.x / 9 + view.z / 13)
            shrunk = level + collapse[number] + 0.3 * effusion[number] + edge > 0
            canvas.put(view, chest & shrunk, Tissue.MUSCLE, over)
        if effusion[number] > 0:
            canvas.put(view, chest & (level > 0), Tissue.FLUID, (*over, Tissue.MUSCLE))


def _heart(
    canvas: Canvas,
    view: View,
    center: Triple,
    s: float,
    diaphragm_mm: float,
    rng: np.random.Generator,
) -> None:
    """Four chambers round one septum, fat in the grooves and in a shell outside them."""
    axes = rotation(16 + rng.uniform(-6, 10), 36 + rng.uniform(-10, 10))
    z, y, x = center
    left = ellipsoid(view, (z - 2 * s, y + 13 * s, x + 16 * s), (36 * s, 33 * s, 47 * s), axes)
    right = ellipsoid(view, (z - 12 * s, y - 15 * s, x - 8 * s), (33 * s, 27 * s, 46 * s), axes)
    atrium = ellipsoid(view, (ATRIUM_MM[0] + 12, y + 16 * s, x - 40 * s), (34 * s, 28 * s, 23 * s))
    back = ellipsoid(view, (z + 22 * s, y + 44 * s, x - 6 * s), (24 * s, 18 * s, 33 * s))
    heart = np.minimum(np.minimum(left, right), np.minimum(atrium, back))
    sac = smooth_union(np.minimum(left, right), np.minimum(atrium, back), 16)
    pads = ellipsoid(view, (z - 34 * s, y - 30, x + 44), (22, 22, 34))
    pads = np.minimum(pads, ellipsoid(view, (z - 34 * s, y - 26, x - 40), (20, 24, 26)))
    fat = rng.uniform(1.5, 5.0) + 5 * (1 - canvas.leanness)
    shell = smooth_union(sac - fat, pads, 12) + 3 * canvas.frame.sample(view, Noise.draw(rng, 24.0))
    above = canvas.dome[view.slices] > diaphragm_mm
    canvas.put(view, (shell < 0) & above, Tissue.FAT, (Tissue.LUNG,))
    wall = above & (heart < 0) & (sac < -1)
    canvas.put(view, wall, Tissue.MYOCARDIUM, (Tissue.LUNG, Tissue.FAT))
    muscle = (Tissue.MYOCARDIUM,)
    thick = rng.uniform(8, 12)
    trabecula = 2.0 * np.sin(view.z / 3.1 + view.x / 4.3) * np.sin(view.y / 3.7 - view.x / 5.1)
    cavity = (right < -3.5 + 0.5 * trabecula) & (left > 0)
    cavity |= left < -thick + trabecula
    cavity |= (atrium < -2.5) & (left > 2)
    cavity |= (back < -2.5) & (left > 3) & (atrium > 2)
    canvas.put(view, cavity & above, Tissue.HEART, muscle)
    # The pericardium, a thin line in the fat, and the coronaries in the grooves.
    line = (np.abs(sac - 0.6 * fat) < 0.7) & above & (fat > 4)
    canvas.put(view, line, Tissue.MUSCLE, (Tissue.FAT,))


def _lung_vessels(canvas: Canvas, rng: np.random.Generator, side: int) -> None:
    root = np.array([130.0, 5.0, 30.0 * side])
    for _ in range(44):
        tip = np.array([rng.uniform(30, 120), rng.uniform(-70, 70), side * rng.uniform(45, 120)])
        bend = (root + tip) / 2 + rng.normal(0, 9, 3)
        path = curve([tuple(root), tuple(bend), tuple(tip)], 9)
        for view, f in tube_pieces(canvas.frame, path, np.linspace(4.0, 1.0, 9)):
            canvas.put(view, f < 0, Tissue.HEART, (Tissue.LUNG,))
