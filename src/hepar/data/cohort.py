"""A cohort on disk: `cohort.csv`, its checks, and its patients as prepared cases.

One row a case: `case_id, patient_id`, a path for each phase there is (`nc, art, pv, dl`),
`reference`, `liver`, `label`, `instances`, `fold`; any other column is metadata. Paths are relative
to the file; masks lie on the reference phase's voxels. Rows whose `split` is `test` are in no fold:
nothing is trained or chosen on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from hepar.data.array_file import Arrays
from hepar.data.cache import ArrayCache, content_key, file_hash
from hepar.data.patches import (
    TUMOR,
    PreparedCase,
    foreground_voxels,
    lesion_voxels,
    slice_contents,
)
from hepar.data.tumor_source import imperfect_liver
from hepar.errors import InputRefused
from hepar.geometry import Box, Grid, canonical
from hepar.io.spreadsheet import read_table
from hepar.preprocess import AIR_HU, liver_box, working_grid
from hepar.recipe_data import CohortData
from hepar.resampling import resample
from hepar.study import PHASE_ORDER, Volume, reference_phase
from hepar.systems.base import InputSpec

PHASE_COLUMNS = {phase: phase.value.lower() for phase in PHASE_ORDER}
MASK_COLUMNS = ("liver", "label", "instances")
_KNOWN = ("case_id", "patient_id", *PHASE_COLUMNS.values(), "reference", *MASK_COLUMNS, "fold")
SAME_VOXELS = 0.1  # how far a mask may lie from its image, in voxels
_VERSION = 3  # of what `prepare` makes


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
        raise _refuse(path, problems, "E_LEAKAGE" if leaks else "E_COHORT")
    return tuple(cases)


def _fold_name(fold: int | None) -> str:
    return "no fold" if fold is None else f"fold {fold}"


def _refuse(path: Path, problems: list[str], code: str = "E_COHORT") -> InputRefused:
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
        raise _refuse(path, [str(error)]) from None
    problems = [f"column {name} is missing" for name in required if name not in columns]
    if not set(columns) & set(PHASE_COLUMNS.values()):
        problems.append("none of the columns nc, art, pv, dl is there")
    if problems:
        raise _refuse(path, problems)
    return rows


def is_test(case: CohortCase) -> bool:
    """Whether a case belongs to the test split, which nothing may be trained or chosen on."""
    return case.metadata.get("split", "").lower() == "test"


def _is_held_out(case: CohortCase, fold: int | None) -> bool:
    if fold is None:
        return case.metadata.get("split", "").lower() == "validation"
    return case.fold == fold


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


class CohortCases:
    """The labelled cases of a cohort's folds, prepared once (a `CaseProvider`).

    Args:
        settings: which cohort and fold, how much margin.
        spec: phases and working spacing of the system.
        cache_dir: folder for prepared cases.

    Raises:
        InputRefused: `E_COHORT`, also when no case is left to train on or to hold out.
    """

    def __init__(self, settings: CohortData, spec: InputSpec, *, cache_dir: Path | None) -> None:
        self.settings, self.spec = settings, spec
        self.cache = ArrayCache(cache_dir)
        self._keys: dict[str, dict[str, Any]] = {}
        need = ("label",) if settings.fold is None else ("label", "fold")
        cases = read_cohort(settings.path, need=need)
        cases = tuple(c for c in cases if set(c.images) & set(spec.phases) and not is_test(c))
        held_out = [_is_held_out(c, settings.fold) for c in cases]
        self.train = tuple(c for c, out in zip(cases, held_out, strict=True) if not out)
        self.held_out = tuple(c for c, out in zip(cases, held_out, strict=True) if out)
        if not self.train or not self.held_out:
            counts = f"{len(self.train)} to train on, {len(self.held_out)} held out"
            by = "split" if settings.fold is None else f"fold {settings.fold}"
            problem = f"{by} leaves {counts} with phases {', '.join(spec.phases)}"
            raise _refuse(settings.path, [problem])
        lacking = [c.case_id for c in cases if not set(spec.phases) <= set(c.images)]
        if spec.needs_all_phases and lacking:
            raise InputRefused(
                "E_PHASES_REQUIRED",
                "cohort",
                f"the system needs all of {', '.join(spec.phases)}, which {len(lacking)} cases "
                f"lack, {lacking[0]} among them.",
                "Leave those cases out, or use a system that works without them.",
            )

    @property
    def n_train(self) -> int:
        """Training cases."""
        return len(self.train)

    @property
    def n_validation(self) -> int:
        """Held-out cases."""
        return len(self.held_out)

    def train_case(self, index: int, epoch: int) -> PreparedCase:
        """A training case, the same in every epoch."""
        return self._case(self.train[index])

    def validation_case(self, index: int) -> PreparedCase:
        """A held-out case."""
        return self._case(self.held_out[index])

    def train_name(self, index: int) -> str:
        """Name of a training case."""
        return self.train[index].case_id

    def fingerprint(self) -> str:
        """Hash of the cases of either kind and of the content of their files.

        Raises:
            InputRefused: `E_LEAKAGE`, a held-out case is one of the training cases by another name.
        """
        self._refuse_copies()
        return content_key(
            {
                name: [[case.case_id, case.patient_id, self._key(case)] for case in cases]
                for name, cases in (("train", self.train), ("held_out", self.held_out))
            }
        )

    def _refuse_copies(self) -> None:
        """Refuse a held-out case one of whose images is the very file of a training case."""
        trained = {digest: case.case_id for case in self.train for digest in self._digests(case)}
        for case in self.held_out:
            for digest in self._digests(case) & trained.keys():
                raise InputRefused(
                    "E_LEAKAGE",
                    "cohort",
                    f"held-out case {case.case_id} and training case {trained[digest]} have an "
                    "image in common.",
                    "Leave one of them out, or give both one patient_id and fold.",
                )

    def _digests(self, case: CohortCase) -> set[str]:
        files = self._key(case)["files"]
        return {files[phase] for phase in case.images}

    def _key(self, case: CohortCase) -> dict[str, Any]:
        """All that a prepared case depends on; files are read for it once a run."""
        if case.case_id not in self._keys:
            files = {**case.images, "liver_file": case.liver, "label_file": case.label}
            self._keys[case.case_id] = {
                "version": _VERSION,
                "files": {name: file_hash(file) for name, file in files.items() if file},
                "reference": case.reference,
                "phases": list(self.spec.phases),
                "spacing_mm": self.spec.spacing_mm,
                "margin_mm": self.settings.margin_mm,
                "liver_mask": self.settings.liver_mask.model_dump(),
            }
        return self._keys[case.case_id]

    def _case(self, case: CohortCase) -> PreparedCase:
        parts = self._key(case)
        # A 3D patch would touch nearly every page of a map; a slice would unpack 64 from chunks.
        get = self.cache.get_chunked if self.spec.dims == 3 else self.cache.get
        arrays: Any = get(parts, lambda: self._prepare(case, content_key(parts)))
        z, y, x = (float(v) for v in arrays["spacing_mm"])
        return PreparedCase(
            case_id=case.case_id,
            hu=arrays["hu"],
            present=arrays["present"],
            label=arrays["label"],
            liver=arrays["liver"],
            spacing_mm=(z, y, x),
            contents=arrays["contents"],
            lesions=arrays["lesions"],
            foreground=arrays["foreground"],
        )

    def _prepare(self, case: CohortCase, key: str) -> Arrays:
        images, label, liver = read_case(case, self.spec.phases)
        grid = label.grid
        if not liver.any():
            raise _empty(case, "the liver mask is empty")
        margin_mm = self.settings.margin_mm
        around = None if margin_mm is None else liver_box(liver, grid, margin_mm)
        box = Box.full(grid.shape) if around is None else around
        target = working_grid(grid.crop(box), self.spec.spacing_mm)
        hu = np.full((len(self.spec.phases), *target.shape), AIR_HU, np.int16)
        for row, phase in enumerate(self.spec.phases):
            if phase in images:
                volume = images[phase]
                moved = resample(volume.array, volume.grid, target, fill=AIR_HU)
                hu[row] = np.rint(moved).astype(np.int16)
        mask = resample(liver.astype(np.uint8), grid, target, order=0).astype(bool)
        rng = np.random.default_rng(int(key[:16], 16))
        mask = imperfect_liver(mask, target.spacing_mm, self.settings.liver_mask, rng)
        classes = resample(label.array, grid, target, order=0).astype(np.uint8)
        return {
            "hu": hu,
            "present": np.array([phase in images for phase in self.spec.phases]),
            "label": classes,
            "liver": mask,
            "spacing_mm": np.array(target.spacing_mm),
            "contents": slice_contents(classes, mask),
            "lesions": lesion_voxels(ndimage.label(classes == TUMOR, np.ones((3, 3, 3)))[0]),
            "foreground": foreground_voxels(classes),
        }


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
        raise _empty(case, "an image is blank")
    grid = images[case.reference].grid
    label = _on(read_label(case.label), grid, case, "label")
    liver = label.array > 0
    if case.liver is not None:
        mask = _on(read_label(case.liver), grid, case, "liver")
        liver = (mask.array > 0) | (label.array == TUMOR)
    turned = {p: Volume(*canonical(v.array, v.grid)) for p, v in images.items() if p in phases}
    return turned, Volume(*canonical(label.array, grid)), canonical(liver, grid)[0]


def _empty(case: CohortCase, problem: str) -> InputRefused:
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
