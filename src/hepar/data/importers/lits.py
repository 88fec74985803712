"""LiTS: `volume-N.nii` and `segmentation-N.nii`, at any depth (batches, parts, one flat folder).

Known of these files: 20 training volumes, which are the patients of 3D-IRCADb-01 (the volumes 28 to
47; another count says 28 to 44 and 46 to 48), have an identity affine that says nothing of their
voxels; MSD Task03_Liver holds the same scans with the true one. The phase is nowhere said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hepar.data.importers.case import ImportedCase, Mask, RefusedCase, phase_assumed
from hepar.geometry import Grid
from hepar.io.dicom_scan import walk_files
from hepar.io.refusal import refuse
from hepar.study import Phase

_NAME = re.compile(r"^(?P<kind>volume|segmentation|test-volume)-(?P<number>\d+)\.nii(\.gz)?$", re.I)
_KNOWN = (0, 1, 2)


def find_cases(source: Path, work: Path) -> Iterator[ImportedCase | RefusedCase]:
    """The cases below a folder (an `Importer`); those without a segmentation are refused.

    Raises:
        InputRefused: `E_CASE_FILES`, no file is named so.
    """
    found: dict[tuple[str, int], dict[str, list[Path]]] = {}
    for path in walk_files(source):
        if match := _NAME.match(path.name):
            kind = match["kind"].lower()
            group = "test-volume" if kind == "test-volume" else "volume"
            case = found.setdefault((group, int(match["number"])), {})
            case.setdefault(kind, []).append(path)
    if not found:
        raise refuse(
            "E_CASE_FILES",
            f"{source.name} holds no volume-N.nii and segmentation-N.nii.",
            "prepare",
        )
    for (group, number), files in sorted(found.items(), key=lambda item: (item[0][0], item[0][1])):
        name = f"{group}-{number}"
        twice = [paths[0].name for paths in files.values() if len(paths) > 1]
        if twice:
            error = refuse("E_CASE_FILES", f"{twice[0]} is there more than once.", "prepare")
            yield RefusedCase(name, error)
        elif group == "test-volume" or "segmentation" not in files:
            yield RefusedCase(name, refuse("E_NO_TRUTH", f"{name} has no segmentation.", "prepare"))
        elif "volume" not in files:
            text = f"segmentation-{number} has no volume."
            yield RefusedCase(name, refuse("E_CASE_FILES", text, "prepare"))
        else:
            label = files["segmentation"][0]
            yield ImportedCase(
                case_id=name,
                patient_id=name,
                images={Phase.PV: files["volume"][0]},
                truth={
                    "liver": (Mask(label, (1,), _KNOWN, "liver"),),
                    "tumor": (Mask(label, (2,), _KNOWN, "tumor"),),
                },
                warnings=(phase_assumed(name),),
            )


def is_placeholder(grid: Grid) -> bool:
    """Whether a grid is that of an identity affine, which no scanner writes.

    Voxels are then exactly 1 mm in every direction, and the first of them lies at 0, 0, 0.
    """
    straight = np.isin(np.abs(grid.matrix), (0.0, 1.0)).all()
    return bool(straight) and grid.spacing_mm == (1.0, 1.0, 1.0) and not any(grid.origin_mm)
