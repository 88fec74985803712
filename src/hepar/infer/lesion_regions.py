"""The parts of a lesion that its features are measured in: middle, rim, border, sectors.

Rims are looked for in plane, as a radiologist does, because slices are often too thick for a rim
above, and in the slices in the middle of the lesion, where its border is steep.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy import ndimage

from hepar.geometry import Box, Grid

# Slices with at least this share of the area of the largest one.
MIDDLE_SHARE = 0.5
# How much liver around a lesion is kept, and how far its border may lie from the mask's.
AROUND_MM = 6.0
BORDER_MM = 2.5
# Up to this share of the way to the middle it is rim, from that one on it is center.
RIM_SHARE, CENTER_SHARE = 0.45, 0.6
# A rim and a middle apart need this many pixels, and millimeters, from border to middle.
MIN_RADIUS_PX, MIN_RADIUS_MM = 4.0, 4.0
MIN_VOXELS = 8
ANGLES, LEVELS = 8, 3
# Stands for slices so far apart that no distance goes through them.
_APART_MM = 1e6


@dataclass(frozen=True)
class LesionRegions:
    """A lesion and the liver around it.

    Attributes:
        box: where the arrays lie: all slices of the lesion.
        whole: `(z, y, x)` the lesion.
        mask: `(z, y, x)` the lesion in its middle slices.
        liver: `(z, y, x)` liver that is no lesion, in the same.
        surface_mm: `(z, y, x)` in-plane distance from what is not liver.
        depth_mm: `(z, y, x)` in-plane distance of a voxel from the border; positive inside.
        sector: `(z, y, x)` which part around the middle: eight angles at up to three heights.
        pixel_mm: in plane.
        voxel_ml: of a voxel.
    """

    box: Box
    whole: Bool[np.ndarray, "z y x"]
    mask: Bool[np.ndarray, "z y x"]
    liver: Bool[np.ndarray, "z y x"]
    surface_mm: Float[np.ndarray, "z y x"]
    depth_mm: Float[np.ndarray, "z y x"]
    sector: Int[np.ndarray, "z y x"]
    pixel_mm: float
    voxel_ml: float

    @property
    def radius_mm(self) -> float:
        """From the border to the middle."""
        return float(self.depth_mm[self.mask].max())

    @property
    def resolved(self) -> bool:
        """Whether these voxels tell the rim of the lesion from its middle."""
        least = max(MIN_RADIUS_PX * self.pixel_mm, MIN_RADIUS_MM)
        return self.radius_mm >= least and int(self.center.sum()) >= MIN_VOXELS

    @property
    def body(self) -> NDArray[np.bool_]:
        """The lesion without the pixels of its border, where enough is left."""
        inner = self.mask & (self.depth_mm > self.pixel_mm)
        return inner if int(inner.sum()) >= 20 else self.mask

    @property
    def center(self) -> NDArray[np.bool_]:
        """The middle of the lesion."""
        return self.mask & (self.depth_mm > CENTER_SHARE * self.radius_mm)

    @property
    def rim(self) -> NDArray[np.bool_]:
        """The outer part of the lesion without the pixels of its border."""
        inside = self.mask & (self.depth_mm > self.pixel_mm)
        return inside & (self.depth_mm <= RIM_SHARE * self.radius_mm)

    def shells(self, low_mm: float, high_mm: float) -> list[NDArray[np.bool_]]:
        """Shells of one pixel between two depths, from the outermost in; lesion or liver."""
        seen = self.mask | self.liver
        edges = np.arange(low_mm, high_mm - 0.5 * self.pixel_mm, self.pixel_mm)
        found = [
            seen & (self.depth_mm > edge) & (self.depth_mm <= edge + self.pixel_mm)
            for edge in edges
        ]
        return [shell for shell in found if int(shell.sum()) >= MIN_VOXELS]

    @property
    def border_mm(self) -> float:
        """How far from the mask's border the lesion's own is looked for."""
        return max(BORDER_MM, 2.0 * self.pixel_mm)


def lesion_regions(
    mask: Bool[np.ndarray, "d h w"],
    box: Box,
    organ: Bool[np.ndarray, "z y x"],
    lesions: Bool[np.ndarray, "z y x"],
    grid: Grid,
) -> LesionRegions:
    """The regions of one lesion.

    Args:
        mask: the lesion inside `box`.
        box: of the lesion.
        organ: `(z, y, x)` the liver, tumors included or not.
        lesions: `(z, y, x)` all lesions.
        grid: of `organ`.
    """
    _, dy, dx = grid.spacing_mm
    pads = (int(np.ceil(AROUND_MM / dy)), int(np.ceil(AROUND_MM / dx)))
    start = (box.start[0], *_less(box.start[1:], pads))
    stop = (box.stop[0], *_more(box.stop[1:], pads, grid.shape[1:]))
    wide = Box(start, stop)
    local = np.zeros(wide.shape, dtype=bool)
    local[box.relative_to(wide).slices] = mask
    area = mask.sum(axis=(1, 2))
    middle = (area >= MIDDLE_SHARE * area.max())[:, None, None]
    return LesionRegions(
        box=wide,
        whole=local,
        mask=local & middle,
        liver=organ[wide.slices] & ~lesions[wide.slices] & ~local & middle,
        surface_mm=_depth_mm(organ[wide.slices] | local, dy, dx),
        depth_mm=_depth_mm(local, dy, dx),
        sector=_sectors(local & middle),
        pixel_mm=0.5 * (dy + dx),
        voxel_ml=grid.voxel_ml,
    )


def _less(start: tuple[int, ...], pads: tuple[int, int]) -> tuple[int, int]:
    return max(0, start[0] - pads[0]), max(0, start[1] - pads[1])


def _more(stop: tuple[int, ...], pads: tuple[int, int], shape: tuple[int, ...]) -> tuple[int, int]:
    return min(shape[0], stop[0] + pads[0]), min(shape[1], stop[1] + pads[1])


def _depth_mm(mask: NDArray[np.bool_], dy: float, dx: float) -> NDArray[np.float64]:
    """Signed in-plane distance from the border, which lies half a pixel beyond the last one.

    What is cut off at the sides of the array goes on as it ends.
    """
    if mask.all():
        return np.full(mask.shape, _APART_MM)
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)), mode="edge")
    apart = (_APART_MM, dy, dx)
    inside = ndimage.distance_transform_edt(padded, sampling=apart)
    outside = ndimage.distance_transform_edt(~padded, sampling=apart)
    half = 0.25 * (dy + dx)
    signed = np.where(padded, inside - half, half - outside)
    return np.asarray(signed[:, 1:-1, 1:-1], dtype=np.float64)


def _sectors(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Numbers of the part around the middle of the lesion that each voxel lies in."""
    _, rows, columns = mask.shape
    places = np.argwhere(mask)
    _, y, x = (float(v) for v in places.mean(axis=0))
    first, count = int(places[0, 0]), int(np.ptp(places[:, 0])) + 1
    angle = np.arctan2(np.arange(rows)[:, None] - y, np.arange(columns)[None] - x)
    turn = np.floor((angle + np.pi) / (2 * np.pi) * ANGLES).astype(np.int64) % ANGLES
    level = np.clip(np.arange(len(mask)) - first, 0, count - 1) * min(LEVELS, count) // count
    return np.asarray(level[:, None, None] * ANGLES + turn[None])
