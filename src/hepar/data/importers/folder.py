"""A folder a patient: images named by phase, masks named by structure.

    PATIENT/nc.nii.gz, PATIENT/arterial/ (one DICOM series), PATIENT/PV.nii ...
    PATIENT/label.nii.gz (0, 1 liver, 2 tumor)  or  PATIENT/liver.nii.gz and PATIENT/tumor.nii.gz
    PATIENT/instances.nii.gz, PATIENT/ignore.nii.gz               optional
    PATIENT/art_label.nii.gz, PATIENT/art_liver.nii.gz ...        optional masks of another phase

Beside the patients, optional: `lesions.csv` (`case_id, lesion_id, type`), whose ids are those of
`instances`. Masks without a phase lie on the reference phase.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hepar.data.importers.case import ImportedCase, Mask, RefusedCase, Role, Truth, phase_assumed
from hepar.data.lesion_table import bad_lesions, read_lesion_types
from hepar.errors import InputRefused
from hepar.io.dicom_scan import scan_files, walk_files
from hepar.io.nifti import is_nifti_name
from hepar.io.phase_words import phase_of_text
from hepar.io.refusal import refuse
from hepar.study import Phase, reference_phase

_KINDS: Mapping[str, str] = {
    **dict.fromkeys(("label", "labels", "seg", "segmentation", "truth", "gt"), "label"),
    "liver": "liver",
    **dict.fromkeys(("tumor", "tumors", "tumour", "tumours", "lesion", "lesions"), "tumor"),
    **dict.fromkeys(("instance", "instances"), "instances"),
    "ignore": "ignore",
}
_FILLER = frozenset({"mask", "masks", "nii", "gz"})


@dataclass
class _Found:
    """What lies in a patient's folder."""

    images: dict[Phase, Path] = field(default_factory=dict)
    nameless: list[Path] = field(default_factory=list)
    masks: dict[Phase | None, dict[str, Path]] = field(default_factory=dict)


def find_cases(source: Path, work: Path) -> Iterator[ImportedCase | RefusedCase]:
    """The patients of a folder (an `Importer`).

    Raises:
        InputRefused: `E_CASE_FILES` where there are none, `E_LESION_TABLE` for a `lesions.csv`
            that cannot be used.
    """
    folders = sorted(p for p in source.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise refuse("E_CASE_FILES", f"{source.name} holds no folder of a patient.", "prepare")
    table = source / "lesions.csv"
    types = read_lesion_types(table, "prepare") if table.is_file() else {}
    strangers = sorted(set(types) - {folder.name for folder in folders})
    if strangers:
        raise bad_lesions(f"there is no case {strangers[0]}", "prepare")
    for folder in folders:
        try:
            yield _case(folder, types.get(folder.name, {}))
        except InputRefused as error:
            yield RefusedCase(folder.name, error)


def _case(folder: Path, types: Mapping[int, str]) -> ImportedCase:
    found = _look(folder)
    warnings: tuple[str, ...] = ()
    if not found.images and len(found.nameless) == 1:
        found.images[Phase.PV] = found.nameless.pop()
        warnings = (phase_assumed(found.images[Phase.PV].name),)
    if found.nameless:
        names = ", ".join(p.name for p in found.nameless)
        raise refuse(
            "E_CASE_FILES", f"{folder.name}: nothing says which phase {names} is.", "prepare"
        )
    if not found.images:
        raise refuse("E_NO_IMAGE", f"{folder.name} holds no image.", "prepare")
    reference = reference_phase(tuple(found.images))
    own = {**found.masks.pop(None, {}), **found.masks.pop(reference, {})}
    strangers = sorted(str(p) for p in found.masks if p not in found.images)
    if strangers:
        raise refuse(
            "E_CASE_FILES", f"{folder.name} has masks of {strangers[0]} but no image.", "prepare"
        )
    instances = own.pop("instances", None)
    if types and instances is None:
        raise bad_lesions(
            f"case {folder.name} has types of lesions but no instances.nii.gz", "prepare"
        )
    return ImportedCase(
        case_id=folder.name,
        patient_id=folder.name,
        images=found.images,
        truth=_truth(own, folder.name),
        phase_truth={p: _truth(m, folder.name, part=True) for p, m in found.masks.items() if p},
        instances=instances,
        lesion_types=types,
        warnings=warnings,
    )


def _look(folder: Path) -> _Found:
    """Sort a patient's files and series by what their names say."""
    found = _Found()
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not (path.is_dir() or is_nifti_name(path)):
            continue
        kind, rest = _kind(path)
        hit = phase_of_text(rest)
        if kind is not None:
            if path.is_dir():
                text = f"{folder.name}: the mask {path.name} is a folder, not a NIfTI file."
                raise refuse("E_CASE_FILES", text, "prepare")
            of = found.masks.setdefault(hit[0] if hit else None, {})
            if kind in of:
                _twice(folder, of[kind], path)
            of[kind] = path
            continue
        if path.is_dir() and hit is None:
            hit = _phase_of_series(path)
        if hit is None:
            found.nameless.append(path)
        elif hit[0] in found.images:
            _twice(folder, found.images[hit[0]], path)
        else:
            found.images[hit[0]] = path
    return found


def _kind(path: Path) -> tuple[str | None, str]:
    """Which mask a name is (None: an image), and what is left of the name."""
    stem = re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    words = re.findall(r"[a-z]+", stem.lower())
    kinds = {_KINDS[word] for word in words if word in _KINDS}
    rest = " ".join(word for word in words if word not in _KINDS and word not in _FILLER)
    if not kinds:
        return None, stem
    # "tumor_label", "liver_seg": the structure says more than the word for a file of labels;
    # "liver_tumor" is the tumor of the liver.
    for kind in ("instances", "ignore", "tumor", "liver", "label"):
        if kind in kinds:
            return kind, rest
    raise AssertionError(kinds)


def _phase_of_series(folder: Path) -> tuple[Phase, str] | None:
    """The phase that the first DICOM header of a folder names."""
    for path in walk_files(folder):
        if headers := scan_files([path]).headers:
            return phase_of_text(headers[0].tags.get("SeriesDescription", ""))
    return None


def _truth(masks: Mapping[str, Path], name: str, *, part: bool = False) -> Truth:
    """Masks by role; a label map says liver and tumor at once.

    Args:
        masks: by kind.
        name: of the case, for messages.
        part: whether one structure alone will do, as for phases that are only aligned by it.
    """
    truth: dict[Role, tuple[Mask, ...]] = {}
    if "label" in masks:
        if "tumor" in masks:
            text = f"{name} has a label map and a tumor mask of its own."
            raise refuse("E_CASE_FILES", text, "prepare")
        truth["liver"] = (Mask(masks["label"], (1,), (0, 1, 2), "liver"),)
        truth["tumor"] = (Mask(masks["label"], (2,), (0, 1, 2), "tumor"),)
    if "liver" in masks:
        truth["liver"] = (*truth.get("liver", ()), Mask(masks["liver"], name="liver"))
    if "tumor" in masks:
        truth["tumor"] = (Mask(masks["tumor"], name="tumor"),)
    if "ignore" in masks:
        truth["ignore"] = (Mask(masks["ignore"], name="ignore"),)
    if part:
        return truth
    if "liver" not in truth and "tumor" not in truth:
        raise refuse("E_NO_TRUTH", f"{name} has no label map and no masks.", "prepare")
    if "liver" not in truth:
        raise refuse("E_NO_LIVER_TRUTH", f"{name} has a tumor mask and no liver mask.", "prepare")
    if "tumor" not in truth:
        raise refuse("E_NO_TUMOR_TRUTH", f"{name} has a liver mask and no tumor mask.", "prepare")
    return truth


def _twice(folder: Path, one: Path, other: Path) -> None:
    text = f"{folder.name}: {one.name} and {other.name} are the same phase or mask."
    raise refuse("E_CASE_FILES", text, "prepare")
