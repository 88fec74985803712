"""AUC of what patients have, over the seeds of a row: figures, intervals, and differences of rows.

An AUC has no value a patient, so a row's interval and the difference of two rows come from
resampled patients: in each draw the same patients for every seed and for both rows. Within a draw
an AUC is a sum over pairs of a positive and a negative patient, each counted as often as it was
drawn, so that all draws are one matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from hepar.evaluate.patient import GROUPS, OneVersusRest, one_versus_rest
from hepar.evaluate.patient_summary import TypedCase, join_patients
from hepar.evaluate.run_result import CaseResult, PatientScore
from hepar.evaluate.statistics import Interval, percentile_interval, resamples
from hepar.study import LESION_TYPES

DRAWS = 1000
MEANS: dict[str, tuple[str, ...]] = {"auc8": LESION_TYPES, "auc2": tuple(GROUPS)}
Weights = Int[np.ndarray, "draws n"]


@dataclass(frozen=True)
class ScoredPatients:
    """Patients of a row, what they have, and how each seed scored them.

    Attributes:
        patients: by id.
        seeds: of each training seed: type or group -> who has it and with which score.
    """

    patients: tuple[str, ...]
    seeds: tuple[Mapping[str, OneVersusRest], ...]

    def only(self, patients: Sequence[str]) -> ScoredPatients:
        """Some of the patients, all of whom are here."""
        index = np.array([self.patients.index(patient) for patient in patients], dtype=np.int64)
        seeds = tuple(
            {name: OneVersusRest(p.positive[index], p.score[index]) for name, p in seed.items()}
            for seed in self.seeds
        )
        return replace(self, patients=tuple(patients), seeds=seeds)

    def defined(self, names: Sequence[str]) -> tuple[str, ...]:
        """Types or groups that some patients have and some have not."""
        first = self.seeds[0]
        return tuple(n for n in names if first[n].n_positive and first[n].n_negative)

    def mean_auc(self, names: Sequence[str], weights: Weights) -> Float[np.ndarray, " draws"]:
        """AUC averaged over types or groups, then over seeds, of patients drawn so often.

        A type that is undefined in a draw is left out of its mean; NaN where all are.
        """
        of_seeds = []
        for seed in self.seeds:
            areas = np.stack([_areas(seed[name], weights) for name in names])
            of_seeds.append(_mean_of_defined(areas))
        return _mean_of_defined(np.stack(of_seeds))


def scored_patients(runs: Sequence[Sequence[CaseResult]], score: PatientScore) -> ScoredPatients:
    """The patients of the runs of a row; cases of one patient are joined.

    Args:
        runs: test cases of each seed, typed, the same cases in each.
        score: which one counts.

    Raises:
        ValueError: as `patient_summary.join_patients`.
    """
    probable = score != "mask_size"
    found = []
    for run in runs:
        typed = [(c.patient_id, c.typed) for c in run if c.typed is not None]
        cases = [
            TypedCase(patient, dict(t.reference_mm3), dict(t.scores[score])) for patient, t in typed
        ]
        names, volumes, scores = join_patients(cases, "probability" if probable else "volume")
        problems = one_versus_rest(volumes, scores, group_score="max" if probable else "sum")
        found.append((tuple(names), problems))
    return ScoredPatients(found[0][0], tuple(problems for _, problems in found))


def auc_figure(
    scored: ScoredPatients, names: Sequence[str]
) -> tuple[float | None, Interval | None]:
    """Mean AUC of some types or groups and its 95 % interval; None where it is undefined.

    As `patient.auc_interval` for each seed, the seeds averaged within each draw.
    """
    n = len(scored.patients)
    value = _plain(scored.mean_auc(names, np.ones((1, n), np.int64)))
    drawn = scored.mean_auc(names, resamples(n, DRAWS)) if n > 1 else np.empty(0)
    if not value:
        return None, None
    return value[0], percentile_interval(_plain(drawn), DRAWS)


def auc_difference(
    scored: ScoredPatients, other: ScoredPatients, names: Sequence[str]
) -> tuple[int, list[float], list[float]]:
    """The mean AUC of one row less that of another, on the patients that both were tested on.

    Returns:
        How many those are, the difference (empty where it is undefined), and that of each draw in
        which it is defined.
    """
    common = [patient for patient in scored.patients if patient in set(other.patients)]
    n = len(common)
    if n < 2:
        return n, [], []
    ours, theirs = scored.only(common), other.only(common)
    once, weights = np.ones((1, n), np.int64), resamples(n, DRAWS)
    value, drawn = (ours.mean_auc(names, w) - theirs.mean_auc(names, w) for w in (once, weights))
    return n, _plain(value), _plain(drawn)


def _areas(problem: OneVersusRest, weights: Weights) -> Float[np.ndarray, " draws"]:
    """AUC of each draw, ties averaged; NaN without positives or without negatives."""
    has: Bool[np.ndarray, " n"] = problem.positive
    gap = problem.score[has][:, None] - problem.score[~has]
    wins = (gap > 0) + 0.5 * (gap == 0)
    positive, negative = weights[:, has].astype(np.float64), weights[:, ~has]
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    won = (positive @ wins * negative).sum(axis=1)
    return np.asarray(np.divide(won, pairs, out=np.full(len(won), np.nan), where=pairs > 0))


def _mean_of_defined(values: Float[np.ndarray, "k draws"]) -> Float[np.ndarray, " draws"]:
    defined = np.isfinite(values)
    count = defined.sum(axis=0)
    total = np.where(defined, values, 0.0).sum(axis=0)
    return np.asarray(np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0))


def _plain(values: NDArray[np.float64]) -> list[float]:
    """The defined values."""
    return [float(v) for v in values[np.isfinite(values)]]
