"""Synthetic patients on disk: NIfTI, DICOM or plain arrays, with their truth and a cohort table.

Layout: `CASE/{nc,art,pv,dl}.nii.gz`, `CASE/dicom/<number>-<phase>/`, `CASE/arrays.safetensors`,
`CASE/{label,instances}.nii.gz`; `cohort.csv` and `lesions.csv` beside the cases.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save

from hepar.geometry import Grid
from hepar.io.atomic import atomic_path
from hepar.io.dicom_write import write_dicom_series
from hepar.io.nifti import write_nifti
from hepar.phantom.anatomy import Anatomy, anatomy
from hepar.phantom.scanner import Painted, paint
from hepar.study import PHASE_ORDER, Phase, Volume

Format = Literal["nifti", "dicom", "arrays"]

# Left between the phases of a written patient, for the registration stage to find.
MISALIGNMENT_MM = 2.0

_DESCRIPTIONS = {
    Phase.NC: "Abdomen native",
    Phase.ART: "Abdomen arterial",
    Phase.PV: "Abdomen portal venous",
    Phase.DL: "Abdomen delayed",
}
_FIELDS = ("case_id", "patient_id", "nc", "art", "pv", "dl", "reference", "label", "instances")


def case_name(seed: int) -> str:
    """The case_id of a phantom."""
    return f"phantom-{seed:06d}"


def grid_of(patient: Anatomy) -> Grid:
    """Where an anatomy's voxels lie; axial, its own frame read as LPS."""
    z, y, x = patient.origin_mm
    return Grid.axial(patient.tissue.shape, patient.spacing_mm, (x, y, z))


def write_patients(
    out: Path,
    seeds: Iterable[int],
    *,
    formats: Sequence[Format] = ("nifti",),
    progress: Callable[[str], None] = lambda message: None,
) -> Path:
    """Write one patient a seed and the tables of all of them.

    Args:
        out: folder.
        seeds: one a patient.
        formats: what to write of the images; the truth is always NIfTI.
        progress: told what is being made.

    Returns:
        The path of `cohort.csv`.
    """
    cohort: list[dict[str, str]] = []
    lesions: list[dict[str, str]] = []
    for seed in seeds:
        progress(f"phantom {seed}")
        patient = anatomy(seed)
        scan = paint(patient, seed, misalignment_mm=MISALIGNMENT_MM)
        case_id = case_name(seed)
        files = write_patient(out / case_id, patient, scan, case_id=case_id, formats=formats)
        row = {name: str(Path(case_id) / file) for name, file in files.items()}
        cohort.append({"case_id": case_id, "patient_id": case_id, "reference": "PV", **row})
        lesions += [
            {"case_id": case_id, "lesion_id": str(s.id), "type": s.type} for s in patient.lesions
        ]
    _write_table(out / "cohort.csv", _FIELDS, cohort)
    _write_table(out / "lesions.csv", ("case_id", "lesion_id", "type"), lesions)
    return out / "cohort.csv"


def write_patient(
    folder: Path,
    patient: Anatomy,
    scan: Painted,
    *,
    case_id: str,
    formats: Sequence[Format],
) -> dict[str, str]:
    """Write one patient.

    Returns:
        Column of `cohort.csv` -> path inside `folder`.
    """
    grid = grid_of(patient)
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, str] = {}
    for number, phase in enumerate(PHASE_ORDER, start=1):
        if phase not in scan.hu:
            continue
        column = phase.lower()
        if "dicom" in formats:
            files[column] = f"dicom/{number}-{column}"
            write_dicom_series(
                folder / files[column],
                Volume(scan.hu[phase], grid),
                description=_DESCRIPTIONS[phase],
                series_number=number,
                patient_id=case_id,
                acquisition_time=_clock(scan.times_s[phase]),
                contrast="" if phase is Phase.NC else "IODINE",
                uid_seed=case_id,
            )
        if "nifti" in formats:
            files[column] = f"{column}.nii.gz"
            write_nifti(folder / files[column], scan.hu[phase], grid)
    files |= {"label": "label.nii.gz", "instances": "instances.nii.gz"}
    write_nifti(folder / files["label"], scan.label, grid)
    write_nifti(folder / files["instances"], scan.instances, grid)
    if "arrays" in formats:
        _write_arrays(folder / "arrays.safetensors", scan, grid)
    return files


def _write_arrays(path: Path, scan: Painted, grid: Grid) -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {
        phase.lower(): np.ascontiguousarray(hu) for phase, hu in scan.hu.items()
    }
    arrays |= {"label": scan.label, "instances": scan.instances}
    arrays["spacing_mm"] = np.asarray(grid.spacing_mm)
    arrays["origin_mm"] = np.asarray(grid.origin_mm)
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(arrays))


def _clock(seconds: float) -> str:
    """A time of day for a scan: injection at noon, the unenhanced scan two minutes before."""
    after = round(seconds) if seconds > 0 else -120
    total = 12 * 3600 + after
    return f"{total // 3600:02d}{total // 60 % 60:02d}{total % 60:02d}"


def _write_table(path: Path, fields: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=fields, restval="")
        writer.writeheader()
        writer.writerows(rows)
