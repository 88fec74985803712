"""The organs around the liver: spleen, kidneys, pancreas, gut, great vessels, free fluid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hepar.phantom.liver import HILUM_MM, grow_tree, paint_tree
from hepar.phantom.shapes import (
    Noise,
    Triple,
    curve,
    ellipsoid,
    rotation,
    smooth_cut,
    smooth_union,
    tube_pieces,
)
from hepar.phantom.tissue import Tissue
from hepar.phantom.torso import Canvas

FAT = (Tissue.FAT,)


def paint_organs(canvas: Canvas, seed: int, *, ascites: float) -> None:
    """Paint everything abdominal but the liver, over fat only, nearest to the spine first."""
    _great_vessels(canvas, np.random.default_rng([seed, 41]))
    for side in (-1, 1):
        _kidney(canvas, np.random.default_rng([seed, 42, side + 1]), side)
    _pancreas(canvas, np.random.default_rng([seed, 43]))
    _stomach(canvas, np.random.default_rng([seed, 44]))
    _spleen(canvas, np.random.default_rng([seed, 45]))
    _bowel(canvas, np.random.default_rng([seed, 46]))
    _mesentery(canvas, np.random.default_rng([seed, 47]))
    if ascites > 0:
        _ascites(canvas, ascites)


def _tube(
    canvas: Canvas,
    points: Sequence[Triple],
    radii: np.ndarray,
    tissue: Tissue,
    over: tuple[Tissue, ...] = FAT,
) -> None:
    path = curve(points, len(radii))
    for view, f in tube_pieces(canvas.frame, path, radii):
        canvas.put(view, f < 0, tissue, over)


def _great_vessels(canvas: Canvas, rng: np.random.Generator) -> None:
    r = rng.uniform(9, 12.5)
    wander = rng.normal(0, 2.5)
    aorta = [(290, 22, 24), (110, 23, 20), (40, 20, 13 + wander), (-60, 18, 8), (-150, 16, 5)]
    aorta.append((-330, 16, 4))
    over = (Tissue.FAT, Tissue.LUNG, Tissue.MUSCLE)
    _tube(canvas, aorta, np.linspace(r + 2, r - 1, 30), Tissue.AORTA, over)
    _tube(
        canvas,
        [(290, 6, 8), (100, 8, 8), (58, 2, 18), (44, -4, 38)],
        np.full(16, 8.0),
        Tissue.GUT_WALL,
        (Tissue.FAT, Tissue.LUNG),
    )
    _tube(
        canvas,
        [(-14, 12, 9), (-30, -1, 8), (-70, -6, 6), (-150, -16, -8)],
        np.linspace(4.2, 3, 14),
        Tissue.AORTA,
    )
    _tube(
        canvas,
        [(2, 10, 12), (4, -1, 6), (0, -4, -14), (-4, -4, -24)],
        np.full(10, 2.6),
        Tissue.AORTA,
    )
    _tube(canvas, [(4, -1, 6), (8, 8, 40), (6, 22, 84)], np.full(10, 2.4), Tissue.AORTA)
    for side, z in ((-1, -48), (1, -42)):
        hilum = (z - 6.0, 40.0, 44.0 * side)
        _tube(canvas, [(z, 18, 8), (z - 3, 27, 26 * side), hilum], np.full(8, 2.6), Tissue.AORTA)
        _tube(
            canvas,
            [(z - 8, 13, -20), (z - 8, 8 if side > 0 else 20, 14 * side), hilum],
            np.full(10, 4.6),
            Tissue.CAVA,
        )
    # Portal trunk to the confluence behind the pancreas, splenic and superior mesenteric vein.
    wide = rng.uniform(5.6, 7.4)
    confluence = (-38.0, -3.0, -6.0)
    _tube(canvas, [HILUM_MM, (-18, -2, -20), confluence], np.full(10, wide), Tissue.PORTAL_VEIN)
    _tube(
        canvas,
        [confluence, (-24, 2, 30), (-6, 20, 62), (6, 30, 88)],
        np.linspace(wide * 0.75, 3.4, 16),
        Tissue.PORTAL_VEIN,
    )
    _tube(
        canvas,
        [confluence, (-80, -8, -6), (-150, -18, -18)],
        np.linspace(wide * 0.85, 4.2, 14),
        Tissue.PORTAL_VEIN,
    )


def _kidney(canvas: Canvas, rng: np.random.Generator, side: int) -> None:
    frame = canvas.frame
    center = (-70 + rng.uniform(-10, 10) + 12 * (side > 0), 52.0, 60.0 * side)
    size = rng.uniform(0.92, 1.1)
    view = frame.around(center, 66)
    if view is None:
        return
    axes = rotation(10 * side, 28 * side)
    f = ellipsoid(view, center, (54 * size, 27 * size, 25 * size), axes)
    mouth = (center[0], center[1] - 9, center[2] - 20 * side)
    sinus = ellipsoid(view, mouth, (22 * size, 9, 14), axes)
    f = smooth_cut(f, sinus, 5)
    free = canvas.liver[view.slices] > 2
    free &= canvas.cavity[view.slices] < -3
    columns = frame.sample(view, Noise.draw(rng, 12.0))
    canvas.put(view, (f < 0) & free, Tissue.KIDNEY_CORTEX, FAT)
    medulla = (f < -6.5) & (sinus > 2.5) & (columns > -0.35)
    canvas.put(view, medulla, Tissue.KIDNEY_MEDULLA, (Tissue.KIDNEY_CORTEX,))
    pelvis = ellipsoid(view, mouth, (9, 5, 12), axes)
    canvas.put(view, pelvis < 0, Tissue.FLUID, FAT)
    adrenal = [
        (center[0] + 56, 30, 33 * side),
        (center[0] + 64, 26, 30 * side),
        (center[0] + 60, 38, 40 * side),
    ]
    _tube(canvas, adrenal, np.full(7, 2.6), Tissue.PANCREAS)


def _pancreas(canvas: Canvas, rng: np.random.Generator) -> None:
    frame = canvas.frame
    lift = rng.uniform(-8, 8)
    points = [
        (-62, 0, -26),
        (-42, -8, -22),
        (-32, -17, 4),
        (-24 + lift / 2, -8, 34),
        (-8 + lift, 16, 68),
        (lift, 26, 84),
    ]
    radii = rng.uniform(0.85, 1.1) * np.interp(
        np.linspace(0, 1, 18), [0, 0.25, 0.45, 0.7, 1], [12, 14, 9, 10.5, 8]
    )
    lobules = Noise.draw(rng, 9.0, (-130, -80, -80), (60, 90, 140))
    for view, f in tube_pieces(frame, curve(points, 18), radii, margin_mm=3):
        f = f + 2.2 * frame.sample(view, lobules)
        canvas.put(view, (f < 0) & (canvas.liver[view.slices] > 1), Tissue.PANCREAS, FAT)
    # Duodenum: from the pylorus around the pancreatic head.
    loop = [
        (-34, -34, -24),
        (-34, -18, -44),
        (-60, 0, -48),
        (-88, 6, -34),
        (-94, 2, 0),
        (-74, -6, 30),
    ]
    _gut(canvas, rng, loop, np.full(16, rng.uniform(9.5, 12)), gas=0.1, wall_mm=2.5)


def _stomach(canvas: Canvas, rng: np.random.Generator) -> None:
    frame = canvas.frame
    view = frame.view((-95, -110, -60), (95, 75, 150))
    if view is None:
        return
    s = rng.uniform(0.85, 1.28)
    drop = rng.uniform(-8, 12)
    chain = [
        ((48.0, 20.0, 70.0), (38 * s, 34 * s, 36 * s)),
        ((14.0 - drop, -8.0, 78.0), (36 * s, 28 * s, 27 * s)),
        ((-22.0 - drop, -40.0, 52.0), (24 * s, 22 * s, 34 * s)),
        ((-36.0 - drop / 2, -46.0, 10.0), (15 * s, 15 * s, 30 * s)),
        ((-34.0, -36.0, -16.0), (9 * s, 9 * s, 16 * s)),
    ]
    f = ellipsoid(view, *chain[0])
    for center, radii in chain[1:]:
        f = smooth_union(f, ellipsoid(view, center, radii), 16)
    f = f + 2.5 * frame.sample(view, Noise.draw(rng, 26.0))
    f = smooth_cut(f, -(canvas.cavity[view.slices] + 4), 4)
    f = smooth_cut(f, -(canvas.dome[view.slices] + 3), 4)
    gap = rng.uniform(0.0, 3.0)
    f = smooth_cut(f, canvas.liver[view.slices] - np.float32(gap), 3)
    canvas.put(view, f < 0, Tissue.GUT_WALL, FAT)
    wall = rng.uniform(3.0, 5.5)
    wall_only = (Tissue.GUT_WALL,)
    lumen = (f < -wall - 1.5 * frame.sample(view, Noise.draw(rng, 11.0))) & (
        canvas.tissue[view.slices] == Tissue.GUT_WALL
    )
    canvas.put(view, lumen, Tissue.STOMACH, wall_only)
    level = rng.uniform(-75, -25)
    gas = (f < -wall) & (view.y < level + 0.03 * view.x)
    canvas.put(view, gas, Tissue.BOWEL_GAS, (Tissue.STOMACH,))


def _spleen(canvas: Canvas, rng: np.random.Generator) -> None:
    frame = canvas.frame
    s = float(np.clip(rng.normal(1.0, 0.13), 0.78, 1.45))
    center = (20 - 12 * (s - 1), 44.0, 99.0)
    view = frame.around(center, 80)
    if view is None:
        return
    f = ellipsoid(view, center, (54 * s, 56 * s, 36 * s), rotation(-14, 24), boxy=True)
    hilum = ellipsoid(view, (12, 10, 60), (46, 34, 26))
    f = smooth_cut(f, hilum, 8) + 2.5 * frame.sample(view, Noise.draw(rng, 30.0))
    f = smooth_cut(f, -(canvas.cavity[view.slices] + 2.5), 5)
    f = smooth_cut(f, -(canvas.dome[view.slices] + 3), 5)
    canvas.put(view, (f < 0) & (canvas.liver[view.slices] > 1.5), Tissue.SPLEEN, FAT)


def _gut(
    canvas: Canvas,
    rng: np.random.Generator,
    points: Sequence[Triple],
    radii: np.ndarray,
    *,
    gas: float,
    wall_mm: float,
    stool: bool = False,
) -> None:
    """One stretch of bowel: wall, content, gas in front (and in stool, as bubbles)."""
    frame = canvas.frame
    path = curve(points, len(radii))
    pieces = tube_pieces(frame, path, radii)
    for view, f in pieces:
        free = (canvas.liver[view.slices] > 1.0) & (canvas.cavity[view.slices] < -2)
        canvas.put(view, (f < 0) & free, Tissue.GUT_WALL, FAT)
    bubbles = Noise.draw(rng, 6.5, (-200, -140, -180), (120, 120, 180)) if stool else None
    filled = rng.uniform(-1, 1, 4)
    for number, (view, f) in enumerate(pieces):
        inside = f < -wall_mm
        canvas.put(view, inside, Tissue.BOWEL, (Tissue.GUT_WALL,))
        height = (view.y - path[number][1]) / radii[number]
        share = np.interp(number / len(pieces), np.linspace(0, 1, 4), filled)
        airy = height < -1.1 + 2.2 * gas + 0.7 * gas * share
        if bubbles is not None:
            airy |= frame.sample(view, bubbles) > 0.55
        canvas.put(view, inside & airy, Tissue.BOWEL_GAS, (Tissue.BOWEL,))


def _bowel(canvas: Canvas, rng: np.random.Generator) -> None:
    sag = rng.uniform(-22, 12)
    wide = rng.uniform(0.85, 1.2)
    front = -66 + rng.uniform(-6, 8)
    colon = [
        (-300, 0, -92),
        (-150, 8, -100),
        (-104, -6, -96),
        (-92 + sag / 2, -48, -68),
        (-96 + sag, front, 0),
        (-66 + sag / 2, front + 6, 62),
        (-12, -14, 106),
        (-30, 30, 108),
        (-110, 34, 108),
        (-300, 20, 100),
    ]
    n = 64
    haustra = 1 + 0.16 * np.sin(np.arange(n) * 1.9 + rng.uniform(0, 6))
    taper = np.interp(np.linspace(0, 1, n), [0, 0.3, 0.6, 1], [24, 20, 18, 13])
    _gut(
        canvas,
        rng,
        colon,
        wide * taper * haustra,
        gas=rng.uniform(0.1, 0.75),
        wall_mm=2.2,
        stool=True,
    )
    for _ in range(20):
        here = np.array([rng.uniform(-165, -52), rng.uniform(-66, 2), rng.uniform(-66, 88)])
        heading = rng.normal(0, 1, 3)
        points = []
        for _ in range(5):
            points.append(tuple(here))
            heading = heading + rng.normal(0, 0.9, 3)
            here = here + 24 * heading / np.linalg.norm(heading)
            here = np.clip(here, (-220, -70, -75), (-55, 5, 92))
        _gut(
            canvas,
            rng,
            points,
            np.full(14, rng.uniform(8.5, 13)),
            gas=float(rng.random() < 0.35) * rng.uniform(0, 0.6),
            wall_mm=2.4,
        )


def _mesentery(canvas: Canvas, rng: np.random.Generator) -> None:
    points = rng.uniform((-170, -75, -80), (-62, -8, 85), (130, 3))
    paint_tree(
        canvas, grow_tree(points, np.array([-84.0, -10.0, -6.0]), 4.6), Tissue.PORTAL_VEIN, FAT
    )
    omentum = rng.uniform((-60, -85, -20), (-10, -60, 90), (40, 3))
    paint_tree(
        canvas, grow_tree(omentum, np.array([-36.0, -60.0, 40.0]), 3.2), Tissue.PORTAL_VEIN, FAT
    )


def _ascites(canvas: Canvas, amount: float) -> None:
    """Fluid around the liver, spleen and in the flanks, where fat was."""
    view = canvas.frame.view((-200, -120, -150), (95, 100, 150))
    if view is None:
        return
    near_wall = canvas.cavity[view.slices] > -(4 + 16 * amount)
    near_liver = canvas.liver[view.slices] < 3 + 14 * amount
    wet = (canvas.cavity[view.slices] < -1) & (near_wall | near_liver) & (view.y < 62)
    wet &= canvas.dome[view.slices] < -2
    canvas.put(view, wet, Tissue.FLUID, FAT)
