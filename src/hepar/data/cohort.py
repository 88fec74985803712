"""A cohort on disk: `cohort.csv` and its checks, and the voxels of a case.

One row a case: `case_id, patient_id`, a path for each phase there is (`nc, art, pv, dl`),
`reference`, `liver`, `label`, `instances`, `fold`; any other column is metadata. Paths are relative
to the file; masks lie on the reference phase's voxels. Rows whose `split` is `test` are in no fold:
nothing is trained or chosen on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from hepar.data.lesion_table import bad_lesions
from hepar.errors import InputRefused
from hepar.geometry import Grid, canonical
from hepar.io.spreadsheet import read_table
from hepar.study import PHASE_ORDER, TUMOR, Volume, reference_phase

PHASE_COLUMNS = {phase: phase.value.lower() for phase in PHASE_ORDER}
MASK_COLUMNS = ("liver", "label", "instances")
_KNOWN = ("case_id", "patient_id", *PHASE_COLUMNS.values(), "reference", *MASK_COLUMNS, "fold")
SAME_VOXELS = 0.1  # how far a mask may lie from its image, in voxels


@dataclass(frozen=True)
class CohortCase:
    """One row of a cohort.

    Attributes:
        case_id: unique.
        patient_id: cases of one patient share it, and their fold.
        images: path of each phase there is.
        reference: the phase that masks lie on.
        liver, label, instances: paths of masks, where given.
        fold: None where the cohort has no folds, and in the test split.
        metadata: all other columns.
    """

    case_id: str
    patient_id: str
    images: Mapping[str, Path]
    reference: str
    liver: Path | None
    label: Path | None
    instances: Path | None
    fold: int | None
    metadata: Mapping[str, str]


def read_cohort(path: Path, *, need: tuple[str, ...] = ()) -> tuple[CohortCase, ...]:
    """Read and check a cohort.

    Args:
        path: `cohort.csv`, comma or semicolon separated, as spreadsheets write it.
        need: further columns that every row must fill, e.g. `("label", "fold")`; of a row of the
            test split no fold is asked, and one that is given is not used.

    Raises:
        InputRefused: `E_COHORT`, naming the row and column of every problem; `E_LEAKAGE` where a
            patient is in two folds.
    """
    path = Path(path)
    rows = _rows(path, ("case_id", "patient_id", *need))
    problems: list[str] = []
    leaks = False
    cases: list[CohortCase] = []
    seen: dict[str, int] = {}
    folds: dict[str, tuple[int | None, int]] = {}
    for number, row in enumerate(rows, start=2):
        try:
            case = _case(row, path.parent, need)
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            continue
        if case.case_id in seen:
            first = seen[case.case_id]
            problems.append(f"line {number}: case_id {case.case_id} is already on line {first}")
        fold, first = folds.setdefault(case.patient_id, (case.fold, number))
        if fold != case.fold:
            leaks = True
            problems.append(
                f"line {number}: patient {case.patient_id} is in {_fold_name(case.fold)}, "
                f"but in {_fold_name(fold)} on line {first}"
            )
        seen.setdefault(case.case_id, number)
        cases.append(case)
    if not rows:
        problems.append("no cases")
    if problems:
        raise refuse_cohort(path, problems, "E_LEAKAGE" if leaks else "E_COHORT")
    return tuple(cases)


def _fold_name(fold: int | None) -> str:
    return "no fold" if fold is None else f"fold {fold}"


def refuse_cohort(path: Path, problems: list[str], code: str = "E_COHORT") -> InputRefused:
    """The refusal of a cohort, naming its first problems."""
    shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if problems[8:] else "")
    return InputRefused(
        code,
        "cohort",
        f"{path.name}: {shown}.",
        "Correct the table; paths are relative to it, and a patient belongs to one fold.",
    )


def _rows(path: Path, required: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        columns, rows = read_table(path)
    except ValueError as error:
        raise refuse_cohort(path, [str(error)]) from None
    problems = [f"column {name} is missing" for name in required if name not in columns]
    if not set(columns) & set(PHASE_COLUMNS.values()):
        problems.append("none of the columns nc, art, pv, dl is there")
    if problems:
        raise refuse_cohort(path, problems)
    return rows


def is_test(case: CohortCase) -> bool:
    """Whether a case belongs to the test split, which nothing may be trained or chosen on."""
    return case.metadata.get("split", "").lower() == "test"


def _case(row: Mapping[str, str], folder: Path, need: tuple[str, ...]) -> CohortCase:
    test = row.get("split", "").lower() == "test"
    for name in ("case_id", "patient_id", *need):
        if not row[name] and not (test and name == "fold"):
            raise ValueError(f"{name} is empty")
    files = {}
    for name in (*PHASE_COLUMNS.values(), *MASK_COLUMNS):
        if row.get(name):
            files[name] = folder / row[name]
            if not files[name].exists():
                raise ValueError(f"{name}: there is no {row[name]}")
    images = {p: files[column] for p, column in PHASE_COLUMNS.items() if column in files}
    if not images:
        raise ValueError("no phase has an image")
    reference = row.get("reference", "").upper() or reference_phase(tuple(images))
    if reference not in images:
        raise ValueError(f"the reference phase {reference} has no image")
    fold = "" if test else row.get("fold", "")
    if fold and not fold.isdigit():
        raise ValueError(f"fold {fold!r} is not a whole number")
    return CohortCase(
        case_id=row["case_id"],
        patient_id=row["patient_id"],
        images={str(phase): file for phase, file in images.items()},
        reference=str(reference),
        liver=files.get("liver"),
        label=files.get("label"),
        instances=files.get("instances"),
        fold=int(fold) if fold else None,
        metadata={key: value for key, value in row.items() if key not in _KNOWN},
    )


def read_case(
    case: CohortCase, phases: tuple[str, ...]
) -> tuple[dict[str, Volume], Volume, np.ndarray]:
    """Read a case's images, label and liver mask, all turned to axial orientation.

    Args:
        case: a labelled case.
        phases: images to read; the reference is always read, to check the masks against.

    Returns:
        Volumes by phase (those of `phases` that exist), the label, the liver (tumor included).

    Raises:
        InputRefused: `E_GRID_MISMATCH` or, for another shape, `E_LABEL_SHAPE`: a mask does not lie
            on the reference image's voxels; `E_LABEL_EMPTY`: an image of one value.
    """
    # A bare GPU machine trains on phantoms and has no NIfTI reader.
    from hepar.io.nifti import read_label, read_nifti

    if case.label is None:
        raise ValueError(f"case {case.case_id} has no label")
    images = {p: read_nifti(f) for p, f in case.images.items() if p in {*phases, case.reference}}
    if any(volume.array.min() == volume.array.max() for volume in images.values()):
        raise empty_case(case, "an image is blank")
    grid = images[case.reference].grid
    label = _on(read_label(case.label), grid, case, "label")
    liver = label.array > 0
    if case.liver is not None:
        mask = _on(read_label(case.liver), grid, case, "liver")
        liver = (mask.array > 0) | (label.array == TUMOR)
    turned = {p: Volume(*canonical(v.array, v.grid)) for p, v in images.items() if p in phases}
    return turned, Volume(*canonical(label.array, grid)), canonical(liver, grid)[0]


def read_instances(
    case: CohortCase, label: Volume, types: Mapping[int, str]
) -> Integer[np.ndarray, "z y x"]:
    """Read a case's lesion ids, which must be the tumor of its label and have a type each.

    Args:
        case: a case with instances.
        label: as `read_case` gives it.
        types: by lesion id, as `lesions.csv` says.

    Returns:
        Ids on the voxels of the label, 0 elsewhere.

    Raises:
        InputRefused: `E_LESION_TABLE`, naming the ids, or as `read_case`.
    """
    from hepar.io.nifti import read_label  # a bare GPU machine has no reader

    if case.instances is None:
        raise ValueError(f"case {case.case_id} has no instances")
    mask = read_label(case.instances)
    ids = _on(Volume(*canonical(mask.array, mask.grid)), label.grid, case, "instances").array
    found = set(np.unique(ids).tolist()) - {0}
    problems = [f"lesion {n} of instances has no row" for n in sorted(found - types.keys())]
    problems += [f"lesion_id {n} has no voxel in instances" for n in sorted(types.keys() - found)]
    tumor = label.array == TUMOR
    for there, text in (
        ((ids > 0) & ~tumor, "of instances lie outside the tumor of label"),
        ((ids == 0) & tumor, "of the tumor of label belong to no lesion of instances"),
    ):
        if there.any():
            problems.append(f"{int(there.sum())} voxels {text}")
    if problems:
        raise bad_lesions(f"case {case.case_id}: {'; '.join(problems)}", "cohort")
    return ids


def empty_case(case: CohortCase, problem: str) -> InputRefused:
    """The refusal of a case that shows nothing."""
    return InputRefused(
        "E_LABEL_EMPTY",
        "cohort",
        f"case {case.case_id}: {problem}.",
        "Leave the case out, or give an image that shows the liver and labels with 1 for liver.",
    )


def _on(mask: Volume, grid: Grid, case: CohortCase, name: str) -> Volume:
    """The mask, if it lies on the voxels of the reference image."""
    if not mask.grid.is_close(grid, tol_mm=SAME_VOXELS * min(grid.spacing_mm)):
        same = mask.grid.shape == grid.shape
        far = f", up to {mask.grid.distance_mm(grid):.2f} mm apart" if same else ""
        raise InputRefused(
            "E_GRID_MISMATCH" if same else "E_LABEL_SHAPE",
            "cohort",
            f"case {case.case_id}: {name} has {mask.grid.shape} voxels, the {case.reference} "
            f"image {grid.shape}{far}.",
            f"Resample the mask onto the {case.reference} image, or name another reference.",
        )
    return mask
