"""A patient read from DICOM files whose liver and lesions are known by place, and their SEG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom

from aligned_cases import aligned_series, lesion_map
from hepar.geometry import Box, Grid
from hepar.infer.measure import measure_lesions
from hepar.io.dicom import numbered, readings_of
from hepar.io.dicom_pixels import quiet
from hepar.io.dicom_scan import scan_files, walk_files
from hepar.stages.dicom_out import write_dicom
from hepar.stages.report import compose
from hepar.study import (
    Diagnosis,
    Findings,
    Lesion,
    LesionDiagnosis,
    LesionMap,
    LiverCase,
    Phase,
    Series,
)

# From LPS mm `(..., 3)` to 0, 1 for the liver without lesions, 2 and more for lesions.
Truth = Callable[[np.ndarray], np.ndarray]
PROVENANCE = {
    "hepar": "1.2.3",
    "code_sha256": "c" * 64,
    "hashes": {"model": "a" * 64, "settings": "b" * 64, "input": "d" * 64},
}
CHANCES = {"hcc": 0.8236, "fnh": 0.1764}


@dataclass(frozen=True)
class DicomCase:
    """A patient, what was found, and the files that say so.

    Attributes:
        case: the liver.
        lesions: the masks.
        findings: the numbers.
        seg: `seg.dcm`.
        sr: `sr.dcm`.
    """

    case: LiverCase
    lesions: LesionMap
    findings: Findings
    seg: Path
    sr: Path


def read_series(folder: Path) -> tuple[Series, ...]:
    """The series of a folder, however short; lost slices are made up."""
    with quiet():
        scan = scan_files(walk_files(folder))
        return numbered(readings_of(scan, folder, interpolate_gaps=True))[0]


def write_case(
    study: Path,
    truth: Truth,
    out: Path,
    *,
    measured: bool = False,
    provenance: dict | None = None,
    warnings: tuple[str, ...] = (),
) -> DicomCase:
    """Write SEG and SR of a patient whose masks follow from the place of each voxel.

    Args:
        study: DICOM files; its last series is the portal venous phase, the one before arterial.
        truth: what lies where.
        out: folder for `seg.dcm` and `sr.dcm`.
        measured: measure the lesions; else their numbers are made up.
        provenance: of the run.
        warnings: of the run.
    """
    case, lesions, findings = found_in(
        read_series(study), truth, measured=measured, provenance=provenance, warnings=warnings
    )
    out.mkdir(parents=True, exist_ok=True)
    return DicomCase(case, lesions, findings, *write_dicom(findings, case, lesions, out))


def found_in(
    series: Sequence[Series],
    truth: Truth,
    *,
    measured: bool = False,
    provenance: dict | None = None,
    warnings: tuple[str, ...] = (),
) -> tuple[LiverCase, LesionMap, Findings]:
    """What a perfect model finds in series that lie on one grid, the last of them portal venous."""
    phases = (Phase.ART, Phase.PV)[-len(series) :]
    by_phase = dict(zip(phases, series, strict=True))
    grids = {phase: one.volume.grid for phase, one in by_phase.items()}
    aligned = aligned_series(by_phase, grids, study_warnings=warnings)
    numbers = truth(places(aligned.grid))
    liver, instances = numbers > 0, np.where(numbers > 1, numbers - 1, 0).astype(np.uint16)
    liver_ml = float(liver.sum()) * aligned.grid.voxel_ml
    case = LiverCase(aligned, liver, Box.full(aligned.grid.shape), liver_ml)
    found = (
        measure_lesions(
            instances,
            liver,
            aligned.grid,
            {str(p): v.array for p, v in aligned.volumes.items()},
            (instances > 0).astype(np.float32),
        )
        if measured
        else tuple(_made_up(number) for number in range(1, int(instances.max()) + 1))
    )
    lesions = lesion_map(case, instances, found)
    named = tuple(
        LesionDiagnosis(
            lesion_id=lesion.id, probabilities=CHANCES, label="hcc", abstained=lesion.id > 1
        )
        for lesion in found
    )
    diagnosis = Diagnosis(lesions=named, patient={"tumor-free": 0.1, "hcc": 0.75139})
    return case, lesions, compose(case, lesions, diagnosis, provenance or PROVENANCE)


def places(grid: Grid) -> np.ndarray:
    """LPS mm of every voxel."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    return grid.index_to_world(index.astype(float))


def _made_up(number: int) -> Lesion:
    return Lesion(
        id=number,
        volume_ml=1.234 * number,
        long_axis_mm=12.34,
        short_axis_mm=9.87,
        centroid_mm=(-1.25, 2.0, 30.04),
        box_zyx=((0, 0, 0), (1, 1, 1)),
        hu={"ART": 101.26, "PV": -12.04},
        hu_std={"ART": 7.77, "PV": 8.12},
        liver_hu={"ART": 70.0, "PV": 110.0},
        wash_in_hu=None,
        washout_hu=-3.21,
        confidence=0.91234,
    )


@dataclass(frozen=True)
class SegFrame:
    """A frame of a SEG by its own header: nothing of the source is asked.

    Attributes:
        segment: number.
        world_mm: `(rows, columns, 3)` LPS of its pixels.
        mask: `(rows, columns)` bool.
        sources: SOPInstanceUID and frame number of the images that it names.
    """

    segment: int
    world_mm: np.ndarray
    mask: np.ndarray
    sources: tuple[tuple[str, int], ...]


def frames_of(path: Path) -> list[SegFrame]:
    """Every frame of a SEG, where it says that it lies."""
    data = pydicom.dcmread(path)
    shared = data.SharedFunctionalGroupsSequence[0]
    along_row, down = np.reshape(
        shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)
    ).astype(float)
    rows_mm, columns_mm = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    y, x = np.mgrid[: data.Rows, : data.Columns]
    steps = x[..., None] * columns_mm * along_row + y[..., None] * rows_mm * down
    pixels = data.pixel_array.reshape(-1, data.Rows, data.Columns)
    found = []
    for mask, group in zip(pixels, data.PerFrameFunctionalGroupsSequence, strict=True):
        whose = group if "SegmentIdentificationSequence" in group else shared
        corner = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        sources = tuple(
            (str(item.ReferencedSOPInstanceUID), int(item.get("ReferencedFrameNumber", 1)))
            for item in group.DerivationImageSequence[0].SourceImageSequence
        )
        number = int(whose.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        found.append(SegFrame(number, corner + steps, mask > 0, sources))
    return found


def wrong_pixels(path: Path, truth: Truth) -> int:
    """How many pixels of a SEG say something else than the truth at their places."""
    return sum(int((f.mask != (truth(f.world_mm) == f.segment)).sum()) for f in frames_of(path))
