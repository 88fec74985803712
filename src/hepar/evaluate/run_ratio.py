"""A ratio of sums over the cases of many runs, with its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hepar.evaluate.run_result import CaseResult
from hepar.evaluate.statistics import bootstrap
from hepar.evaluate.tables import Measured


def ratio(
    runs: Sequence[Sequence[CaseResult]],
    above: Callable[[CaseResult], float],
    below: Callable[[CaseResult], float],
    of_ratio: Callable[[np.ndarray], np.ndarray] = lambda ratio: ratio,
) -> Measured:
    """A function of sums over all cases divided, averaged over seeds; patients are resampled."""
    owners = sorted({c.patient_id for c in runs[0]})
    sums = np.zeros((len(runs), 2, len(owners)))
    for run, of_run in zip(runs, sums, strict=True):
        for case in run:
            of_run[:, owners.index(case.patient_id)] += above(case), below(case)

    def statistic(chosen: np.ndarray) -> float | None:
        totals = sums[:, :, chosen].sum(axis=2)
        defined = totals[:, 1] > 0
        ratios = of_ratio(totals[defined, 0] / totals[defined, 1])
        return float(ratios.mean()) if defined.any() else None

    value, interval = bootstrap(len(owners), statistic)
    return Measured(value, None, interval, len(runs[0]), 0, 0, len(runs))
