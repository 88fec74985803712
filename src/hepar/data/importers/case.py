"""What an importer says of a case: where its images and its truth lie, before any voxel is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hepar.errors import InputRefused
from hepar.study import Phase, reference_phase

Role = Literal["liver", "tumor", "cyst", "ignore", "doubtful"]


@dataclass(frozen=True)
class Mask:
    """Where one structure is drawn.

    Attributes:
        path: a NIfTI file, or a folder of DICOM slices.
        values: voxels that belong to it; empty for all that are not 0.
        known: every value that the file may hold; empty for any. A value beyond them is a
            structure that nobody named, and the case is refused.
        name: of the structure.
    """

    path: Path
    values: tuple[int, ...] = ()
    known: tuple[int, ...] = ()
    name: str = ""


Truth = Mapping[Role, tuple[Mask, ...]]
"""Masks by what they mean; each role is the union of its masks.

`liver` and `tumor` are the truth; a role that is there with no mask says that there is none of it.
`cyst` lies in the liver and is ignored in scoring, `ignore` is ignored wherever it lies, and
`doubtful` (nobody knows what it is) where it lies in the liver.
"""


@dataclass(frozen=True)
class ImportedCase:
    """One case as found.

    Attributes:
        case_id: unique in its source, and the name of a folder.
        patient_id: cases of one patient share it.
        images: NIfTI file or folder of one DICOM series, by phase.
        truth: masks on the reference phase.
        phase_truth: masks on other phases, where they were drawn too.
        instances: a file of lesion ids.
        lesion_masks: whether each tumor mask holds one lesion, or, where its name has no number,
            lesions that are told apart by connectivity.
        lesion_types: type by lesion id, where known.
        metadata: further columns of the cohort.
        warnings: `W_CODE: words`.
    """

    case_id: str
    patient_id: str
    images: Mapping[Phase, Path]
    truth: Truth
    phase_truth: Mapping[Phase, Truth] = field(default_factory=dict)
    instances: Path | None = None
    lesion_masks: bool = False
    lesion_types: Mapping[int, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def reference(self) -> Phase:
        """The phase that the truth lies on."""
        return reference_phase(tuple(self.images))


@dataclass(frozen=True)
class RefusedCase:
    """One case that was found and cannot be used."""

    case_id: str
    error: InputRefused


Importer = Callable[[Path, Path], Iterator[ImportedCase | RefusedCase]]
"""`(source, work) -> cases`, one after another.

What is unpacked to the folder `work` lives until the next case is asked for. A source that is not
of the importer's layout at all is an `InputRefused`.
"""


def phase_assumed(what: str) -> str:
    """The warning that a phase was assumed."""
    return f"W_PHASE_ASSUMED: nothing says which phase {what} is; it is taken as portal venous"
