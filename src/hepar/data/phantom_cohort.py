"""Whom a phantom cohort holds: splits, folds and diseases decided before anyone is drawn.

Exact shares instead of luck: in every split the tumor-free patients and each leading disease have
the share of the cohort's `Population`, by largest remainder. A patient is then drawn from a
population of which it is the only kind. All is a pure function of (cohort, seed, number of
patients); no two cohorts share a patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hepar.errors import UsageError
from hepar.phantom.anatomy import ABDOMEN_MARGIN_MM, LIVER_MARGIN_MM, Anatomy, anatomy
from hepar.phantom.population import Population, population
from hepar.phantom.scanner import Painted, paint
from hepar.phantom.shapes import Triple
from hepar.study import LESION_TYPES, PHASE_ORDER, Phase

SPLIT_SHARES = {"train": 120, "validation": 40, "test": 200}
FOLDS = 5
# Left between the phases of a written patient, for the registration stage to find.
MISALIGNMENT_MM = 2.0
_ATTEMPTS = 20
_ATTEMPT_STEP = 1_000_000
_COARSE_MM: Triple = (12.0, 12.0, 12.0)
_SPLIT, _DISEASE, _FOLD, _DELAYED, _MISALIGNMENT = 1, 2, 3, 4, 5


@dataclass(frozen=True)
class Preset:
    """How a cohort's scans look; who is in it stands in `population`.

    Attributes:
        first_seed: of its patients; far apart, so that no patient is in two cohorts.
        field: `abdomen` or `liver`.
        shape: voxels (z, y, x), the spacing following the patient; None for the usual spacing.
        phases: those scanned.
        delayed_share: of the patients of a split that have DL.
        misalignment_mm: lowest and highest of a patient.
    """

    first_seed: int
    field: str = "abdomen"
    shape: tuple[int, int, int] | None = (32, 128, 128)
    phases: tuple[Phase, ...] = PHASE_ORDER
    delayed_share: float = 1.0
    misalignment_mm: tuple[float, float] = (1.0, 4.0)


PRESETS = {
    "general": Preset(0, shape=None, misalignment_mm=(MISALIGNMENT_MM, MISALIGNMENT_MM)),
    "sam_urim": Preset(100_000_000, field="liver"),
    "lidia": Preset(200_000_000, delayed_share=2 / 3),
    "lits": Preset(300_000_000, phases=(Phase.PV,)),
    "external": Preset(400_000_000),
}


@dataclass(frozen=True)
class Enrolled:
    """A patient of a cohort before it is drawn.

    Attributes:
        case_id: unique among cohorts and seeds.
        seed: of the anatomy and of the visit.
        split: `train`, `validation` or `test`.
        fold: 0..4, None in the test split.
        primary: leading disease, one of `LESION_TYPES`; empty for a tumor-free patient; None where
            the seed decides.
        population: what it is drawn from.
        phases: those scanned.
        misalignment_mm: residual displacement between phases.
        preset: of its cohort.
    """

    case_id: str
    seed: int
    split: str
    fold: int | None
    primary: str | None
    population: Population
    phases: tuple[Phase, ...]
    misalignment_mm: float
    preset: Preset


def case_name(seed: int, cohort: str = "general") -> str:
    """The case_id of a phantom; of `general` it is named `phantom`."""
    return f"{'phantom' if cohort == 'general' else cohort}-{seed:06d}"


def apportion(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers in the proportion of `shares`, by largest remainder; ties go to the first.

    Args:
        total: what they add up to.
        shares: not negative, not all zero.
    """
    exact = total * np.asarray(shares, np.float64) / float(np.sum(shares))
    counts = np.floor(exact + 1e-9).astype(int)
    order = np.argsort(np.round(counts - exact, 9), kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return [int(n) for n in counts]


def enroll(cohort: str, patients: int, seed: int) -> tuple[Enrolled, ...]:
    """The patients of a cohort in the order of their seeds.

    Args:
        cohort: name in `PRESETS`. In `general` the seed alone decides who a patient is.
        patients: how many; another number is another cohort.
        seed: number of the first patient.

    Raises:
        UsageError: E_RECIPE for an unknown cohort, no patient or a negative seed.
    """
    people = population(cohort)
    if patients < 1 or seed < 0:
        raise UsageError(
            "E_RECIPE",
            "phantom",
            f"{patients} patients from seed {seed} cannot be drawn",
            "ask for one patient or more, and a seed of 0 or above",
        )
    preset, key = PRESETS[cohort], (list(PRESETS).index(cohort), patients, seed)
    splits = _splits(patients, key)
    primaries = _primaries(splits, people, key) if cohort != "general" else [None] * patients
    folds = _folds(splits, primaries, key)
    delayed = _delayed(splits, preset.delayed_share, key)
    low, high = preset.misalignment_mm
    enrolled = []
    for i in range(patients):
        rng = np.random.default_rng([_MISALIGNMENT, *key, i])
        mine = _only(people, primaries[i], splits[i])
        enrolled.append(
            Enrolled(
                case_id=case_name(seed + i, cohort),
                seed=preset.first_seed + seed + i,
                split=splits[i],
                fold=folds[i],
                primary=primaries[i],
                population=mine,
                phases=tuple(p for p in preset.phases if p is not Phase.DL or delayed[i]),
                misalignment_mm=float(rng.uniform(low, high)),
                preset=preset,
            )
        )
    return tuple(enrolled)


def single(seed: int) -> Enrolled:
    """A patient of `general` that is in no split."""
    return Enrolled(
        case_id=case_name(seed),
        seed=seed,
        split="",
        fold=None,
        primary=None,
        population=population("general"),
        phases=PHASE_ORDER,
        misalignment_mm=MISALIGNMENT_MM,
        preset=PRESETS["general"],
    )


def draw(patient: Enrolled) -> Anatomy:
    """The anatomy of an enrolled patient on the cohort's grid.

    A leading disease whose every lesion is lost (no room, or finer than the grid) is drawn again
    from the next of the patient's own seeds.
    """
    for attempt in range(_ATTEMPTS):
        seed = patient.seed + attempt * _ATTEMPT_STEP
        body = _on_grid(seed, patient.preset, patient.population)
        if not patient.primary or patient.primary in {s.type for s in body.lesions}:
            return body
    raise RuntimeError(f"{patient.case_id}: no {patient.primary} in {_ATTEMPTS} attempts")


def visit(patient: Enrolled, body: Anatomy) -> Painted:
    """The scan session of an enrolled patient."""
    return paint(
        body,
        body.texture_seed,
        phases=tuple(str(phase) for phase in patient.phases),
        misalignment_mm=patient.misalignment_mm,
        scanner=patient.population.scanner,
    )


def _on_grid(seed: int, preset: Preset, people: Population) -> Anatomy:
    """Sample a patient on the preset's voxels: square in plane, covering the whole field.

    A liver box is covered with its margin; an abdomen covers the body in plane, and in z the
    liver with the margin of a liver box.
    """
    if preset.shape is None:
        return anatomy(seed, field=preset.field, population=people)
    coarse = anatomy(seed, field=preset.field, spacing_mm=_COARSE_MM, population=people)
    extent_mm = np.asarray(coarse.tissue.shape) * np.asarray(_COARSE_MM)
    if preset.field == "abdomen":
        extent_mm[0] -= 2 * (ABDOMEN_MARGIN_MM[0] - LIVER_MARGIN_MM)
    fine = np.ceil(100 * extent_mm / np.asarray(preset.shape)) / 100
    in_plane = float(fine[1:].max())
    spacing: Triple = (float(fine[0]), in_plane, in_plane)
    return anatomy(
        seed, field=preset.field, shape=preset.shape, spacing_mm=spacing, population=people
    )


def _only(people: Population, primary: str | None, split: str) -> Population:
    """The population a patient is the only kind of; test patients may have any rare kind."""
    if primary is None:
        return people
    if split == "test":
        people = replace(people, rare="all")
    if not primary:
        return replace(people, tumor_free=1.0)
    shares = tuple(float(name == primary) for name in LESION_TYPES)
    return replace(people, primary=shares, tumor_free=0.0)  # type: ignore[arg-type]


def _splits(patients: int, key: tuple[int, ...]) -> list[str]:
    counts = apportion(patients, list(SPLIT_SHARES.values()))
    names = [name for name, n in zip(SPLIT_SHARES, counts, strict=True) for _ in range(n)]
    order = np.random.default_rng([_SPLIT, *key]).permutation(patients)
    return [names[i] for i in order]


def _members(splits: list[str], key: tuple[int, ...], purpose: int) -> list[np.ndarray]:
    """Patients of each split in random order."""
    rng = np.random.default_rng([purpose, *key])
    where = np.asarray(splits)
    return [rng.permutation(np.flatnonzero(where == name)) for name in SPLIT_SHARES]


def _primaries(splits: list[str], people: Population, key: tuple[int, ...]) -> list[str | None]:
    primaries: list[str | None] = [""] * len(splits)
    for members in _members(splits, key, _DISEASE):
        ill, _ = apportion(len(members), (1 - people.tumor_free, people.tumor_free))
        counts = apportion(ill, people.primary)
        names = [name for name, n in zip(LESION_TYPES, counts, strict=True) for _ in range(n)]
        for member, name in zip(members, names, strict=False):
            primaries[int(member)] = name
    return primaries


def _folds(
    splits: list[str], primaries: Sequence[str | None], key: tuple[int, ...]
) -> list[int | None]:
    """Deal train and validation patients to the folds, disease by disease without a break."""
    folds: list[int | None] = [None] * len(splits)
    order = np.random.default_rng([_FOLD, *key]).permutation(len(splits))
    order = order[np.argsort([str(primaries[i]) for i in order], kind="stable")]
    kept = [int(i) for i in order if splits[i] != "test"]
    for position, i in enumerate(kept):
        folds[i] = position % FOLDS
    return folds


def _delayed(splits: list[str], share: float, key: tuple[int, ...]) -> np.ndarray:
    chosen = np.zeros(len(splits), bool)
    for members in _members(splits, key, _DELAYED):
        chosen[members[: apportion(len(members), (share, 1 - share))[0]]] = True
    return chosen
