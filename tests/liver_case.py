"""A small patient with known lesions, built by hand: the start of the last stages' tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aligned_cases import aligned_series, lesion_map
from hepar.geometry import Box, Grid, canonical
from hepar.preprocess import liver_box
from hepar.study import (
    AlignedStudy,
    Lesion,
    LesionMap,
    LiverCase,
    Phase,
    Series,
    SeriesVerdict,
    Volume,
)

# An oblique-free but flipped scanner grid: rows run to the right, slices from head to feet.
SOURCE_SPACING_MM = (5.0, 1.6, 1.6)
FLIPPED = (0.0, 0.0, -1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 0.0)
LIVER_HU = {"NC": 55.0, "ART": 70.0, "PV": 112.0, "DL": 92.0}
LESION_HU = (
    {"NC": 45.0, "ART": 108.0, "PV": 92.0, "DL": 70.0},
    {"NC": 4.0, "ART": 6.0, "PV": 7.0, "DL": 5.0},
)


def ellipsoid(grid: Grid, center_mm: tuple[float, ...], radii_mm: tuple[float, ...]) -> NDArray:
    """Voxels of an axial grid inside an ellipsoid; center and radii are (z, y, x) mm."""
    axes = [np.arange(n) * s for n, s in zip(grid.shape, grid.spacing_mm, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    parts = [((a - c) / r) ** 2 for a, c, r in zip((z, y, x), center_mm, radii_mm, strict=True)]
    return np.asarray(parts[0] + parts[1] + parts[2] <= 1)


def liver_case(
    phases: tuple[str, ...] = ("NC", "ART", "PV", "DL"),
    *,
    n_lesions: int = 2,
    shape: tuple[int, int, int] = (32, 150, 200),
    description: str = "Abdomen venous 70s",
    warnings: tuple[str, ...] = (),
    noise_hu: float = 12.0,
) -> tuple[LiverCase, LesionMap]:
    """An ellipsoid body with a liver on its right, and up to two lesions in it."""
    _, y, x = shape
    _, dy, dx = SOURCE_SPACING_MM
    corner = (((x - 1) * dx) / 2, ((y - 1) * dy) / 2, 200.0)
    # Column k is the LPS direction of array axis k: z down, y to anterior, x to the right.
    source = Grid(shape, SOURCE_SPACING_MM, corner, FLIPPED)
    _, grid = canonical(np.zeros(shape, dtype=np.uint8), source)
    size = np.array(grid.extent_mm)
    body = ellipsoid(grid, tuple(size / 2), (size[0] * 2, size[1] * 0.42, size[2] * 0.45))
    spine = ellipsoid(grid, (size[0] / 2, size[1] * 0.75, size[2] / 2), (size[0] * 2, 18, 18))
    at = np.array([0.5, 0.45, 0.32]) * size
    liver = ellipsoid(grid, tuple(at), (62.0, 62.0, 70.0))
    instances = np.zeros(shape, dtype=np.uint16)
    places = (((5, -15, -12), 21.0), ((-25, 20, 22), 11.0))
    for k, (offset, radius) in enumerate(places[:n_lesions]):
        instances[ellipsoid(grid, tuple(at + offset), (radius, radius * 0.9, radius * 1.1))] = k + 1
    generator = np.random.default_rng(7)
    volumes = {}
    for phase in phases:
        hu = np.full(shape, -1000.0)
        hu[body], hu[spine], hu[liver] = 45.0, 320.0, LIVER_HU[phase]
        for k in range(n_lesions):
            hu[instances == k + 1] = LESION_HU[k][phase]
        hu += generator.normal(0, noise_hu, shape)
        volumes[Phase(phase)] = Volume(np.clip(np.rint(hu), -1024, 3071).astype(np.int16), grid)
    aligned = _aligned(volumes, source, description, warnings)
    box = liver_box(liver, grid, 10.0)
    assert box is not None
    case = LiverCase(aligned, liver, box, float(liver.sum()) * grid.voxel_ml)
    return case, _lesion_map(case, instances, n_lesions)


def _aligned(
    volumes: dict[Phase, Volume], source: Grid, description: str, warnings: tuple[str, ...]
) -> AlignedStudy:
    verdicts = [
        SeriesVerdict(f"s{k}", f"{p}.nii.gz", "usable", "read whole", None, description, 32)
        for k, p in enumerate(volumes)
    ]
    extra = SeriesVerdict("s9", "scout", "unused", "a localizer", "W_SERIES_UNUSED", "Scout", 2)
    return aligned_series(
        {p: Series(v, verdict) for (p, v), verdict in zip(volumes.items(), verdicts, strict=True)},
        dict.fromkeys(volumes, source),
        confidence=0.93,
        reason="file name says {}",
        moved=("convexadam", 1.1312, 1.21237, 3.456, 0.00012, 0.998, "helps"),
        unused=(extra,),
        warnings=warnings,
    )


def _lesion_map(case: LiverCase, instances: NDArray[np.uint16], count: int) -> LesionMap:
    grid = case.aligned.grid
    lesions = []
    for k in range(count):
        mask = instances == k + 1
        box = Box.around(mask)
        assert box is not None
        center = grid.index_to_world(np.argwhere(mask).mean(axis=0))
        hu = {str(p): float(v.array[mask].mean()) for p, v in case.aligned.volumes.items()}
        liver_hu = {p: LIVER_HU[p] for p in hu}
        lesions.append(
            Lesion(
                id=k + 1,
                volume_ml=float(mask.sum()) * grid.voxel_ml,
                long_axis_mm=(46.2104, 24.1987)[k],
                short_axis_mm=(37.8049, 19.8012)[k],
                centroid_mm=(float(center[0]), float(center[1]), float(center[2])),
                box_zyx=(box.start, box.stop),
                hu=hu,
                hu_std=dict.fromkeys(hu, 12.34),
                liver_hu=liver_hu,
                wash_in_hu=hu["ART"] - hu["NC"] if {"ART", "NC"} <= hu.keys() else None,
                washout_hu=17.123 if "DL" in hu else None,
                confidence=(0.91234, 0.77777)[k],
            )
        )
    return lesion_map(case, instances, lesions, 0.9)
