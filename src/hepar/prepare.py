"""`hepar prepare`: data sets as they are published become a cohort; every case gets a verdict.

For each case: find it (`data/importers`), read and check it, refuse it if its scan is known
already, move its phases if asked, write it. What became of each is in `prepare.json`.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hepar.data.cohort import read_cohort
from hepar.data.folds import STRATA, assign_folds, draw_validation, stratum
from hepar.data.importers.case import ImportedCase, RefusedCase, Role
from hepar.data.importers.centering import centered
from hepar.data.importers.loading import LoadedCase, load_case
from hepar.data.importers.table import IMPORTERS, Layout
from hepar.data.importers.writing import folder_name, read_patients, write_case, write_tables
from hepar.data.leakage import Fingerprint, ScanIndex, fingerprint, index_of
from hepar.errors import InputRefused, UsageError
from hepar.geometry import canonical
from hepar.infer.bundle import Model, default_bundle_path, load_bundle
from hepar.io.atomic import staged_folder
from hepar.io.refusal import refuse
from hepar.provenance import Provenance
from hepar.stages.harmonize import harmonize
from hepar.stages.liver import find_liver
from hepar.stages.register import register
from hepar.study import TUMOR, Phase, PhasedStudy, Study, Volume

Alignment = Literal["none", "liver_center", "tumor_center", "registered"]

USES_TRUTH = (
    "W_ALIGNMENT_USES_TRUTH: phases were moved by the true tumors, of test cases too; scores on "
    "this cohort are those of a reader who already knows where the tumor is"
)
FOLDS = 5
_MAX_LISTED = 8
# Unpacked archives lie here inside the staged folder, and are gone before it appears.
_WORK = ".unpacked"


@dataclass
class _Cohort:
    """What a run has come to so far."""

    rows: list[dict[str, str]] = field(default_factory=list)
    lesions: list[dict[str, str]] = field(default_factory=list)
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    own: ScanIndex = field(default_factory=ScanIndex)
    other: ScanIndex | None = None
    names: set[str] = field(default_factory=set)


@dataclass
class _Aligner:
    """How the phases of a case are moved onto its reference; the model is loaded when needed."""

    alignment: Alignment
    _model: Model | None = None

    def __call__(self, loaded: LoadedCase) -> LoadedCase:
        if self.alignment == "none" or len(loaded.images) == 1:
            return loaded
        if self.alignment == "registered":
            return _registered(loaded)
        role: Role = "tumor" if self.alignment == "tumor_center" else "liver"
        return centered(loaded, role, self._found_liver)

    def _found_liver(self, volume: Volume, phase: Phase) -> NDArray[np.bool_]:
        """The liver as hepar finds it, `(z, y, x)` on axial voxels."""
        if self._model is None:
            self._model = load_bundle(default_bundle_path()).model("liver")
        alone = PhasedStudy({phase: volume}, (), Study((), ()), {phase: volume.grid})
        return find_liver(register(harmonize(alone)), self._model).liver


def prepare(
    source: Path,
    layout: Layout,
    out: Path,
    *,
    align: Alignment = "none",
    folds: int = FOLDS,
    validation: int = 0,
    seed: int = 0,
    exclude: Path | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Make a cohort of a data set.

    Args:
        source: the data set's folder; `patients.csv` in it may say more of the patients.
        layout: how it is laid out.
        out: folder of the cohort, new or empty.
        align: `none`; `liver_center` and `tumor_center` move each phase by a translation, exactly,
            so that its liver's or tumors' center meets that of the reference; `registered`
            resamples each phase once onto the reference.
        folds: how many; 0 for none.
        validation: how many patients to hold out for choosing weights, instead of folds.
        seed: of the folds or of the draw of those patients.
        exclude: another cohort, whose scans are refused.
        progress: told the name of each case.

    Returns:
        What is written to `prepare.json`.

    Raises:
        UsageError: `E_USAGE`, also where no patient is left to train on, or `E_OUTPUT_PATH`.
        InputRefused: `E_NO_CASES`, no case can be used; or the source is not of this layout.
    """
    _check(source, out, folds, validation)
    folds = 0 if validation else folds
    provenance = Provenance.begin(device="cpu", hashes={})
    patients = read_patients(source)
    cohort = _Cohort()
    if exclude is not None:
        progress("read the scans to be excluded")
        table = exclude / "cohort.csv" if exclude.is_dir() else exclude
        cohort.other = index_of(read_cohort(table))
    aligner = _Aligner(align)
    asked = {"format": layout, "align": align, "folds": folds, "validation": validation}
    with staged_folder(out) as staged:
        for found in IMPORTERS[layout](source, staged / _WORK):
            progress(found.case_id)
            _take(found, cohort, aligner, staged, patients)
        shutil.rmtree(staged / _WORK, ignore_errors=True)
        if not cohort.rows:
            raise _no_cases(source.resolve().name, cohort.verdicts)
        if validation:
            _hold_out(cohort.rows, validation, seed)
        warnings = _deal(cohort.rows, folds, seed)
        warnings += [USES_TRUTH] if align == "tumor_center" else []
        if absent := sorted(set(patients) - {v["case_id"] for v in cohort.verdicts}):
            names = ", ".join(absent[:_MAX_LISTED])
            warnings.append(f"W_PATIENT_ABSENT: of {names} in patients.csv nothing is here")
        write_tables(staged, cohort.rows, cohort.lesions)
        document = {
            "schema_version": "1",
            "source": source.resolve().name,
            **asked,
            "seed": seed,
            "excluded": None if exclude is None else exclude.resolve().name,
            "used": len(cohort.rows),
            "refused": len(cohort.verdicts) - len(cohort.rows),
            "warnings": warnings,
            "cases": cohort.verdicts,
            "provenance": provenance.as_dict(),
        }
        text = json.dumps(document, indent=2) + "\n"
        (staged / "prepare.json").write_text(text, encoding="utf-8")
        read_cohort(staged / "cohort.csv", need=("label",))
    return document


def _check(source: Path, out: Path, folds: int, validation: int) -> None:
    if folds < 0 or folds == 1:
        raise UsageError("E_USAGE", "prepare", f"{folds} folds.", "Ask for 2 or more, or 0.")
    if validation < 0 or (validation and folds not in (0, FOLDS)):
        said = f"{validation} validation patients" + (
            f" and {folds} folds" if validation > 0 else ""
        )
        raise UsageError("E_USAGE", "prepare", f"{said}.", "Ask for one or more, or for folds.")
    if not source.is_dir():
        raise refuse("E_CASE_FILES", f"{source.name} is no folder.", "prepare")
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(
            "E_OUTPUT_PATH", "prepare", f"{out.name} is not empty.", "Name a new folder with -o."
        )
    if source.resolve() in (out.resolve(), *out.resolve().parents):
        raise UsageError(
            "E_OUTPUT_PATH",
            "prepare",
            f"{out.name} lies in the source, and would be taken for a part of it.",
            "Name a folder elsewhere with -o.",
        )


def _take(
    found: ImportedCase | RefusedCase,
    cohort: _Cohort,
    aligner: _Aligner,
    staged: Path,
    patients: Mapping[str, Mapping[str, str]],
) -> None:
    """Use or refuse one case, and say so."""
    try:
        if isinstance(found, RefusedCase):
            raise found.error
        case = _told(found, patients.get(found.case_id, {}))
        name = folder_name(case.case_id).lower()
        if name in cohort.names:
            raise refuse("E_CASE_FILES", f"Another case is called {case.case_id} too.", "prepare")
        loaded = load_case(case)
        prints = {phase: fingerprint(v) for phase, v in loaded.images.items()}
        _refuse_known(prints, cohort)
        aligned = aligner(loaded)
    except InputRefused as error:
        said = {"code": error.code, "reason": error.message, "remedy": error.remedy}
        cohort.verdicts.append({"case_id": found.case_id, "status": "refused", **said})
        return
    # Outside of the block above: a disk that is full is no fault of the case.
    row = write_case(staged, case, aligned)
    cohort.names.add(name)
    for phase, scan in prints.items():
        cohort.own.add(case.case_id, phase, scan)
    cohort.rows.append({**row, "alignment": aligner.alignment})
    cohort.lesions += [
        {"case_id": case.case_id, "lesion_id": str(number), "type": kind}
        for number, kind in sorted(case.lesion_types.items())
    ]
    hashes = {str(phase): scan.digest for phase, scan in prints.items()}
    cohort.verdicts.append(_used(case, aligned, hashes))


def _refuse_known(prints: Mapping[Phase, Fingerprint], cohort: _Cohort) -> None:
    """Refuse a case one of whose scans is in the excluded cohort, or in this one already."""
    for index, where in ((cohort.other, "the excluded cohort"), (cohort.own, "this source")):
        for phase, scan in prints.items():
            if index is not None and (hit := index.find(scan)) is not None:
                case, other, share = hit
                raise refuse(
                    "E_LEAKAGE",
                    f"Its {phase} image is that of case {case} ({other}) of {where}: "
                    f"{100 * share:.0f} % of the slices are the same.",
                    "prepare",
                )


def _told(case: ImportedCase, patient: Mapping[str, str]) -> ImportedCase:
    """The case with what the table of patients says of it."""
    said = {k: v for k, v in patient.items() if k not in ("case_id", "patient_id")}
    return replace(
        case,
        patient_id=patient.get("patient_id") or case.patient_id,
        metadata={**case.metadata, **said},
    )


def _used(case: ImportedCase, loaded: LoadedCase, hashes: Mapping[str, str]) -> dict[str, Any]:
    """What is told of a case that was used."""
    voxel_ml = loaded.images[loaded.reference].grid.voxel_ml
    verdict: dict[str, Any] = {
        "case_id": case.case_id,
        "patient_id": case.patient_id,
        "status": "used",
        "reference": str(loaded.reference),
        "phases": {
            str(phase): {
                "source": case.images[phase].name,
                "shape_zyx": list(volume.grid.shape),
                "spacing_mm_zyx": [round(v, 4) for v in volume.grid.spacing_mm],
                "fingerprint": hashes[str(phase)],
            }
            for phase, volume in loaded.images.items()
        },
        "liver_ml": round(float((loaded.label > 0).sum()) * voxel_ml, 3),
        "tumor_ml": round(float((loaded.label == TUMOR).sum()) * voxel_ml, 3),
        "warnings": list(loaded.warnings),
    }
    if loaded.instances is not None:
        voxels = np.bincount(loaded.instances.ravel())
        verdict["lesions_ml"] = {
            str(i): round(float(n) * voxel_ml, 3) for i, n in enumerate(voxels) if i and n
        }
    if loaded.ignore is not None:
        verdict["ignored_ml"] = round(float(loaded.ignore.sum()) * voxel_ml, 3)
    return verdict


def _tested(rows: Sequence[Mapping[str, str]]) -> set[str]:
    """Patients in the test split: of them no other case may be trained on."""
    return {row["patient_id"] for row in rows if row.get("split", "").lower() == "test"}


def _hold_out(rows: Sequence[dict[str, str]], count: int, seed: int) -> None:
    """Write `train` or `validation` into the column `split` of each row that is not tested."""
    tested = _tested(rows)
    patients = {row["patient_id"] for row in rows} - tested
    if count >= len(patients):
        raise UsageError(
            "E_USAGE",
            "prepare",
            f"{count} validation patients of {len(patients)} leave none to train on.",
            "Ask for fewer with --validation.",
        )
    held_out = draw_validation(patients, count, seed)
    for row in rows:
        if row["patient_id"] not in tested:
            row["split"] = "validation" if row["patient_id"] in held_out else "train"


def _deal(rows: Sequence[dict[str, str]], folds: int, seed: int) -> list[str]:
    """Write a fold into each row that is not of the test split; what there is to warn of."""
    tested = _tested(rows)
    strata = {r["patient_id"]: stratum(r) for r in rows if r["patient_id"] not in tested}
    dealt = assign_folds(strata, folds, seed) if folds else {}
    for row in rows:
        if row["patient_id"] in tested:
            row["split"] = "test"
        elif folds:
            row["fold"] = str(dealt[row["patient_id"]])
    warnings = []
    if len(strata) < folds:
        warnings.append(f"W_FEW_PATIENTS: {len(strata)} patients leave some of {folds} folds empty")
    if len(set(strata.values())) > 1 and "" in strata.values():
        names = " and ".join(STRATA)
        warnings.append(f"W_STRATUM_UNKNOWN: of some patients neither of {names} is told")
    return warnings


def _no_cases(name: str, verdicts: Sequence[Mapping[str, Any]]) -> InputRefused:
    shown = "; ".join(
        f"{v['case_id']}: {v['code']}: {str(v['reason']).rstrip('.')}"
        for v in verdicts[:_MAX_LISTED]
    )
    more = f"; and {len(verdicts) - _MAX_LISTED} more" if verdicts[_MAX_LISTED:] else ""
    remedies = Counter(str(v["remedy"]) for v in verdicts).most_common(1)
    remedy = remedies[0][0] if remedies else "Give a folder that holds cases."
    return InputRefused(
        "E_NO_CASES", "prepare", f"No case of {name} can be used. {shown}{more}.", remedy
    )


def _registered(loaded: LoadedCase) -> LoadedCase:
    """Each phase resampled once onto the reference, whose own voxels stay, turned to axial."""
    grids = {phase: volume.grid for phase, volume in loaded.images.items()}
    phased = harmonize(PhasedStudy(loaded.images, (), Study((), ()), grids))
    aligned = register(phased)
    reference = loaded.images[loaded.reference]
    images = {
        phase: Volume(*canonical(reference.array, reference.grid))
        if phase is loaded.reference
        else volume
        for phase, volume in aligned.volumes.items()
    }

    def turn(mask: NDArray[Any] | None) -> NDArray[Any] | None:
        return None if mask is None else canonical(mask, reference.grid)[0]

    label = turn(loaded.label)
    assert label is not None
    return replace(
        loaded,
        images=images,
        label=label,
        instances=turn(loaded.instances),
        ignore=turn(loaded.ignore),
        phase_masks={},
        warnings=(*loaded.warnings, *aligned.warnings),
    )
