"""Intervals, paired tests and corrections beside scipy, brute force and slow loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hepar.evaluate.statistics import (
    PairedDifference,
    bootstrap,
    compare,
    correct,
    detectable_difference,
    mean_of_cases,
    wilson,
)

SEEDS = st.integers(0, 10_000)


def slow_quantile(values: list[float], q: float) -> float:
    """Linear between order statistics."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def names(n: int) -> list[str]:
    return [f"p{k}" for k in range(n)]


def without_ties(n: int, seed: int) -> list[float]:
    rng = np.random.default_rng(seed)
    return (rng.permutation(np.arange(1, n + 1)) * rng.choice([-1, 1], n) / 7).tolist()


# Bootstrap.


@given(SEEDS, st.integers(2, 12))
def test_oracle_bootstrap_is_a_loop_over_draws(seed, n):
    values = np.random.default_rng(seed).normal(size=n)
    rng = np.random.default_rng(seed + 1)
    drawn = []
    for _ in range(300):
        index = rng.integers(n, size=n)
        drawn.append(float(np.median([values[i] for i in index])))
    value, interval = bootstrap(n, lambda i: float(np.median(values[i])), draws=300, seed=seed + 1)
    assert value == np.median(values)
    assert interval == pytest.approx((slow_quantile(drawn, 0.025), slow_quantile(drawn, 0.975)))
    # To the last bit: recorded figures of the phantom stay as they are.
    assert interval == tuple(np.quantile(drawn, [0.025, 0.975]))


def test_property_bootstrap_repeats_itself_and_heeds_its_seed():
    values = np.random.default_rng(0).normal(size=30)

    def interval(**keywords: int) -> object:
        return bootstrap(30, lambda i: float(values[i].mean()), **keywords)[1]

    assert interval() == interval() == interval(seed=30)
    assert len({interval(seed=1), interval(seed=2), interval(seed=1, draws=50)}) == 3


def test_closed_form_bootstrap_without_spread_or_units():
    assert bootstrap(0, lambda i: 1.0) == (None, None)
    assert bootstrap(1, lambda i: 1.0) == (1.0, None)
    assert bootstrap(5, lambda i: None) == (None, None)
    assert bootstrap(5, lambda i: 0.25) == (0.25, (0.25, 0.25))
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN or infinite"):
            bootstrap(5, lambda i, wrong=wrong: wrong)
        with pytest.raises(ValueError, match="NaN or infinite"):
            bootstrap(5, lambda i, wrong=wrong: 1.0 if i[0] == 0 and i[1] == 1 else wrong)


def test_closed_form_bootstrap_drops_few_undefined_draws_and_gives_up_on_many():
    """A statistic of the first k units is undefined in exp(-k) of the draws."""

    def of_first(k: int) -> tuple[float | None, tuple[float, float] | None]:
        def statistic(index: np.ndarray) -> float | None:
            needed = index[index < k]
            return float(needed.mean()) if len(needed) else None

        return bootstrap(200, statistic)

    assert of_first(1) == (0.0, None)
    assert of_first(2) == (0.5, None)
    value, (low, high) = of_first(3)
    assert (value, low, high) == (1.0, 0.0, 2.0)


# Means of cases.


def slow_interval(values: list[float | None], patients: list[str], seed: int) -> tuple[float, ...]:
    """Patients drawn one by one, each with all of their defined cases."""
    cases: dict[str, list[float]] = {}
    for value, patient in zip(values, patients, strict=True):
        if value is not None:
            cases.setdefault(patient, []).append(value)
    ordered = sorted(cases)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(200):
        total, count = 0.0, 0
        for k in rng.integers(len(ordered), size=len(ordered)):
            for value in cases[ordered[k]]:
                total += value
                count += 1
        drawn.append(total / count)
    return slow_quantile(drawn, 0.025), slow_quantile(drawn, 0.975)


@given(SEEDS)
def test_oracle_mean_of_cases_equals_a_slow_loop_over_patients(seed):
    rng = np.random.default_rng(seed)
    patients = [f"p{k}" for k in rng.integers(8, size=25)]
    values = [None if rng.random() < 0.3 else float(v) for v in rng.normal(size=25)]
    values[:2], patients[:2] = [1.0, 2.0], ["p0", "p1"]
    kept = [v for v in values if v is not None]
    found = mean_of_cases(values, patients, draws=200, seed=seed)
    assert found.mean == pytest.approx(sum(kept) / len(kept))
    deviation = sum((v - found.mean) ** 2 for v in kept)
    assert found.std == pytest.approx(math.sqrt(deviation / (len(kept) - 1)))
    assert found.interval == pytest.approx(slow_interval(values, patients, seed))
    assert (found.n, found.n_undefined) == (len(kept), 25 - len(kept))
    assert found.n_patients == len(
        {p for p, v in zip(patients, values, strict=True) if v is not None}
    )


def test_property_repeating_a_patients_case_adds_no_certainty():
    values = np.random.default_rng(2).normal(size=40).tolist()
    once = mean_of_cases(values, names(40))
    often = mean_of_cases(values * 5, names(40) * 5)
    assert often.interval == pytest.approx(once.interval)
    assert (often.mean, often.n, often.n_patients) == (pytest.approx(once.mean), 200, 40)
    taken_apart = mean_of_cases(values * 5, names(200))
    assert np.ptp(taken_apart.interval) < 0.6 * np.ptp(once.interval)


@given(SEEDS)
def test_property_the_order_of_cases_is_nothing(seed):
    rng = np.random.default_rng(seed)
    values, other = rng.normal(size=(2, 20))
    patients = np.array([f"p{k}" for k in rng.integers(7, size=20)])
    order = rng.permutation(20)
    one = mean_of_cases(values.tolist(), patients.tolist())
    two = mean_of_cases(values[order].tolist(), patients[order].tolist())
    assert two.interval == pytest.approx(one.interval)
    pair = compare(values.tolist(), other.tolist(), patients.tolist())
    turned = compare(values[order].tolist(), other[order].tolist(), patients[order].tolist())
    assert turned.interval == pytest.approx(pair.interval)
    assert turned.p_t == pytest.approx(pair.p_t)


def test_closed_form_mean_of_few_cases():
    none = mean_of_cases([None, None], ["a", "b"])
    assert (none.mean, none.std, none.interval) == (None, None, None)
    assert (none.n, none.n_patients, none.n_undefined) == (0, 0, 2)
    one = mean_of_cases([0.5], ["a"])
    assert (one.mean, one.std, one.interval, one.n) == (0.5, None, None, 1)
    # Two cases spread, but one patient has no spread.
    same = mean_of_cases([0.0, 1.0, None], ["a", "a", "b"])
    assert (same.mean, same.std, same.interval) == (0.5, math.sqrt(0.5), None)
    equal = mean_of_cases([0.1, 0.1, 0.1], names(3))
    assert equal.std == 0.0
    assert equal.interval == pytest.approx((0.1, 0.1))
    with pytest.raises(ValueError, match="NaN"):
        mean_of_cases([0.1, math.nan], ["a", "b"])
    with pytest.raises(ValueError, match="shorter"):
        mean_of_cases([0.1, 0.2], ["a"])


# Paired comparison.


@given(SEEDS, st.integers(3, 40))
def test_oracle_paired_tests_equal_scipy(seed, n):
    baseline = np.random.default_rng(seed).normal(size=n)
    values = baseline + without_ties(n, seed)
    found = compare(values.tolist(), baseline.tolist(), names(n))
    assert found.mean == pytest.approx((values - baseline).mean(), abs=1e-11)
    assert found.p_t == pytest.approx(stats.ttest_rel(values, baseline).pvalue)
    exact = stats.wilcoxon(without_ties(n, seed), method="exact").pvalue
    assert found.p_wilcoxon == pytest.approx(exact)


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=9))
def test_oracle_signed_rank_with_ties_and_zeros_tries_every_sign(differences):
    moved = [d for d in differences if d]
    ranks = stats.rankdata(np.abs(moved)) if moved else np.array([])
    center = ranks.sum() / 2
    seen = abs(sum(r for r, d in zip(ranks, moved, strict=True) if d > 0) - center)
    signs = [*itertools.product([0, 1], repeat=len(moved))]
    extreme = sum(abs(np.dot(ranks, s) - center) >= seen - 1e-9 for s in signs)
    found = compare(
        [d / 10 for d in differences], [0.0] * len(differences), names(len(differences))
    )
    assert found.p_wilcoxon == pytest.approx(extreme / len(signs))


@pytest.mark.parametrize(("n", "exact"), [(200, True), (201, False)])
def test_oracle_signed_rank_of_many_is_normal(n, exact):
    differences = without_ties(n, 4)
    found = compare(differences, [0.0] * n, names(n)).p_wilcoxon
    expected = {m: stats.wilcoxon(differences, method=m).pvalue for m in ("exact", "asymptotic")}
    assert abs(expected["exact"] - expected["asymptotic"]) > 1e-5
    assert found == pytest.approx(expected["exact" if exact else "asymptotic"], rel=1e-9)


@given(SEEDS)
def test_oracle_comparison_is_of_the_patients_mean_differences(seed):
    rng = np.random.default_rng(seed)
    patients = [f"p{k}" for k in (0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 5, 6)]
    values, baseline = rng.normal(size=(2, 12)).tolist()
    values[1], baseline[4] = None, None
    values[6] = None
    by_patient: dict[str, list[float]] = {}
    for a, b, patient in zip(values, baseline, patients, strict=True):
        if a is not None and b is not None:
            by_patient.setdefault(patient, []).append(a - b)
    means = [sum(d) / len(d) for _, d in sorted(by_patient.items())]
    found = compare(values, baseline, patients, draws=200, seed=seed)
    assert (found.n, found.n_cases, found.n_undefined) == (6, 9, 3)
    assert found.mean == pytest.approx(sum(means) / 6)
    assert found.p_t == pytest.approx(stats.ttest_1samp(means, 0).pvalue)
    assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(means, method="exact").pvalue)
    assert found.interval == pytest.approx(slow_interval(means, names(6), seed))
    assert found.detectable == pytest.approx(detectable_difference(float(np.std(means, ddof=1)), 6))


def test_closed_form_differences_without_spread():
    same = compare([0.3, 0.7, 0.1], [0.3, 0.7, 0.1], names(3))
    assert (same.mean, same.interval, same.p_t, same.p_wilcoxon) == (0.0, (0.0, 0.0), 1.0, 1.0)
    assert (same.detectable, same.verdict) == (0.0, "not distinguishable")
    # 0.7 - 0.6 and 0.3 - 0.2 differ in the last bits.
    shifted = compare([0.7, 0.3, 0.9, 0.4], [0.6, 0.2, 0.8, 0.3], names(4))
    assert (shifted.p_t, shifted.p_wilcoxon, shifted.detectable) == (0.0, 0.125, 0.0)
    assert (shifted.mean, shifted.interval) == (0.1, (0.1, 0.1))
    noise = compare([0.1 + 0.2, 0.7, 9000.0], [0.3, 0.7, 9000.0], names(3))
    assert (noise.mean, noise.p_t, noise.verdict) == (0.0, 1.0, "not distinguishable")


def test_closed_form_fewer_than_two_patients_are_not_compared():
    for found in (
        compare([], [], []),
        compare([None, 1.0], [1.0, None], ["a", "b"]),
        compare([1.0, 2.0], [0.0, 0.0], ["a", "a"]),
    ):
        assert found.interval is found.p_t is found.p_wilcoxon is found.detectable is None
        assert found.verdict == "not compared"
    assert (found.mean, found.n, found.n_cases) == (1.5, 1, 2)
    with pytest.raises(ValueError, match="shorter"):
        compare([1.0, 2.0], [1.0], ["a", "b"])
    # Refused in the pair that is left out, too.
    for wrong in (([1.0, math.nan], [1.0, None]), ([1.0, None], [1.0, math.nan])):
        with pytest.raises(ValueError, match="NaN"):
            compare(*wrong, ["a", "b"])


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.1, 0.2), "higher"),
        ((-0.2, -0.1), "lower"),
        ((-0.1, 0.1), "not distinguishable"),
        ((0.0, 0.1), "not distinguishable"),
        ((-0.1, 0.0), "not distinguishable"),
        (None, "not compared"),
    ],
)
def test_closed_form_verdict_is_that_of_the_interval(interval, verdict):
    assert PairedDifference(0.0, interval, 0.0, 0.0, 0.0, 5, 5, 0).verdict == verdict


# Minimal detectable difference.


@pytest.mark.parametrize("n", [3, 12, 60])
def test_oracle_the_detectable_difference_is_found_four_times_in_five(n):
    rng = np.random.default_rng(n)
    differences = rng.normal(detectable_difference(2.0, n), 2.0, size=(40_000, n))
    p = stats.ttest_1samp(differences, 0.0, axis=1).pvalue
    # Three standard errors of a proportion of 40,000.
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.006)


def test_closed_form_detectable_difference_of_many_and_of_two():
    z = stats.norm.isf(0.025) + stats.norm.isf(0.2)
    assert detectable_difference(1.0, 5000) == pytest.approx(z / math.sqrt(5000), rel=1e-3)
    assert detectable_difference(3.0, 10) == pytest.approx(3 * detectable_difference(1.0, 10))
    assert detectable_difference(0.0, 10) == 0.0
    # The far tail is negligible here, so one tail of the noncentral t gives the power.
    shift = detectable_difference(1.0, 2) * math.sqrt(2)
    assert stats.nct.sf(stats.t.isf(0.025, 1), 1, shift) == pytest.approx(0.8)
    strict = detectable_difference(1.0, 20, power=0.9, alpha=0.01) * math.sqrt(20)
    assert stats.nct.sf(stats.t.isf(0.005, 19), 19, strict) == pytest.approx(0.9)
    with pytest.raises(ValueError, match="degree of freedom"):
        detectable_difference(1.0, 1)


# Corrections.


def test_closed_form_holm_and_benjamini_hochberg_by_hand():
    """Sorted 0.005 0.01 0.03 0.04: Holm times 4 3 2 1, the last held up by 0.06 before it."""
    p = [0.01, 0.04, None, 0.03, 0.005]
    holm = correct(p)
    assert holm.p_values == pytest.approx((0.03, 0.06, None, 0.06, 0.02))
    assert holm.statement == "corrected for 4 tests after Holm (family-wise error)"
    hochberg = correct(p, "benjamini-hochberg")
    assert hochberg.p_values == pytest.approx((0.02, 0.04, None, 0.04, 0.02))
    assert hochberg.statement == (
        "corrected for 4 tests after Benjamini and Hochberg (false discovery rate)"
    )
    assert correct([0.4, 0.9]).p_values == (0.8, 0.9)
    assert correct([0.6, 0.9]).p_values == (1.0, 1.0)
    assert correct([0.2]).statement.startswith("corrected for 1 test after Holm")
    assert (correct([None]).p_values, correct([None]).n_tests) == ((None,), 0)
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="outside"):
            correct([0.5, wrong])


@given(st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.04, 0.3, 1.0]), min_size=1))
def test_oracle_corrections_equal_scipy_and_the_stepwise_procedure(p):
    found = correct(p, "benjamini-hochberg").p_values
    assert found == pytest.approx(tuple(stats.false_discovery_control(p)))
    holm = correct(p).p_values
    for level in (0.005, 0.05, 0.2):
        rejected = 0
        for k, value in enumerate(sorted(p)):
            if value * (len(p) - k) > level:
                break
            rejected += 1
        assert sum(value <= level for value in holm) == rejected
    assert all(h >= b >= raw - 1e-15 for h, b, raw in zip(holm, found, p, strict=True))


# Proportions.


def test_oracle_wilson_equals_scipy():
    for n in (1, 2, 7, 40):
        for k in range(n + 1):
            expected = stats.binomtest(k, n).proportion_ci(method="wilson")
            assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert {wilson(0, n)[0] for n in range(1, 50)} == {0.0}
    assert {wilson(n, n)[1] for n in range(1, 50)} == {1.0}
    assert wilson(0, 0) is None
    for wrong in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match=" of "):
            wilson(*wrong)
