"""Vessels inside a liver that comes as a plain mask: tapering curved tubes from hilum and cava."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hepar.phantom.labelmap import Template
from hepar.phantom.tissue import Tissue


def add_tubes(template: Template, rng: np.random.Generator) -> Template:
    """The template with portal and hepatic veins inside its liver.

    Args:
        template: any anatomy with a liver.
        rng: draws the trees.
    """
    inside = np.argwhere(template.liver)
    if len(inside) == 0:
        return template
    tissue = template.tissue.copy()
    spacing = np.asarray(template.spacing_mm)
    for vessel, neighbor in (
        (Tissue.PORTAL_VEIN, Tissue.PORTAL_VEIN),
        (Tissue.HEPATIC_VEIN, Tissue.CAVA),
    ):
        root = _root(template, inside, neighbor, rng)
        for _ in range(int(rng.integers(4, 9))):
            tip = inside[rng.integers(len(inside))]
            bend = 0.5 * (root + tip) + rng.normal(0, 15.0, size=3) / spacing
            t = np.linspace(0, 1, 80)[:, None]
            path = (1 - t) ** 2 * root + 2 * t * (1 - t) * bend + t**2 * tip
            radius_mm = np.linspace(rng.uniform(4, 8), rng.uniform(1.5, 3), len(path))
            for center, radius in zip(path, radius_mm, strict=True):
                _ball(tissue, template, center, float(radius), vessel)
    return replace(template, tissue=tissue)


def _root(
    template: Template, inside: np.ndarray, neighbor: Tissue, rng: np.random.Generator
) -> np.ndarray:
    """The liver voxel from which a tree grows: where it is nearest to the vessel outside."""
    outside = np.argwhere(template.tissue == neighbor)
    middle = inside.mean(0) if len(outside) == 0 else outside.mean(0)
    if neighbor is Tissue.CAVA:
        middle = middle.copy()
        middle[0] = np.percentile(inside[:, 0], 80)  # hepatic veins leave near the dome
    some = inside[rng.integers(len(inside), size=2000)]
    distance = np.linalg.norm((some - middle) * template.spacing_mm, axis=1)
    return some[distance.argmin()].astype(float)


def _ball(
    tissue: np.ndarray, template: Template, center: np.ndarray, radius_mm: float, code: Tissue
) -> None:
    """Mark liver voxels within a radius, in place."""
    spacing = np.asarray(template.spacing_mm)
    reach = np.ceil(radius_mm / spacing).astype(int)
    middle = np.round(center).astype(int)
    start = np.maximum(middle - reach, 0)
    stop = np.minimum(middle + reach + 1, tissue.shape)
    if np.any(stop <= start):
        return
    z, y, x = (
        (np.arange(a, b) - c) * s for a, b, c, s in zip(start, stop, center, spacing, strict=True)
    )
    near = z[:, None, None] ** 2 + y[None, :, None] ** 2 + x**2 <= radius_mm**2
    box = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    tissue[box][near & template.liver[box]] = code
