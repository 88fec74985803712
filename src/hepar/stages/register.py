"""Stage 4: bring every phase onto the reference grid, each voxel interpolated once.

Between phases a patient breathes. For each phase, maps of rising flexibility are estimated over the
body (`alignment`: rigid, affine, deformable), and with a liver model the liver is then followed
alone (`liver_alignment`). From the most refined down, the first that is accepted becomes one
displacement, by which the phase is sampled once, from its own voxels.

A map is accepted only if it helps: it must raise the similarity to the reference, in body or liver,
lower neither, leave the livers overlapping, fold almost nowhere, and move things by a distance that
breathing can explain. If none does, world coordinates alone decide (`rejected`, `W_REG_REJECTED`,
or `identity` where the phases lie still). A phase whose world coordinates cannot hold either is
left out: what shows another place must not be measured as if it were the liver.

Bounds: the working grids of `alignment` and `liver_alignment` bound time and memory whatever the
scans. After `BUDGET_S` a phase gets no further map, and what was found by then is judged
(`W_REG_TIME`); that is some ten times what a phase takes, so that no usual result hangs on a clock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hepar.geometry import Displacement, Grid
from hepar.infer.bundle import Model
from hepar.resampling import resample
from hepar.stages.alignment import (
    AIR_HU,
    Body,
    Map,
    Pair,
    coverage,
    find_body,
    judged,
    maps,
    similarity,
    working_pair,
)
from hepar.stages.liver_alignment import LiverFit, Livers, Region, find_region, refine
from hepar.study import AlignedStudy, Phase, PhasedStudy, RegistrationRecord, Volume

LOG = logging.getLogger(__name__)

MIN_GAIN = 0.01  # absolute, of a similarity that is 0.2 to 0.6 for two phases of one patient
MIN_SIMILARITY = 0.1  # below it the two images share no structure worth following
# After a map that no liver speaks for: 0.45 and more in pairs of one patient, up to 0.25 where one
# scan is mirrored and everything soft was bent to fit.
MIN_LONE_SIMILARITY = 0.3
MAX_FOLDING = 0.01
MAX_LIVER_FOLDING = 0.001
MAX_MEAN_MM = 40.0
STILL_MM = 1.0
MIN_COVERAGE = 0.7
MIN_LIVER_COVERAGE = 0.95
# Of two masks of one liver: 0.93 and more when aligned, 0.6 when 30 mm apart, 0.66 when mirrored.
MIN_OVERLAP, MAX_OVERLAP_LOSS = 0.8, 0.03
USABLE_OVERLAP, USABLE_COVERAGE = 0.5, 0.5
BUDGET_S = 240.0


@dataclass(frozen=True)
class _Evidence:
    """A pair of scans by world coordinates: what every map is compared with."""

    phase: Phase
    moving: Volume
    body: Body
    pair: Pair | None
    livers: Livers | None
    similarity: float
    coverage: float
    fit: LiverFit | None


def register(
    phased: PhasedStudy, model: Model | None = None, *, budget_s: float = BUDGET_S
) -> AlignedStudy:
    """Bring every phase onto the grid of the reference phase.

    Args:
        phased: volumes on axial grids, int16 HU (`harmonize`).
        model: the coarse liver network; None: the body alone is aligned and judged.
        budget_s: seconds a phase may take before no further map is begun.

    Returns:
        The phases on the reference grid, int16 HU, air outside a phase's own field of view; the
        reference itself is passed on untouched. A phase that shows another place is not among
        them, but has its record. Warnings: `W_REG_REJECTED`, `W_PHASE_COVERAGE`, `W_REG_TIME`.

    Raises:
        HeparError: the network cannot run (`infer.tiling.predict`).
    """
    reference = phased.reference
    fixed = phased.volumes[reference]
    volumes: dict[Phase, Volume] = {}
    records: list[RegistrationRecord] = []
    notes: list[str] = []
    others = len(phased.volumes) > 1
    body = find_body(fixed) if others else None
    liver = find_region(fixed, model) if others and model else None
    for phase, moving in phased.volumes.items():
        if phase is reference or body is None:
            volumes[phase] = fixed
            reason = "the reference phase"
            records.append(RegistrationRecord(phase, "reference", 1.0, 1.0, 0.0, 0.0, 1.0, reason))
            continue
        LOG.info("registering %s to %s", phase.value, reference.value)
        late = _Late(time.monotonic() + budget_s)
        other = find_region(moving, model) if liver and model else None
        shift = _between_frames(phased, phase, liver, other)
        placed, other = _shifted(moving, other, shift)
        evidence = _evidence(phase, fixed, placed, body, liver, other)
        displacement, record = _estimate(evidence, late)
        displacement, record = _shifted_back(displacement, record, shift, fixed.grid)
        known = shift is None and not _frames_differ(phased, phase)
        left_out = _why_left_out(record, evidence, known)
        if left_out is None:
            volumes[phase] = Volume(_sample(moving, fixed.grid, displacement), fixed.grid)
        records.append(record)
        notes += _notes(record, left_out, late.told)
        LOG.info("%s: %s, %s", phase.value, record.method, record.reason)
    return AlignedStudy(
        volumes=volumes,
        reference=reference,
        phased=phased,
        registration=tuple(records),
        warnings=tuple(notes),
    )


class _Late:
    """Whether time is up, and whether that was ever so."""

    def __init__(self, end_s: float) -> None:
        self.end_s, self.told = end_s, False

    def __call__(self) -> bool:
        self.told = self.told or time.monotonic() > self.end_s
        return self.told


def _notes(record: RegistrationRecord, left_out: str | None, late: bool) -> Iterator[str]:
    name = record.phase.long_name
    if record.method == "rejected":
        what = "is left out" if left_out else "is aligned by world coordinates"
        also = f"; {left_out}" if left_out else ""
        yield f"W_REG_REJECTED: the {name} phase {what}: {record.reason}{also}."
    if late:
        yield (
            f"W_REG_TIME: time for aligning the {name} phase ran out; the best map until then "
            f"({record.method}) was used."
        )
    liver = record.liver_coverage
    if record.coverage >= MIN_COVERAGE and (liver is None or liver >= MIN_LIVER_COVERAGE):
        return
    shares = f"{100 * record.coverage:.0f} % of the body"
    if liver is not None:
        shares = f"{100 * liver:.0f} % of the liver and {shares}"
    end = "it is left out" if left_out else "elsewhere it is empty and nothing is measured in it"
    yield f"W_PHASE_COVERAGE: the {name} phase covers {shares} in the reference phase; {end}."


def _why_left_out(record: RegistrationRecord, evidence: _Evidence, known: bool) -> str | None:
    """Why a phase cannot be used even as it lies, or None.

    `known`: both scans were made in one frame of reference, so that world coordinates mean
    something where no map was found.
    """
    if record.liver_coverage is not None and record.liver_coverage < USABLE_COVERAGE:
        return "its field of view misses most of the liver"
    if record.method != "rejected":
        return None
    if evidence.pair is None:
        return "it shows another part of the body"
    if not known:
        return "its frame of reference is not the reference's, so its coordinates mean nothing"
    if evidence.fit and evidence.fit.overlap < USABLE_OVERLAP:
        return f"by world coordinates the livers overlap by {evidence.fit.overlap:.2f} only"
    return None


def _frames_differ(phased: PhasedStudy, phase: Phase) -> bool:
    """Whether two series name different frames of reference; a file that names none differs not."""
    series_of = {reading.phase: reading.series_id for reading in phased.readings}
    tags = {series.verdict.series_id: series.tags for series in phased.study.series}
    ours, theirs = (
        tags.get(series_of.get(p, ""), {}).get("FrameOfReferenceUID", "")
        for p in (phased.reference, phase)
    )
    return bool(ours and theirs and ours != theirs)


def _between_frames(
    phased: PhasedStudy, phase: Phase, liver: Region | None, other: Region | None
) -> NDArray[np.float64] | None:
    """Shift in LPS mm that brings another frame's liver onto the reference's, or None."""
    if liver is None or other is None or not _frames_differ(phased, phase):
        return None
    return liver.center_mm - other.center_mm


def _moved(grid: Grid, shift_mm: NDArray[np.float64]) -> Grid:
    x, y, z = (float(v) for v in np.asarray(grid.origin_mm) + shift_mm)
    return replace(grid, origin_mm=(x, y, z))


def _shifted(
    moving: Volume, liver: Region | None, shift_mm: NDArray[np.float64] | None
) -> tuple[Volume, Region | None]:
    if shift_mm is None or liver is None:
        return moving, liver
    return (
        Volume(moving.array, _moved(moving.grid, shift_mm)),
        replace(liver, grid=_moved(liver.grid, shift_mm)),
    )


def _shifted_back(
    displacement: Displacement | None,
    record: RegistrationRecord,
    shift_mm: NDArray[np.float64] | None,
    grid: Grid,
) -> tuple[Displacement | None, RegistrationRecord]:
    """The displacement to the phase's own coordinates, after the livers' centers were met."""
    if shift_mm is None:
        return displacement, record
    if displacement is None:
        whole = grid.with_spacing(grid.extent_mm)
        displacement = Displacement(np.zeros((3, *whole.shape), dtype=np.float32), whole)
    field = displacement.field_mm - shift_mm.astype(np.float32)[:, None, None, None]
    words = f"frames of reference differ, the livers' centers met first; {record.reason}"
    length = float(np.linalg.norm(shift_mm)) + record.mean_displacement_mm
    return Displacement(field, displacement.grid), replace(
        record, reason=words, mean_displacement_mm=length
    )


def _sample(moving: Volume, target: Grid, displacement: Displacement | None) -> NDArray[np.int16]:
    """The one interpolation."""
    if displacement is None and moving.grid.is_close(target):
        return np.asarray(moving.array, dtype=np.int16)
    values = resample(moving.array, moving.grid, target, fill=AIR_HU, displacement=displacement)
    return np.asarray(np.rint(values, out=values), dtype=np.int16)


def _evidence(
    phase: Phase,
    fixed: Volume,
    moving: Volume,
    body: Body,
    liver: Region | None,
    other: Region | None,
) -> _Evidence:
    pair = working_pair(fixed, moving, body)
    livers = Livers.of(fixed, liver, moving, other) if liver else None
    return _Evidence(
        phase,
        moving,
        body,
        pair,
        livers,
        similarity(pair, None) if pair else 0.0,
        coverage(body, moving.grid, None),
        livers.fit(None) if livers else None,
    )


def _estimate(
    evidence: _Evidence, late: Callable[[], bool]
) -> tuple[Displacement | None, RegistrationRecord]:
    """The first map that is accepted (None: world coordinates) and its record."""
    if evidence.pair is None:
        return None, _record(evidence, "rejected", "the two scans share too little of the body")
    before = evidence.similarity
    objections: list[str] = []
    gained, smallest_mm = False, np.inf
    for found in _candidates(evidence, evidence.pair, late):
        fit = evidence.livers.fit(found.displacement) if evidence.livers else None
        objection = _objection(found, fit, evidence)
        if objection is None:
            reason = f"similarity {before:.3f} -> {found.similarity:.3f}"
            if fit and evidence.fit:
                reason += f", around the liver {evidence.fit.similarity:.3f} -> "
                reason += f"{fit.similarity:.3f}"
            return found.displacement, _record(evidence, found.method, reason, found, fit)
        objections.append(f"{found.method} (mean {found.mean_mm:.1f} mm): {objection}")
        gained = gained or found.similarity >= before + MIN_GAIN
        smallest_mm = min(smallest_mm, found.mean_mm)
    reason = "; ".join(objections) or "no registration method is available"
    still = before >= MIN_SIMILARITY and not gained and smallest_mm < STILL_MM
    if evidence.fit and evidence.fit.coverage > USABLE_COVERAGE:
        still = still and evidence.fit.overlap >= MIN_OVERLAP
    if still:
        reason = f"already aligned: {reason}"
    return None, _record(evidence, "identity" if still or not objections else "rejected", reason)


def _candidates(evidence: _Evidence, pair: Pair, late: Callable[[], bool]) -> Iterator[Map]:
    """Maps from the most refined to the simplest."""
    before = evidence.similarity
    found = maps(pair, before + MIN_GAIN, late)
    livers = evidence.livers
    if livers and livers.moving and not late():
        still = Displacement(np.zeros((3, *pair.grid.shape), dtype=np.float32), pair.grid)
        body = judged("identity", pair, still, np.eye(4))
        usable = [m for m in found if m.similarity >= before and m.folding < MAX_FOLDING]
        linear = [m for m in usable if m.matrix is not None]
        start = max(linear, key=lambda m: m.similarity) if linear else body
        assert start.matrix is not None
        refined = refine(pair, livers, usable[-1] if usable else body, start.matrix, late)
        if refined:
            yield refined
    yield from reversed(found)


def _objection(found: Map, fit: LiverFit | None, evidence: _Evidence) -> str | None:
    """Why a map should not be used, or None."""
    before, after = evidence.similarity, found.similarity
    spoken_for = fit is not None and fit.coverage >= USABLE_COVERAGE
    if after < (MIN_SIMILARITY if spoken_for else MIN_LONE_SIMILARITY):
        return f"similarity stays low, {before:.3f} -> {after:.3f}"
    gain = after - before
    if fit and evidence.fit:
        objection = _liver_objection(fit, evidence.fit)
        if objection:
            return objection
        if gain >= -MIN_GAIN:
            gain = max(gain, fit.similarity - evidence.fit.similarity)
    if gain < MIN_GAIN:
        return f"similarity {before:.3f} -> {after:.3f} does not help"
    if found.folding >= MAX_FOLDING:
        return f"{100 * found.folding:.1f} % of the body folds"
    if found.mean_mm > MAX_MEAN_MM:
        return "the mean displacement is implausible"
    return None


def _liver_objection(after: LiverFit, before: LiverFit) -> str | None:
    """Why a map is no good for the liver, or None; a liver out of view says nothing."""
    if after.coverage < USABLE_COVERAGE:
        return None
    if after.overlap < MIN_OVERLAP or after.overlap < before.overlap - MAX_OVERLAP_LOSS:
        return f"the livers overlap by {before.overlap:.2f} before and {after.overlap:.2f} after"
    if after.similarity < before.similarity - MIN_GAIN:
        return (
            f"around the liver similarity falls, {before.similarity:.3f} -> {after.similarity:.3f}"
        )
    if after.folding > MAX_LIVER_FOLDING:
        return f"{100 * after.folding:.1f} % of the liver folds"
    return None


def _record(
    evidence: _Evidence,
    method: str,
    reason: str,
    found: Map | None = None,
    fit: LiverFit | None = None,
) -> RegistrationRecord:
    """A record of a map, or, without one, of world coordinates."""
    before, after = evidence.fit, fit or evidence.fit
    share = evidence.coverage
    if found:
        share = coverage(evidence.body, evidence.moving.grid, found.displacement)
    return RegistrationRecord(
        phase=evidence.phase,
        method=method,
        similarity_before=evidence.similarity,
        similarity_after=found.similarity if found else evidence.similarity,
        mean_displacement_mm=found.mean_mm if found else 0.0,
        folding_fraction=found.folding if found else 0.0,
        coverage=share,
        reason=reason,
        liver_overlap_before=before.overlap if before else None,
        liver_overlap_after=after.overlap if after else None,
        liver_coverage=after.coverage if after else None,
    )
