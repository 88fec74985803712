"""Branching vessels: trees grown through clouds of points, and those of the liver."""

from __future__ import annotations

import numpy as np

from hepar.phantom.canvas import Canvas
from hepar.phantom.shapes import tube_pieces
from hepar.phantom.tissue import Tissue

HILUM_MM = (0.0, -2.0, -26.0)
CAVA_TOP_MM = (78.0, 4.0, -16.0)


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


def paint_liver_veins(canvas: Canvas, cloud_mm: np.ndarray, rng: np.random.Generator) -> None:
    """Hepatic and portal veins that reach all of a cloud of points, inside the liver only.

    Args:
        canvas: with the liver painted.
        cloud_mm: (n, 3) canonical points spread through the liver.
        rng: explicit generator.
    """
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
