"""The DICOM door: every series of a folder, with its geometry and a verdict.

Nothing is decided by file name, InstanceNumber or SliceThickness. Series are never merged, no slice
is dropped unsaid, and no spacing, position or intercept is invented; what cannot be read safely is
refused with a code and a remedy, and the other series go on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hepar.errors import InputRefused
from hepar.geometry import Lattice
from hepar.io.dicom_decoding import read_hu, refuse_undecodable
from hepar.io.dicom_headers import Damaged, Directory, Header, Scan
from hepar.io.dicom_pixels import digests, quiet
from hepar.io.dicom_regular import regular
from hepar.io.dicom_scan import ENHANCED_CT, scan_files, walk_files
from hepar.io.dicom_split import Rejected, Rules, stacks_of
from hepar.io.dicom_stack import Stack
from hepar.io.hounsfield import implausible
from hepar.io.refusal import refuse
from hepar.study import Frames, Phase, Series, SeriesVerdict, Volume

_CT = "1.2.840.10008.5.1.4.1.1.2"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_IMAGE_MODALITIES = frozenset({"MR", "PT", "NM", "US", "CR", "DX", "MG", "XA", "RF", "OPT"})
_NOT_A_SLICE = ("LOCALIZER", "SCOUT", "TOPOGRAM", "MIP", "MINIP", "MNIP")
_NOTES = {
    "W_NO_RESCALE": "no rescale in the headers, the values were taken as HU because they look it",
    "W_MONOCHROME1": "the display is inverted (MONOCHROME1), the HU are not",
    "W_LOSSY": "the images were compressed with losses",
    "W_NO_PREAMBLE": "the files lack the DICOM preamble",
}


@dataclass(frozen=True)
class Reading:
    """One series as it came through a door: a volume, or why there is none.

    Attributes:
        verdict: what became of it.
        volume: HU, for a usable or repaired series.
        tags: phase evidence.
        frames: the images it was made of.
        error: the refusal, for a refused series.
        assigned: the phase the user gave.
        lattice: the file's own voxels where their axes are not orthogonal.
    """

    verdict: SeriesVerdict
    volume: Volume | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    frames: Frames | None = None
    error: InputRefused | None = None
    assigned: Phase | None = None
    lattice: Lattice | None = None


def read_dicom(folder: Path | str) -> tuple[tuple[Series, ...], tuple[SeriesVerdict, ...]]:
    """Read every series of one patient below a folder.

    Args:
        folder: DICOM files at any depth, in any order and under any name, among other files.

    Returns:
        The usable series and a verdict on every series and damaged file.

    Raises:
        InputRefused: `E_MIXED_PATIENTS` or `E_DICOMDIR`.
    """
    root = Path(folder)
    with quiet():
        scan = scan_files(walk_files(root))
        refuse_unsafe(scan.headers, scan.directories)
        return numbered(readings_of(scan, root))


def numbered(readings: Iterable[Reading]) -> tuple[tuple[Series, ...], tuple[SeriesVerdict, ...]]:
    """Give each reading its id in the study, `s1`, `s2`, ..., and sort out the usable ones."""
    series, verdicts = [], []
    for count, reading in enumerate(readings, start=1):
        verdict = replace(reading.verdict, series_id=f"s{count}")
        verdicts.append(verdict)
        if reading.volume is not None:
            found = (reading.tags, reading.assigned, reading.frames, reading.lattice)
            series.append(Series(reading.volume, verdict, *found))
    return tuple(series), tuple(verdicts)


def refuse_unsafe(headers: Sequence[Header], directories: Sequence[Directory]) -> None:
    """Refuse a folder that may hold several patients, or whose index points outside of it.

    Raises:
        InputRefused: `E_MIXED_PATIENTS` or `E_DICOMDIR`.
    """
    for directory in directories:
        for parts in directory.files:
            if any(part in ("", ".", "..") or re.search(r"[/:\0]", part) for part in parts):
                raise refuse("E_DICOMDIR", "The DICOMDIR names a file outside its folder.")
    _refuse_several_patients(headers)


def _refuse_several_patients(headers: Sequence[Header]) -> None:
    """Refuse images that are not surely of one patient.

    One PatientID, or none in a single study, is one patient. Several studies need a PatientID, and
    names and birth dates that do not contradict one another.

    Raises:
        InputRefused: `E_MIXED_PATIENTS`.
    """
    ids, names, births = ({h.patient[k] for h in headers if h.patient[k]} for k in range(3))
    studies = {h.study_uid for h in headers}
    if len(ids) > 1:
        raise refuse("E_MIXED_PATIENTS", f"The files name {len(ids)} PatientIDs.")
    if len(studies) <= 1:
        return
    if any(not h.patient[0] for h in headers):
        raise refuse(
            "E_MIXED_PATIENTS",
            f"The files belong to {len(studies)} studies and not all name a patient.",
        )
    if len(names) > 1 or len(births) > 1:
        raise refuse(
            "E_MIXED_PATIENTS",
            f"The files belong to {len(studies)} studies whose patients differ in name or birth "
            "date under one PatientID.",
        )


def readings_of(scan: Scan, root: Path, *, interpolate_gaps: bool = False) -> list[Reading]:
    """Read each series of a scan.

    Args:
        scan: headers found.
        root: folder that sources are named relative to.
        interpolate_gaps: whether single lost slices may be made up from their neighbors.

    Returns:
        One reading for each stack, each rejection and each damaged file, in an order that does not
        depend on file names or folders.
    """
    groups: dict[tuple[str, str], list[Header]] = {}
    for header in scan.headers:
        # Stripped files that name no series are told apart by their folder.
        series = header.series_uid or str(header.path.parent)
        groups.setdefault((header.study_uid, series), []).append(header)
    rules = Rules(digests(), interpolate_gaps)
    readings = []
    for _, headers in sorted(groups.items(), key=lambda item: _series_order(item[1])):
        readings.extend(_read_series(headers, scan.damaged, root, rules))
    for damaged in scan.damaged:
        error = refuse(damaged.code, f"{damaged.path.name} {damaged.reason}.")
        verdict = SeriesVerdict(
            "", _relative(damaged.path, root), "refused", error.message, damaged.code, "", 1
        )
        readings.append(Reading(verdict, error=error))
    return readings


def _series_order(headers: list[Header]) -> tuple[int, str, str]:
    first = min(headers, key=lambda h: (h.times["AcquisitionTime"], h.series_uid))
    number = first.tags.get("SeriesNumber", "")
    return (
        int(number) if number.lstrip("-").isdigit() else 10**9,
        first.times["AcquisitionTime"],
        first.series_uid,
    )


def _read_series(
    headers: list[Header], damaged: list[Damaged], root: Path, rules: Rules
) -> list[Reading]:
    """Readings of one SeriesInstanceUID."""
    readings = []
    slices = []
    others: dict[tuple[str, str], list[Header]] = {}
    for header in headers:
        why = _why_not_a_slice(header)
        if why is None:
            slices.append(header)
        else:
            others.setdefault(why, []).append(header)
    if slices:
        error = _whole_series_error(slices, damaged)
        if error is not None:
            readings.append(_refused(slices, error, root))
        else:
            readings.extend(_read_part(part, root) for part in stacks_of(slices, rules))
    for (code, reason), members in others.items():
        if code == "E_NOT_CT":
            # Pictures beside images are common and harmless; alone they are the reason.
            readings.append(Reading(_verdict(members, root, "unused", reason, code)))
        elif code:
            readings.append(_refused(members, refuse(code, f"{reason}."), root))
        else:
            readings.append(Reading(_verdict(members, root, "unused", reason, None)))
    return readings


def _why_not_a_slice(header: Header) -> tuple[str, str] | None:
    """`(code, reason)` for an image that is no CT slice; no code means unused, not unsafe."""
    if header.damage:
        return None
    if header.sop_class == _CT and header.frames > 1:
        return "E_MULTIFRAME", "several frames in a classic CT image"
    if header.sop_class.startswith(_SECONDARY_CAPTURE):
        return "E_NOT_CT", "a secondary capture, not an acquisition"
    known = (_CT, *ENHANCED_CT, "")
    is_ct = header.modality in ("CT", "") and header.sop_class in known
    if not is_ct or not (header.modality or header.sop_class):
        if header.modality in _IMAGE_MODALITIES or header.sop_class in known[:-1]:
            return "E_WRONG_MODALITY", f"the modality is {header.modality or 'unknown'}, not CT"
        if header.modality == "CT" and header.position_mm is not None and header.rows:
            return None  # A slice whose class is damaged: see `_whole_series_error`.
        return "", f"a DICOM object of modality {header.modality or 'unknown'}, not a CT image"
    kind = next((word for word in _NOT_A_SLICE if word in header.image_type), None)
    if kind is not None:
        return "", f"ImageType says {kind}"
    if header.samples != 1:
        return "E_WRONG_MODALITY", "the images are in color"
    if header.bits < 12:
        return "E_NOT_CT", f"{header.bits} bits a pixel hold a picture, not HU"
    return None


def _whole_series_error(slices: list[Header], damaged: list[Damaged]) -> InputRefused | None:
    """Why no part of a series can be trusted, if so."""
    for header in slices:
        if header.damage:
            return refuse(header.damage[0], f"{header.damage[1]}.")
        if header.sop_class not in (_CT, *ENHANCED_CT, ""):
            return refuse("E_MALFORMED", f"{header.path.name} is of an unknown class of images.")
        if header.rows < 1 or header.columns < 1:
            return refuse("E_TRUNCATED", f"{header.path.name} has no image matrix.")
    folders = {header.path.parent for header in slices}
    for file in damaged:
        if file.spreads and file.path.parent in folders:
            return refuse(
                file.code, f"{file.path.name}, beside these images, {file.reason}: a slice is lost."
            )
    try:
        refuse_undecodable(slices)
    except InputRefused as error:
        return error
    return None


def _read_part(part: Stack | Rejected, root: Path) -> Reading:
    if isinstance(part, Rejected):
        if part.error is not None:
            return _refused(part.headers, part.error, root)
        return Reading(_verdict(part.headers, root, "unused", part.reason, part.code))
    try:
        hu, codes = read_hu(part.headers)
        if part.placement is not None:
            hu = regular(hu, part.placement)
        doubt = implausible(hu)
        if doubt is not None:
            raise refuse("E_HU_IMPLAUSIBLE", f"{doubt[0].upper()}{doubt[1:]}.")
    except InputRefused as error:
        return _refused(part.headers, error, root)
    notes = (*part.notes, *((code, _NOTES[code]) for code in codes))
    depth = f"{len(part.headers)} slices {part.grid.spacing_mm[0]:.3f} mm apart"
    first = min(part.headers, key=lambda h: (h.times["AcquisitionTime"], h.instance))
    verdict = SeriesVerdict(
        series_id="",
        source=_source(part.headers, root),
        status="repaired" if part.repaired else "usable",
        reason="; ".join((depth, *(text for _, text in notes))),
        code=notes[0][0] if notes else None,
        description=first.tags.get("SeriesDescription", ""),
        n_files=len({h.path for h in part.headers}),
        notes=tuple(f"{code}: {text}" for code, text in notes),
    )
    tags = {**first.tags, "FolderName": verdict.source}
    return Reading(verdict, Volume(hu, part.grid), tags, part.frames)


def _refused(headers: Sequence[Header], error: InputRefused, root: Path) -> Reading:
    return Reading(_verdict(headers, root, "refused", error.message, error.code), error=error)


def _verdict(
    headers: Sequence[Header], root: Path, status: str, reason: str, code: str | None
) -> SeriesVerdict:
    description = headers[0].tags.get("SeriesDescription", "")
    source = _source(headers, root)
    n_files = len({h.path for h in headers})
    return SeriesVerdict("", source, status, reason, code, description, n_files)  # type: ignore[arg-type]


def _source(headers: Sequence[Header], root: Path) -> str:
    return _relative(min(h.path for h in headers).parent, root)


def _relative(path: Path, root: Path) -> str:
    """A path below the study, never an absolute one, which may name a person."""
    try:
        inside = path.relative_to(root)
    except ValueError:
        return path.name
    return inside.as_posix() if inside.parts else root.resolve().name
