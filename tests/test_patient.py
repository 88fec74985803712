"""AUC by patient: against a double loop over pairs, against scipy, and worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from hepar.evaluate.patient import GROUPS, MeanAuc, auc, patient_auc, positives
from hepar.study import LESION_TYPES

BIG_MM3, SMALL_MM3 = 500.0, 100.0

cohorts = st.lists(st.tuples(st.booleans(), st.integers(-4, 4)), min_size=2, max_size=40).filter(
    lambda rows: len({has for has, _ in rows}) == 2
)


def slow_auc(positive: np.ndarray, score: np.ndarray) -> float:
    wins, pairs = np.float64(0), 0
    for a in score[positive]:
        for b in score[~positive]:
            wins += 1.0 if a > b else 0.5 if a == b else 0.0
            pairs += 1
    return float(wins / pairs)


def cohort_of(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    volumes = rng.choice([0.0, SMALL_MM3, BIG_MM3], size=(n, 8), p=[0.5, 0.2, 0.3])
    return volumes, np.round(rng.normal(volumes / 400, 1.0), 1)


@given(cohorts)
def test_oracle_auc_equals_pairs_and_mannwhitneyu(rows):
    positive = np.array([has for has, _ in rows])
    score = np.array([float(value) for _, value in rows])
    got = auc(positive, score)
    assert got == pytest.approx(slow_auc(positive, score), abs=1e-12)
    u = mannwhitneyu(score[positive], score[~positive], method="asymptotic").statistic
    assert got == pytest.approx(u / (positive.sum() * (~positive).sum()), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_oracle_cohort_equals_pairs_class_by_class(seed):
    volumes, scores = cohort_of(seed)
    result = patient_auc(volumes, scores)
    slow = [slow_auc(volumes[:, k] > 113, scores[:, k]) for k in range(8)]
    assert list(result.by_class) == list(LESION_TYPES)
    assert list(result.by_class.values()) == pytest.approx(slow, abs=1e-12)
    assert result.auc_8.value == pytest.approx(np.mean(slow), abs=1e-12)
    malignant, benign = (volumes[:, a:b].max(axis=1) > 113 for a, b in ((0, 3), (3, 7)))
    groups = [
        slow_auc(malignant, scores[:, :3].max(axis=1)),
        slow_auc(benign, scores[:, 3:7].max(axis=1)),
    ]
    assert result.auc_2.value == pytest.approx(np.mean(groups), abs=1e-12)
    summed = patient_auc(volumes, scores, group_score="sum")
    assert summed.by_group["malignant"] == pytest.approx(
        slow_auc(malignant, scores[:, :3].sum(axis=1)), abs=1e-12
    )


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
        ([1, 1, 1], [0.1, 0.2, 0.3], None),
        ([0, 0], [0.1, 0.2], None),
        ([], [], None),
    ],
)
def test_closed_form_auc_worked_by_hand(positive, score, area):
    assert auc(np.array(positive, bool), np.array(score, float)) == area


def test_closed_form_auc_is_the_area_under_the_trapezoids():
    positive = np.array([1, 1, 0, 1, 0, 0, 1, 0], bool)
    score = np.array([0.9, 0.7, 0.7, 0.6, 0.6, 0.6, 0.2, 0.1])
    cuts = [np.inf, *sorted(set(score), reverse=True)]
    tpr = [float((score[positive] >= cut).mean()) for cut in cuts]
    fpr = [float((score[~positive] >= cut).mean()) for cut in cuts]
    assert auc(positive, score) == pytest.approx(np.trapezoid(tpr, fpr))


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


def test_closed_form_a_score_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        auc(np.array([True, False]), np.array([np.nan, 0.0]))


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
