"""Stage 4: bring every phase onto the reference grid, each voxel interpolated once.

Between phases a patient breathes. For each phase, maps of falling flexibility are estimated
(`alignment`): deformable, then linear. The first that is accepted becomes one displacement, by
which the phase is sampled once, from its own voxels.

A map is accepted only if it helps: it must raise the similarity to the reference, fold almost
nowhere, and move things by a distance that breathing can explain. If none does, world coordinates
alone decide (`rejected`, `W_REG_REJECTED`, or `identity` where the phases lie still).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hepar.geometry import Displacement, Grid
from hepar.resampling import resample
from hepar.stages.alignment import (
    AIR_HU,
    Body,
    Map,
    coverage,
    find_body,
    maps,
    similarity,
    working_pair,
)
from hepar.study import AlignedStudy, Phase, PhasedStudy, RegistrationRecord, Volume

LOG = logging.getLogger(__name__)

MIN_GAIN = 0.01  # absolute, of a similarity that is 0.2 to 0.6 for two phases of one patient
MIN_SIMILARITY = 0.1  # below it the two images share no structure worth following
MAX_FOLDING = 0.01
MAX_MEAN_MM = 40.0
STILL_MM = 1.0
MIN_COVERAGE = 0.7


def register(phased: PhasedStudy) -> AlignedStudy:
    """Bring every phase onto the grid of the reference phase.

    Args:
        phased: volumes on axial grids, int16 HU (`harmonize`).

    Returns:
        All phases on the reference grid, int16 HU, air outside a phase's own field of view; the
        reference itself is passed on untouched.
    """
    reference = phased.reference
    fixed = phased.volumes[reference]
    volumes: dict[Phase, Volume] = {}
    records: list[RegistrationRecord] = []
    notes: list[str] = []
    body: Body | None = None
    for phase, moving in phased.volumes.items():
        if phase is reference:
            volumes[phase] = fixed
            reason = "the reference phase"
            records.append(RegistrationRecord(phase, "reference", 1.0, 1.0, 0.0, 0.0, 1.0, reason))
            continue
        body = body or find_body(fixed)
        LOG.info("registering %s to %s", phase.value, reference.value)
        displacement, record = _estimate(phase, fixed, moving, body)
        volumes[phase] = Volume(_sample(moving, fixed.grid, displacement), fixed.grid)
        records.append(record)
        notes += _notes(record)
        LOG.info("%s: %s, %s", phase.value, record.method, record.reason)
    return AlignedStudy(
        volumes=volumes,
        reference=reference,
        phased=phased,
        registration=tuple(records),
        warnings=tuple(notes),
    )


def _notes(record: RegistrationRecord) -> Iterator[str]:
    name = record.phase.long_name
    if record.method == "rejected":
        yield f"W_REG_REJECTED: the {name} phase is aligned by world coordinates: {record.reason}."
    if record.coverage < MIN_COVERAGE:
        yield (
            f"W_PHASE_COVERAGE: the {name} phase covers {100 * record.coverage:.0f} % of the body "
            "in the reference phase; elsewhere it is empty."
        )


def _sample(moving: Volume, target: Grid, displacement: Displacement | None) -> NDArray[np.int16]:
    """The one interpolation."""
    if displacement is None and moving.grid.is_close(target):
        return np.asarray(moving.array, dtype=np.int16)
    values = resample(moving.array, moving.grid, target, fill=AIR_HU, displacement=displacement)
    return np.asarray(np.rint(values, out=values), dtype=np.int16)


def _estimate(
    phase: Phase, fixed: Volume, moving: Volume, body: Body
) -> tuple[Displacement | None, RegistrationRecord]:
    """The first map that is accepted (None: world coordinates) and its record."""
    by_world = coverage(body, moving.grid, None)
    pair = working_pair(fixed, moving, body)
    if pair is None:
        reason = "the two scans share too little of the body"
        return None, RegistrationRecord(phase, "rejected", 0.0, 0.0, 0.0, 0.0, by_world, reason)
    before = similarity(pair, None)
    objections: list[str] = []
    gained, smallest_mm = False, np.inf
    for found in maps(pair, before + MIN_GAIN):
        objection = _objection(found, before)
        if objection is None:
            share = coverage(body, moving.grid, found.displacement)
            reason = f"similarity {before:.3f} -> {found.similarity:.3f}"
            return found.displacement, RegistrationRecord(
                phase,
                found.method,
                before,
                found.similarity,
                found.mean_mm,
                found.folding,
                share,
                reason,
            )
        objections.append(f"{found.method} (mean {found.mean_mm:.1f} mm): {objection}")
        gained = gained or found.similarity >= before + MIN_GAIN
        smallest_mm = min(smallest_mm, found.mean_mm)
    reason = "; ".join(objections) or "no registration method is available"
    still = before >= MIN_SIMILARITY and not gained and smallest_mm < STILL_MM
    method = "identity" if still or not objections else "rejected"
    if still:
        reason = f"already aligned: {reason}"
    return None, RegistrationRecord(phase, method, before, before, 0.0, 0.0, by_world, reason)


def _objection(found: Map, before: float) -> str | None:
    """Why a map should not be used, or None."""
    after = found.similarity
    if after < MIN_SIMILARITY:
        return f"similarity stays low, {before:.3f} -> {after:.3f}"
    if after < before + MIN_GAIN:
        return f"similarity {before:.3f} -> {after:.3f} does not help"
    if found.folding >= MAX_FOLDING:
        return f"{100 * found.folding:.1f} % of the body folds"
    if found.mean_mm > MAX_MEAN_MM:
        return "the mean displacement is implausible"
    return None
