"""What empty masks count for: a miss never improves a mean under `penalised`, unlike in papers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hepar.evaluate.policy import LITS_LARGE, counted, outcome_of, summarize_measure
from hepar.evaluate.score import MEASURES, CaseScore, score_case
from hepar.evaluate.summary import summarize
from masks import ball, blobs

SPACING = (2.0, 1.0, 1.5)
SHAPE = (9, 17, 15)
HIGHER_IS_BETTER = {"dice", "surface_dice"}
# Signed: neither end is better. Its size is `rvd_abs`.
UNSIGNED = [measure for measure in MEASURES if measure != "rvd"]


def truth(seed: int) -> np.ndarray:
    liver = blobs(seed, SHAPE)
    liver[4, 8, 7] = True
    label = liver.astype(np.uint8)
    label[4, 8, 7] = 2
    label[liver & blobs(seed + 1000, SHAPE)] = 2
    return label


def any_prediction(seed: int) -> np.ndarray:
    """From nearly nothing over the truth of somebody else to nearly everything."""
    rng = np.random.default_rng(seed)
    kind = seed % 4
    if kind == 0:
        return truth(seed)
    if kind == 1:
        return np.full(SHAPE, 2, np.uint8)
    if kind == 2:
        label = np.zeros(SHAPE, np.uint8)
        label[tuple(rng.integers(0, SHAPE))] = 2
        return label
    return rng.integers(0, 3, SHAPE, dtype=np.uint8)


def score(seed: int, predicted: np.ndarray, reference: np.ndarray) -> CaseScore:
    return score_case(str(seed), predicted, reference, SPACING, lesions=False)


def mean_of(cases: list[CaseScore], structure: str, measure: str, policy: str) -> float:
    scores = [case.structures[structure] for case in cases]
    return summarize_measure(
        MEASURES[measure],
        [score.measures()[measure] for score in scores],
        [score.outcome for score in scores],
        [case.diagonal_mm for case in cases],
        policy,
    ).value


@pytest.mark.parametrize("measure", UNSIGNED)
@pytest.mark.parametrize("structure", ["liver", "tumor"])
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=4, unique=True))
def test_property_a_miss_never_improves_a_mean(structure, measure, seeds):
    cases = [score(s, any_prediction(s + 1), truth(s)) for s in seeds]
    missed = score(seeds[0], np.zeros(SHAPE, np.uint8), truth(seeds[0]))
    assert missed.structures[structure].outcome == "missed"
    before = mean_of(cases, structure, measure, "penalised")
    after = mean_of([missed, *cases[1:]], structure, measure, "penalised")
    added = mean_of([*cases, missed], structure, measure, "penalised")
    for worse in (after, added):
        if measure in HIGHER_IS_BETTER:
            assert worse <= before + 1e-12
        else:
            assert worse >= before - 1e-12


@pytest.mark.parametrize("measure", UNSIGNED)
@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=4, unique=True))
def test_property_a_false_tumor_never_improves_a_mean(measure, seeds):
    cases = [score(s, any_prediction(s + 1), truth(s)) for s in seeds]
    free = (truth(seeds[0]) > 0).astype(np.uint8)
    right, wrong = (score(seeds[0], predicted, free) for predicted in (free, truth(seeds[0])))
    assert wrong.structures["tumor"].outcome == "false"
    before = mean_of([right, *cases], "tumor", measure, "penalised")
    after = mean_of([wrong, *cases], "tumor", measure, "penalised")
    if measure in HIGHER_IS_BETTER:
        assert after <= before + 1e-12
    else:
        assert after >= before - 1e-12


@pytest.mark.parametrize("measure", ["assd_mm", "rmsd_mm", "hd_mm", "hd95_mm"])
def test_closed_form_a_miss_improves_a_mean_of_distances_under_paper(measure):
    good = score(1, truth(1), truth(1))
    bad = score(2, any_prediction(5), truth(2))
    missed = score(2, np.zeros(SHAPE, np.uint8), truth(2))
    before, after = (mean_of([good, c], "tumor", measure, "paper") for c in (bad, missed))
    assert after == 0.0 < before
    assert mean_of([good, missed], "tumor", measure, "penalised") > before


def test_closed_form_a_miss_improves_the_size_of_rvd_under_paper():
    over = score(2, np.full(SHAPE, 2, np.uint8), truth(2))
    missed = score(2, np.zeros(SHAPE, np.uint8), truth(2))
    assert mean_of([over], "tumor", "rvd_abs", "paper") > 1.0
    assert mean_of([missed], "tumor", "rvd_abs", "paper") == 1.0


def test_closed_form_the_table_of_policies():
    diagonal = 321.0
    for kind, measured, missed, false in (
        ("similarity", 0.7, 0.0, 0.0),
        ("error", 0.4, 1.0, 1.0),
        ("volume", -0.2, -1.0, None),
        ("volume_abs", 0.2, 1.0, None),
        ("distance", 3.5, diagonal, diagonal),
    ):
        assert counted(kind, measured, "both", diagonal) == measured
        assert counted(kind, None, "missed", diagonal) == missed
        assert counted(kind, None, "false", diagonal) == false
        assert counted(kind, None, "empty", diagonal) is None
    for outcome in ("missed", "false", "empty"):
        assert counted("distance", None, outcome, diagonal, "paper") is None
        for kind in ("distance", "volume", "volume_abs"):
            assert counted(kind, None, outcome, diagonal, "lits") == LITS_LARGE
    assert counted("similarity", None, "missed", diagonal, "paper") == 0.0
    assert counted("error", None, "false", diagonal, "lits") == 1.0
    with pytest.raises(ValueError, match="both masks"):
        counted("distance", math.nan, "both", diagonal)
    with pytest.raises(ValueError, match="both masks"):
        counted("distance", None, "both", diagonal)


def test_closed_form_a_mean_says_what_it_stands_on():
    outcomes = ["both", "missed", "empty", "both", "false"]
    values = [2.0, None, None, 4.0, None]
    mean = summarize_measure("distance", values, outcomes, [100.0] * 5)
    assert (mean.value, mean.n, mean.n_missed, mean.n_undefined) == (51.5, 4, 2, 1)
    assert (mean.detected, mean.n_detected) == (3.0, 2)
    assert mean.std == pytest.approx(np.std([2, 100, 4, 100], ddof=1))
    low, high = mean.interval
    assert low < mean.value < high
    nothing = summarize_measure("distance", [None], ["empty"], [100.0])
    assert (nothing.value, nothing.std, nothing.n, nothing.n_undefined) == (None, None, 0, 1)


def test_closed_form_a_capped_rvd_is_counted_and_stays_in_the_detected_mean():
    mean = summarize_measure("volume_abs", [3.0, 0.5, None], ["both", "both", "missed"], [1.0] * 3)
    assert mean.value == pytest.approx(2.5 / 3)
    assert (mean.n_capped, mean.detected) == (1, 1.75)
    paper = summarize_measure(
        "volume_abs", [3.0, 0.5, None], ["both", "both", "missed"], [1.0] * 3, "paper"
    )
    assert (paper.value, paper.n_capped) == (1.5, 0)


def test_closed_form_outcomes():
    found = [outcome_of(*pair) for pair in ((1, 1), (0, 1), (1, 0), (0, 0))]
    assert found == ["both", "missed", "false", "empty"]


@pytest.mark.parametrize("order", [(4, 3, 2, 1, 0), (2, 0, 4, 1, 3)])
def test_property_the_order_of_cases_does_not_matter(order):
    cases = [score(s, any_prediction(s + 1), truth(s)) for s in range(5)]
    shuffled = summarize([cases[k] for k in order])
    expected = summarize(cases)
    for measure in MEASURES:
        mean = expected["structures"]["tumor"]["measures"][measure]["penalised"]["mean"]
        assert mean == mean_of(cases, "tumor", measure, "penalised")
    for name in ("structures", "tumor_burden", "specificity"):
        assert_close(shuffled[name], expected[name])


def assert_close(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_close(a[key], b[key])
    elif isinstance(a, list):
        for x, y in zip(a, b, strict=True):
            assert_close(x, y)
    else:
        assert a == (pytest.approx(b, rel=1e-9) if isinstance(b, float) else b)


@given(st.integers(0, 500), st.integers(1, 3))
def test_property_padding_changes_only_what_a_miss_counts_for(seed, width):
    a, b = any_prediction(seed), truth(seed)
    assume((a == 2).any())
    small, large = (score(seed, *pair) for pair in ((a, b), (np.pad(a, width), np.pad(b, width))))
    assert small.structures == large.structures
    assert small.diagonal_mm < large.diagonal_mm
    assert large.diagonal_mm == math.dist((0, 0, 0), np.multiply(np.pad(a, width).shape, SPACING))


def test_closed_form_burden_without_a_liver_is_said():
    label = ball(SHAPE, (4, 8, 7), 4).astype(np.uint8)
    summary = summarize([score(0, label * 0, label), score(1, label * 0, label * 0)])
    assert summary["tumor_burden"]["n"] == summary["tumor_burden"]["n_undefined"] == 1
    assert summary["tumor_burden"]["lits"]["rmse"] == LITS_LARGE
    assert [w.split(":")[0] for w in summary["warnings"]] == ["W_LIVER_MISSED", "W_NO_LIVER_TRUTH"]
    with pytest.raises(ValueError, match="no case"):
        summarize([])
