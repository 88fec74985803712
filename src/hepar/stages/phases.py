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

Where a liver network is at hand the image is read too: the HU of the organs that it names give each
phase a probability (`infer.phase_reading`). What the text says, with its confidence, then counts as
what was thought beforehand, and the two are multiplied: an image that is sure outweighs a wrong
description, one that lies between two phases leaves the choice to the text. Only the user outweighs
everything. A phase that text and image dispute, or whose confidence is below 0.7, is `uncertain`.

A confidence from text alone orders the evidence; it is not a calibrated probability. That of the
image alone is calibrated on phantoms (`benchmarks/phase_recognition.json`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hepar.errors import InputRefused
from hepar.geometry import Grid
from hepar.infer.bundle import Model
from hepar.infer.organ_hu import organ_hu
from hepar.infer.organs import find_organs
from hepar.infer.phase_reading import ImageReading, default_phase_classifier
from hepar.infer.tiling import Tiling
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
# Below the first a phase is called uncertain; an image below the second names none; a phase that
# the image gives less than the third is contradicted by it.
CERTAIN, NAMED, CONTRADICTED = 0.7, 0.5, 0.1
# Of the image against the user, whom it contradicts without being followed.
SURE = 0.9
_MOST = 0.99

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
    disputed: bool = False
    hu: Mapping[str, float] = field(default_factory=dict)


def assign_phases(
    study: Study, model: Model | None = None, *, tiling: Tiling | None = None
) -> PhasedStudy:
    """Give every usable series a phase, or say why it has none.

    A lone series without evidence is read as portal venous, the commonest liver CT, with
    `W_PHASE_ASSUMED`. Beside series whose phase is known, one without evidence stays unused.

    Args:
        study: usable series.
        model: liver model of a bundle, with which each image is read, once; None reads text alone.
        tiling: memory and device of the model.

    Returns:
        One volume a phase; `study` in it has the verdicts of series left aside brought up to date.
        Warnings: `W_PHASE_TAG_CONFLICT`, `W_PHASE_UNCERTAIN`, `W_PHASE_ASSUMED`,
        `W_SERIES_UNUSED`, `W_DUPLICATE_PHASE`.

    Raises:
        InputRefused: `E_NO_IMAGE` without a series; `E_PHASES_UNKNOWN` when two or more series are
            there and none can be given a phase.
        ResourceExhausted, ModelIntegrityError: of the model, as `infer.tiling.predict`.
    """
    if not study.series:
        raise InputRefused(
            "E_NO_IMAGE", "phases", "the study holds no usable series.", "check the source folder"
        )
    warnings: list[str] = []
    known: dict[Phase, list[tuple[Series, Evidence]]] = {}
    unknown: list[Series] = []
    for series in study.series:
        image = None if model is None else _look(series, model, tiling)
        evidence = _with_image(series, _weigh(series, warnings), image, warnings)
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
        readings.append(_reading(series, evidence))
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


def _reading(series: Series, evidence: Evidence) -> PhaseReading:
    uncertain = evidence.disputed or evidence.confidence < CERTAIN
    return PhaseReading(
        evidence.phase,
        evidence.confidence,
        evidence.reason,
        series.verdict.series_id,
        uncertain=uncertain,
        organ_hu=evidence.hu,
    )


def _look(series: Series, model: Model, tiling: Tiling | None) -> ImageReading | None:
    """What the image of a series says, or None where it shows too few organs."""
    # Less memory changes outlines by a voxel, which medians do not feel; the liver stage says it.
    quiet = replace(tiling or Tiling(), warn=LOG.info, progress=None)
    values = organ_hu(series.volume, find_organs(series.volume, model, quiet))
    return default_phase_classifier().read(values)


def _with_image(
    series: Series, text: Evidence | None, image: ImageReading | None, warnings: list[str]
) -> Evidence | None:
    """The phase that text and image give together, and a warning where they dispute it."""
    if image is None:
        return text
    if not image.familiar:
        return None if text is None else replace(text, hu=image.hu)
    seen = f"the image shows {image.phase.long_name} ({image.confidence:.2f}: {image.evidence})"
    if text is None:
        return _from_image(series, image, seen, warnings)
    user = text.confidence == EXPLICIT
    enough = SURE if user else NAMED
    contradicts = image.probabilities[text.phase] < CONTRADICTED and image.confidence >= enough
    phase, confidence = (text.phase, EXPLICIT) if user else _together(text, image)
    said = f"{text.reason}, which says {text.phase.long_name}"
    if not contradicts:
        agrees = f"; {seen}" if image.phase is text.phase else f"; {seen}, which does not decide it"
        return replace(text, confidence=confidence, reason=text.reason + agrees, hu=image.hu)
    warnings.append(
        f"W_PHASE_TAG_CONFLICT: series {series.verdict.series_id} is taken as {phase.long_name}, "
        f"but this is disputed: {said}; {seen}."
    )
    if not user:
        confidence = round(max(ASSUMED, confidence - CONFLICT), 3)
    reason = f"{seen}; against {said}" if phase is image.phase else f"{said}; but {seen}"
    return Evidence(phase, confidence, reason, disputed=not user, hu=image.hu)


def _together(text: Evidence, image: ImageReading) -> tuple[Phase, float]:
    """The most probable phase where the text's confidence stands for what was thought before."""
    others = (1 - text.confidence) / (len(PHASE_ORDER) - 1)
    weight = {
        phase: chance * (text.confidence if phase is text.phase else others)
        for phase, chance in image.probabilities.items()
    }
    phase = max(PHASE_ORDER, key=lambda p: weight[p])
    return phase, round(min(_MOST, weight[phase] / sum(weight.values())), 3)


def _from_image(
    series: Series, image: ImageReading, seen: str, warnings: list[str]
) -> Evidence | None:
    """The phase that the image alone gives."""
    confidence = round(min(_MOST, image.confidence), 3)
    if confidence < NAMED:
        return None
    if confidence < CERTAIN:
        ranked = sorted(PHASE_ORDER, key=lambda p: -image.probabilities[p])
        chances = ", ".join(f"{p.long_name} {image.probabilities[p]:.2f}" for p in ranked[:2])
        warnings.append(
            f"W_PHASE_UNCERTAIN: only the image tells the phase of {_label(series)}, and not "
            f"surely ({chances}); it may lie between the two. Give `--phase` if it is known."
        )
    return Evidence(image.phase, confidence, seen, hu=image.hu)


def _weigh(series: Series, warnings: list[str]) -> Evidence | None:
    """The phase the best evidence in text gives, its confidence moved by what the rest says."""
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
    disputed = bool(against) and confidence < EXPLICIT
    return Evidence(best.phase, round(confidence, 3), reason, disputed)


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

    What the user said, then more evidence (to a tenth: two reconstructions of one scan must not be
    told apart by the noise of their HU), then larger coverage along the slices (to the centimeter),
    then no sharp (bone, lung) kernel, then thinner slices, then larger in-plane matrix; the id
    settles what is left.
    """
    series, evidence = candidate
    grid = series.volume.grid
    tags = {key.lower(): str(value) for key, value in series.tags.items()}
    kernel = tags.get("convolutionkernel", "").strip("[]' ")
    return (
        float(series.assigned is None),
        -round(evidence.confidence, 1),
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
            f"nothing in names, tags, timing or the image tells the phase of these {len(unknown)} "
            f"series: "
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
