"""Synthetic patients on disk: NIfTI, DICOM or plain arrays, with their truth and a cohort table.

Layout: `CASE/{nc,art,pv,dl}.nii.gz`, `CASE/dicom/<number>-<phase>/`, `CASE/stripped/<number>/`
(DICOM whose headers do not tell the phase), `CASE/arrays.safetensors`,
`CASE/{liver,label,instances}.nii.gz`; beside the cases `cohort.csv`, `lesions.csv` and, where
asked for, `anatomies.bank`, in the order of the table.

Columns of `cohort.csv` beyond the usual: `split`, `primary` (the leading disease, where it was
decided beforehand), `tumor_free` (0 or 1), `scanner`, `phases`, seconds since the start of the
injection of each phase (`nc_s` ...), and `seed` and `misalignment_mm`, with which
`paint(anatomy, seed, ...)` gives the images again. The volume of a lesion is that of its true
voxels, from which the reader's outline in `instances.nii.gz` differs by about 1 mm; its diameter is
that of a sphere of this volume.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save

from hepar.data.phantom_bank import write_bank
from hepar.data.phantom_cohort import (
    MISALIGNMENT_MM,
    Enrolled,
    case_name,
    draw,
    enroll,
    single,
    visit,
)
from hepar.data.processes import in_processes
from hepar.geometry import Grid
from hepar.io.atomic import atomic_path
from hepar.io.dicom_write import write_dicom_series
from hepar.io.nifti import write_nifti
from hepar.phantom.anatomy import Anatomy
from hepar.phantom.scanner import Painted
from hepar.study import PHASE_ORDER, Phase, Volume

__all__ = [
    "MISALIGNMENT_MM",
    "Format",
    "case_name",
    "grid_of",
    "write_cohort",
    "write_patient",
    "write_patients",
]

Format = Literal["nifti", "dicom", "dicom-stripped", "arrays", "bank"]

_DESCRIPTIONS = {
    Phase.NC: "Abdomen native",
    Phase.ART: "Abdomen arterial",
    Phase.PV: "Abdomen portal venous",
    Phase.DL: "Abdomen delayed",
}
_PHASE_COLUMNS = tuple(phase.lower() for phase in PHASE_ORDER)
_COHORT_FIELDS = (
    *("case_id", "patient_id", *_PHASE_COLUMNS, "reference", "liver", "label", "instances"),
    *("split", "fold", "scanner", "tumor_free", "primary", "phases"),
    *(f"{column}_s" for column in _PHASE_COLUMNS),
    *("seed", "misalignment_mm"),
)
_LESION_FIELDS = ("case_id", "lesion_id", "type", "kind", "volume_ml", "diameter_mm")
_INJECTION = "120000"
_ORDER = 82


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
    """Write one patient a seed, in no split, and the tables of all of them.

    Args:
        out: folder.
        seeds: one a patient.
        formats: what to write; the truth beside images is always NIfTI. `bank` alone writes the
            anatomies and no image.
        progress: told what is being made.

    Returns:
        The path of `cohort.csv`.
    """
    return _write(out, [single(seed) for seed in seeds], formats, progress)


def write_cohort(
    out: Path,
    cohort: str,
    patients: int,
    *,
    seed: int = 0,
    formats: Sequence[Format] = ("nifti",),
    progress: Callable[[str], None] = lambda message: None,
    processes: int = 1,
) -> Path:
    """Write a cohort with its splits and folds; as `write_patients`.

    Args:
        out: folder.
        cohort: name in `phantom_cohort.PRESETS`.
        patients: how many.
        seed: number of the first.
        formats: what to write.
        progress: told what is being made.
        processes: that draw anatomies; the files do not depend on it.

    Raises:
        UsageError: E_RECIPE, as `enroll`.
    """
    return _write(out, enroll(cohort, patients, seed), formats, progress, processes)


@dataclass
class _Tables:
    cohort: list[dict[str, str]] = field(default_factory=list)
    lesions: list[dict[str, str]] = field(default_factory=list)


def _write(
    out: Path,
    roster: Sequence[Enrolled],
    formats: Sequence[Format],
    progress: Callable[[str], None],
    processes: int = 1,
) -> Path:
    tables = _Tables()
    drawn = _draw_all(roster, processes)
    bodies = _write_each(out, roster, drawn, formats, progress, tables)
    if "bank" in formats:
        write_bank(out / "anatomies.bank", bodies)
    else:
        for _ in bodies:
            pass
    _write_table(out / "cohort.csv", _COHORT_FIELDS, tables.cohort)
    _write_table(out / "lesions.csv", _LESION_FIELDS, tables.lesions)
    return out / "cohort.csv"


def _draw_all(roster: Sequence[Enrolled], processes: int) -> Iterator[Anatomy]:
    """The anatomies in order, a few of them in memory."""
    if processes == 1:
        yield from map(draw, roster)
        return
    yield from in_processes(draw, roster, processes, lambda patient: patient.case_id)


def _write_each(
    out: Path,
    roster: Sequence[Enrolled],
    drawn: Iterator[Anatomy],
    formats: Sequence[Format],
    progress: Callable[[str], None],
    tables: _Tables,
) -> Iterator[Anatomy]:
    """Write and tabulate patient after patient, handing each anatomy on."""
    for number, patient in enumerate(roster, start=1):
        progress(f"{patient.case_id} ({number} of {len(roster)})")
        body = next(drawn)
        files: dict[str, str] = {}
        scan: Painted | None = None
        if set(formats) != {"bank"}:
            scan, name = visit(patient, body), patient.case_id
            files = write_patient(out / name, body, scan, case_id=name, formats=formats)
        tables.cohort.append(_cohort_row(patient, body, scan, files))
        tables.lesions += _lesion_rows(patient.case_id, body)
        yield body


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
        Column of `cohort.csv` -> path inside `folder`; NIfTI before DICOM before stripped DICOM.
    """
    grid = grid_of(patient)
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, str] = {}
    # The number of a stripped series tells no more about its phase than its headers do.
    shuffled = np.random.default_rng([patient.texture_seed, _ORDER]).permutation(len(PHASE_ORDER))
    for number, phase in enumerate(PHASE_ORDER, start=1):
        if phase not in scan.hu:
            continue
        column, volume = phase.lower(), Volume(scan.hu[phase], grid)
        if "dicom-stripped" in formats:
            blind = int(shuffled[number - 1]) + 1
            files[column] = f"stripped/{blind}"
            _write_stripped(folder / files[column], volume, blind, case_id)
        if "dicom" in formats:
            files[column] = f"dicom/{number}-{column}"
            injected = phase is not Phase.NC
            write_dicom_series(
                folder / files[column],
                volume,
                description=_DESCRIPTIONS[phase],
                series_number=number,
                patient_id=case_id,
                acquisition_time=_clock(scan.times_s[phase]),
                contrast="IODINE" if injected else "",
                contrast_start=_INJECTION if injected else "",
                uid_seed=case_id,
            )
        if "nifti" in formats:
            files[column] = f"{column}.nii.gz"
            write_nifti(folder / files[column], scan.hu[phase], grid)
    truth = {"liver": scan.liver.astype(np.uint8), "label": scan.label, "instances": scan.instances}
    for column, mask in truth.items():
        files[column] = f"{column}.nii.gz"
        write_nifti(folder / files[column], mask, grid)
    if "arrays" in formats:
        _write_arrays(folder / "arrays.safetensors", scan, grid)
    return files


def _write_stripped(folder: Path, volume: Volume, number: int, case_id: str) -> None:
    write_dicom_series(
        folder,
        volume,
        description="",
        series_number=number,
        patient_id=case_id,
        uid_seed=f"{case_id} stripped",
        tags=False,
    )


def _write_arrays(path: Path, scan: Painted, grid: Grid) -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {
        phase.lower(): np.ascontiguousarray(hu) for phase, hu in scan.hu.items()
    }
    arrays |= {"label": scan.label, "instances": scan.instances}
    arrays["liver"] = scan.liver.astype(np.uint8)
    arrays["spacing_mm"] = np.asarray(grid.spacing_mm)
    arrays["origin_mm"] = np.asarray(grid.origin_mm)
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(arrays))


def _cohort_row(
    patient: Enrolled, body: Anatomy, scan: Painted | None, files: Mapping[str, str]
) -> dict[str, str]:
    row = {name: str(Path(patient.case_id) / file) for name, file in files.items()}
    if scan is not None:
        row |= {f"{phase.lower()}_s": f"{time:.1f}" for phase, time in scan.times_s.items()}
    return row | {
        "case_id": patient.case_id,
        "patient_id": patient.case_id,
        "reference": str(Phase.PV),
        "split": patient.split,
        "fold": "" if patient.fold is None else str(patient.fold),
        "scanner": patient.population.scanner,
        "tumor_free": str(int(not body.lesions)),
        "primary": patient.primary or "",
        "phases": " ".join(patient.phases),
        "seed": str(body.texture_seed),
        "misalignment_mm": repr(patient.misalignment_mm),
    }


def _lesion_rows(case_id: str, body: Anatomy) -> list[dict[str, str]]:
    voxels = np.bincount(body.instances.ravel(), minlength=256)
    rows = []
    for spec in body.lesions:
        volume_mm3 = float(voxels[spec.id]) * float(np.prod(body.spacing_mm))
        row = {"case_id": case_id, "lesion_id": str(spec.id), "type": spec.type, "kind": spec.kind}
        row["volume_ml"] = f"{volume_mm3 / 1000:.4f}"
        row["diameter_mm"] = f"{(6 * volume_mm3 / np.pi) ** (1 / 3):.2f}"
        rows.append(row)
    return rows


def _clock(seconds: float) -> str:
    """A time of day for a scan: injection at noon, the unenhanced scan two minutes before."""
    tenths = round(10 * seconds) if seconds > 0 else -1200
    total, tenth = divmod(12 * 36000 + tenths, 10)
    return f"{total // 3600:02d}{total // 60 % 60:02d}{total % 60:02d}.{tenth}"


def _write_table(path: Path, fields: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=fields, restval="")
        writer.writeheader()
        writer.writerows(rows)
