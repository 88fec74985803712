"""What the reading of a study shows to people: the content of `ingest.json`.

Every series with its verdict, every finding with its code, level and remedy, every file that is not
used, and the phase and reference each series was taken for. Written for a refused study too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict

from hepar.errors import InputRefused
from hepar.geometry import Grid, Index, Triple, orientation_of
from hepar.io.refusal import WARNINGS, Level, level_of, remedy_of
from hepar.study import Phase, PhasedStudy, PhaseReading, Series, SeriesVerdict, Study

_PLANES = {"S": "axial", "I": "axial", "P": "coronal", "A": "coronal"}
_IN_NO_SERIES = "in no series: no CT image, or a copy of an image that is there already"
_BURNED_IN = "W_BURNED_IN"
_NOT_NEEDED = "no phase was assigned"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Geometry(_Record):
    """Where a series lies.

    `orientation` holds the letters towards which z, y and x run (`SPL`: an axial series from the
    feet upwards); `oblique_deg` is the largest angle between an axis and its letter.
    """

    shape_zyx: Index
    spacing_mm_zyx: Triple
    extent_mm_zyx: Triple
    plane: Literal["axial", "coronal", "sagittal"]
    orientation: str
    oblique_deg: float

    @property
    def lies(self) -> str:
        """The plane in words, with the angle where it is more than a degree off."""
        turned = f", {self.oblique_deg:.0f} degrees oblique" if self.oblique_deg >= 1 else ""
        return f"{self.plane}{turned}"


class IngestSeries(_Record):
    """One series of the source.

    `code` is that of the verdict, `codes` are those of every finding about the series. `phase` is
    None for a series that is not used; `evidence` says why it is that phase, `organ_hu` holds the
    median HU of the organs that were looked at.
    """

    id: str
    source: str
    description: str
    status: Literal["usable", "repaired", "unused", "refused"]
    code: str | None
    codes: tuple[str, ...]
    reason: str
    remedy: str | None
    n_files: int
    geometry: Geometry | None
    phase: str | None
    confidence: float | None
    evidence: str | None
    phase_uncertain: bool | None
    organ_hu: dict[str, float] | None
    reference: bool


class Finding(_Record):
    """Something that was noticed.

    `file_index` is the position, from 0, of the one file it is about in the study's sorted listing
    (relative paths, hidden files left out).
    """

    code: str
    level: Level
    message: str
    remedy: str | None
    series: str | None = None
    file_index: int | None = None


class Dropped(_Record):
    """Files that are not used, and why."""

    n_files: int
    reason: str
    code: str | None = None
    series: str | None = None


class Files(_Record):
    """How many files there are; `n_found` is None where the source cannot be listed."""

    n_found: int | None
    n_used: int
    n_dropped: int
    dropped: tuple[Dropped, ...]


class Reference(_Record):
    """The series the outputs lie on."""

    phase: str
    series: str


class Refusal(_Record):
    """Why the whole study is refused."""

    code: str
    stage: str
    message: str
    remedy: str
    exit_code: int


class Ingest(_Record):
    """What became of a study when it was read: the content of `ingest.json`."""

    schema_version: Literal["1"] = "1"
    outcome: Literal["usable", "refused"]
    series: tuple[IngestSeries, ...]
    reference: Reference | None
    findings: tuple[Finding, ...]
    files: Files
    error: Refusal | None = None


def listing(
    source: Path | None, stated: Mapping[Phase, Path] | None = None
) -> tuple[str, ...] | None:
    """The files of a study as `file_index` counts them.

    Args:
        source: as given to `read_study`.
        stated: series given for a phase; their files come after those of the source.

    Returns:
        Paths relative to what was given, sorted; None where that cannot be listed (an archive, or
        one DICOM file that stands for its series).
    """
    # Imported here: it brings the DICOM reader with it, which the schema has no need of.
    from hepar.io.dicom import walk_files
    from hepar.io.nifti import is_nifti_name

    roots = [path for path in (source, *(stated or {}).values()) if path is not None]
    seen: set[Path] = set()
    names: list[str] = []
    for root in roots:
        if root.is_dir():
            files = list(walk_files(root))
        elif is_nifti_name(root) and root.is_file():
            files = [root]
        else:
            return None
        base = root if root.is_dir() else root.parent
        fresh = [file for file in files if file.resolve() not in seen]
        seen.update(file.resolve() for file in fresh)
        names += sorted(file.relative_to(base).as_posix() for file in fresh)
    return tuple(names)


def ingest(
    study: Study | None,
    phased: PhasedStudy | None = None,
    *,
    error: InputRefused | None = None,
    files: Sequence[str] | None = None,
) -> Ingest:
    """Gather what reading a study found.

    Args:
        study: as read; None where it was refused.
        phased: its phases, where they could be told; its `study` has the later verdicts.
        error: why the study is refused, if it is; its `verdicts` stand in for those of a study.
        files: from `listing`.
    """
    known = phased.study if phased else study
    verdicts = known.verdicts if known else error.verdicts if error else ()
    series = {s.verdict.series_id: s for s in known.series} if known else {}
    readings = {r.series_id: r for r in phased.readings} if phased else {}
    warnings = [*(known.warnings if known else ()), *(phased.warnings if phased else ())]
    findings = tuple(_findings(verdicts, series.values(), warnings, error, files or ()))
    reference = None
    if phased and phased.volumes:
        chosen = next(r for r in phased.readings if r.phase == phased.reference)
        reference = Reference(phase=str(chosen.phase), series=chosen.series_id)
    rows = tuple(
        _row(verdict, series.get(verdict.series_id), readings, findings, reference)
        for verdict in verdicts
    )
    return Ingest(
        outcome="refused" if error else "usable",
        series=rows,
        reference=reference,
        findings=findings,
        files=_files(rows, None if files is None else len(files), error),
        error=Refusal.model_validate(error.as_dict()) if error else None,
    )


def plain(text: str) -> str:
    """Text of a header or a file name on one line, without escapes and broken characters."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def _row(
    verdict: SeriesVerdict,
    series: Series | None,
    readings: Mapping[str, PhaseReading],
    findings: Sequence[Finding],
    reference: Reference | None,
) -> IngestSeries:
    reading = readings.get(verdict.series_id)
    codes = (f.code for f in findings if f.series == verdict.series_id)
    return IngestSeries(
        id=verdict.series_id,
        source=plain(verdict.source),
        description=plain(verdict.description),
        status=verdict.status,
        code=verdict.code,
        codes=tuple(dict.fromkeys(codes)),
        reason=plain(verdict.reason),
        remedy=remedy_of(verdict.code) if verdict.code else None,
        n_files=verdict.n_files,
        geometry=_geometry(series.volume.grid) if series else None,
        phase=str(reading.phase) if reading else None,
        confidence=round(reading.confidence, 3) if reading else None,
        evidence=plain(reading.reason) if reading else None,
        phase_uncertain=reading.uncertain if reading else None,
        organ_hu=dict(reading.organ_hu) if reading else None,
        reference=reference is not None and reference.series == verdict.series_id,
    )


def _geometry(grid: Grid) -> Geometry:
    letters, oblique_deg = orientation_of(grid)
    (a, b, c), (d, e, f) = grid.spacing_mm, grid.extent_mm
    return Geometry(
        shape_zyx=grid.shape,
        spacing_mm_zyx=(round(a, 4), round(b, 4), round(c, 4)),
        extent_mm_zyx=(round(d, 1), round(e, 1), round(f, 1)),
        plane=_PLANES.get(letters[0], "sagittal"),  # type: ignore[arg-type]
        orientation=letters,
        oblique_deg=round(oblique_deg, 2),
    )


def _findings(
    verdicts: Sequence[SeriesVerdict],
    series: Iterable[Series],
    warnings: Iterable[str],
    error: InputRefused | None,
    files: Sequence[str],
) -> Iterator[Finding]:
    """The refusal of the study, the verdicts' codes, then what only the warnings say."""
    if error:
        yield _finding(error.code, error.message, remedy=error.remedy)
    told = _by_series(warnings, verdicts)
    for verdict in verdicts:
        if verdict.code is None:
            continue
        message = told.pop((verdict.code, verdict.series_id), None)
        yield _finding(
            verdict.code,
            verdict.reason if verdict.status == "refused" or message is None else message,
            series=verdict.series_id,
            file_index=_file_index(verdict, files),
            harmless=verdict.status == "unused",
        )
    for one in series:
        about = (_BURNED_IN, one.verdict.series_id)
        if one.tags.get("BurnedInAnnotation", "").strip().upper() == "YES":
            told.setdefault(about, WARNINGS[_BURNED_IN].meaning)
    for (code, about_id), message in told.items():
        yield _finding(code, message, series=about_id)


def _by_series(
    warnings: Iterable[str], verdicts: Sequence[SeriesVerdict]
) -> dict[tuple[str, str | None], str]:
    """Warnings (`W_CODE: words`) by their code and the series that their words name first."""
    prefixes = {v.series_id: f"{v.series_id} ({v.description or v.source}): " for v in verdicts}
    told: dict[tuple[str, str | None], str] = {}
    for warning in warnings:
        code, _, words = warning.partition(": ")
        if code == "W_SERIES_REFUSED":
            continue  # a refused series has its own code
        named = re.findall(r"\bs\d+\b", words)
        about = next((name for name in named if name in prefixes), None)
        told.setdefault((code, about), words.removeprefix(prefixes.get(about or "", "")))
    return told


def _finding(
    code: str,
    message: str,
    *,
    remedy: str | None = None,
    series: str | None = None,
    file_index: int | None = None,
    harmless: bool = False,
) -> Finding:
    """`harmless`: the code says why files are of no use, which is no error of the study."""
    level = level_of(code)
    return Finding(
        code=code,
        level="HANDLE" if harmless and level == "ERROR" else level,
        message=plain(message),
        remedy=remedy or remedy_of(code),
        series=series,
        file_index=file_index,
    )


def _file_index(verdict: SeriesVerdict, files: Sequence[str]) -> int | None:
    """Where the one file that a verdict is about stands; None where it is about none or several."""
    if verdict.source in files:
        return files.index(verdict.source)
    words = {word.strip(".,;:()'\"") for word in verdict.reason.split()}
    named = []
    for place, path in enumerate(files):
        name = PurePosixPath(path).name
        # A file called "12" cannot be told from a number in the sentence.
        if name in words and not name.isdecimal():
            named.append(place)
    inside = [place for place in named if files[place].startswith(f"{verdict.source}/")]
    best = inside or named
    return best[0] if len(best) == 1 else None


def _files(rows: Sequence[IngestSeries], n_found: int | None, error: InputRefused | None) -> Files:
    used = sum(row.n_files for row in rows if row.phase)
    dropped = [
        Dropped(
            n_files=row.n_files,
            reason=row.reason if row.status in ("unused", "refused") else _NOT_NEEDED,
            code=row.code,
            series=row.id,
        )
        for row in rows
        if not row.phase and row.n_files
    ]
    rest = (n_found or 0) - sum(row.n_files for row in rows)
    if rest > 0 and error and not rows:
        dropped.append(Dropped(n_files=rest, reason="the study is refused", code=error.code))
    elif rest > 0:
        dropped.append(Dropped(n_files=rest, reason=_IN_NO_SERIES))
    return Files(
        n_found=n_found,
        n_used=used,
        n_dropped=sum(one.n_files for one in dropped),
        dropped=tuple(dropped),
    )
