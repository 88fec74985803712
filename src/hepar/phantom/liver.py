"""The liver's outer shape, its fissures, gallbladder bed and vessels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hepar.phantom.canvas import Canvas
from hepar.phantom.chest import ATRIUM_MM
from hepar.phantom.shapes import (
    Frame,
    Noise,
    Triple,
    View,
    curve,
    ellipsoid,
    rotation,
    smooth_cut,
    smooth_union,
    tube,
    tube_pieces,
)
from hepar.phantom.tissue import Tissue
from hepar.phantom.vessels import CAVA_TOP_MM, HILUM_MM, paint_liver_veins

LIVER_LOW: Triple = (-165.0, -130.0, -165.0)
LIVER_HIGH: Triple = (125.0, 110.0, 140.0)
RESECTION_SHARES = (0.94, 0.02, 0.015, 0.025)
# Where a wedge is taken: dome, front of segments 4 and 8, lower edge, left lateral edge.
WEDGES_MM: tuple[Triple, ...] = (
    (82.0, -20.0, -80.0),
    (20.0, -95.0, -55.0),
    (-75.0, -50.0, -105.0),
    (40.0, -60.0, 72.0),
)
CAVA_PATH_MM = [(-330, 16, -20), (-120, 18, -22), (-40, 14, -24), (20, 14, -23), (60, 12, -20)]


@dataclass(frozen=True)
class LiverShape:
    """Parameters of one liver in canonical millimeters.

    Attributes:
        size: overall scale of the lobes.
        right_low_mm: how far the right lobe reaches down (a Riedel lobe reaches far).
        left_reach_mm: half length of the left lobe, to the patient's left.
        left_thick: relative thickness of the left lobe.
        edge_slope, edge_arch_mm, edge_turn: rise of the inferior edge from right to left, its
            arch in the middle, its rise from front to back.
        caudate: relative size of the caudate lobe.
        fissure_mm: half width of the fissure of the round ligament.
        gallbladder_mm: largest radius of the gallbladder, 0 where it was taken out.
        cirrhosis: 0 none .. 1; nodular surface, small right and large caudate and left lobe.
        wall_gap_mm: fat between liver and abdominal wall; below zero they touch.
        tail: 0 none .. 1, a left lobe that curls round the stomach to the spleen.
        papillary_mm: radius of a caudate process that hangs like a node before the cava, or 0.
        hilum_fat: relative size of the fat in the hilum.
        gallbladder_length, gallbladder_bend_mm: its length, and how far it folds to the left.
        slips: number of grooves that slips of the diaphragm press into the dome.
        resection: "" | "right" | "left" | "wedge", what a surgeon took.
        resection_mm: shift of the cut from its usual plane, or the radius of the wedge.
    """

    size: float
    right_low_mm: float
    left_reach_mm: float
    left_thick: float
    left_tilt_deg: float
    edge_slope: float
    edge_arch_mm: float
    edge_turn: float
    caudate: float
    fissure_mm: float
    gallbladder_mm: float
    cirrhosis: float
    wall_gap_mm: float = 1.0
    tail: float = 0.0
    papillary_mm: float = 0.0
    hilum_fat: float = 1.0
    gallbladder_length: float = 1.0
    gallbladder_bend_mm: float = 0.0
    slips: int = 0
    resection: str = ""
    resection_mm: float = 0.0

    @classmethod
    def draw(cls, rng: np.random.Generator, cirrhosis: float) -> LiverShape:
        """Draw a liver; `cirrhosis` 0 none .. 1 severe."""
        riedel = rng.random() < 0.12
        shape = cls(
            size=float(np.clip(rng.normal(0.93, 0.1), 0.74, 1.2)) * (1 - 0.1 * cirrhosis),
            right_low_mm=rng.uniform(68, 108) + 34 * riedel - 18 * cirrhosis,
            left_reach_mm=rng.uniform(46, 108),
            left_thick=rng.uniform(0.66, 1.28) + 0.2 * cirrhosis,
            left_tilt_deg=rng.uniform(-12, 18),
            edge_slope=rng.uniform(0.3, 0.85),
            edge_arch_mm=rng.uniform(2, 30),
            edge_turn=rng.uniform(-0.3, 0.35),
            caudate=rng.uniform(0.75, 1.25) + 0.4 * cirrhosis,
            fissure_mm=float(np.exp(rng.normal(0.7, 0.45))) + 2.5 * cirrhosis,
            gallbladder_mm=0.0
            if rng.random() < 0.12
            else float(np.exp(np.clip(rng.normal(2.5, 0.3), 1.6, 2.95))),
            cirrhosis=cirrhosis,
            wall_gap_mm=rng.uniform(-1.2, 2.0),
            tail=float(rng.uniform(0.5, 1.0)) if rng.random() < 0.2 else 0.0,
            papillary_mm=float(rng.uniform(8, 15)) if rng.random() < 0.2 else 0.0,
            hilum_fat=rng.uniform(0.75, 1.5),
            gallbladder_length=rng.uniform(0.7, 1.25),
            gallbladder_bend_mm=rng.uniform(-8, 20),
            slips=int(rng.integers(1, 4)) if rng.random() < 0.25 else 0,
        )
        return shape._operated(rng)

    def _operated(self, rng: np.random.Generator) -> LiverShape:
        """After an operation in some patients; what is left has grown."""
        kind = rng.choice(["", "right", "left", "wedge"], p=RESECTION_SHARES)
        shift, growth = rng.uniform(-1, 1), rng.uniform(1.12, 1.3)
        if kind == "right":
            return replace(
                self,
                size=self.size * growth,
                left_reach_mm=max(self.left_reach_mm, 80) * 1.1,
                left_thick=max(self.left_thick, 0.95) * growth,
                caudate=self.caudate * growth,
                gallbladder_mm=0.0,
                resection="right",
                resection_mm=-32 + 14 * shift,
            )
        if kind == "left":
            return replace(
                self, size=self.size * 1.05, tail=0.0, resection="left", resection_mm=14 * shift
            )
        if kind == "wedge":
            return replace(self, resection="wedge", resection_mm=30 + 12 * shift)
        return self

    def resized(self, factor: float) -> LiverShape:
        """The same liver, larger or smaller."""
        return replace(
            self,
            size=self.size * factor,
            right_low_mm=self.right_low_mm * factor,
            left_thick=self.left_thick * factor,
        )

    def gallbladder(self) -> tuple[np.ndarray, np.ndarray]:
        """Path and radius of the gallbladder, neck at the hilum to fundus at the edge."""
        r, bend = self.gallbladder_mm, self.gallbladder_bend_mm
        way = np.array([(-10, -12, -30), (-24, -28, -38), (-42, -48, -48), (-54, -60, -54)], float)
        way = way[0] + (way - way[0]) * self.gallbladder_length
        # The neck is an S; a folded fundus turns left.
        way[1] += (4, 0.25 * bend, -0.4 * bend)
        way[3] += (0.4 * bend, 0, bend)
        path = curve([(float(z), float(y), float(x)) for z, y, x in way], 9)
        return path, r * np.array([0.3, 0.4, 0.62, 0.8, 0.9, 1.0, 1.0, 0.95, 0.8])


def liver_distance(
    frame: Frame, view: View, shape: LiverShape, cavity: np.ndarray, dome: np.ndarray, seed: int
) -> np.ndarray:
    """Distance to the liver's surface, negative inside, mm; float32 shaped as the view."""
    rng = np.random.default_rng([seed, 31])
    low, high = LIVER_LOW, LIVER_HIGH
    f = _lobes(frame, view, shape)
    f = f + 7.0 * frame.sample(view, Noise.draw(rng, 42.0, low, high))
    f = smooth_cut(f, -(cavity + np.float32(shape.wall_gap_mm)), 3)
    f = smooth_cut(f, -(dome + 0.4), 3)
    if shape.cirrhosis > 0:
        # Dents between nodules, after the wall has flattened the surface.
        for pitch, depth in ((17.0, 11.0), (9.0, 6.0)):
            dents = frame.sample(view, Noise.draw(rng, pitch, low, high))
            f += np.float32(depth * shape.cirrhosis) * np.maximum(dents + np.float32(0.1), 0)
    _fissures(frame, view, f, shape, np.random.default_rng([seed, 34]))
    if shape.slips or shape.resection:
        f = _scars(view, f, shape, np.random.default_rng([seed, 33]))
    return f


def _lobes(frame: Frame, view: View, shape: LiverShape) -> np.ndarray:
    """The lobes as one body, hollowed by what lies below and behind."""
    s = shape.size
    right = ellipsoid(view, (4, 6, -76), (122 * s, 104 * s, 76 * s), boxy=True)
    reach = shape.left_reach_mm * s
    left = ellipsoid(
        view,
        (44, -48, reach * 0.26),
        (44 * shape.left_thick * s, 48 * s, reach * 0.82),
        rotation(shape.left_tilt_deg, -10),
    )
    f = smooth_union(right, left, 22)
    # The visceral surface: a hollow over stomach, duodenum and colon, below and left.
    hollow = ellipsoid(view, (-78, 22, 44), (98, 78, 92), rotation(20, 0))
    f = smooth_cut(f, hollow, 18)
    # The lower edge rises to the left, and arches over duodenum and colonic flexure.
    arch = 1 - ((view.y + 8) / 68) ** 2
    edge = -shape.right_low_mm + shape.edge_slope * (view.x + 125) - view.z
    edge = edge + shape.edge_arch_mm * arch + shape.edge_turn * view.y
    edge = edge * np.float32(1 / np.sqrt(1 + shape.edge_slope**2))
    f = smooth_cut(f, -edge, 20)
    spine = np.hypot(view.y - 54, view.x - 10) - 46
    f = smooth_cut(f, spine, 10)
    # Wide enough that the noise and dents to come cannot show the box.
    box = _window(frame, view, (-160, -10, -130), (24, 124, 10))
    if box is not None:
        kidney = ellipsoid(box, (-68, 58, -60), (60, 36, 38))
        f[box.slices] = smooth_cut(f[box.slices], kidney, 10)
    box = _window(frame, view, (-50, -50, -55), (105, 55, 45))
    if box is not None:
        c, p = shape.caudate, shape.papillary_mm
        caudate = ellipsoid(box, (28, 2, -6), (30 * c, 15 * c, 15 * c))
        joined = smooth_union(f[box.slices], caudate, 8)
        if p > 0:
            process = ellipsoid(box, (4, -6, 6), (1.2 * p, 0.8 * p, p))
            joined = smooth_union(joined, process, 3)
        f[box.slices] = joined
    if shape.tail > 0:
        t = shape.tail
        tail = ellipsoid(view, (42, -16, 76 + 10 * t), (24 * s, 15 + 6 * t, 50), rotation(8, -34))
        f = smooth_union(f, tail, 14)
    return f


def _window(frame: Frame, view: View, low: Triple, high: Triple) -> View | None:
    """The part of a view that holds a canonical box; its slices are those of the view's arrays."""
    box = frame.view(low, high)
    if box is None:
        return None
    slices = []
    for own, inner, size in zip(view.slices, box.slices, view.z.shape, strict=True):
        first = max(inner.start - (own.start or 0), 0)
        last = min(inner.stop - (own.start or 0), size)
        if first >= last:
            return None
        slices.append(slice(first, last))
    part = (slices[0], slices[1], slices[2])
    return View(part, view.z[part], view.y[part], view.x[part])


def _fissures(
    frame: Frame, view: View, f: np.ndarray, shape: LiverShape, rng: np.random.Generator
) -> None:
    """Cut out, in place: fissures of both ligaments, hilum and gallbladder bed."""
    _ligaments(frame, view, f, shape.fissure_mm, rng)
    h = shape.hilum_fat
    box = _window(frame, view, (-50, -40, -80), (38, 32, 30))
    if box is not None:
        center = (HILUM_MM[0] - 6, HILUM_MM[1] - 3, HILUM_MM[2])
        hilum = ellipsoid(box, center, (13 * h, 8 * h, 22 * h))
        f[box.slices] = smooth_cut(f[box.slices], hilum, 6)
    if shape.gallbladder_mm > 0:
        path, radius = shape.gallbladder()
        reach = float(radius.max()) + 6
        low, high = path.min(axis=0) - reach, path.max(axis=0) + reach
        box = _window(frame, view, tuple(low), tuple(high))
        if box is not None:
            bed = tube(box, path, radius + 0.5)
            f[box.slices] = smooth_cut(f[box.slices], bed, 2)


def _ligaments(
    frame: Frame, view: View, f: np.ndarray, width_mm: float, rng: np.random.Generator
) -> None:
    """The fissures of the round ligament, open below, and of the venous ligament behind it."""
    lean, tilt, bow, phase = rng.uniform((-0.1, 0, 2, 0), (0.3, 0.25, 6, 6))
    top = rng.uniform(0, 34)
    box = _window(frame, view, (-165, -130, -70), (top + 8, 0, 75))
    if box is not None:
        bent = box.x - 2 - lean * (box.y + 40) + tilt * box.z
        bent = bent + bow * np.sin(box.y / 17 + box.z / 29 + phase)
        # It ends at a level of its own.
        opening = width_mm * np.clip((top + 12 - box.z) / 40, 0.25, 1)
        opening = opening + 0.05 * np.clip(-box.z, 0, 60)
        cut = np.maximum(np.maximum(np.abs(bent) - opening, box.z - top), box.y + 8)
        f[box.slices] = smooth_cut(f[box.slices], cut, 3)
    box = _window(frame, view, (-12, -60, -45), (62, 20, 55))
    if box is not None:
        along = box.x - 6
        plane = (box.y + 14) + 0.25 * along + 0.012 * along**2 + 0.12 * (box.z - 20)
        venous = np.abs(plane) - width_mm * 0.6 * (1.2 - np.abs(along) / 22)
        venous = np.maximum(venous, np.maximum(box.z - 55, -6 - box.z))
        f[box.slices] = smooth_cut(f[box.slices], venous, 3)


def _scars(view: View, f: np.ndarray, shape: LiverShape, rng: np.random.Generator) -> np.ndarray:
    """Grooves under slips of the diaphragm, and the cut of an operation."""
    for _ in range(shape.slips):
        middle, slant = rng.uniform(-110, -40), rng.uniform(-0.7, 0.7)
        width, depth, start = rng.uniform(0.8, 2.4), rng.uniform(5, 15), rng.uniform(-70, 0)
        bowed = view.x - middle - slant * view.y - 0.004 * (view.y + 20) ** 2
        # The groove narrows with depth and runs out to the back.
        groove = np.abs(bowed) - width * (1 + f / np.float32(depth))
        groove = np.maximum(groove, np.maximum(40 - view.z, np.abs(view.y - start) - 40))
        f = smooth_cut(f, groove, 3)
    wave = 5 * np.sin(view.z / 19 + rng.uniform(0, 6)) * np.cos(view.y / 23 + rng.uniform(0, 6))
    # From the gallbladder bed to the cava, which both large operations follow.
    plane = view.x + 20 + 0.5 * (10 - view.y) + wave - np.float32(shape.resection_mm)
    if shape.resection == "right":
        f = smooth_cut(f, plane + 0.004 * (view.z - 10) ** 2 - 6, 24)
    elif shape.resection == "left":
        f = smooth_cut(f, np.maximum(-plane, view.y + 12), 14)
    elif shape.resection == "wedge":
        center = WEDGES_MM[int(rng.integers(len(WEDGES_MM)))]
        r = shape.resection_mm
        bite = ellipsoid(view, center, (r, 1.2 * r, 0.9 * r), rotation(*rng.uniform(-40, 40, 2)))
        f = smooth_cut(f, bite + 0.5 * wave, 8)
    return f


def paint_liver(canvas: Canvas, shape: LiverShape, cloud_mm: np.ndarray, seed: int) -> None:
    """Liver, its portal and hepatic veins, gallbladder and the cava behind it.

    Args:
        canvas: torso already painted; `canvas.liver` receives the distance.
        shape: the liver's parameters.
        cloud_mm: (n, 3) canonical points spread through the liver, which vessels supply.
        seed: the patient's seed.
    """
    view = canvas.frame.view(LIVER_LOW, LIVER_HIGH)
    if view is not None:
        f = liver_distance(
            canvas.frame, view, shape, canvas.cavity[view.slices], canvas.dome[view.slices], seed
        )
        canvas.liver[view.slices] = f
        canvas.put(view, f < 0, Tissue.LIVER, ())
    over = (Tissue.LIVER, Tissue.FAT)
    cava = curve([*CAVA_PATH_MM, CAVA_TOP_MM, ATRIUM_MM], 30)
    for piece, f in tube_pieces(canvas.frame, cava, np.linspace(9.5, 13, 30)):
        canvas.put(piece, f < 0, Tissue.CAVA, (*over, Tissue.MUSCLE, Tissue.LUNG))
    paint_liver_veins(canvas, cloud_mm, np.random.default_rng([seed, 32]))
    if shape.gallbladder_mm > 0:
        path, radius = shape.gallbladder()
        for piece, f in tube_pieces(canvas.frame, path, radius, margin_mm=1.5):
            canvas.put(piece, f < 0, Tissue.GUT_WALL, (Tissue.FAT, Tissue.LIVER))
        for piece, f in tube_pieces(canvas.frame, path, radius - 1.3):
            canvas.put(piece, f < 0, Tissue.GALLBLADDER, (Tissue.GUT_WALL,))
