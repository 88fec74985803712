"""The liver's outer shape, its fissures, gallbladder bed and vessels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

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
from hepar.phantom.torso import Canvas

LIVER_LOW: Triple = (-165.0, -130.0, -165.0)
LIVER_HIGH: Triple = (125.0, 110.0, 140.0)
HILUM_MM = (0.0, -2.0, -26.0)
CAVA_PATH_MM = [(-330, 16, -20), (-120, 18, -22), (-40, 14, -24), (20, 14, -23), (60, 12, -20)]
CAVA_TOP_MM = (78.0, 4.0, -16.0)


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
        cirrhosis: 0 none .. 1; nodular surface, small right and large caudate and left lobe.
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

    @classmethod
    def draw(cls, rng: np.random.Generator, cirrhosis: float) -> LiverShape:
        riedel = rng.random() < 0.12
        return cls(
            size=float(np.clip(rng.normal(0.95, 0.085), 0.78, 1.16)) * (1 - 0.1 * cirrhosis),
            right_low_mm=rng.uniform(78, 104) + 28 * riedel - 18 * cirrhosis,
            left_reach_mm=rng.uniform(62, 104),
            left_thick=rng.uniform(0.8, 1.2) + 0.2 * cirrhosis,
            left_tilt_deg=rng.uniform(-8, 14),
            edge_slope=rng.uniform(0.4, 0.75),
            edge_arch_mm=rng.uniform(4, 24),
            edge_turn=rng.uniform(-0.25, 0.3),
            caudate=rng.uniform(0.8, 1.15) + 0.35 * cirrhosis,
            fissure_mm=rng.uniform(1.3, 2.8) + 2.0 * cirrhosis,
            gallbladder_mm=0.0 if rng.random() < 0.1 else rng.uniform(9, 17),
            cirrhosis=cirrhosis,
        )

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
        r = self.gallbladder_mm
        path = curve([(-10, -12, -30), (-24, -28, -38), (-42, -48, -48), (-54, -60, -54)], 9)
        return path, r * np.array([0.3, 0.45, 0.65, 0.8, 0.9, 1.0, 1.0, 0.95, 0.8])


def liver_distance(
    frame: Frame, view: View, shape: LiverShape, cavity: np.ndarray, dome: np.ndarray, seed: int
) -> np.ndarray:
    """Distance to the liver's surface, negative inside, mm; float32 shaped as the view."""
    rng = np.random.default_rng([seed, 31])
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
    kidney = ellipsoid(view, (-68, 58, -60), (60, 36, 38))
    f = smooth_cut(f, kidney, 10)
    c = shape.caudate
    caudate = ellipsoid(view, (28, 2, -6), (30 * c, 15 * c, 15 * c))
    f = smooth_union(f, caudate, 8)
    low, high = LIVER_LOW, LIVER_HIGH
    f = f + 6.0 * frame.sample(view, Noise.draw(rng, 42.0, low, high))
    if shape.cirrhosis > 0:
        f = f + 3.0 * shape.cirrhosis * frame.sample(view, Noise.draw(rng, 13.0, low, high))
    f = smooth_cut(f, -(cavity + 1.0), 5)
    f = smooth_cut(f, -(dome + 0.4), 3)
    return _fissures(view, f, shape)


def _fissures(view: View, f: np.ndarray, shape: LiverShape) -> np.ndarray:
    """Round-ligament fissure, venous-ligament fissure, hilum and gallbladder bed cut out."""
    w = shape.fissure_mm
    bent = view.x - 2 - 0.12 * (view.y + 40) + 0.1 * view.z
    round_ligament = np.maximum(np.abs(bent) - w - 0.05 * np.clip(-view.z, 0, 60), view.z - 26)
    round_ligament = np.maximum(round_ligament, view.y + 8)
    f = smooth_cut(f, round_ligament, 3)
    along = view.x - 6
    plane = (view.y + 14) + 0.25 * along + 0.012 * along**2 + 0.12 * (view.z - 20)
    venous = np.abs(plane) - w * 0.6 * (1.2 - np.abs(along) / 22)
    venous = np.maximum(venous, np.maximum(view.z - 55, -6 - view.z))
    f = smooth_cut(f, venous, 3)
    hilum = ellipsoid(view, (HILUM_MM[0] - 6, HILUM_MM[1] - 3, HILUM_MM[2]), (13, 8, 22))
    f = smooth_cut(f, hilum, 6)
    if shape.gallbladder_mm > 0:
        path, radius = shape.gallbladder()
        f = smooth_cut(f, tube(view, path, radius + 0.5), 2)
    return f


def grow_tree(
    points: np.ndarray, start: np.ndarray, radius_mm: float, least: int = 3, step: float = 0.42
) -> list[tuple[np.ndarray, np.ndarray, float, float]]:
    """A tree from `start` that reaches every part of a point cloud.

    Each branch walks part of the way to the centroid of its points, then the cloud is split
    across its longest axis; radii follow the cube law (the daughters' cubes sum to the parent's).

    Args:
        points: (n, 3) attractors, mm.
        start: (3,) root, mm.
        radius_mm: radius at the root.
        least: points below which a branch ends.

    Returns:
        Segments (from, to, radius from, radius to).
    """
    segments = []
    stack = [(points, np.asarray(start, float), radius_mm)]
    while stack:
        cloud, origin, radius = stack.pop()
        centroid = cloud.mean(axis=0)
        tip = origin + step * (centroid - origin)
        segments.append((origin, tip, radius, radius * 0.86))
        if len(cloud) < least:
            segments.append((tip, cloud[0], radius * 0.8, max(0.4, radius * 0.4)))
            continue
        spread = cloud - centroid
        _, axes = np.linalg.eigh(spread.T @ spread)
        side = spread @ axes[:, -1] > 0
        if side.all() or not side.any():
            continue
        stack.extend(
            (part, tip, radius * (len(part) / len(cloud)) ** (1 / 3))
            for part in (cloud[side], cloud[~side])
        )
    return segments


def paint_tree(
    canvas: Canvas,
    segments: list[tuple[np.ndarray, np.ndarray, float, float]],
    tissue: Tissue,
    over: tuple[Tissue, ...],
) -> None:
    """Draw a tree's segments; those far thinner than a voxel are left out."""
    least = 0.35 * min(canvas.frame.spacing_mm)
    for a, b, ra, rb in segments:
        if max(ra, rb) < least:
            continue
        for view, f in tube_pieces(canvas.frame, np.stack([a, b]), np.array([ra, rb])):
            canvas.put(view, f < 0, tissue, over)


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
    cava = curve([*CAVA_PATH_MM, CAVA_TOP_MM, (100, -12, -12)], 30)
    for piece, f in tube_pieces(canvas.frame, cava, np.linspace(9.5, 13, 30)):
        canvas.put(piece, f < 0, Tissue.CAVA, (*over, Tissue.MUSCLE, Tissue.LUNG))
    _veins(canvas, cloud_mm, np.random.default_rng([seed, 32]))
    if shape.gallbladder_mm > 0:
        path, radius = shape.gallbladder()
        for piece, f in tube_pieces(canvas.frame, path, radius, margin_mm=1.5):
            canvas.put(piece, f < 0, Tissue.GUT_WALL, (Tissue.FAT, Tissue.LIVER))
        for piece, f in tube_pieces(canvas.frame, path, radius - 1.3):
            canvas.put(piece, f < 0, Tissue.GALLBLADDER, (Tissue.GUT_WALL,))


def _veins(canvas: Canvas, cloud_mm: np.ndarray, rng: np.random.Generator) -> None:
    liver_only = (Tissue.LIVER,)
    if len(cloud_mm) < 12:
        return
    order = rng.permutation(len(cloud_mm))
    half = len(order) // 2
    drained, supplied = cloud_mm[order[:half]], cloud_mm[order[half:]]
    # Right, middle and left hepatic vein, by the angle about the cava.
    angle = np.arctan2(-(drained[:, 1] - CAVA_TOP_MM[1]), drained[:, 2] - CAVA_TOP_MM[2])
    ranks = np.argsort(np.argsort(-angle)) / len(angle)
    for low, high in ((0, 0.48), (0.48, 0.75), (0.75, 1.01)):
        cloud = drained[(ranks >= low) & (ranks < high)]
        start = np.array(CAVA_TOP_MM) + (cloud.mean(axis=0) - np.array(CAVA_TOP_MM)) * 0.05
        start[0] -= 16
        tree = grow_tree(cloud, start, rng.uniform(4.2, 5.6))
        paint_tree(canvas, tree, Tissue.HEPATIC_VEIN, liver_only)
    hilum = np.array(HILUM_MM)
    left = supplied[:, 2] > hilum[2] + 12
    portal = (*liver_only, Tissue.HEPATIC_VEIN, Tissue.FAT)
    for cloud, radius in ((supplied[~left], 6.0), (supplied[left], 5.0)):
        if len(cloud) >= 3:
            tree = grow_tree(cloud, hilum, radius * rng.uniform(0.9, 1.1))
            paint_tree(canvas, tree[:1], Tissue.PORTAL_VEIN, portal)
            paint_tree(canvas, tree[1:], Tissue.PORTAL_VEIN, liver_only)
