"""Stage 2: which series is which contrast phase, how sure, and why.

Evidence in order of trust, with the confidence a reading gets from it:

| evidence | confidence |
|---|---|
| the user said so (`--phase art=PATH`) | 1.00 |
| file or folder name | 0.90 |
| SeriesDescription, ImageComments | 0.85 |
| ProtocolName (one protocol often covers every phase) | 0.70 |
| seconds between ContrastBolusStartTime and AcquisitionTime | 0.70 |
| ContrastBolusAgent that says "none" | 0.50 |
| nothing, and it is the only series | 0.20 |

A second, independent source that agrees adds 0.05; one that disagrees costs 0.25 and a warning.
A confidence orders the evidence; it is not a calibrated probability.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace

from hepar.errors import InputRefused
from hepar.geometry import Grid
from hepar.io.phase_words import phase_of_path, phase_of_text, seconds_in_text
from hepar.study import (
    PHASE_ORDER,
    Phase,
    PhasedStudy,
    PhaseReading,
    Series,
    SeriesVerdict,
    Study,
    Volume,
)

LOG = logging.getLogger(__name__)

EXPLICIT, NAME, DESCRIPTION, PROTOCOL, TIMING, AGENT, ASSUMED = 1.0, 0.9, 0.85, 0.7, 0.7, 0.5, 0.2
AGREEMENT, CONFLICT = 0.05, 0.25

# Seconds after the start of the injection; between the intervals timing says nothing.
_TIMING_S = (
    (Phase.ART, 10.0, 45.0),
    (Phase.PV, 45.0, 110.0),
    (Phase.DL, 120.0, 1800.0),
)
_DAY_S = 86400.0
_SHARP_KERNEL = re.compile(r"^(bone|lung|edge|detail|b[5-9]\d|br[5-9]\d|bl[5-9]\d|fc5|yc|yd)", re.I)


@dataclass(frozen=True)
class Evidence:
    """One reason to call a series a phase."""

    phase: Phase
    confidence: float
    reason: str


def assign_phases(study: Study) -> PhasedStudy:
    """Give every usable series a phase, or say why it has none.

    A lone series without evidence is read as portal venous, the commonest liver CT, with
    `W_PHASE_ASSUMED`. Beside series whose phase is known, one without evidence stays unused.

    Args:
        study: usable series.

    Returns:
        One volume a phase; `study` in it has the verdicts of series left aside brought up to date.

    Raises:
        InputRefused: `E_NO_IMAGE` without a series; `E_PHASES_UNKNOWN` when two or more series are
            there and none can be given a phase.
    """
    if not study.series:
        raise InputRefused(
            "E_NO_IMAGE", "phases", "the study holds no usable series.", "check the source folder"
        )
    warnings: list[str] = []
    known: dict[Phase, list[tuple[Series, Evidence]]] = {}
    unknown: list[Series] = []
    for series in study.series:
        evidence = _weigh(series, warnings)
        if evidence is None:
            unknown.append(series)
        else:
            known.setdefault(evidence.phase, []).append((series, evidence))
    if not known:
        known = {Phase.PV: [_assume(unknown, warnings)]}
        unknown = []

    left_aside = [(series, _unused(series)) for series in unknown]
    volumes: dict[Phase, Volume] = {}
    grids: dict[Phase, Grid] = {}
    readings: list[PhaseReading] = []
    for phase in PHASE_ORDER:
        candidates = sorted(known.get(phase, []), key=_preference)
        if not candidates:
            continue
        series, evidence = candidates[0]
        volumes[phase], grids[phase] = series.volume, series.volume.grid
        readings.append(
            PhaseReading(phase, evidence.confidence, evidence.reason, series.verdict.series_id)
        )
        left_aside += [(other, _duplicate(other, series, phase)) for other, _ in candidates[1:]]
    warnings += [f"{verdict.code}: {verdict.reason}" for _, verdict in left_aside]
    for reading in readings:
        LOG.info("%s is %s: %s", reading.series_id, reading.phase.value, reading.reason)
    return PhasedStudy(
        volumes=volumes,
        readings=tuple(readings),
        study=_with_verdicts(study, [verdict for _, verdict in left_aside]),
        source_grids=grids,
        warnings=tuple(warnings),
    )


def _weigh(series: Series, warnings: list[str]) -> Evidence | None:
    """The phase the best evidence gives, its confidence moved by what the rest says."""
    found = _evidence(series)
    if not found:
        return None
    best, rest = found[0], found[1:]
    against = [e for e in rest if e.phase is not best.phase]
    if against:
        warnings.append(
            f"W_PHASE_TAG_CONFLICT: series {series.verdict.series_id} is taken as "
            f"{best.phase.long_name} ({best.reason}), but {against[0].reason} says "
            f"{against[0].phase.long_name}."
        )
    confidence = best.confidence
    if confidence < EXPLICIT:
        if against:
            confidence -= CONFLICT
        elif rest:
            confidence = min(0.95, confidence + AGREEMENT)
    reason = best.reason
    if rest and not against:
        reason += f"; {rest[0].reason} agrees"
    return Evidence(best.phase, round(confidence, 3), reason)


def _evidence(series: Series) -> list[Evidence]:
    """Everything that speaks for a phase, most trusted first."""
    tags = {key.lower(): str(value) for key, value in series.tags.items()}
    found: list[Evidence] = []
    if series.assigned is not None:
        found.append(Evidence(series.assigned, EXPLICIT, "assigned by the user"))
    for name in dict.fromkeys((series.verdict.source, tags.get("filename", ""))):
        if (hit := phase_of_path(name)) is not None:
            found.append(Evidence(hit[0], NAME, f"name {name!r} holds {hit[1]!r}"))
            break
    for keyword, confidence in (
        ("SeriesDescription", DESCRIPTION),
        ("ImageComments", DESCRIPTION),
        ("ProtocolName", PROTOCOL),
    ):
        text = tags.get(keyword.lower(), "")
        if (hit := phase_of_text(text)) is not None:
            found.append(Evidence(hit[0], confidence, f"{keyword} {text!r} holds {hit[1]!r}"))
            break
    timing = _from_timing(tags)
    if timing is not None:
        found.append(timing)
    agent = tags.get("contrastbolusagent", "").strip().lower()
    if not found and agent in {"none", "no", "no contrast", "without", "ohne", "sans"}:
        found.append(Evidence(Phase.NC, AGENT, f"ContrastBolusAgent is {agent!r}"))
    return found


def _from_timing(tags: dict[str, str]) -> Evidence | None:
    """Evidence from the time since the injection, or from seconds written in the description."""
    start = _seconds_of_day(tags.get("contrastbolusstarttime", ""))
    scan = _seconds_of_day(tags.get("acquisitiontime", ""))
    delay: float | None
    if start is not None and scan is not None:
        delay = scan - start
        if delay < -_DAY_S / 2:
            delay += _DAY_S  # the injection was before midnight, the scan after it
        reason = f"acquired {delay:.0f} s after the start of the injection"
        if delay < 0:
            return Evidence(Phase.NC, TIMING, f"acquired {-delay:.0f} s before the injection")
    else:
        delay = seconds_in_text(tags.get("seriesdescription", ""))
        if delay is None:
            return None
        reason = f"SeriesDescription gives a delay of {delay:.0f} s"
    for phase, low, high in _TIMING_S:
        if low <= delay <= high:
            return Evidence(phase, TIMING, reason)
    return None


def _seconds_of_day(time: str) -> float | None:
    """Seconds since midnight of a DICOM TM (`hhmmss.ffffff`, colons allowed), or None."""
    match = re.fullmatch(r"(\d{2}):?(\d{2}):?(\d{2}(?:\.\d{1,6})?)", time.strip())
    if match is None:
        return None
    hours, minutes, seconds = int(match[1]), int(match[2]), float(match[3])
    if hours > 23 or minutes > 59 or seconds >= 61:
        return None
    return hours * 3600 + minutes * 60 + seconds


def _preference(candidate: tuple[Series, Evidence]) -> tuple[float | str, ...]:
    """Sort key among series of one phase, best first.

    More evidence, then larger coverage along the slices (to the centimeter), then no sharp (bone,
    lung) kernel, then thinner slices, then larger in-plane matrix; the id settles what is left.
    """
    series, evidence = candidate
    grid = series.volume.grid
    tags = {key.lower(): str(value) for key, value in series.tags.items()}
    kernel = tags.get("convolutionkernel", "").strip("[]' ")
    return (
        -evidence.confidence,
        -round(grid.extent_mm[0] / 10.0),
        float(bool(_SHARP_KERNEL.match(kernel))),
        round(grid.spacing_mm[0], 2),
        -float(grid.shape[1] * grid.shape[2]),
        series.verdict.series_id,
    )


def _assume(unknown: list[Series], warnings: list[str]) -> tuple[Series, Evidence]:
    """A lone series is the reference, whatever it is; several cannot be told apart."""
    if len(unknown) > 1:
        names = ", ".join(_label(s) for s in unknown)
        raise InputRefused(
            "E_PHASES_UNKNOWN",
            "phases",
            f"nothing in names, tags or timing tells the phase of these {len(unknown)} series: "
            f"{names}.",
            "name at least one, e.g. `--phase pv=PATH` (nc, art, pv, dl)",
        )
    series = unknown[0]
    warnings.append(
        f"W_PHASE_ASSUMED: nothing says which phase {_label(series)} is; it is read as "
        "portal venous. Give `--phase` if it is not."
    )
    reason = "assumed: the only series, and nothing says which phase it is"
    return series, Evidence(Phase.PV, ASSUMED, reason)


def _label(series: Series) -> str:
    verdict = series.verdict
    text = verdict.description or verdict.source
    return f"{verdict.series_id} ({text})" if text else verdict.series_id


def _unused(series: Series) -> SeriesVerdict:
    reason = f"nothing says which phase {_label(series)} is; it is left aside."
    return replace(series.verdict, status="unused", code="W_SERIES_UNUSED", reason=reason)


def _duplicate(series: Series, kept: Series, phase: Phase) -> SeriesVerdict:
    reason = (
        f"{_label(series)} and {_label(kept)} are both {phase.long_name}; the second is kept "
        "(more evidence, else larger coverage, softer kernel, thinner slices)."
    )
    return replace(series.verdict, status="unused", code="W_DUPLICATE_PHASE", reason=reason)


def _with_verdicts(study: Study, changed: list[SeriesVerdict]) -> Study:
    """The study with the verdicts of series that were left aside replaced."""
    by_id = {verdict.series_id: verdict for verdict in changed}
    return replace(
        study,
        verdicts=tuple(by_id.get(v.series_id, v) for v in study.verdicts),
        series=tuple(
            replace(s, verdict=by_id.get(s.verdict.series_id, s.verdict)) for s in study.series
        ),
    )
