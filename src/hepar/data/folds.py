"""Folds of a cohort, or its validation patients: by patient, drawn from a seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

STRATA = ("type", "primary")


def assign_folds(strata: Mapping[str, str], folds: int, seed: int) -> dict[str, int]:
    """A fold for each patient, with every kind of patient in each.

    Patients of one stratum are shuffled and dealt out one after another; the next stratum goes on
    where the one before it ended, so that folds differ by one patient at most, and so do the
    patients of a stratum in them. The order in which patients are given does not matter.

    Args:
        strata: stratum by patient.
        folds: how many, at least 2.
        seed: of the shuffle.
    """
    groups: dict[str, list[str]] = {}
    for patient in sorted(strata):
        groups.setdefault(strata[patient], []).append(patient)
    generator = np.random.default_rng([seed, 0xF01D])
    found: dict[str, int] = {}
    for _, patients in sorted(groups.items()):
        for number in generator.permutation(len(patients)):
            found[patients[number]] = len(found) % folds
    return found


def draw_validation(patients: Iterable[str], count: int, seed: int) -> frozenset[str]:
    """Patients to choose weights on, at random among all; the others are trained on.

    The order in which patients are given does not matter.

    Args:
        patients: all that are not of a test split.
        count: how many, less than there are.
        seed: of the draw.
    """
    known = sorted(set(patients))
    generator = np.random.default_rng([seed, 0x5A11D])
    return frozenset(known[n] for n in generator.permutation(len(known))[:count])


def stratum(metadata: Mapping[str, str]) -> str:
    """What a patient is stratified by: the first of the columns `type` and `primary` it fills."""
    return next((metadata[name] for name in STRATA if metadata.get(name)), "")
