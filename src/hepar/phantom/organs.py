"""The organs around the liver: spleen, kidneys, pancreas, gut, great vessels, free fluid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hepar.phantom.canvas import Canvas
from hepar.phantom.gut import paint_bowel, paint_duodenum, paint_stomach
from hepar.phantom.shapes import (
    Noise,
    Triple,
    curve,
    ellipsoid,
    rotation,
    smooth_cut,
    tube_pieces,
)
from hepar.phantom.tissue import Tissue
from hepar.phantom.vessels import HILUM_MM, grow_tree, paint_tree

FAT = (Tissue.FAT,)
NODE = Tissue.PANCREAS  # lymph nodes enhance about as much


def paint_organs(
    canvas: Canvas, seed: int, *, ascites: float, cirrhosis: float = 0.0, resection: str = ""
) -> None:
    """Paint everything abdominal but the liver, over fat only, nearest to the spine first.

    Args:
        canvas: with torso and liver painted.
        seed: the patient's seed.
        ascites: 0 none .. 1 much.
        cirrhosis: 0 none .. 1 severe; widens portal vein and spleen, adds varices.
        resection: `LiverShape.resection`; what moves into the place of a lobe.
    """
    _great_vessels(canvas, np.random.default_rng([seed, 41]), cirrhosis)
    for side in (-1, 1):
        _kidney(canvas, np.random.default_rng([seed, 42, side + 1]), side)
    _pancreas(canvas, np.random.default_rng([seed, 43]))
    paint_duodenum(canvas, np.random.default_rng([seed, 43, 1]))
    _splenic_vessels(canvas, np.random.default_rng([seed, 48]), cirrhosis)
    _spleen(canvas, np.random.default_rng([seed, 45]), cirrhosis)
    paint_stomach(canvas, np.random.default_rng([seed, 44]), shifted=resection == "left")
    paint_bowel(canvas, np.random.default_rng([seed, 46]), shifted=resection == "right")
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


def _great_vessels(canvas: Canvas, rng: np.random.Generator, cirrhosis: float) -> None:
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
    wide = rng.uniform(5.2, 7.4) + 1.6 * cirrhosis
    confluence = (-38.0, -3.0, -6.0)
    _tube(canvas, [HILUM_MM, (-18, -2, -20), confluence], np.full(10, wide), Tissue.PORTAL_VEIN)
    _tube(
        canvas,
        [confluence, (-80, -8, -6), (-150, -18, -18)],
        np.linspace(wide * 0.85, 4.2, 14),
        Tissue.PORTAL_VEIN,
    )


def _splenic_vessels(canvas: Canvas, rng: np.random.Generator, cirrhosis: float) -> None:
    """Splenic vein behind the pancreas, the tortuous artery above it, hilar branches, varices."""
    wide = rng.uniform(3.6, 5.2) + 1.8 * cirrhosis
    lift = rng.uniform(-6, 10)
    hilum = np.array([4.0 + lift, 26.0, 80.0])
    vein = [(-38.0, -3.0, -6.0), (-26, 2, 28), (-8 + lift / 2, 18, 60), tuple(hilum)]
    _tube(canvas, vein, np.linspace(wide, 0.75 * wide, 16), Tissue.PORTAL_VEIN)
    twist = rng.uniform(3, 9)
    artery = [(4.0, -1.0, 6.0)]
    for number, x in enumerate((22, 34, 46, 58, 70)):
        swing = twist * (-1) ** number
        artery.append((2 + swing + lift * x / 80, 6 + 0.22 * x + 0.4 * swing, float(x)))
    artery.append((hilum[0] + 5, hilum[1], hilum[2]))
    _tube(canvas, artery, np.linspace(2.9, 2.1, 30), Tissue.AORTA)
    reach = rng.uniform((-38, 0, 78), (62, 62, 112), (26, 3))
    _branches(canvas, reach, hilum, 0.7 * wide, Tissue.PORTAL_VEIN)
    if cirrhosis > 0.45:
        # Varices: round the lower esophagus and fundus, and from the splenic hilum to the kidney.
        for _ in range(int(rng.integers(2, 6))):
            start = hilum + rng.normal(0, 6, 3)
            end = np.array([rng.uniform(30, 60), rng.uniform(0, 14), rng.uniform(22, 44)])
            if rng.random() < 0.35:
                end = np.array([-46.0, 28.0, 34.0])
            path = start + np.linspace(0, 1, 6)[:, None] * (end - start)
            path[1:-1] += rng.normal(0, 7, (4, 3))
            course = [(float(z), float(y), float(x)) for z, y, x in path]
            _tube(canvas, course, np.full(20, rng.uniform(2, 4.5)), Tissue.PORTAL_VEIN)


def _branches(
    canvas: Canvas, points: np.ndarray, start: np.ndarray, radius_mm: float, tissue: Tissue
) -> None:
    paint_tree(canvas, grow_tree(points, start, radius_mm), tissue, FAT)


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


def _spleen(canvas: Canvas, rng: np.random.Generator, cirrhosis: float) -> None:
    """A crescent between diaphragm and stomach, larger with portal hypertension."""
    frame = canvas.frame
    s = float(np.clip(np.exp(rng.normal(-0.05, 0.13)), 0.74, 1.22)) * (1 + 0.22 * cirrhosis)
    center = (14 - 34 * (s - 1), 40.0 - 16 * (s - 1), 96.0 - 14 * (s - 1))
    view = frame.around(center, 82 * max(s, 1.0))
    if view is None:
        return
    axes = rotation(-14 + rng.uniform(-10, 10), 24 + rng.uniform(-12, 12))
    long, wide = rng.uniform(0.9, 1.15, 2)
    f = ellipsoid(view, center, (54 * s * long, 60 * s * wide, 46 * s), axes, boxy=True)
    # The bed of the stomach hollows it; a notch or two cut its front edge.
    bed = ellipsoid(view, (28, -6, 46), (66, 50, 44 - 6 * cirrhosis))
    f = smooth_cut(f, bed, 9) + 3.5 * frame.sample(view, Noise.draw(rng, 28.0))
    f = smooth_cut(f, ellipsoid(view, (-60, 52, 60), (58, 32, 30)), 6)
    for _ in range(int(rng.integers(0, 3))):
        level = center[0] + rng.uniform(-26, 26)
        width, depth = rng.uniform(1.0, 2.4), rng.uniform(8, 18)
        notch = np.abs(view.z - level - 0.3 * (view.y - 20)) - width * (1 + f / depth)
        f = smooth_cut(f, np.maximum(notch, view.y - rng.uniform(18, 34)), 3)
    f = smooth_cut(f, -(canvas.cavity[view.slices] + np.float32(rng.uniform(0, 2.5))), 4)
    f = smooth_cut(f, -(canvas.dome[view.slices] + np.float32(rng.uniform(0.4, 2))), 4)
    canvas.put(view, (f < 0) & (canvas.liver[view.slices] > 0), Tissue.SPLEEN, FAT)
    if rng.random() < 0.12:
        spot = (center[0] - rng.uniform(0, 30), rng.uniform(10, 34), rng.uniform(62, 80))
        _tube(
            canvas, [spot, (spot[0] + 1, *spot[1:])], np.full(2, rng.uniform(4, 8)), Tissue.SPLEEN
        )


def _mesentery(canvas: Canvas, rng: np.random.Generator) -> None:
    """Small vessels of mesentery, omentum, the stomach's curvatures and the left upper fat."""
    vein = Tissue.PORTAL_VEIN
    points = rng.uniform((-170, -75, -80), (-62, -8, 85), (130, 3))
    _branches(canvas, points, np.array([-84.0, -10.0, -6.0]), 4.6, vein)
    omentum = rng.uniform((-90, -88, -30), (34, -50, 100), (110, 3))
    _branches(canvas, omentum, np.array([-36.0, -60.0, 40.0]), 4.0, vein)
    left = rng.uniform((-70, -50, 30), (40, 50, 112), (70, 3))
    _branches(canvas, left, np.array([-30.0, -4.0, 34.0]), 3.4, vein)
    lesser = rng.uniform((-16, -40, 4), (44, 0, 44), (34, 3))
    _branches(canvas, lesser, np.array([0.0, -4.0, 4.0]), 3.0, Tissue.AORTA)
    # Nodes in the hepatoduodenal ligament and beside the celiac trunk.
    for _ in range(int(rng.integers(0, 5))):
        z, y, x = rng.uniform((-50, -16, -34), (14, 6, 14))
        long = rng.uniform(3, 9)
        _tube(canvas, [(z, y, x), (z - 2, y, x - long)], np.full(3, rng.uniform(2, 4)), NODE)


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
