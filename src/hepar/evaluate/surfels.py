"""Area-weighted surface elements: surface Dice at a tolerance, and averages that count area.

Voxel surfaces count a slanted or coarse surface wrongly: what matters is its area. As in DeepMind's
surface-distance (Nikolov et al. 2018, arXiv:1809.04430), each corner of the voxel grid whose eight
voxels are not all alike is an element; its area is that of the marching-cubes surface between the
eight, with vertices halfway along the edges.

That area is worked out here from the geometry: the smaller of the two sets of voxels (inside or
outside) falls into pieces joined through faces, and the surface cuts each piece off. There are
six shapes of pieces, each cut off by the triangles listed in `_TRIANGLES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from hepar.evaluate.point_sets import Points, Shape, Spacing, distances, neighbor_codes
from hepar.evaluate.surface import Mask, joint_crop

Corner = tuple[int, int, int]
_CORNERS: tuple[Corner, ...] = tuple((z, y, x) for z, y, x in product((0, 1), repeat=3))


@dataclass(frozen=True)
class SurfelDistances:
    """Surface elements of both masks, each with its area and its distance to the other surface.

    Attributes:
        forth_mm: from the prediction's elements to the reference.
        forth_mm2: their areas.
        back_mm: from the reference's elements to the prediction.
        back_mm2: their areas.
    """

    forth_mm: Float[np.ndarray, " a"]
    forth_mm2: Float[np.ndarray, " a"]
    back_mm: Float[np.ndarray, " b"]
    back_mm2: Float[np.ndarray, " b"]

    def surface_dice(self, tolerance_mm: float) -> float:
        """Share of both surfaces that lies within a tolerance of the other, by area."""
        # A distance equal to the tolerance is within it, whatever the last bit says.
        reach = tolerance_mm * (1.0 + 1e-9)
        near = self.forth_mm2[self.forth_mm <= reach].sum()
        near += self.back_mm2[self.back_mm <= reach].sum()
        return float(near / (self.forth_mm2.sum() + self.back_mm2.sum()))

    def overlap(self, tolerance_mm: float) -> tuple[float, float]:
        """Share of the prediction's and of the reference's surface within a tolerance."""
        reach = tolerance_mm * (1.0 + 1e-9)
        forth = self.forth_mm2[self.forth_mm <= reach].sum() / self.forth_mm2.sum()
        back = self.back_mm2[self.back_mm <= reach].sum() / self.back_mm2.sum()
        return float(forth), float(back)

    @property
    def averages_mm(self) -> tuple[float, float]:
        """Mean distance by area: prediction to reference, reference to prediction."""
        forth = (self.forth_mm * self.forth_mm2).sum() / self.forth_mm2.sum()
        back = (self.back_mm * self.back_mm2).sum() / self.back_mm2.sum()
        return float(forth), float(back)

    def robust_hausdorff_mm(self, percent: float = 95.0) -> float:
        """Distance that so many percent of the area keep, the larger of both directions."""
        return max(
            _percentile_by_area(self.forth_mm, self.forth_mm2, percent),
            _percentile_by_area(self.back_mm, self.back_mm2, percent),
        )


def surfel_distances(
    predicted: Mask, reference: Mask, spacing_mm: Spacing
) -> SurfelDistances | None:
    """Measure the elements of two surfaces.

    Args:
        predicted: `(z, y, x)`.
        reference: same shape.
        spacing_mm: (z, y, x).

    Returns:
        None when a mask is empty.

    Raises:
        ValueError: the shapes differ.
    """
    cropped = joint_crop(predicted, reference)
    if cropped is None:
        return None
    areas = _areas_mm2(spacing_mm)
    (a, a_mm2), (b, b_mm2) = (_elements(mask, areas) for mask in cropped)
    z, y, x = cropped[0].shape
    shape: Shape = (z + 1, y + 1, x + 1)
    return SurfelDistances(
        distances(a, b, shape, spacing_mm),
        a_mm2,
        distances(b, a, shape, spacing_mm),
        b_mm2,
    )


def _elements(mask: Mask, areas_mm2: NDArray[np.float64]) -> tuple[Points, NDArray[np.float64]]:
    codes = neighbor_codes(np.ascontiguousarray(mask)).reshape(-1)
    # 0 and 255 are 255 and 254 after subtracting one.
    at = np.flatnonzero(codes - np.uint8(1) < 254)
    return at, areas_mm2[codes[at]]


def _percentile_by_area(
    distances_mm: NDArray[np.float64], areas_mm2: NDArray[np.float64], percent: float
) -> float:
    order = np.argsort(distances_mm)
    share = np.cumsum(areas_mm2[order]) / areas_mm2.sum()
    index = min(int(np.searchsorted(share, percent / 100.0)), len(order) - 1)
    return float(distances_mm[order[index]])


def _areas_mm2(spacing_mm: Spacing) -> NDArray[np.float64]:
    """Area of the element of each of the 256 neighbor codes."""
    z, y, x = spacing_mm
    faces_mm2 = np.array([y * x, z * x, z * y])
    return np.array(
        [sum(float(np.linalg.norm(n * faces_mm2)) for n in normals) for normals in _normals()]
    )


@lru_cache(maxsize=1)
def _normals() -> tuple[NDArray[np.float64], ...]:
    """Normals of the triangles of each code, as long as their areas in a cube of edge 1."""
    table = []
    for code in range(256):
        inside = {c for bit, c in enumerate(_CORNERS) if code >> bit & 1}
        smaller = inside if len(inside) <= 4 else set(_CORNERS) - inside
        triangles = [row for piece in _pieces(smaller) for row in _cut(piece)]
        table.append(np.array(triangles, dtype=np.float64).reshape(-1, 3) / 8.0)
    return tuple(table)


def _joined(a: Corner, b: Corner) -> bool:
    return sum(p != q for p, q in zip(a, b, strict=True)) == 1


def _pieces(corners: set[Corner]) -> list[list[Corner]]:
    """Corners grouped by the cube's edges."""
    left, pieces = sorted(corners), []
    while left:
        piece = [left.pop(0)]
        for corner in piece:
            piece += [c for c in left if _joined(corner, c)]
            left = [c for c in left if c not in piece]
        pieces.append(piece)
    return pieces


# Eighths of |normal| of the triangles that cut a piece off, along the axes that `_frame` names.
_TRIANGLES: dict[tuple[int, ...], tuple[tuple[int, int, int], ...]] = {
    (0,): ((1, 1, 1),),  # one corner: a triangle
    (1, 1): ((2, 2, 0), (2, 2, 0)),  # two, along the last axis: a rectangle
    (1, 1, 2): ((1, 1, 1), (2, 2, 2), (0, 0, 4)),  # an L across the last axis: a pentagon
    (2, 2, 2, 2): ((0, 0, 4), (0, 0, 4)),  # a face across the last axis: a square
    (1, 1, 1, 3): ((1, 1, 1), (1, 1, 1), (2, 2, 2), (2, 2, 2)),  # a corner and its three: a hexagon
    # a path of three edges, the middle one along the last axis: a bent hexagon
    (1, 1, 2, 2): ((1, 1, 1), (3, 3, 3), (0, 2, 2), (2, 0, 2)),
}


def _cut(piece: list[Corner]) -> list[tuple[int, ...]]:
    """|normals| of the triangles that cut one piece off, in eighths, along (z, y, x)."""
    degrees = {c: sum(_joined(c, d) for d in piece) for c in piece}
    last = _last_axis(piece, degrees)
    axes = [axis for axis in range(3) if axis != last] + [last]
    rows = []
    for triangle in _TRIANGLES[tuple(sorted(degrees.values()))]:
        row = [0, 0, 0]
        for axis, value in zip(axes, triangle, strict=True):
            row[axis] = value
        rows.append(tuple(row))
    return rows


def _last_axis(piece: list[Corner], degrees: dict[Corner, int]) -> int:
    """The axis by which a piece differs from the others: see `_TRIANGLES`."""
    varies = [len({c[axis] for c in piece}) == 2 for axis in range(3)]
    if sum(varies) == 1:
        return varies.index(True)
    if sum(varies) == 2:
        return varies.index(False)
    inner = [c for c, degree in degrees.items() if degree == 2]
    if len(inner) == 2:
        return next(axis for axis in range(3) if inner[0][axis] != inner[1][axis])
    return 2  # symmetric
