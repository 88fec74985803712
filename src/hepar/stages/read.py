"""Stage 1, read: every series of a study with a verdict, refused ones with their reason."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from hepar.errors import HeparError, InputRefused, UsageError
from hepar.io.archive import is_archive, unpack
from hepar.io.atomic import private_folder, sweep_private
from hepar.io.dicom import Reading, numbered, readings_of, refuse_unsafe
from hepar.io.dicom_headers import Scan
from hepar.io.dicom_pixels import quiet
from hepar.io.dicom_scan import scan_files, walk_files
from hepar.io.hounsfield import implausible
from hepar.io.nifti import is_nifti_name, read_ct, split_part
from hepar.io.privacy import Mask, names_in, people_in, public_name
from hepar.io.refusal import REMEDIES, refuse
from hepar.study import Phase, SeriesVerdict, Study

log = logging.getLogger(__name__)

# Said of a study only when nothing more telling can be said.
_LEAST_TELLING = ("E_WRONG_MODALITY", "E_TOO_FEW_SLICES")
BURNED_IN = "BurnedInAnnotation"
_NO_PICTURES = f"{BURNED_IN} is YES; no pictures of this study are made"
_MAX_TILT_FROM_AXIAL = 0.7
_MIN_SLICES, _MIN_LENGTH_MM = 8, 39.9
_MAX_LISTED = 12


def read_study(
    source: Path | None,
    phases: Mapping[Phase, Path] | None = None,
    *,
    interpolate_gaps: bool = False,
    unpacked: ExitStack | None = None,
) -> Study:
    """Read a patient's study.

    Args:
        source: a NIfTI file, a folder of NIfTI files, a DICOM folder (series in subfolders or
            mixed), one DICOM file, which stands for its series, or an archive of any of them. None
            when `phases` says all.
        phases: an explicit NIfTI file, a volume of a 4D one (`FILE.nii.gz#1`, from 0) or a
            one-series DICOM folder or archive for a phase; these are not read again from `source`.
        interpolate_gaps: make up single lost slices of a DICOM series from their neighbors.
        unpacked: what an archive holds lies there until this is closed, to be referred to; by
            default it is gone when the study is read.

    Returns:
        At least one usable series, explicit phases first, and a verdict on everything found. What
        names a person is masked in every text.

    Raises:
        UsageError: `E_PHASE_TWICE`.
        InputRefused: no series can be used (the code is the most telling of the refusals, the
            message lists each), an explicit phase cannot be used, or `E_MIXED_PATIENTS`.
    """
    given = {phase: Path(path) for phase, path in (phases or {}).items()}
    if len({path.resolve() for path in given.values()}) < len(given):
        raise UsageError(
            "E_PHASE_TWICE", "read", "One path is given as two phases.", "Give each phase its own."
        )
    sweep_private()
    places = [*given.values(), *([Path(source)] if source is not None else [])]
    mask = Mask(names_in([*places, *(place.resolve() for place in places)]))
    try:
        with ExitStack() as until_read, quiet():
            folders = {path: _opened(path, unpacked or until_read, mask) for path in places}
            given = {phase: folders[path] for phase, path in given.items()}
            where = folders[Path(source)] if source is not None else None
            study = _read(where, given, mask, interpolate_gaps)
    except HeparError as error:
        raise mask.on_error(error) from None
    if unpacked is not None:
        return study
    gone = [str(folder) for path, folder in folders.items() if folder != path]
    series = (
        replace(s, frames=None) if s.frames and _below(s.frames.files[0], gone) else s
        for s in study.series
    )
    return replace(study, series=tuple(series))


def _below(file: str, folders: Sequence[str]) -> bool:
    return any(Path(file).is_relative_to(folder) for folder in folders)


def _opened(path: Path, stack: ExitStack, mask: Mask) -> Path:
    """A path, or the folder that an archive was unpacked to for as long as the stack is open."""
    if not (path.is_file() and is_archive(path)):
        return path
    folder = stack.enter_context(private_folder())
    mask.names[folder.name] = public_name(path.name)
    unpack(path, folder)
    return folder


def _read(
    source: Path | None, given: Mapping[Phase, Path], mask: Mask, interpolate_gaps: bool
) -> Study:
    """The study at paths that hold no archive; `mask` learns what names people in it."""
    scans = {phase: _scan(path) for phase, path in given.items()}
    taken = _files_of(given.values())
    rest = _scan(source, taken) if source is not None else ([], Scan())
    found = [*scans.values(), rest]
    headers = [h for _, scan in found for h in scan.headers]
    for root, (niftis, scan) in zip([*given.values(), source or Path()], found, strict=True):
        paths = [*niftis, *(h.path for h in scan.headers), *(d.path for d in scan.damaged)]
        mask.names |= names_in(sorted(paths), root)
    by_series = {header.series_uid: header.path for header in headers}
    mask.people = people_in(by_series.values(), {part for h in headers for part in h.patient})
    refuse_unsafe(headers, [d for _, scan in found for d in scan.directories])
    readings: list[Reading] = []
    for phase, (niftis, scan) in scans.items():
        there = _all_readings(niftis, scan, given[phase], interpolate_gaps)
        readings.extend(_explicit(phase, given[phase], there))
    if source is not None:
        readings.extend(_all_readings(*rest, source, interpolate_gaps))
    burned = {h.series_uid for h in headers if h.tags.get(BURNED_IN, "").upper() == "YES"}
    readings = [_finished(r, mask, burned) for r in _without_needless_reformats(readings)]
    series, verdicts = numbered(readings)
    if not series:
        raise _nothing_usable(readings, verdicts, (source or Path()).name)
    warnings = _warnings(verdicts)
    for warning in warnings:
        log.warning(warning)
    studies = {s.tags["StudyInstanceUID"] for s in series if "StudyInstanceUID" in s.tags}
    if len(studies) > 1:
        text = f"W_SEVERAL_STUDIES: the series belong to {len(studies)} studies of one patient"
        warnings = (*warnings, text)
    return Study(series, verdicts, warnings)


def _finished(reading: Reading, mask: Mask, burned: Set[str]) -> Reading:
    """A reading with what names people masked, and marked where its pixels may name them."""
    verdict = replace(
        reading.verdict,
        source=mask(reading.verdict.source),
        reason=mask(reading.verdict.reason),
        description=mask(reading.verdict.description),
        notes=tuple(mask(note) for note in reading.verdict.notes),
    )
    tags = mask.on_tags(reading.tags)
    tags.pop(BURNED_IN, None)
    if reading.volume is not None and tags.get("SeriesInstanceUID") in burned:
        # Said of any of its images, it holds for the series.
        tags[BURNED_IN] = "YES"
        notes = (*verdict.notes, f"W_BURNED_IN: {_NO_PICTURES}")
        code, reason = verdict.code or "W_BURNED_IN", f"{verdict.reason}; {_NO_PICTURES}"
        verdict = replace(verdict, code=code, reason=reason, notes=notes)
    return replace(reading, verdict=verdict, tags=tags)


def _scan(path: Path, taken: frozenset[Path] = frozenset()) -> tuple[list[Path], Scan]:
    """NIfTI files and DICOM headers at a path, without files already taken."""
    file, part = split_part(path)
    if not file.exists():
        raise refuse("E_NO_IMAGE", f"{file.name} does not exist.")
    if part is not None:
        return [path], Scan()
    if path.is_file():
        return _scan_file(path)
    files = [file for file in walk_files(path) if file.resolve() not in taken]
    niftis = [file for file in files if is_nifti_name(file)]
    return niftis, scan_files(file for file in files if not is_nifti_name(file))


def _scan_file(path: Path) -> tuple[list[Path], Scan]:
    """A NIfTI file, or the series that one DICOM file belongs to."""
    if is_nifti_name(path):
        return [path], Scan()
    alone = scan_files([path])
    if not alone.headers:
        if alone.damaged:
            return [], alone
        raise refuse("E_NO_IMAGE", f"{path.name} is neither NIfTI nor DICOM.")
    uid = alone.headers[0].series_uid
    scan = scan_files(_beside(path))
    scan.headers = [h for h in scan.headers if h.series_uid == uid]
    return [], scan


def _beside(path: Path) -> list[Path]:
    """The regular files of a file's own folder."""
    return sorted(p for p in path.parent.iterdir() if p.is_file() and not p.is_symlink())


def _files_of(paths: Iterable[Path]) -> frozenset[Path]:
    files: set[Path] = set()
    for path in paths:
        members = walk_files(path) if path.is_dir() else [split_part(path)[0]]
        files.update(member.resolve() for member in members)
    return frozenset(files)


def _all_readings(
    niftis: Sequence[Path], scan: Scan, source: Path, interpolate_gaps: bool
) -> list[Reading]:
    root = source if source.is_dir() else source.parent
    dicom = readings_of(scan, root, interpolate_gaps=interpolate_gaps)
    return [_large_enough(r) for r in ([_nifti(path, root) for path in niftis] + dicom)]


def _large_enough(reading: Reading) -> Reading:
    """The reading, or its refusal where it cannot hold a liver."""
    if reading.volume is None:
        return reading
    count, length = reading.volume.grid.shape[0], reading.volume.grid.extent_mm[0]
    if count >= _MIN_SLICES and length >= _MIN_LENGTH_MM:
        return reading
    error = refuse("E_TOO_FEW_SLICES", f"{count} slice(s) over {length:.1f} mm.")
    verdict = replace(reading.verdict, status="refused", reason=error.message, code=error.code)
    return Reading(verdict, error=error)


def _explicit(phase: Phase, path: Path, readings: list[Reading]) -> list[Reading]:
    """What lies where the user named a phase: exactly one usable series, which is assigned it."""
    usable = [r for r in readings if r.volume is not None]
    if len(usable) > 1:
        names = ", ".join(r.verdict.description or r.verdict.source for r in usable)
        raise refuse(
            "E_SEVERAL_SERIES", f"{path.name}, given as {phase.title}, holds several: {names}."
        )
    if not usable:
        _, verdicts = numbered(readings)
        raise _nothing_usable(readings, verdicts, path.name)
    return [replace(r, assigned=phase) if r.volume is not None else r for r in readings]


def _nifti(path: Path, root: Path) -> Reading:
    """One NIfTI file, or the part of one that was named, as a series."""
    source = path.relative_to(root).as_posix()
    verdict = SeriesVerdict("", source, "usable", "", None, path.name, 1)
    file, part = split_part(path)
    try:
        ct = read_ct(file, part)
        doubt = implausible(ct.volume.array)
        if doubt is not None:
            raise refuse("E_HU_IMPLAUSIBLE", f"{path.name}: {doubt}.")
    except InputRefused as error:
        refused = replace(verdict, status="refused", reason=error.message, code=error.code)
        return Reading(refused, error=error)
    depth, rows, columns = ct.volume.grid.shape
    notes = [note.partition(": ") for note in ct.notes]
    reason = "; ".join([f"{depth} x {rows} x {columns} voxels", *(text for *_, text in notes)])
    code = notes[0][0] if notes else None
    verdict = replace(verdict, reason=reason, code=code, notes=tuple(ct.notes))
    return Reading(verdict, ct.volume, {"FileName": source}, lattice=ct.lattice)


def _without_needless_reformats(readings: list[Reading]) -> list[Reading]:
    """Leave out coronal and sagittal stacks where an axial one exists, unless the user named them.

    They are reformats of a volume that is there already, and would be taken for a phase twice.
    """
    axial = [r for r in readings if r.volume is not None and _is_axial(r)]
    if not axial:
        return [_said_not_axial(r) if r.volume is not None else r for r in readings]
    kept = []
    for reading in readings:
        if reading.volume is None or reading.assigned is not None or _is_axial(reading):
            kept.append(reading)
            continue
        verdict = replace(
            reading.verdict,
            status="unused",
            reason="not axial, in a study that has an axial series",
            code="W_NON_AXIAL",
        )
        kept.append(Reading(verdict))
    return kept


def _said_not_axial(reading: Reading) -> Reading:
    note = "W_NON_AXIAL: it is not axial, and there is no other"
    verdict = reading.verdict
    code = verdict.code or "W_NON_AXIAL"
    return replace(reading, verdict=replace(verdict, code=code, notes=(*verdict.notes, note)))


def _is_axial(reading: Reading) -> bool:
    """Whether a DICOM stack runs along the patient; NIfTI files hold what they were given."""
    assert reading.volume is not None
    if reading.frames is None:
        return True
    return bool(np.abs(reading.volume.grid.matrix[2, 0]) > _MAX_TILT_FROM_AXIAL)


def _warnings(verdicts: Sequence[SeriesVerdict]) -> tuple[str, ...]:
    warnings = []
    for verdict in verdicts:
        name = f"{verdict.series_id} ({verdict.description or verdict.source})"
        if verdict.status == "refused":
            warnings.append(f"W_SERIES_REFUSED: {name}: {verdict.code}: {verdict.reason}")
        elif verdict.notes:
            for note in verdict.notes:
                code, _, words = note.partition(": ")
                warnings.append(f"{code}: {name}: {words}")
        elif verdict.code is not None and verdict.code.startswith("W_"):
            warnings.append(f"{verdict.code}: {name}: {verdict.reason}")
    return tuple(warnings)


def _nothing_usable(
    readings: Sequence[Reading], verdicts: Sequence[SeriesVerdict], name: str
) -> InputRefused:
    """The refusal of a whole study: the most telling code, and each series with its reason."""
    if not verdicts:
        return refuse("E_NO_IMAGE", f"{name} holds no CT image.")
    lines = [
        f"{v.series_id} ({v.description or v.source}, {v.n_files} file(s)) "
        f"{v.status}{f' {v.code}' if v.code else ''}: {v.reason.rstrip('.')}"
        for v in verdicts[:_MAX_LISTED]
    ]
    more = len(verdicts) - len(lines)
    listed = "; ".join(lines) + (f"; and {more} more" if more > 0 else "")
    coded = [v for v in verdicts if v.code in REMEDIES]
    best = max(coded, key=lambda v: (v.code not in _LEAST_TELLING, v.n_files), default=None)
    code = best.code if best is not None and best.code is not None else "E_NO_IMAGE"
    error = refuse(code, f"No series of {name} can be used. {listed}.")
    error.verdicts = tuple(verdicts)
    return error
