"""3D-IRCADb-01: `3Dircadb1.N/PATIENT_DICOM`, and `MASKS_DICOM` with a folder of slices a structure.

Both parts may be folders or archives. Structures were named by hand, in two languages, and differ
between patients (`livertumor`, `livertumor01`, `livertumors`; `liverkyst`, `liverkyste`,
`livercyst`). A tumor is the union of what is called one; a cyst of the liver is part of the liver
and ignored. What lies in the liver under a name that does not say what it is (`tumor`,
`metastasectomie`, `Hyperplasie`) is ignored and told. Headers do not tell the phase.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from hepar.data.importers.case import ImportedCase, Mask, RefusedCase, Role, Truth, phase_assumed
from hepar.errors import InputRefused
from hepar.io.archive import MASK_CAPS, is_archive, unpack
from hepar.io.refusal import refuse
from hepar.study import Phase

_PATIENT = re.compile(r"^3d-?ircadb-?0?1[._-]0*(?P<number>\d+)$", re.IGNORECASE)
_IMAGE, _MASKS = "PATIENT_DICOM", "MASKS_DICOM"
# The whole name must match; letters alone count, in lower case, with trailing numbers.
_ROLES: tuple[tuple[Role, re.Pattern[str]], ...] = (
    ("liver", re.compile(r"liver")),
    ("tumor", re.compile(r"livertumou?rs?\d*")),
    ("cyst", re.compile(r"liver(kyste?|cyst)s?\d*")),
    ("doubtful", re.compile(r"tumou?rs?\d*|metastase?ctom(ie|y)\d*|hyperplas(ie|ia)\d*")),
    ("doubtful", re.compile(r"liver\w+")),
)


def find_cases(source: Path, work: Path) -> Iterator[ImportedCase | RefusedCase]:
    """The patients below a folder, or the one patient that the folder is (an `Importer`).

    Raises:
        InputRefused: `E_CASE_FILES`, no such patient is there.
    """
    folders = [source] if _part(source, _IMAGE) else sorted(_patients(source), key=_number)
    if not folders:
        raise refuse(
            "E_CASE_FILES", f"{source.name} holds no 3Dircadb1.N with {_IMAGE}.", "prepare"
        )
    for folder in folders:
        name = folder.resolve().name
        try:
            yield find_case(folder, work / name)
        except InputRefused as error:
            yield RefusedCase(name, error)
        finally:
            shutil.rmtree(work / name, ignore_errors=True)


def find_case(folder: Path, work: Path) -> ImportedCase:
    """One patient.

    Args:
        folder: `3Dircadb1.N`.
        work: where archives are unpacked; the image and the masks that are needed.

    Raises:
        InputRefused: `E_CASE_FILES`, a part is not there, or as `unpack`.
    """
    image = _opened(folder, _IMAGE, work, lambda member: True)
    masks = _opened(folder, _MASKS, work, lambda member: role_of(member.parent.name) is not None)
    truth: dict[Role, tuple[Mask, ...]] = {"tumor": ()}
    for path in sorted(p for p in masks.iterdir() if p.is_dir() and not p.name.startswith(".")):
        role = role_of(path.name)
        if role is not None:
            truth[role] = (*truth.get(role, ()), Mask(path, name=path.name))
    if "liver" not in truth:
        raise refuse("E_NO_LIVER_TRUTH", f"{_MASKS} of {folder.name} has no liver.", "prepare")
    return ImportedCase(
        case_id=folder.resolve().name,
        patient_id=folder.resolve().name,
        images={Phase.PV: image},
        truth=truth,
        lesion_masks=True,
        warnings=(phase_assumed("the series"), *_doubts(truth)),
    )


def role_of(name: str) -> Role | None:
    """What a structure is, by its folder's name; None for one that is not of the liver."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return next((role for role, pattern in _ROLES if pattern.fullmatch(plain)), None)


def _doubts(truth: Truth) -> Iterator[str]:
    for mask in truth.get("doubtful", ()):
        yield (
            f"W_STRUCTURE_DOUBTFUL: nothing says whether {mask.name} is a tumor of the liver; "
            "what of it lies in the liver is ignored"
        )


def _patients(source: Path) -> list[Path]:
    return [p for p in source.iterdir() if p.is_dir() and _PATIENT.match(p.name)]


def _number(folder: Path) -> int:
    match = _PATIENT.match(folder.name)
    assert match is not None
    return int(match["number"])


def _part(folder: Path, name: str) -> Path | None:
    """A part of a patient: the folder, else the archive of that name."""
    if (folder / name).is_dir():
        return folder / name
    found = sorted(p for p in folder.glob(f"{name}.*") if p.is_file() and is_archive(p))
    return found[0] if found else None


def _opened(folder: Path, name: str, work: Path, wanted: Callable[[PurePosixPath], bool]) -> Path:
    """The folder of a part, unpacked if need be."""
    part = _part(folder, name)
    if part is None:
        raise refuse("E_CASE_FILES", f"{folder.name} has no {name}.", "prepare")
    if part.is_dir():
        return _inner(part, name)
    unpack(part, work / name, wanted=wanted, caps=MASK_CAPS)
    return _inner(work / name, name)


def _inner(folder: Path, name: str) -> Path:
    """Archives hold a folder of their own name, and unpackers often make one more around it."""
    while (folder / name).is_dir():
        folder = folder / name
    return folder
