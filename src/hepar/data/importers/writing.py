"""A prepared case on disk, and the tables of the cohort it belongs to."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hepar.data.cohort import MASK_COLUMNS, PHASE_COLUMNS
from hepar.data.importers.case import ImportedCase
from hepar.data.importers.loading import LoadedCase
from hepar.data.lesion_table import LESION_COLUMNS
from hepar.errors import InputRefused
from hepar.io.atomic import atomic_path
from hepar.io.nifti import write_nifti
from hepar.io.spreadsheet import read_table
from hepar.study import TUMOR, Volume

COLUMNS = (
    *("case_id", "patient_id", *PHASE_COLUMNS.values(), "reference", *MASK_COLUMNS, "ignore"),
    *("split", "fold", "tumor_free", "alignment"),
)
# What a table of patients may say of them; every other column of the cohort is found out.
_SAYABLE = ("case_id", "patient_id", "split")


def folder_name(case_id: str) -> str:
    """A case id as the name of a folder on any system."""
    return re.sub(r"[^\w.-]+", "_", case_id).strip(".") or "case"


def write_case(folder: Path, case: ImportedCase, loaded: LoadedCase) -> dict[str, str]:
    """Write the voxels of a case as NIfTI.

    Args:
        folder: of the cohort; the case gets one of its own in it.
        case: for its name and metadata.
        loaded: its voxels.

    Returns:
        The case's row of `cohort.csv`, without a fold.
    """
    place = folder / folder_name(case.case_id)
    place.mkdir()
    grid = loaded.images[loaded.reference].grid
    files = {PHASE_COLUMNS[phase]: volume for phase, volume in loaded.images.items()}
    files["label"] = Volume(loaded.label, grid)
    if loaded.instances is not None:
        files["instances"] = Volume(loaded.instances, grid)
    if loaded.ignore is not None:
        files["ignore"] = Volume(loaded.ignore.astype(np.uint8), grid)
    row = dict(case.metadata)
    for column, volume in files.items():
        write_nifti(place / f"{column}.nii.gz", volume.array, volume.grid)
        row[column] = f"{place.name}/{column}.nii.gz"
    return row | {
        "case_id": case.case_id,
        "patient_id": case.patient_id,
        "reference": str(loaded.reference),
        "tumor_free": str(int(not (loaded.label == TUMOR).any())),
    }


def write_tables(
    folder: Path, rows: Sequence[Mapping[str, str]], lesions: Sequence[Mapping[str, str]]
) -> None:
    """Write `cohort.csv` and, where types are known, `lesions.csv`."""
    further = sorted({column for row in rows for column in row} - set(COLUMNS))
    _write(folder / "cohort.csv", (*COLUMNS, *further), rows)
    if lesions:
        _write(folder / "lesions.csv", LESION_COLUMNS, lesions)


def _write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, fieldnames=columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def read_patients(source: Path) -> dict[str, dict[str, str]]:
    """What `patients.csv` beside the cases says of each.

    Args:
        source: folder that may hold the table; its column `case_id`, else `patient_id`, names the
            case.

    Returns:
        Cells by column, by case; empty where there is no table.

    Raises:
        InputRefused: `E_COHORT`, the table cannot be read, names a case twice, or has a column
            that is found out and not told (`label`, `fold`, ...).
    """
    path = source / "patients.csv"
    if not path.is_file():
        return {}
    try:
        columns, rows = read_table(path)
        key = next((name for name in ("case_id", "patient_id") if name in columns), None)
        if key is None:
            raise ValueError("column patient_id is missing")
        taken = sorted(set(columns) & (set(COLUMNS) - set(_SAYABLE)))
        if taken:
            raise ValueError(f"column {taken[0]} is written by prepare and cannot be given")
        found: dict[str, dict[str, str]] = {}
        for line, row in enumerate(rows, start=2):
            if not row[key] or row[key] in found:
                raise ValueError(f"line {line}: {key} {row[key]!r} is empty or there twice")
            found[row[key]] = {name: cell for name, cell in row.items() if cell}
    except ValueError as error:
        raise InputRefused(
            "E_COHORT", "prepare", f"patients.csv: {error}.", "Correct the table of patients."
        ) from None
    return found
