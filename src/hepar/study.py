"""What travels through the pipeline: the state of a case is its type.

Everything is frozen. Arrays are `(z, y, x)`, HU are int16, world positions are LPS mm, and a volume
always carries its grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hepar.geometry import Box, Grid, Lattice
from hepar.lesion_evidence import ImagingFeature, Record, TypeEvidence


class Phase(StrEnum):
    """A contrast phase."""

    NC = "NC"
    ART = "ART"
    PV = "PV"
    DL = "DL"

    @property
    def long_name(self) -> str:
        """The phase in a radiologist's words."""
        return _LONG_NAMES[self]


_LONG_NAMES = {
    Phase.NC: "non-contrast",
    Phase.ART: "arterial",
    Phase.PV: "portal venous",
    Phase.DL: "delayed",
}

PHASE_ORDER = (Phase.NC, Phase.ART, Phase.PV, Phase.DL)
REFERENCE_ORDER = (Phase.PV, Phase.DL, Phase.ART, Phase.NC)

LESION_TYPES = ("hcc", "icc", "metastasis", "hemangioma", "fnh", "cyst", "calcification", "other")

BACKGROUND, LIVER, TUMOR = 0, 1, 2


@dataclass(frozen=True)
class Volume:
    """A volume and where it lies.

    Attributes:
        array: `(z, y, x)`; HU as int16, or labels.
        grid: positions of its voxels.
    """

    array: NDArray[Any]
    grid: Grid

    def __post_init__(self) -> None:
        if tuple(self.array.shape) != self.grid.shape:
            raise ValueError(f"array {self.array.shape} is not on its grid {self.grid.shape}")


@dataclass(frozen=True)
class SeriesVerdict:
    """What became of one series of the source, and why.

    Attributes:
        series_id: short id, unique in the study.
        source: file or folder name, never an absolute path.
        status: `usable`, `repaired` (without loss), `unused` (e.g. a localizer) or `refused`.
        reason: one sentence.
        code: error or warning code, if any.
        description: SeriesDescription or file name.
        n_files: files that belong to it.
        notes: everything noticed or repaired, `W_CODE: words`; `code` is the first of them.
    """

    series_id: str
    source: str
    status: Literal["usable", "repaired", "unused", "refused"]
    reason: str
    code: str | None = None
    description: str = ""
    n_files: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Frames:
    """The images of a DICOM series where they lie, one a slice, z index ascending.

    Attributes:
        files: source file of each; one file again and again for an enhanced CT.
        numbers: frame in its file, from 0.
        origins_mm: `(n, 3)` LPS of the first pixel of each.
        axes: `(3, 3)`, columns: normal, down the rows, along the columns.
        pixel_mm: between rows, between columns.
        shape: rows, columns.
        on_grid: whether the volume holds them as they are; else it was resampled (tilt, uneven).
    """

    files: tuple[str, ...]
    numbers: tuple[int, ...]
    origins_mm: NDArray[np.float64]
    axes: NDArray[np.float64]
    pixel_mm: tuple[float, float]
    shape: tuple[int, int]
    on_grid: bool = True


@dataclass(frozen=True)
class Series:
    """A usable series.

    Attributes:
        volume: HU on the scanner's own voxels; on a regular grid around them where they form none.
        verdict: how it was read.
        tags: DICOM keywords (or `FileName`) with their text: evidence for the phase.
        assigned: the phase the user gave, if any.
        frames: the images it was made of; None for NIfTI, and for DICOM whose archive is closed.
        lattice: the file's own voxels where their axes are not orthogonal; `volume` then lies on
            an orthogonal grid around them.
    """

    volume: Volume
    verdict: SeriesVerdict
    tags: Mapping[str, str] = field(default_factory=dict)
    assigned: Phase | None = None
    frames: Frames | None = None
    lattice: Lattice | None = None


@dataclass(frozen=True)
class Study:
    """Every series of the source that can be used, and a verdict on all of them."""

    series: tuple[Series, ...]
    verdicts: tuple[SeriesVerdict, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class PhaseReading:
    """Which series is which phase, and why.

    Attributes:
        phase: what it is taken for.
        confidence: 0 to 1; 1 where the user said so.
        reason: one sentence of everything that spoke for and against it.
        series_id: the series.
        uncertain: evidence disagrees, or there is little of it.
        organ_hu: HU of the organs found in the image, by name (`infer.organ_hu.MEASURES`).
    """

    phase: Phase
    confidence: float
    reason: str
    series_id: str
    uncertain: bool = False
    organ_hu: Mapping[str, float] = field(default_factory=dict)


def reference_phase(phases: Mapping[Phase, Any] | tuple[Phase, ...]) -> Phase:
    """The phase the outputs lie on: PV, else DL, else ART, else NC."""
    for phase in REFERENCE_ORDER:
        if phase in phases:
            return phase
    raise ValueError("a study without phases has no reference")


@dataclass(frozen=True)
class PhasedStudy:
    """One volume a phase; `harmonize` returns the same type on axial grids.

    Attributes:
        volumes: HU int16 by phase.
        readings: why each series is that phase.
        study: where it came from.
        source_grids: grid of each phase's series as read, before any reorientation.
        warnings: codes, each with a sentence: `W_CODE: words`.
        drawn_on: the phase that given masks were drawn on; None without such masks.
    """

    volumes: Mapping[Phase, Volume]
    readings: tuple[PhaseReading, ...]
    study: Study
    source_grids: Mapping[Phase, Grid]
    warnings: tuple[str, ...] = ()
    drawn_on: Phase | None = None

    @property
    def reference(self) -> Phase:
        """The phase the outputs lie on."""
        return self.drawn_on or reference_phase(self.volumes)


@dataclass(frozen=True)
class RegistrationRecord:
    """How one phase came onto the reference grid.

    Attributes:
        phase: that was moved.
        method: `reference`, `identity`, `rigid`, `affine`, `convexadam` or `rejected`; with
            `+liver` where the liver was then followed alone.
        similarity_before, similarity_after: similarity to the reference by world coordinates
            alone, and after the method; higher is better.
        mean_displacement_mm: over the body.
        folding_fraction: share of the body where the map folds.
        coverage: share of the reference body inside the phase's field of view.
        reason: one sentence.
        liver_overlap_before, liver_overlap_after: Dice of the coarse livers of both scans, where
            both see; None without a liver model.
        liver_coverage: share of the reference's liver inside the phase's field of view.
    """

    phase: Phase
    method: str
    similarity_before: float
    similarity_after: float
    mean_displacement_mm: float
    folding_fraction: float
    coverage: float
    reason: str
    liver_overlap_before: float | None = None
    liver_overlap_after: float | None = None
    liver_coverage: float | None = None


@dataclass(frozen=True)
class AlignedStudy:
    """Every phase on the (axial) grid of the reference phase.

    Attributes:
        volumes: HU int16 by phase, one shared grid; a phase that shows another place than the
            reference is left out.
        reference: the phase whose grid it is.
        phased: where it came from.
        registration: one record a phase, also of those left out.
        warnings: `W_CODE: words`.
    """

    volumes: Mapping[Phase, Volume]
    reference: Phase
    phased: PhasedStudy
    registration: tuple[RegistrationRecord, ...]
    warnings: tuple[str, ...] = ()

    @property
    def grid(self) -> Grid:
        """The shared grid."""
        return self.volumes[self.reference].grid

    @property
    def source_grid(self) -> Grid:
        """The reference series' grid as read: where output masks lie."""
        return self.phased.source_grids[self.reference]


@dataclass(frozen=True)
class LiverCase:
    """A patient whose liver was found, or given.

    Attributes:
        aligned: the registered phases.
        liver: `(z, y, x)` bool on the reference grid; includes tumors inside it.
        box: the liver with a margin.
        liver_ml: its volume.
        warnings: `W_CODE: words`.
        given: how a mask that somebody gave was read; empty where the liver was found.
    """

    aligned: AlignedStudy
    liver: NDArray[np.bool_]
    box: Box
    liver_ml: float
    warnings: tuple[str, ...] = ()
    given: str = ""


class Lesion(Record):
    """One lesion in millimeters and HU.

    `hu` and `liver_hu` map a phase name to a mean (lesion) and a median (liver parenchyma).
    `wash_in_hu` is ART - NC; `washout_hu` is the fall of the contrast to the liver from ART to DL,
    or to PV where DL is absent. `confidence` is the chance that it is real, None of a lesion that
    was given and not found. `features` is empty where they were not looked for.
    """

    id: int
    volume_ml: float
    long_axis_mm: float
    short_axis_mm: float
    centroid_mm: tuple[float, float, float]
    box_zyx: tuple[tuple[int, int, int], tuple[int, int, int]]
    hu: dict[str, float]
    hu_std: dict[str, float]
    liver_hu: dict[str, float]
    wash_in_hu: float | None = None
    washout_hu: float | None = None
    confidence: float | None
    features: tuple[ImagingFeature, ...] = ()


@dataclass(frozen=True)
class LesionMap:
    """The tumors of a case.

    Attributes:
        probability: `(z, y, x)` float32 on the liver box: tumor; None where tumors were given.
        label: uint8 on the reference grid: 0 background, 1 liver, 2 tumor.
        instances: uint16 on the reference grid: 0, or the lesion's id.
        lesions: measurements, by id.
        tumor_burden: tumor volume / liver volume.
        warnings: `W_CODE: words`.
        uncertainty: `(z, y, x)` float32 on the liver box: the network's doubt, 1 - M_conf; None
            when it was not asked for, and for a method without probabilities.
        uncertainty_before: the same before the network refined its answer; None where it does not.
        types: what a typed system saw of the types of the lesions; None from other systems.
        given: how a mask that somebody gave was read; empty where the tumors were found.
    """

    probability: NDArray[np.float32] | None
    label: NDArray[np.uint8]
    instances: NDArray[np.uint16]
    lesions: tuple[Lesion, ...]
    tumor_burden: float
    warnings: tuple[str, ...] = ()
    uncertainty: NDArray[np.float32] | None = None
    uncertainty_before: NDArray[np.float32] | None = None
    types: TypeEvidence | None = None
    given: str = ""


class LesionDiagnosis(Record):
    """What one lesion probably is; `label` is `uncertain` when the classifier abstains."""

    lesion_id: int
    probabilities: dict[str, float]
    label: str
    abstained: bool
    reason: str = ""


class Diagnosis(Record):
    """What the lesions and the patient probably have; `groups`: malignant and benign types."""

    lesions: tuple[LesionDiagnosis, ...]
    patient: dict[str, float]
    groups: dict[str, float] = Field(default_factory=dict)
    method: Literal["curve", "network"] = "curve"


class PhaseFinding(Record):
    """A phase as reported; see `PhaseReading`."""

    phase: str
    series_id: str
    confidence: float
    reason: str
    uncertain: bool = False
    organ_hu: dict[str, float] = Field(default_factory=dict)


class RegistrationFinding(Record):
    """A registration as reported; see `RegistrationRecord`."""

    phase: str
    method: str
    similarity_before: float
    similarity_after: float
    mean_displacement_mm: float
    folding_fraction: float
    coverage: float
    reason: str
    liver_overlap_before: float | None = None
    liver_overlap_after: float | None = None
    liver_coverage: float | None = None


class Findings(Record):
    """Everything that was found: the content of `findings.json`; `given`: masks that were not."""

    schema_version: Literal["1"] = "1"
    reference: str
    phases: tuple[PhaseFinding, ...]
    registration: tuple[RegistrationFinding, ...]
    liver_ml: float
    tumor_ml: float
    tumor_burden: float
    lesions: tuple[Lesion, ...]
    diagnosis: Diagnosis
    warnings: tuple[str, ...]
    given: dict[str, str] = Field(default_factory=dict)
    provenance: dict[str, Any]
