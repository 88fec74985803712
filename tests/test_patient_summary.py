"""A cohort's patients as plain data: worked by hand, and against its parts on joined patients."""

from __future__ import annotations

import json
import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics

from hepar.evaluate.calibration import reliability
from hepar.evaluate.patient import GROUPS, auc_interval, one_versus_rest
from hepar.evaluate.patient_summary import (
    ReportedCase,
    TypedCase,
    summarize_patients,
    summarize_specificity,
)
from hepar.study import LESION_TYPES

ALL = [*LESION_TYPES, *GROUPS]


def case_of(patient_id: str, reference: dict[str, float], score: dict[str, float]) -> TypedCase:
    """One case; every type that is not scored has a score of 0."""
    return TypedCase(patient_id, reference, dict.fromkeys(LESION_TYPES, 0.0) | score)


def cases_of(seed: int, n: int = 40) -> list[TypedCase]:
    """Probabilities of patients, of whom the last quarter have a second case."""
    rng = np.random.default_rng(seed)
    volumes = rng.choice([0.0, 100.0, 500.0], size=(n, 8), p=[0.5, 0.2, 0.3])
    chances = np.round(1 / (1 + np.exp(-rng.normal(volumes / 400, 1.0))), 2)
    return [
        TypedCase(
            f"patient-{row % (3 * n // 4):03d}",
            dict(zip(LESION_TYPES, volumes[row].tolist(), strict=True)),
            dict(zip(LESION_TYPES, chances[row].tolist(), strict=True)),
        )
        for row in range(n)
    ]


# hcc: a and b have it, a's two cases only together; pairs .9 > .2, .6 and .2 = .2, < .6.
# cyst: c only; .8 beats 0, 0 and .3. Malignant a and b, benign c; scores .9 .2 .2 .6 and 0 0 .8 .3.
BY_HAND = [
    case_of("a", {"hcc": 60.0}, {"hcc": 0.1}),
    case_of("c", {"cyst": 900.0}, {"hcc": 0.2, "cyst": 0.8}),
    case_of("a", {"hcc": 60.0, "other": 20.0}, {"hcc": 0.9}),
    case_of("b", {"hcc": 114.0}, {"hcc": 0.2}),
    case_of("d", {}, {"hcc": 0.6, "cyst": 0.3}),
]


def test_closed_form_a_cohort_worked_by_hand():
    found = summarize_patients(BY_HAND, "probability", draws=20)
    none = {"auc": None, "interval": None, "n_positive": 0, "n_negative": 4}
    areas = {name: entry | {"interval": None} for name, entry in found["auc"].items()}
    assert areas == dict.fromkeys(LESION_TYPES, none) | {
        "hcc": {"auc": 2.5 / 4, "interval": None, "n_positive": 2, "n_negative": 2},
        "cyst": {"auc": 1.0, "interval": None, "n_positive": 1, "n_negative": 3},
    }
    assert found["groups"]["malignant"]["auc"] == 2.5 / 4
    assert (found["groups"]["benign"]["auc"], found["groups"]["benign"]["n_negative"]) == (1.0, 3)
    undefined = [name for name in LESION_TYPES if name not in ("hcc", "cyst")]
    for mean, names in (("auc_8", undefined), ("auc_2", [])):
        assert found[mean]["value"] == (0.625 + 1) / 2
        assert (found[mean]["n_defined"], found[mean]["undefined"]) == (2, names)
    assert found["roc"]["hcc"] == [[0.0, 0.0], [0.0, 0.5], [0.5, 0.5], [1.0, 1.0]]
    assert found["roc"]["icc"] == []
    at = found["sensitivity_at_specificity"]
    assert list(at) == ["0.9"]
    assert (at["0.9"]["hcc"], at["0.9"]["cyst"], at["0.9"]["icc"]) == (0.5, 1.0, None)
    # Of 4 patients x 8 types, 26 are 0 and did not come; six are not 0.
    calibration = found["calibration"]
    assert calibration["n"] == 32
    assert [b["n"] for b in calibration["bins"]] == [26, 2, 1, 0, 0, 1, 0, 1, 1, 0]
    said_and_came = [(0.9, 1), (0.2, 1), (0.2, 0), (0.6, 0), (0.8, 1), (0.3, 0)]
    assert calibration["brier"] == pytest.approx(sum((p - y) ** 2 for p, y in said_and_came) / 32)
    # Gaps times counts: the two of .2, of which one came, 2 |.2 - .5|; then .3, .6, .2 and .1.
    assert calibration["ece"] == pytest.approx((0.6 + 0.3 + 0.6 + 0.2 + 0.1) / 32)


def test_closed_form_volumes_are_summed_over_cases_and_groups():
    cases = [
        case_of("a", {"hcc": 200.0}, {"hcc": 30.0}),
        case_of("a", {}, {"hcc": 30.0}),
        case_of("b", {}, {"hcc": 50.0}),
        case_of("c", {"icc": 200.0}, {"hcc": 25.0, "icc": 30.0}),
        case_of("d", {"other": 9000.0}, {"other": 1e6}),
    ]
    found = summarize_patients(cases, "volume", draws=20)
    # hcc: 60 beats 50, 25 and 0. By the largest alone, 30 would lose to 50.
    assert found["auc"]["hcc"]["auc"] == 1.0
    # malignant: 60 and 55 beat 50 and 0; `other` is in no group.
    assert found["groups"]["malignant"]["auc"] == 1.0
    assert (found["score"], found["n_patients"], found["calibration"]) == ("volume", 4, None)
    assert found["auc_2"]["undefined"] == ["benign"]


@pytest.mark.parametrize("score", ["probability", "volume"])
def test_oracle_summary_equals_its_parts_on_joined_patients(score):
    cases = cases_of(11)
    names = sorted({c.patient_id for c in cases})
    assert len(names) == 30
    mine = [[c for c in cases if c.patient_id == name] for name in names]
    volumes, chances = (
        np.array([[join([pick(c)[t] for c in some]) for t in LESION_TYPES] for some in mine])
        for join, pick in (
            (sum, lambda c: c.reference_mm3),
            (max if score == "probability" else sum, lambda c: c.score),
        )
    )
    found = summarize_patients(cases, score, draws=60, seed=9)
    problems = one_versus_rest(
        volumes, chances, group_score="max" if score == "probability" else "sum"
    )
    for name in ALL:
        entry = (found["auc"] | found["groups"])[name]
        positive, said = problems[name].positive, problems[name].score
        assert entry["auc"] == pytest.approx(metrics.roc_auc_score(positive, said), abs=1e-12)
        assert entry["n_positive"] + entry["n_negative"] == 30
        rates = metrics.roc_curve(positive, said, drop_intermediate=False)
        np.testing.assert_allclose(found["roc"][name], np.transpose(rates[:2]), atol=1e-12)
        best = rates[1][1 - rates[0] >= 0.9 - 1e-12].max()
        assert found["sensitivity_at_specificity"]["0.9"][name] == pytest.approx(best, abs=1e-12)
        interval = auc_interval({name: problems[name]}, draws=60, seed=9)
        assert entry["interval"] == pytest.approx(interval)
    for mean, group in (("auc_8", LESION_TYPES), ("auc_2", tuple(GROUPS))):
        interval = auc_interval({k: problems[k] for k in group}, draws=60, seed=9)
        assert found[mean]["interval"] == pytest.approx(interval)
    if score == "probability":
        pooled = reliability(chances.ravel(), (volumes > 113).ravel())
        assert (found["calibration"]["ece"], found["calibration"]["n"]) == (pooled.ece, 240)


def test_closed_form_summary_is_plain_data():
    for found in (
        summarize_patients(BY_HAND, "probability", draws=20),
        summarize_patients(BY_HAND, "volume", draws=20),
        summarize_patients(BY_HAND[:1], "probability", draws=20),
    ):
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        assert list(found["auc"]) == list(LESION_TYPES)
        assert list(found["roc"]) == list(found["sensitivity_at_specificity"]["0.9"]) == ALL


@pytest.mark.parametrize("parts", sorted(set(permutations([37.7, 37.7, 37.6]))))
def test_closed_form_volumes_of_cases_are_summed_exactly(parts):
    """113 mm^3 in three cases are no positive and tie with 113, whichever is added first."""
    cases = [case_of("a", {"hcc": v, "fnh": 2 * v}, {"fnh": v}) for v in parts]
    cases.append(case_of("b", {}, {"fnh": 113.0}))
    found = summarize_patients(cases, "volume", draws=1)
    assert found["auc"]["hcc"]["n_positive"] == 0
    assert found["auc"]["fnh"]["auc"] == 0.5


@given(st.integers(0, 1000), st.sampled_from(["probability", "volume"]))
def test_property_order_of_cases_changes_nothing_to_the_last_bit(seed, score):
    cases = cases_of(seed, n=16)
    order = np.random.default_rng(seed).permutation(16)
    shuffled = [cases[k] for k in order]
    first = summarize_patients(cases, score, draws=1)
    assert summarize_patients(shuffled, score, draws=1) == first


@given(st.integers(0, 1000))
def test_property_rising_probabilities_change_calibration_only(seed):
    cases = cases_of(seed, n=16)
    moved = [
        TypedCase(c.patient_id, c.reference_mm3, {k: (p + p**3) / 2 for k, p in c.score.items()})
        for c in cases
    ]
    first, second = (summarize_patients(c, "probability", draws=1) for c in (cases, moved))
    assert first.pop("calibration") != second.pop("calibration")
    assert first == second


@given(st.integers(0, 1000))
def test_property_a_case_without_findings_joined_to_a_patient_changes_nothing(seed):
    cases = cases_of(seed, n=16)
    silent = [case_of(c.patient_id, {}, {}) for c in cases[:5]]
    first = summarize_patients(cases, "probability", draws=1)
    assert summarize_patients([*cases, *silent], "probability", draws=1) == first


@pytest.mark.parametrize(
    ("case", "complaint"),
    [
        (TypedCase("late", {}, {}), "not a probability of each"),
        (TypedCase("late", {}, {"hcc": 0.5}), "not a probability of each"),
        (case_of("late", {}, {"tumor-free": 0.5}), "not a probability of each"),
        (case_of("late", {"HCC": 500.0}, {}), "not a reference volume of each"),
        (case_of("late", {}, {"hcc": math.nan}), "probability is negative"),
        (case_of("late", {}, {"hcc": 1.5}), "above 1"),
        (case_of("late", {"hcc": -1.0}, {}), "reference volume is negative"),
        (case_of("late", {"hcc": math.inf}, {}), "reference volume is negative, not finite"),
    ],
)
def test_closed_form_a_missing_or_impossible_score_is_refused_by_name(case, complaint):
    """Also where the patient's other case has one: nothing is taken for 0."""
    whole = [*BY_HAND, case_of("late", {}, {})]
    summarize_patients(whole, "probability", draws=1)
    with pytest.raises(ValueError, match=complaint) as refused:
        summarize_patients([*whole, case], "probability", draws=1)
    assert "late" in str(refused.value)
    assert "a," not in str(refused.value).rpartition(":")[2]


def test_closed_form_an_empty_cohort_and_an_infinite_volume_are_refused():
    with pytest.raises(ValueError, match="no cases"):
        summarize_patients([], "volume")
    with pytest.raises(ValueError, match="volume is negative, not finite"):
        summarize_patients([case_of("a", {}, {"hcc": math.inf})], "volume")
    many = [TypedCase(f"p{k}", {}, {}) for k in range(7)]
    with pytest.raises(ValueError, match="p0, p1, p2, p3, p4 and 2 more"):
        summarize_patients(many, "volume")


# Specificity.


def test_closed_form_specificity_of_tumor_free_patients():
    cases = [
        ReportedCase("a", tumor_free=True, reported=False),
        ReportedCase("b", tumor_free=True, reported=True),
        ReportedCase("c", tumor_free=True, reported=False),
        ReportedCase("c", tumor_free=True, reported=False),
        # Reported in one of two cases: a finding in a tumor-free patient.
        ReportedCase("d", tumor_free=True, reported=False),
        ReportedCase("d", tumor_free=True, reported=True),
        # A tumor in one of two cases: not a tumor-free patient.
        ReportedCase("e", tumor_free=True, reported=False),
        ReportedCase("e", tumor_free=False, reported=False),
        ReportedCase("f", tumor_free=False, reported=True),
    ]
    found = summarize_specificity(cases)
    assert summarize_specificity(reversed(cases)) == found
    wilson = binomtest(2, 4).proportion_ci(method="wilson")
    assert found.pop("interval") == pytest.approx([wilson.low, wilson.high], abs=1e-12)
    assert found == {"tumor_free_patients": 4, "without_finding": 2, "specificity": 0.5}


def test_closed_form_specificity_without_tumor_free_patients_is_undefined():
    nobody = summarize_specificity([ReportedCase("a", tumor_free=False, reported=True)])
    assert nobody == {
        "tumor_free_patients": 0,
        "without_finding": 0,
        "specificity": None,
        "interval": None,
    }
