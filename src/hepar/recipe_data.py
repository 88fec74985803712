"""What a recipe says of its data: where patches come from, and how they are drawn. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
Spacing = tuple[Positive, Positive, Positive]


class Strict(BaseModel):
    """Frozen; unknown keys, wrong types and infinities are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class PhaseDropout(Strict):
    """Which phases a training sample keeps.

    Attributes:
        p: probability that phases are dropped from a sample.
        keep_reference: the reference phase (PV, else DL, else ART, else NC) is never dropped, as
            in the papers; otherwise every non-empty subset is equally likely.
    """

    p: Fraction = 0.0
    keep_reference: bool = True


class LiverMask(Strict):
    """How the liver mask that a tumor system sees differs from the truth.

    Attributes:
        bias_mm: mean outward shift of the border; negative erodes.
        jitter_mm: standard deviation of the border's smooth random shift; 0 with bias 0 is truth.
        length_mm: correlation length of that shift.
    """

    bias_mm: float = 0.0
    jitter_mm: NonNegative = 0.0
    length_mm: Positive = 20.0


class PatchSettings(Strict):
    """How patches are drawn from prepared cases.

    Attributes:
        samples_per_case: patches drawn from a painted or loaded case before the next one.
        lesion_fraction: share of the patches that must hold tumor, where a case has any; None takes
            slices of liver as they come (2D).
        background_fraction: share of the patches from slices without liver (2D), where a case has
            any.
        foreground_fraction: 3D: share of the patches that hold a voxel of a class, each class that
            the case has being as likely, the others lying anywhere (nnU-Net's rule); None goes by
            lesion_fraction and stays with the liver. Of a system that tells types of lesions apart
            types are such classes, and nothing else (PLAN's rule).
        type_balance: of the patches around a lesion, each type that the training cases have is as
            likely (`data.type_balance`); 3D systems that tell types apart.
        ignore_lesions_below_voxels: smaller lesions of training cases, at the working spacing, are
            ignored; 3D systems that tell types apart.
        phase_dropout: see `PhaseDropout`.
        liver_mask: see `LiverMask`.
    """

    samples_per_case: Count = 16
    lesion_fraction: Fraction | None = 0.5
    background_fraction: Fraction = 0.0
    foreground_fraction: Fraction | None = None
    type_balance: bool = False
    ignore_lesions_below_voxels: Annotated[int, Field(ge=0)] = 0
    phase_dropout: PhaseDropout = PhaseDropout()
    liver_mask: LiverMask = LiverMask()


class PhantomTumorData(PatchSettings):
    """Liver boxes of phantom patients, painted once and kept.

    Attributes:
        train_patients: anatomies in the training bank.
        validation_patients: held-out anatomies; their seeds do not depend on train_patients.
        population: key of `phantom.population.POPULATIONS`.
        seed_base: anatomy seeds are seed_base + 0, 1, 2, ...
        spacing_mm: (z, y, x); None takes the system's.
        paints: scans painted of each training anatomy, among which epochs take turns; 0 scans
            every patient anew in every epoch, from the bank.
        bank: file of anatomies (`hepar phantom --formats bank`) instead of drawing them: training's
            first, then validation's, at their own spacing. A cohort's bank holds its test patients
            too: write one of other seeds to train on.
        anatomies: folders of real patients (a scan and a subfolder of organ masks) whose shapes are
            deformed, given lesions and painted; their scans' HU are not used.
        anatomy_share: share of the training patients made of them, where there are any.
        thick_slices: share of scans with slices two to four times as thick and far apart.
        misalignment_mm: between phases, inside the painted scan.
    """

    kind: Literal["phantom"] = "phantom"
    train_patients: Count = 120
    validation_patients: Count = 16
    population: str = "general"
    seed_base: Annotated[int, Field(ge=0)] = 0
    spacing_mm: Spacing | None = None
    paints: Annotated[int, Field(ge=0)] = 2
    bank: Path | None = None
    anatomies: tuple[Path, ...] = ()
    anatomy_share: Fraction = 0.25
    thick_slices: Fraction = 0.0
    misalignment_mm: NonNegative = 0.0

    @model_validator(mode="after")
    def _one_way(self) -> PhantomTumorData:
        if self.bank is not None and self.anatomies:
            raise ValueError("give a bank or anatomies, not both: a bank holds all its patients")
        return self


class CohortData(PatchSettings):
    """Patients on disk.

    Attributes:
        path: `cohort.csv`.
        fold: patients of this fold are held out; None holds out those whose `split` is
            `validation`.
        margin_mm: kept around the liver; None keeps the whole field.
    """

    kind: Literal["cohort"] = "cohort"
    path: Path
    fold: Annotated[int, Field(ge=0)] | None = None
    margin_mm: NonNegative | None = 12.0


class OrganData(Strict):
    """Whole-abdomen volumes with organ labels, for the liver stage.

    Attributes:
        anatomies: folders of real patients (a scan and a subfolder of organ masks), to be deformed
            and recolored; may be empty.
        variants: domes and vessel trees made of each of them.
        anatomy_share: share of the samples that show a real anatomy, where there is one.
        recolor_share: share of those that keep the scan's texture; the others are painted.
        wild_share: share of the samples whose soft organs have HU in any order.
        phantoms: procedural anatomies.
        phantom_shape, phantom_spacing_mm: their grid (z, y, x).
        validation_phantoms, validation_warps: held-out cases of either kind.
        epoch_samples: samples called an epoch; none ever repeats.
        seed_base: phantom seeds are seed_base + 0, 1, 2, ...; validation seeds follow training's.
    """

    kind: Literal["organ"] = "organ"
    anatomies: tuple[Path, ...] = ()
    variants: Count = 16
    anatomy_share: Fraction = 0.65
    recolor_share: Fraction = 0.6
    wild_share: Fraction = 0.15
    phantoms: Annotated[int, Field(ge=0)] = 64
    phantom_shape: tuple[Count, Count, Count] = (80, 80, 96)
    phantom_spacing_mm: Spacing = (4.0, 4.0, 4.0)
    validation_phantoms: Annotated[int, Field(ge=0)] = 4
    validation_warps: Annotated[int, Field(ge=0)] = 6
    epoch_samples: Count = 1000
    seed_base: int = 0

    @model_validator(mode="after")
    def _something(self) -> OrganData:
        if not self.anatomies and self.phantoms == 0:
            raise ValueError("give anatomies, phantoms, or both")
        return self


DataSettings = Annotated[PhantomTumorData | OrganData | CohortData, Field(discriminator="kind")]
