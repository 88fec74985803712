"""Connected components of masks: the largest, the holes, the lesions."""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from hepar.geometry import Box


@dataclass(frozen=True)
class Component:
    """One connected component: its label, where it lies, its voxels."""

    label: int
    box: Box
    voxels: int


def components(
    mask: Bool[np.ndarray, "z y x"], min_voxels: float = 1
) -> tuple[NDArray[np.unsignedinteger], tuple[Component, ...]]:
    """26-connected components, largest first; ties by position.

    Args:
        mask: any.
        min_voxels: smaller components are left out of the list (their labels remain).

    Returns:
        The label volume and the components in order.
    """
    labels, count = cc3d.connected_components(mask, connectivity=26, return_N=True)
    if count == 0:
        return labels, ()
    statistics = cc3d.statistics(labels, no_slice_conversion=True)
    found = []
    for label in range(1, count + 1):
        voxels = int(statistics["voxel_counts"][label])
        if voxels >= min_voxels:
            z0, z1, y0, y1, x0, x1 = (int(v) for v in statistics["bounding_boxes"][label])
            box = Box((z0, y0, x0), (z1 + 1, y1 + 1, x1 + 1))
            found.append(Component(label, box, voxels))
    return labels, tuple(sorted(found, key=lambda c: (-c.voxels, c.box.start)))


def largest(mask: Bool[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z y x"]:
    """The largest component; an empty mask stays empty."""
    labels, found = components(mask)
    return labels == found[0].label if found else np.zeros_like(mask)


def fill_holes(mask: Bool[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z y x"]:
    """Fill background that cannot reach the border of the volume (6-connected)."""
    background = ~np.pad(mask, 1)
    labels = cc3d.connected_components(background, connectivity=6)
    return np.asarray((labels != labels[0, 0, 0])[1:-1, 1:-1, 1:-1])
