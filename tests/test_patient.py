"""Patients and their types: against scikit-learn and a loop over pairs, and worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from hepar.evaluate.patient import (
    GROUPS,
    MeanAuc,
    OneVersusRest,
    auc_interval,
    one_versus_rest,
    patient_auc,
    positives,
)
from hepar.evaluate.statistics import bootstrap
from hepar.study import LESION_TYPES

BIG_MM3, SMALL_MM3 = 500.0, 100.0


def cohort_of(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    volumes = rng.choice([0.0, SMALL_MM3, BIG_MM3], size=(n, 8), p=[0.5, 0.2, 0.3])
    return volumes, np.round(rng.normal(volumes / 400, 1.0), 1)


def slow_auc(positive: np.ndarray, score: np.ndarray) -> float | None:
    """Share of pairs that are in order; None without pairs."""
    wins = [float(a > b) + 0.5 * float(a == b) for a in score[positive] for b in score[~positive]]
    return sum(wins) / len(wins) if wins else None


# AUC of a cohort.


@pytest.mark.parametrize("seed", range(3))
def test_oracle_cohort_equals_scikit_learn_class_by_class(seed):
    volumes, scores = cohort_of(seed)
    result = patient_auc(volumes, scores)
    one_by_one = [metrics.roc_auc_score(volumes[:, k] > 113, scores[:, k]) for k in range(8)]
    assert list(result.by_class) == list(LESION_TYPES)
    assert list(result.by_class.values()) == pytest.approx(one_by_one, abs=1e-12)
    assert result.auc_8.value == pytest.approx(np.mean(one_by_one), abs=1e-12)
    malignant, benign = (volumes[:, a:b].max(axis=1) > 113 for a, b in ((0, 3), (3, 7)))
    groups = [
        metrics.roc_auc_score(malignant, scores[:, :3].max(axis=1)),
        metrics.roc_auc_score(benign, scores[:, 3:7].max(axis=1)),
    ]
    assert result.auc_2.value == pytest.approx(np.mean(groups), abs=1e-12)
    summed = patient_auc(volumes, scores, group_score="sum")
    assert summed.by_group["malignant"] == pytest.approx(
        metrics.roc_auc_score(malignant, scores[:, :3].sum(axis=1)), abs=1e-12
    )


def test_closed_form_undefined_classes_are_left_out_and_named():
    volumes = np.zeros((3, 8))
    volumes[:, 0] = [BIG_MM3, 0, 0]  # defined, all pairs right
    volumes[:, 3] = BIG_MM3  # nobody without
    volumes[:, 5] = [0, BIG_MM3, SMALL_MM3]  # defined, one pair right and one wrong
    scores = np.zeros((3, 8))
    scores[:, 0] = [0.9, 0.1, 0.2]
    scores[:, 5] = [0.1, 0.5, 0.7]
    result = patient_auc(volumes, scores)
    assert result.by_class["hcc"] == 1.0
    assert result.by_class["cyst"] == 0.5
    assert result.auc_8 == MeanAuc(
        0.75, 2, ("icc", "metastasis", "hemangioma", "fnh", "calcification", "other")
    )
    # Every patient has a benign lesion, so only malignant against the rest is left.
    assert result.auc_2 == MeanAuc(1.0, 1, ("benign",))
    assert (result.n_positive["hemangioma"], result.n_positive["icc"]) == (3, 0)
    assert result.n_patients == 3
    nothing = patient_auc(np.zeros((2, 8)), scores[:2])
    assert nothing.auc_8 == MeanAuc(None, 0, LESION_TYPES)


def test_closed_form_constant_scores_are_one_half_everywhere():
    volumes, _ = cohort_of(7)
    result = patient_auc(volumes, np.full((60, 8), 0.3))
    assert set(result.by_class.values()) == {0.5}
    assert (result.auc_8.value, result.auc_2.value) == (0.5, 0.5)


def test_closed_form_a_ball_of_three_millimeters_is_not_positive():
    volumes = np.zeros((1, 8))
    volumes[0, :3] = [113.0, 113.1, 112.9]
    assert positives(volumes)[0].tolist() == [False, True] + [False] * 6


def test_closed_form_groups_hold_every_type_but_other():
    members = [name for group in GROUPS.values() for name in group]
    assert sorted(members) == sorted(set(LESION_TYPES) - {"other"})


@given(st.integers(0, 10_000), st.floats(0.1, 5.0), st.floats(-3.0, 3.0))
def test_property_rising_transforms_change_nothing(seed, slope, shift):
    volumes, scores = cohort_of(seed, n=20)
    moved = np.arctan(slope * scores + shift) + scores**3
    assert patient_auc(volumes, moved) == patient_auc(volumes, scores)


@given(st.integers(0, 10_000))
def test_property_order_and_sign(seed):
    volumes, scores = cohort_of(seed, n=25)
    order = np.random.default_rng(seed).permutation(25)
    first = patient_auc(volumes, scores)
    assert patient_auc(volumes[order], scores[order]) == first
    turned = patient_auc(volumes, -scores)
    for name, area in first.by_class.items():
        other = turned.by_class[name]
        assert (area is None and other is None) or area + other == pytest.approx(1.0)


# Intervals.


def test_oracle_intervals_equal_a_loop_over_pairs_on_the_same_draws():
    volumes, scores = cohort_of(3, n=25)
    problems = one_versus_rest(volumes, scores)
    hcc = problems["hcc"]

    def mean(index, names):
        areas = [slow_auc(problems[k].positive[index], problems[k].score[index]) for k in names]
        kept = [area for area in areas if area is not None]
        return sum(kept) / len(kept) if kept else None

    for names in (["hcc"], list(LESION_TYPES), list(GROUPS)):
        _, slow = bootstrap(25, lambda index, names=names: mean(index, names), draws=100, seed=4)
        fast = auc_interval({k: problems[k] for k in names}, draws=100, seed=4)
        assert fast == pytest.approx(slow, abs=1e-12)
    assert auc_interval({"hcc": hcc}, seed=1, draws=50) != auc_interval(
        {"hcc": hcc}, seed=2, draws=50
    )


def test_oracle_interval_is_as_wide_as_that_of_delong():
    """DeLong et al. 1988: variance of an AUC from the share of pairs that each patient wins."""
    rng = np.random.default_rng(0)
    positive = np.arange(300) < 100
    score = rng.normal(1.0 * positive, 1.0)
    pairs = (score[positive][:, None] > score[~positive]).astype(float)
    variance = pairs.mean(axis=1).var(ddof=1) / 100 + pairs.mean(axis=0).var(ddof=1) / 200
    low, high = auc_interval({"it": OneVersusRest(positive, score)}, draws=400)
    half = 1.96 * math.sqrt(variance)
    assert low == pytest.approx(pairs.mean() - half, abs=0.25 * half)
    assert high == pytest.approx(pairs.mean() + half, abs=0.25 * half)


def test_closed_form_interval_of_a_perfect_and_of_an_undefined_score():
    right = OneVersusRest(np.arange(12) < 6, np.arange(12)[::-1].astype(float))
    assert auc_interval({"it": right}, draws=50) == (1.0, 1.0)
    nobody = OneVersusRest(np.zeros(12, bool), right.score)
    assert auc_interval({"it": nobody}, draws=50) is None
    # A third of the draws lack the only patient who has it.
    rare = OneVersusRest(np.arange(12) < 1, right.score)
    assert rare.auc() == 1.0
    assert auc_interval({"it": rare}, draws=200) is None
    # Left out of a draw's mean where it is undefined, it does not take the mean with it.
    assert auc_interval({"it": right, "rare": rare}, draws=200) == (1.0, 1.0)
