"""Intervals, paired tests and corrections over patients.

A patient may bring several cases, and they are not independent: what is resampled and tested is
always the patient. Undefined values are None, left out and counted; NaN is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy import stats
from scipy.optimize import brentq

Interval = tuple[float, float]
Values = Sequence[float | None]
Method = Literal["holm", "benjamini-hochberg"]

_TAIL = 0.025
_ENOUGH = 0.9
_EXACT = 200


def bootstrap(
    n: int,
    statistic: Callable[[Int[np.ndarray, " n"]], float | None],
    *,
    draws: int = 1000,
    seed: int | None = None,
) -> tuple[float | None, Interval | None]:
    """A statistic of n units and its 95 % percentile interval over resampled units.

    Draws in which the statistic is undefined are dropped, and there is no interval once more than
    a tenth of them are: what is left would be the interval of lucky draws only. A draw lacks all k
    units that a statistic needs with a chance of about exp(-k), so this asks for about three.
    Where all units are equal the interval has no width, which says nothing of the population: for
    a proportion of independent units near 0 or 1 take `wilson`.

    Args:
        n: units, e.g. patients.
        statistic: of the units at these indices, which repeat; None where it is undefined.
        draws: resamples.
        seed: of the draws; n by default.

    Returns:
        The statistic of all units and its interval. Both are None where the statistic is undefined,
        the interval also with fewer than two units.

    Raises:
        ValueError: the statistic is NaN or infinite.
    """
    value = statistic(np.arange(n)) if n else None
    if value is None:
        return None, None
    rng = np.random.default_rng(n if seed is None else seed)
    drawn = [statistic(rng.integers(n, size=n)) for _ in range(draws)] if n > 1 else []
    defined = [d for d in drawn if d is not None]
    if not np.isfinite([value, *defined]).all():
        raise ValueError("the statistic is NaN or infinite; an undefined one is None")
    return float(value), percentile_interval(defined, draws)


def percentile_interval(defined: Sequence[float], draws: int) -> Interval | None:
    """The middle 95 % of drawn values; see `bootstrap`.

    Args:
        defined: the statistic of each draw in which it is defined.
        draws: all draws; with fewer than nine tenths of them defined there is no interval.
    """
    if len(defined) == 0 or len(defined) < _ENOUGH * draws:
        return None
    low, high = np.quantile(defined, [_TAIL, 1 - _TAIL])
    return float(low), float(high)


def resamples(n: int, draws: int = 1000, seed: int | None = None) -> Int[np.ndarray, "draws n"]:
    """How often each of n units is in each of the resamples that `bootstrap` draws.

    For statistics that weigh units, a matrix product over all draws at once.
    """
    rng = np.random.default_rng(n if seed is None else seed)
    chosen = [rng.integers(n, size=n) for _ in range(draws)]
    return np.array([np.bincount(index, minlength=n) for index in chosen], dtype=np.int64)


@dataclass(frozen=True)
class MeanOfCases:
    """The mean of one value a case.

    Attributes:
        mean: over the defined cases, each counting once; None without any.
        std: over the same cases, n - 1 in the denominator; None with fewer than two.
        interval: 95 % of the mean, resampled by patient; None with fewer than two patients.
        n: cases in the mean.
        n_patients: who brought them.
        n_undefined: cases left out.
    """

    mean: float | None
    std: float | None
    interval: Interval | None
    n: int
    n_patients: int
    n_undefined: int


def mean_of_cases(
    values: Values, patients: Sequence[str], *, draws: int = 1000, seed: int | None = None
) -> MeanOfCases:
    """Mean and standard deviation over cases; interval over resampled patients.

    A drawn patient brings all of their defined cases, and a draw's mean is over its cases. A
    patient without a defined case is left out before any draw.

    Args:
        values: one a case, None where undefined.
        patients: whose case it is.
        draws: resamples.
        seed: of the draws; the number of patients by default.

    Raises:
        ValueError: a value is NaN or infinite, or there is not one patient a value.
    """
    kept = _defined(values, patients)
    each = np.array([v for v, _ in kept])
    total, count = _by_patient(kept)
    mean, interval = bootstrap(
        len(count), lambda i: float(total[i].sum() / count[i].sum()), draws=draws, seed=seed
    )
    return MeanOfCases(
        mean=mean,
        std=_std(each),
        interval=interval,
        n=len(each),
        n_patients=len(count),
        n_undefined=len(values) - len(each),
    )


@dataclass(frozen=True)
class PairedDifference:
    """One method less another on the same cases: each figure is of the patients' mean differences.

    Attributes:
        mean: over patients; None without a pair.
        interval: 95 % of the mean, resampled by patient.
        p_t: two-sided paired t test.
        p_wilcoxon: two-sided Wilcoxon signed-rank test.
        detectable: minimal detectable difference, see `detectable_difference`.
        n: patients.
        n_cases: pairs.
        n_undefined: cases without a value in either method, left out.
    """

    mean: float | None
    interval: Interval | None
    p_t: float | None
    p_wilcoxon: float | None
    detectable: float | None
    n: int
    n_cases: int
    n_undefined: int

    @property
    def verdict(self) -> Literal["higher", "lower", "not distinguishable", "not compared"]:
        """By the interval alone: one that contains 0, ends included, distinguishes nothing."""
        if self.interval is None:
            return "not compared"
        low, high = self.interval
        if low <= 0 <= high:
            return "not distinguishable"
        return "higher" if low > 0 else "lower"


def compare(
    values: Values,
    baseline: Values,
    patients: Sequence[str],
    *,
    draws: int = 1000,
    seed: int | None = None,
) -> PairedDifference:
    """The paired difference values - baseline.

    Differences are averaged within a patient first, and every patient counts once. They are rounded
    to twelve digits of the largest value, so that float arithmetic makes no difference and breaks
    no tie. With fewer than two patients there is neither interval nor test. Where all differences
    are zero both p are 1; where they are all equal otherwise, p_t is its limit 0. The signed-rank
    test drops zeros, gives ties their mean rank, and is exact, ties included, up to 200 patients
    that differ; beyond it is the normal approximation corrected for ties.

    Args:
        values: one a case, None where undefined.
        baseline: of the same cases in the same order.
        patients: whose case it is.
        draws: resamples.
        seed: of the draws; the number of patients by default.

    Raises:
        ValueError: a value is NaN or infinite, or the lengths differ.
    """
    pairs = zip(values, baseline, strict=True)
    differences = [None if a is None or b is None else a - b for a, b in pairs]
    kept = _defined(differences, patients)
    total, count = _by_patient(kept)
    sizes = [abs(v) for method in (values, baseline) for v, _ in _defined(method, patients) if v]
    each = np.round(total / count, 12 - math.ceil(math.log10(max(sizes, default=1.0))))
    n, std = len(each), _std(each)
    mean, interval = bootstrap(n, lambda i: float(each[i].mean()), draws=draws, seed=seed)
    return PairedDifference(
        mean=mean,
        interval=interval,
        p_t=_paired_t(each) if n > 1 else None,
        p_wilcoxon=_signed_rank(each) if n > 1 else None,
        detectable=None if std is None else detectable_difference(std, n),
        n=n,
        n_cases=len(kept),
        n_undefined=len(differences) - len(kept),
    )


def detectable_difference(std: float, n: int, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest true mean difference that a two-sided paired t test would probably have found.

    Solves P(|T| > t_crit) = power for T of the noncentral t distribution with n - 1 degrees of
    freedom and noncentrality difference * sqrt(n) / std. It says how fine the comparison is, and
    unlike "observed power" it does not depend on the difference that was seen.

    Args:
        std: of the differences, n - 1 in the denominator, taken for the true one.
        n: pairs.
        power: chance of p < alpha.
        alpha: two-sided.

    Returns:
        In the unit of `std`, and 0 where that is 0.

    Raises:
        ValueError: fewer than two pairs.
    """
    if n < 2:
        raise ValueError(f"{n} pairs have no degree of freedom")
    critical = stats.t.isf(alpha / 2, n - 1)

    def lacking(shift: float) -> float:
        # Both tails at once, as T^2 has a noncentral F distribution: the far tail of scipy's
        # noncentral t alone is NaN where it is small.
        return power - float(stats.ncf.sf(critical**2, 1, n - 1, shift**2))

    above = 1.0
    while lacking(above) > 0:
        above *= 2
    return float(brentq(lacking, 1e-6, above)) * std / math.sqrt(n)


@dataclass(frozen=True)
class Correction:
    """p values corrected for how many there are.

    Attributes:
        method: which correction.
        p_values: corrected, in the order given; None where there was no test.
        n_tests: tests corrected for; those without a p value are not among them.
    """

    method: Method
    p_values: tuple[float | None, ...]
    n_tests: int

    @property
    def statement(self) -> str:
        """What was done, for a reader."""
        name, error = {
            "holm": ("Holm", "family-wise error"),
            "benjamini-hochberg": ("Benjamini and Hochberg", "false discovery rate"),
        }[self.method]
        tests = "1 test" if self.n_tests == 1 else f"{self.n_tests} tests"
        return f"corrected for {tests} after {name} ({error})"


def correct(p_values: Values, method: Method = "holm") -> Correction:
    """Correct p values for multiple comparisons.

    Sources: Holm 1979, the largest of (m - k + 1) p_(k) so far; Benjamini and Hochberg 1995, the
    smallest of m p_(k) / k from here on; p_(k) the k-th smallest of m.

    Args:
        p_values: None where there was no test.
        method: Holm bounds the chance of any false finding, Benjamini-Hochberg their share.

    Raises:
        ValueError: a p value is outside [0, 1].
    """
    tested = [k for k, p in enumerate(p_values) if p is not None]
    p = np.array([p for p in p_values if p is not None], np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p values outside [0, 1]: {p.tolist()}")
    order, m = np.argsort(p, kind="stable"), len(p)
    rank = np.arange(1, m + 1)
    if method == "holm":
        adjusted = np.maximum.accumulate((m - rank + 1) * p[order])
    else:
        adjusted = np.minimum.accumulate((m * p[order] / rank)[::-1])[::-1]
    corrected: list[float | None] = [None] * len(p_values)
    for k, value in zip(order, np.minimum(adjusted, 1.0), strict=True):
        corrected[tested[k]] = float(value)
    return Correction(method, tuple(corrected), m)


def wilson(successes: int, n: int) -> Interval | None:
    """Wilson's 95 % score interval of a proportion of independent units; None when n is 0.

    Lesions of one patient are not independent: for them resample patients by `bootstrap`.

    Raises:
        ValueError: not 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n}")
    if n == 0:
        return None
    z2 = float(stats.norm.isf(_TAIL)) ** 2
    middle = (successes + z2 / 2) / (n + z2)
    half = math.sqrt(z2 * (successes * (n - successes) / n + z2 / 4)) / (n + z2)
    # The low end of 0 of n is 0 exactly; the high end of n of n would be rounded.
    return middle - half, 1.0 if successes == n else middle + half


def _defined(values: Values, patients: Sequence[str]) -> list[tuple[float, str]]:
    kept = [(v, p) for v, p in zip(values, patients, strict=True) if v is not None]
    if not np.isfinite([v for v, _ in kept]).all():
        raise ValueError("a value is NaN or infinite; an undefined one is None")
    return kept


def _by_patient(
    kept: Sequence[tuple[float, str]],
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Sum and number of the values of each patient, in the order of their names."""
    names, owner = np.unique([patient for _, patient in kept], return_inverse=True)
    total = np.bincount(owner, [value for value, _ in kept], len(names))
    return total.astype(np.float64), np.bincount(owner, minlength=len(names))


def _std(each: Float[np.ndarray, " n"]) -> float | None:
    """n - 1 in the denominator; exactly 0 where all are equal, whatever their mean rounds to."""
    if len(each) < 2:
        return None
    return float(each.std(ddof=1)) if np.ptp(each) > 0 else 0.0


def _paired_t(each: Float[np.ndarray, " n"]) -> float:
    std = _std(each)
    if not std:
        return 0.0 if each.any() else 1.0
    t = abs(each.mean()) / (std / math.sqrt(len(each)))
    return float(2 * stats.t.sf(t, len(each) - 1))


def _signed_rank(each: Float[np.ndarray, " n"]) -> float:
    """Exact: the chance of every sum of ranks, signs tossed one rank after another."""
    moved = each[each != 0]
    if len(moved) == 0:
        return 1.0
    if len(moved) > _EXACT:
        return float(stats.wilcoxon(moved, method="asymptotic").pvalue)
    # Doubled, mean ranks of ties are whole numbers.
    ranks = np.rint(2 * stats.rankdata(np.abs(moved))).astype(np.int64)
    chance = np.zeros(int(ranks.sum()) + 1)
    chance[0] = 1.0
    for rank in ranks:
        chance = (chance + np.r_[np.zeros(rank), chance[:-rank]]) / 2
    positive = int(ranks[moved > 0].sum())
    smaller = min(positive, int(ranks.sum()) - positive)
    return min(1.0, 2 * float(chance[: smaller + 1].sum()))
