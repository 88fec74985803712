"""ROC curves: against scikit-learn, a double loop over pairs and scipy, and worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from sklearn import metrics

from hepar.evaluate.roc import (
    OperatingPoint,
    RocCurve,
    auc,
    roc_curve,
    sensitivity_at_specificity,
    youden,
)

SCORES = st.one_of(
    st.sampled_from([-math.inf, -1.0, 0.0, 0.5, math.inf]),
    st.floats(allow_nan=False, width=16),
    st.integers(0, 3).map(float),
)
cohorts = (
    st.lists(st.tuples(st.booleans(), SCORES), min_size=2, max_size=60)
    .filter(lambda rows: len({has for has, _ in rows}) == 2)
    .map(lambda rows: (np.array([r[0] for r in rows]), np.array([r[1] for r in rows], np.float64)))
)

# Worked by hand below: positives .9 .7 .4, negatives .7 .4 .4 .1 and -inf.
POSITIVE = np.array([1, 0, 1, 0, 0, 1, 0, 0], bool)
SCORE = np.array([0.9, 0.7, 0.7, 0.4, 0.4, 0.4, 0.1, -np.inf])


def finite(score: np.ndarray) -> np.ndarray:
    """The same order without infinities, which scikit-learn refuses."""
    return np.clip(score, -1e6, 1e6)


def curve_of(positive: np.ndarray, score: np.ndarray) -> RocCurve:
    curve = roc_curve(positive, score)
    assert curve is not None
    return curve


@given(cohorts)
def test_oracle_curve_and_area_equal_scikit_learn(cohort):
    positive, score = cohort
    curve = curve_of(positive, score)
    rates = metrics.roc_curve(positive, finite(score), drop_intermediate=False)
    np.testing.assert_allclose(curve.false_positive_rate, rates[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(curve.sensitivity, rates[1], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(finite(curve.threshold), rates[2][1:])
    area = metrics.roc_auc_score(positive, finite(score))
    assert auc(positive, score) == pytest.approx(area, abs=1e-12)


@pytest.mark.parametrize("distinct", [1, 2, 5, 1000])
def test_oracle_area_of_many_patients_with_ties_equals_scikit_learn(distinct):
    rng = np.random.default_rng(distinct)
    positive = rng.random(2000) < 0.2
    score = np.floor((rng.random(2000) + 0.3 * positive) * distinct)
    area = metrics.roc_auc_score(positive, score)
    assert auc(positive, score) == pytest.approx(area, abs=1e-12)


@given(cohorts)
def test_oracle_area_equals_pairs_and_mannwhitneyu(cohort):
    positive, score = cohort
    wins = [float(a > b) + 0.5 * float(a == b) for a in score[positive] for b in score[~positive]]
    assert auc(positive, score) == pytest.approx(sum(wins) / len(wins), abs=1e-12)
    u = mannwhitneyu(score[positive], score[~positive], method="asymptotic").statistic
    assert auc(positive, score) == pytest.approx(u / len(wins), abs=1e-12)


@given(cohorts)
def test_oracle_operating_points_equal_a_loop_over_thresholds(cohort):
    positive, score = cohort
    curve = curve_of(positive, score)
    points = []
    for threshold in sorted(set(score.tolist()), reverse=True):
        called = score >= threshold
        points.append(
            OperatingPoint(
                threshold,
                float(called[positive].mean()),
                float((~called[~positive]).mean()),
                float(positive[called].mean()),
            )
        )
    for wanted in (0.0, 0.5, 0.8, 0.9, 1.0):
        good = [p.sensitivity for p in points if p.specificity >= wanted]
        assert sensitivity_at_specificity(curve, wanted) == max(good, default=0.0)
    chosen = youden(curve)
    assert chosen in points
    best = max(p.sensitivity + p.specificity for p in points)
    assert chosen.sensitivity + chosen.specificity == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize(
    ("positive", "score", "area"),
    [
        ([1, 1, 0, 0], [4.0, 3.0, 2.0, 1.0], 1.0),
        ([1, 1, 0, 0], [1.0, 2.0, 3.0, 4.0], 0.0),
        # Pairs: .8 beats .6 and .2; .4 beats .2 only.
        ([1, 1, 0, 0], [0.8, 0.4, 0.6, 0.2], 0.75),
        # Pairs: .5 ties .5 and beats .1; .9 beats both.
        ([1, 1, 0, 0], [0.5, 0.9, 0.5, 0.1], 3.5 / 4),
        ([1, 0, 0, 1, 0], [7.0] * 5, 0.5),
        ([1, 0, 1], [np.inf, 0.0, -np.inf], 0.5),
        ([1, 0], [np.inf, np.inf], 0.5),
        ([1, 1, 1], [0.1, 0.2, 0.3], None),
        ([0, 0], [0.1, 0.2], None),
        ([], [], None),
    ],
)
def test_closed_form_area_worked_by_hand(positive, score, area):
    assert auc(np.array(positive, bool), np.array(score, float)) == area


def test_closed_form_curve_worked_by_hand():
    curve = curve_of(POSITIVE, SCORE)
    assert curve.threshold.tolist() == [0.9, 0.7, 0.4, 0.1, -np.inf]
    assert curve.true_positives.tolist() == [0, 1, 2, 3, 3, 3]
    assert curve.false_positives.tolist() == [0, 0, 1, 3, 4, 5]
    thirds = [[0.0, 0.0], [0.0, 1 / 3], [0.2, 2 / 3], [0.6, 1.0], [0.8, 1.0], [1.0, 1.0]]
    assert curve.points == thirds
    # Pairs: .9 beats five; .7 ties one and beats four; .4 ties two and beats two.
    assert curve.area == (5 + 4.5 + 3) / 15


@pytest.mark.parametrize(
    ("wanted", "best"),
    [(1.0, 1 / 3), (0.81, 1 / 3), (0.8, 2 / 3), (0.41, 2 / 3), (0.4, 1.0), (0.0, 1.0)],
)
def test_closed_form_sensitivity_is_a_step_function_of_specificity(wanted, best):
    assert sensitivity_at_specificity(curve_of(POSITIVE, SCORE), wanted) == best


@pytest.mark.parametrize("n", [10, 20, 30, 70, 110])
def test_closed_form_a_specificity_of_nine_tenths_is_not_lost_to_rounding(n):
    """A tenth of the negatives above the only positive: 1 - 0.1 n / n may fall short of 0.9."""
    score = np.concatenate([[1.0], np.full(n // 10, 2.0), np.zeros(n - n // 10)])
    positive = np.arange(n + 1) == 0
    assert sensitivity_at_specificity(curve_of(positive, score), 0.9) == 1.0
    assert sensitivity_at_specificity(curve_of(positive, score), 0.91) == 0.0


def test_closed_form_youden_worked_by_hand():
    # J: 1/3, 7/15, 2/5, 1/5, 0.
    assert youden(curve_of(POSITIVE, SCORE)) == OperatingPoint(0.7, 2 / 3, 0.8, 2 / 3)
    # J is 1/2 at 3 and at 1; the more specific threshold is taken.
    tied = curve_of(np.array([1, 0, 1, 0], bool), np.array([3.0, 2.0, 1.0, 0.0]))
    assert youden(tied) == OperatingPoint(3.0, 0.5, 1.0, 1.0)
    constant = curve_of(np.array([1, 0, 0], bool), np.full(3, 0.3))
    assert youden(constant) == OperatingPoint(0.3, 1.0, 0.0, 1 / 3)


def test_closed_form_what_cannot_be_ranked_or_wanted_is_refused():
    for refused in (auc, roc_curve):
        with pytest.raises(ValueError, match="NaN"):
            refused(np.array([True, False]), np.array([np.nan, 0.0]))
    for wanted in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="specificity"):
            sensitivity_at_specificity(curve_of(POSITIVE, SCORE), wanted)


@given(cohorts)
def test_property_rising_transforms_change_thresholds_only(cohort):
    positive, score = cohort
    score = finite(score)
    curve, moved = curve_of(positive, score), curve_of(positive, 3 * score + score**3)
    assert moved.points == curve.points
    assert moved.area == curve.area


@given(cohorts)
def test_property_swapped_labels_and_turned_scores_mirror_the_curve(cohort):
    positive, score = cohort
    area = curve_of(positive, score).area
    assert curve_of(~positive, score).area == pytest.approx(1 - area, abs=1e-12)
    assert curve_of(positive, -score).area == pytest.approx(1 - area, abs=1e-12)
    assert curve_of(~positive, -score).area == area


@given(cohorts, st.integers(0, 100))
def test_property_order_and_repetition_of_patients_change_nothing(cohort, seed):
    positive, score = cohort
    order = np.random.default_rng(seed).permutation(len(score))
    curve = curve_of(positive, score)
    assert curve_of(positive[order], score[order]).points == curve.points
    assert curve_of(np.tile(positive, 3), np.tile(score, 3)).area == curve.area
