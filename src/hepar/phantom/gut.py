"""Stomach, duodenum, colon and small bowel: wall, content and gas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hepar.phantom.canvas import Canvas
from hepar.phantom.shapes import (
    Noise,
    Triple,
    View,
    curve,
    ellipsoid,
    smooth_cut,
    smooth_union,
    tube_pieces,
)
from hepar.phantom.tissue import Tissue

FAT = (Tissue.FAT,)
LOOP_STEP_MM = 22.0


def paint_stomach(canvas: Canvas, rng: np.random.Generator, *, shifted: bool = False) -> None:
    """The stomach under the left dome; in many patients it lies against the left lobe.

    Args:
        canvas: with liver and spleen painted.
        rng: explicit generator.
        shifted: whether it has moved into the place of a left lobe that was taken out.
    """
    frame = canvas.frame
    view = frame.view((-95, -115, -60), (95, 75, 150))
    if view is None:
        return
    f = _stomach_shape(view, rng, shifted)
    f = f + 3.5 * frame.sample(view, Noise.draw(rng, 26.0))
    cavity, dome, liver = (a[view.slices] for a in (canvas.cavity, canvas.dome, canvas.liver))
    f = smooth_cut(f, -(cavity + np.float32(rng.uniform(0.5, 4))), 4)
    f = smooth_cut(f, -(dome + np.float32(rng.uniform(0.3, 3.5))), 4)
    touching = rng.random() < 0.35 + 0.4 * canvas.leanness
    gap = 0.0 if touching else rng.uniform(1.0, 5.0)
    # Where they touch, the stomach takes the lobe's shape and no fat lies between them.
    f = np.maximum(f, -liver) if touching else smooth_cut(f, liver - np.float32(gap), 3)
    canvas.put(view, f < 0, Tissue.GUT_WALL, FAT)
    wall = rng.uniform(2.5, 5.0)
    folds = rng.uniform(1.0, 4.0) * frame.sample(view, Noise.draw(rng, 9.0))
    wall_only = (Tissue.GUT_WALL,)
    canvas.put(view, (f < -wall - np.maximum(folds, -1)), Tissue.STOMACH, wall_only)
    level = rng.uniform(-80, -25)
    gas = (f < -wall - folds) & (view.y < level + 0.03 * view.x)
    canvas.put(view, gas, Tissue.BOWEL_GAS, (Tissue.STOMACH,))


def _stomach_shape(view: View, rng: np.random.Generator, shifted: bool) -> np.ndarray:
    """Fundus, body, sinus, antrum and pylorus; empty and narrow or full and round."""
    full = rng.uniform(0.66, 1.22)
    drop, lean = rng.uniform(-4, 24), rng.uniform(-10, 8)
    fundus = full * rng.uniform(0.85, 1.1)
    # How far the lesser curvature bulges under the left lobe.
    push = full * (1.25 if shifted else rng.uniform(0.6, 1.25))
    chain = [
        ((50.0, 24.0, 64.0 + lean), (38 * fundus, 36 * fundus, 34 * fundus)),
        ((22.0 - drop / 3, -8.0, 76.0 + lean), (34 * full, 31 * full, 28 * full)),
        ((22.0, -30.0, 50.0 - 22 * shifted), (32 * push, 28 * push, 26 * push)),
        ((-6.0 - drop, -38.0, 64.0), (32 * full, 27 * full, 30 * full)),
        ((-28.0 - drop, -48.0, 34.0), (22 * full, 21 * full, 29 * full)),
        ((-36.0 - drop / 2, -47.0, 4.0), (15 * full, 15 * full, 27 * full)),
        ((-34.0, -37.0, -18.0), (9 * full, 10 * full, 14 * full)),
    ]
    f = ellipsoid(view, *chain[0])
    for center, radii in chain[1:]:
        f = smooth_union(f, ellipsoid(view, center, radii), 14)
    return f


def paint_duodenum(canvas: Canvas, rng: np.random.Generator) -> None:
    """From the pylorus around the pancreatic head to the flexure left of the spine."""
    loop = [
        (-34, -34, -24),
        (-34, -18, -44),
        (-60, 0, -48),
        (-88, 6, -34),
        (-94, 2, 0),
        (-74, -6, 30),
    ]
    _piece(canvas, rng, loop, np.full(16, rng.uniform(9.5, 13)), gas=0.2, wall_mm=2.2, folds=1.2)


def paint_bowel(canvas: Canvas, rng: np.random.Generator, *, shifted: bool = False) -> None:
    """Colon and small bowel; lean patients have theirs packed, obese ones lying in fat.

    Args:
        canvas: with the solid organs and the stomach painted.
        rng: explicit generator.
        shifted: whether loops have moved up into the place of a right lobe that was taken out.
    """
    _colon(canvas, rng, shifted)
    packed = canvas.leanness
    regions = [
        ((-200, -66, -75), (-52, 5, 92), 12 + round(10 * packed)),
        # Jejunum in the left upper quadrant, between stomach, kidney and descending colon.
        ((-120, -70, 12), (-8, 26, 108), 7 + round(9 * packed)),
    ]
    if shifted:
        regions.append(((-80, -80, -112), (58, 40, -35), 30))
    for low, high, count in regions:
        for _ in range(count):
            _loop(canvas, rng, np.array(low, float), np.array(high, float))


def _loop(canvas: Canvas, rng: np.random.Generator, low: np.ndarray, high: np.ndarray) -> None:
    here = rng.uniform(low, high)
    heading = rng.normal(0, 1, 3)
    points = []
    for _ in range(5):
        points.append((float(here[0]), float(here[1]), float(here[2])))
        heading = heading + rng.normal(0, 0.9, 3)
        here = np.clip(here + LOOP_STEP_MM * heading / np.linalg.norm(heading), low, high)
    n = 13
    width = rng.uniform(8, 13.5) * (1 + 0.18 * np.sin(np.linspace(0, 9, n) + rng.uniform(0, 6)))
    _piece(
        canvas,
        rng,
        points,
        width,
        gas=float(rng.random() < 0.3) * rng.uniform(0, 0.6),
        wall_mm=rng.uniform(1.6, 2.6),
        folds=rng.uniform(0.5, 3.2),
    )


def _colon(canvas: Canvas, rng: np.random.Generator, shifted: bool) -> None:
    sag = rng.uniform(-40, 14)
    front = -68 + rng.uniform(-6, 8)
    # The hepatic flexure may lie before the liver's edge, the splenic one as high as the spleen.
    hepatic = 70.0 if shifted else float(rng.choice([0.0, 0.0, 14.0, 30.0]))
    splenic = rng.uniform(-30, 40)
    wave = rng.uniform(-16, 16, 3)
    colon = [
        (-300, 0, -92),
        (-150, 8, -100),
        (-104 + hepatic, -6, -96),
        (-92 + sag / 2 + hepatic / 2, -50, -68 + wave[0] / 2),
        (-94 + sag + wave[1], front, -30),
        (-96 + sag, front, 6 + wave[0]),
        (-72 + sag / 2 - wave[1], front + 4, 42),
        (-50 + splenic / 2, front + 16, 80),
        (splenic, -18 + wave[2], 108),
        (splenic - 22, 26, 112),
        (-110, 36, 110),
        (-300, 20, 100),
    ]
    n = 76
    haustra = 1 + 0.2 * np.sin(np.arange(n) * 1.7 + rng.uniform(0, 6))
    taper = np.interp(np.linspace(0, 1, n), [0, 0.25, 0.4, 0.6, 0.75, 1], [25, 23, 18, 17, 14, 12])
    uneven = np.interp(np.arange(n), np.linspace(0, n, 9), rng.uniform(0.72, 1.2, 9))
    _piece(
        canvas,
        rng,
        colon,
        rng.uniform(0.85, 1.2) * taper * haustra * uneven,
        gas=rng.uniform(0.1, 0.75),
        wall_mm=1.8,
        stool=rng.uniform(0.15, 0.75),
    )


def _piece(
    canvas: Canvas,
    rng: np.random.Generator,
    points: Sequence[Triple],
    radii: np.ndarray,
    *,
    gas: float,
    wall_mm: float,
    folds: float = 0.0,
    stool: float | None = None,
) -> None:
    """One stretch of bowel: wall, content, gas in front, and bubbles in stool.

    Args:
        canvas: painted over its fat only.
        rng: explicit generator.
        points: the stretch's course, canonical mm.
        radii: (n,) outer radius along it, mm.
        gas: share of the lumen that gas fills, from the front.
        wall_mm: thickness of the wall.
        folds: height of the mucosal folds, mm; those of jejunum look feathery.
        stool: noise above which content is a bubble; None where there is no stool.
    """
    frame = canvas.frame
    path = curve(points, len(radii))
    count = len(radii) - 1
    pieces = [
        (number, view, f)
        for number in range(count)
        for view, f in tube_pieces(frame, path[number : number + 2], radii[number : number + 2])
    ]
    gap = np.float32(rng.choice([0.0, 0.0, 1.5]))
    inset = np.float32(-rng.uniform(0.5, 2.5))
    for _, view, f in pieces:
        free = (canvas.liver[view.slices] > gap) & (canvas.cavity[view.slices] < inset)
        free &= canvas.dome[view.slices] < -1
        canvas.put(view, (f < 0) & free, Tissue.GUT_WALL, FAT)
    bubbles = None
    if stool is not None:
        bubbles = Noise.draw(rng, 5.5, (-200, -140, -180), (120, 120, 180))
    filled = rng.uniform(-1, 1, 4)
    shares = np.interp(np.arange(count) / count, np.linspace(0, 1, 4), filled)
    waves = rng.normal(0, 1, (3, 3))
    waves = np.float32(0.95) * (waves / np.linalg.norm(waves, axis=1, keepdims=True))
    waves = waves.astype(np.float32)
    for number, view, f in pieces:
        middle, radius, share = path[number], radii[number], shares[number]
        depth = wall_mm
        if folds > 0:
            wave = sum(np.sin(kz * view.z + ky * view.y + kx * view.x) for kz, ky, kx in waves)
            depth = wall_mm + folds * np.clip(wave, -0.3, 1)
        inside = f < -depth
        canvas.put(view, inside, Tissue.BOWEL, (Tissue.GUT_WALL,))
        airy = (view.y - middle[1]) / radius < -1.1 + 2.2 * gas + 0.7 * gas * share
        if bubbles is not None:
            airy |= frame.sample(view, bubbles) > stool + 0.25 * share
        canvas.put(view, inside & airy, Tissue.BOWEL_GAS, (Tissue.BOWEL,))
