"""Registered studies and solids whose measures are known, for tests of the stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hepar.geometry import Grid, canonical
from hepar.study import (
    TUMOR,
    AlignedStudy,
    Lesion,
    LesionMap,
    LiverCase,
    Phase,
    PhasedStudy,
    PhaseReading,
    RegistrationRecord,
    Series,
    SeriesVerdict,
    Study,
    Volume,
    reference_phase,
)


def aligned_study(volumes: dict[str, np.ndarray], grid: Grid) -> AlignedStudy:
    """A study that was registered already."""
    on_grid = {Phase(name): Volume(array, grid) for name, array in volumes.items()}
    phased = PhasedStudy(on_grid, (), Study((), ()), dict.fromkeys(on_grid, grid))
    return AlignedStudy(on_grid, reference_phase(on_grid), phased, ())


def aligned_series(
    series: Mapping[Phase, Series],
    source_grids: Mapping[Phase, Grid],
    *,
    confidence: float = 1.0,
    reason: str = "said so",
    moved: tuple[Any, ...] = ("reference", 1.0, 1.0, 0.0, 0.0, 1.0, "on one grid"),
    unused: tuple[SeriesVerdict, ...] = (),
    study_warnings: tuple[str, ...] = (),
    warnings: tuple[str, ...] = (),
) -> AlignedStudy:
    """Series whose voxels are the same, as the phases of a study that was registered.

    Args:
        series: by phase.
        source_grids: where the voxels of each lay in its file.
        confidence: of every phase.
        reason: of every phase, `{}` for its name.
        moved: what registration says of every phase but the reference.
        unused: verdicts on series that are no phase.
        study_warnings: of reading.
        warnings: of telling the phases.
    """
    volumes = {
        p: Volume(*canonical(one.volume.array, one.volume.grid)) for p, one in series.items()
    }
    readings = tuple(
        PhaseReading(p, confidence, reason.format(p.long_name), one.verdict.series_id)
        for p, one in series.items()
    )
    verdicts = (*(one.verdict for one in series.values()), *unused)
    study = Study(tuple(series.values()), verdicts, study_warnings)
    phased = PhasedStudy(volumes, readings, study, source_grids, warnings)
    stays = ("reference", 1.0, 1.0, 0.0, 0.0, 1.0, "it is the reference")
    records = tuple(
        RegistrationRecord(p, *(stays if p == phased.reference else moved)) for p in volumes
    )
    return AlignedStudy(volumes, phased.reference, phased, records)


def lesion_map(
    case: LiverCase,
    instances: NDArray[np.uint16],
    lesions: Sequence[Lesion],
    probability: float = 1.0,
) -> LesionMap:
    """Lesions where their ids are, as sure everywhere."""
    label = case.liver.astype(np.uint8)
    label[instances > 0] = TUMOR
    map_ = (instances[case.box.slices] > 0).astype(np.float32) * np.float32(probability)
    burden = float((label == TUMOR).sum()) / float((label > 0).sum())
    return LesionMap(map_, label, instances, tuple(lesions), burden)


def oblique_grid(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Grid:
    """A tilted grid with two of its axes running backwards."""
    a, b = np.deg2rad(17.0), np.deg2rad(-9.0)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    columns = np.array([[0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]])
    matrix = about_z @ about_x @ columns
    return Grid(shape, spacing_mm, (31.0, -12.5, 240.0), tuple(float(v) for v in matrix.ravel()))


def ellipsoid(
    grid: Grid, center_world_mm: tuple[float, float, float], radii_mm: tuple[float, float, float]
) -> np.ndarray:
    """Voxels inside an ellipsoid whose radii (z, y, x) lie along the grid's own axes."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    center = grid.world_to_index(np.array(center_world_mm))
    offset = (index - center) * np.array(grid.spacing_mm) / np.array(radii_mm)
    return (offset**2).sum(-1) <= 1
