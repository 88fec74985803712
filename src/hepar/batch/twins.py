"""Studies that are there twice: listed twice, copied, or parted over two folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hepar.batch.studies import Entry
from hepar.errors import InputRefused

_LOOKED_AT = 50  # files of a study that holds no DICOM, before it is believed to hold none


@dataclass(frozen=True)
class Twin:
    """A study that is not run, for one before it.

    Attributes:
        of: position of that one, which is no twin itself.
        note: why, `W_CODE: words`; empty where it is an error.
        error: where it holds other images than that one.
    """

    of: int
    note: str = ""
    error: InputRefused | None = None


def find_twins(entries: Sequence[Entry]) -> dict[int, Twin]:
    """Which studies are those of an earlier position again.

    The same paths are the same study. So is a folder whose StudyInstanceUID and images another one
    holds. A folder that holds other images of a study that another one holds is an error: what was
    made of one of them would lack phases.

    Args:
        entries: in the order of `find_studies`. Phases that rows of a cohort state are their
            author's choice: only copies are looked for among those.
    """
    twins: dict[int, Twin] = {}
    origins: dict[str, int] = {}
    studies: dict[str, int] = {}
    for place, entry in enumerate(entries):
        first = origins.setdefault(entry.origin, place)
        if first != place:
            twins[place] = _copy(entries, first)
            continue
        uid = _study_uid(entry)
        first = studies.setdefault(uid, place) if uid else place
        if first == place:
            continue
        if _images(entry) <= _images(entries[first]):
            twins[place] = _copy(entries, first)
        elif not entry.stated:
            twins[place] = Twin(first, error=_parted(entries[first]))
    return twins


def _copy(entries: Sequence[Entry], first: int) -> Twin:
    name = entries[first].name
    return Twin(first, f"W_STUDY_TWICE: this is the study {name} again; its results stand there.")


def _parted(first: Entry) -> InputRefused:
    return InputRefused(
        "E_STUDY_SPLIT",
        "batch",
        f"It holds other images of the study that {first.name} holds, by StudyInstanceUID.",
        "Put all images of a study into one folder and run the command again.",
    )


def _files(entry: Entry) -> Iterator[Path]:
    from hepar.io.dicom_scan import walk_files
    from hepar.io.nifti import is_nifti_name

    for root in entry.roots:
        for path in walk_files(root) if root.is_dir() else ():
            if not is_nifti_name(path):
                yield path


def _study_uid(entry: Entry) -> str:
    """StudyInstanceUID of the first image; empty where there is none."""
    from hepar.io.dicom_scan import read_headers

    for number, path in enumerate(_files(entry)):
        headers = read_headers(path)
        if isinstance(headers, list) and headers:
            return headers[0].study_uid
        if number >= _LOOKED_AT:
            break
    return ""


def _images(entry: Entry) -> set[str]:
    """SOPInstanceUID of every image."""
    from hepar.io.dicom_scan import scan_files

    return {header.sop_uid for header in scan_files(_files(entry)).headers}
