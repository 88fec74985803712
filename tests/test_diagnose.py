"""The lesion classifier against direct calculation, and the stage that speaks its judgement."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load, save
from scipy.stats import multivariate_normal, rankdata

from hepar.stages.diagnose import TUMOR_FREE, diagnose, patient_probabilities
from hepar.study import LesionDiagnosis
from hepar.systems.baselines.enhancement_classifier import (
    PHASES,
    EnhancementClassifier,
    calibrate,
    curve_features,
    every_phase_subset,
    fit_enhancement_classifier,
    judge,
    log_likelihood,
    posterior,
)
from liver_case import liver_case

# Mean HU in NC, ART, PV, DL.
CURVES = {
    "hcc": (45, 108, 92, 70),
    "metastasis": (42, 58, 70, 66),
    "hemangioma": (42, 88, 112, 114),
    "cyst": (5, 6, 7, 6),
    "calcification": (320, 325, 330, 326),
}
LIVER = np.array([55.0, 70.0, 112.0, 92.0])


def lesions(n: int, seed: int, spread_hu: float = 12.0) -> tuple[NDArray, list[str]]:
    generator = np.random.default_rng(seed)
    rows, labels = [], []
    for name, curve in CURVES.items():
        liver = LIVER + generator.normal(0, 6, (n, 1))
        shared = generator.normal(0, 6, (n, 1))
        hu = np.array(curve) + shared + generator.normal(0, spread_hu, (n, 4))
        rows.append(np.stack([hu, hu - liver], axis=2))
        labels += [name] * n
    return np.concatenate(rows), labels


@pytest.fixture(scope="module")
def classifier() -> EnhancementClassifier:
    return calibrate(fit_enhancement_classifier(*lesions(80, 0)), *lesions(80, 1))


def test_oracle_posterior_is_bayes_rule_over_scipy_densities(classifier):
    features, _ = lesions(5, 2)
    plain = dataclasses.replace(classifier, temperature=1.0)
    densities = [
        multivariate_normal(mean.ravel(), covariance).pdf(features.reshape(-1, 8)) * prior
        for mean, covariance, prior in zip(plain.mean, plain.covariance, plain.prior, strict=True)
    ]
    expected = np.stack(densities, axis=1)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(posterior(plain, features), expected, rtol=1e-8, atol=1e-12)


@given(st.sets(st.integers(0, 3), min_size=1, max_size=3))
def test_oracle_absent_phase_equals_a_model_fitted_without_it(absent):
    """Deleting a phase from the lesion, and from the training, gives the same posterior."""
    features, labels = lesions(30, 3)
    test, _ = lesions(10, 4)
    keep = [k for k in range(4) if k not in absent]
    whole = fit_enhancement_classifier(features, labels)
    without = fit_enhancement_classifier(
        features[:, keep], labels, phases=[PHASES[k] for k in keep]
    )
    masked = test.copy()
    masked[:, sorted(absent)] = np.nan
    for found, expected in zip(
        log_likelihood(whole, masked), log_likelihood(without, test[:, keep]), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        posterior(whole, masked), posterior(without, test[:, keep]), rtol=1e-9, atol=1e-12
    )


def test_closed_form_moments_and_shrinkage_of_two_classes():
    features = np.array([[[0.0, 0.0]], [[2.0, 2.0]], [[10.0, 0.0]], [[10.0, 4.0]]])
    fitted = fit_enhancement_classifier(
        features, ["a", "a", "b", "b"], phases=["PV"], shrinkage=2.0, floor_hu=3.0
    )
    np.testing.assert_allclose(fitted.mean, [[[1.0, 1.0]], [[10.0, 2.0]]])
    own = np.array([[[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 4.0]]])
    pooled = own.mean(axis=0)
    np.testing.assert_allclose(fitted.covariance, (own + pooled) / 2 + 9.0 * np.eye(2))


def test_oracle_gaps_in_training_recover_the_mean_that_dropping_rows_would_bias():
    """Delayed phase missing for enhancing lesions only: EM undoes it, a plain mean does not."""
    generator = np.random.default_rng(5)
    art = generator.normal(100, 20, 4000)
    late = 0.8 * art + generator.normal(0, 6, 4000)
    features = np.stack([np.stack([art, art - 70], 1), np.stack([late, late - 90], 1)], axis=1)
    gaps = features.copy()
    gaps[art > 100, 1] = np.nan
    biased = np.nanmean(gaps[:, 1, 0])
    fitted = fit_enhancement_classifier(gaps, ["x"] * 4000, phases=["ART", "DL"], floor_hu=1.0)
    assert abs(biased - late.mean()) > 10
    assert abs(fitted.mean[0, 1, 0] - late.mean()) < 1.0
    spread_hu = np.sqrt(fitted.covariance[0, 2, 2] - 1.0)
    assert abs(spread_hu - late.std()) < 0.5


def test_property_auc_rises_with_the_phases(classifier):
    features, labels = lesions(100, 6, spread_hu=25.0)
    truth = np.array([name == "hcc" for name in labels])
    column = classifier.labels.index("hcc")
    aucs = []
    for keep in ([2], [1, 2], [0, 1, 2, 3]):
        masked = np.full_like(features, np.nan)
        masked[:, keep] = features[:, keep]
        ranks = rankdata(posterior(classifier, masked)[:, column])
        n = truth.sum()
        aucs.append((ranks[truth].sum() - n * (n + 1) / 2) / (n * (~truth).sum()))
    assert aucs[0] < aucs[1] < aucs[2]
    assert aucs[0] > 0.6
    assert aucs[2] > 0.93


def test_property_calibration_keeps_its_promise_on_new_lesions(classifier):
    """Wider curves than those fitted: the temperature cools, the threshold keeps the precision."""
    fitted = fit_enhancement_classifier(*lesions(60, 7, 12.0))
    cooled = calibrate(fitted, *lesions(150, 8, 30.0), precision=0.9)
    features, labels = every_phase_subset(*lesions(150, 9, 30.0), at_least=2)
    chances = posterior(cooled, features)
    truth = np.array([cooled.labels.index(name) for name in labels])
    answered = chances.max(axis=1) >= cooled.threshold
    right = chances.argmax(axis=1) == truth
    assert cooled.temperature > 1.3
    assert 0.87 <= right[answered].mean() <= 0.94
    assert answered.mean() > 0.4
    confidence = chances.max(axis=1)
    assert abs(confidence.mean() - right.mean()) < 0.05
    before = posterior(fitted, features).max(axis=1)
    assert before.mean() - right.mean() > 0.05


def test_closed_form_where_no_threshold_reaches_the_precision_it_always_abstains():
    features, labels = lesions(20, 10)
    shuffled = list(np.random.default_rng(0).permutation(labels))
    silent = calibrate(
        fit_enhancement_classifier(features, labels), features, shuffled, precision=1
    )
    # A share of the shuffled labels is right by chance, so the very surest may still be answered.
    assert np.mean([j.abstained for j in judge(silent, features)]) > 0.9


@pytest.mark.parametrize(
    ("hu", "label", "why"),
    [
        ({"NC": 45, "ART": 108, "PV": 92, "DL": 70}, "hcc", ""),
        ({"PV": 92}, "uncertain", "one phase"),
        ({"PV": 7}, "cyst", ""),
        ({"NC": 320}, "calcification", ""),
        ({"NC": 45, "ART": -400, "PV": 900, "DL": 70}, "uncertain", "unlike"),
        ({"NC": 1500}, "uncertain", "unlike"),
        ({}, "uncertain", "not measured"),
    ],
)
def test_closed_form_judgements(classifier, hu, label, why):
    row = curve_features(hu, dict(zip(PHASES, LIVER, strict=True)))
    (judged,) = judge(classifier, row[None])
    assert judged.label == label
    assert judged.abstained == (label == "uncertain")
    assert why in judged.reason
    assert bool(judged.reason) == judged.abstained
    assert sum(judged.probabilities.values()) == pytest.approx(1)


def test_closed_form_between_two_types_it_abstains(classifier):
    a, b = (np.array(CURVES[name], dtype=float) for name in ("hcc", "hemangioma"))
    weights = np.linspace(0, 1, 41)[:, None]
    hu = a * (1 - weights) + b * weights
    strict = dataclasses.replace(classifier, threshold=0.8)
    judged = judge(strict, np.stack([hu, hu - LIVER], axis=2))
    assert judged[0].label == "hcc"
    assert judged[-1].label == "hemangioma"
    assert any("several types" in j.reason for j in judged)


def test_property_arrays_survive_safetensors(classifier):
    again = EnhancementClassifier.from_arrays(load(save(classifier.as_arrays())))
    for field in dataclasses.fields(classifier):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(classifier, field.name))


@pytest.mark.parametrize(
    "damage",
    [
        lambda a: a.pop("prior"),
        lambda a: a.update(extra=np.zeros(1)),
        lambda a: a.update(mean=a["mean"][:-1]),
        lambda a: a.update(covariance=-a["covariance"]),
        lambda a: a.update(prior=a["prior"] * np.nan),
        lambda a: a.update(names=np.frombuffer(b"[1]", dtype=np.uint8)),
        lambda a: a.update(names=np.frombuffer(b"\xff{", dtype=np.uint8)),
    ],
)
def test_closed_form_damaged_arrays_are_a_value_error(classifier, damage):
    arrays = classifier.as_arrays()
    damage(arrays)
    with pytest.raises(ValueError, match=r"."):
        EnhancementClassifier.from_arrays(arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["a"]}, "labels"),
        ({"phases": ["NC"]}, "phases"),
        ({"prior": {"hcc": 1.0}}, "prior"),
    ],
)
def test_closed_form_fit_refuses_what_does_not_fit(change, message):
    features, labels = lesions(3, 11)
    with pytest.raises(ValueError, match=message):
        fit_enhancement_classifier(features, **{"labels": labels, **change})


def test_closed_form_a_phase_never_seen_cannot_be_fitted():
    features, labels = lesions(3, 12)
    features[:, 3] = np.nan
    with pytest.raises(ValueError, match="absent from every"):
        fit_enhancement_classifier(features, labels)


def test_closed_form_the_stage_names_the_lesions_and_the_patient(classifier):
    case, found = liver_case()
    diagnosis = diagnose(case, found, classifier)
    assert [d.label for d in diagnosis.lesions] == ["hcc", "cyst"]
    first, second = found.lesions
    hcc = diagnosis.lesions[0].probabilities["hcc"]
    assert diagnosis.patient["hcc"] == pytest.approx(first.confidence * hcc)
    assert diagnosis.patient["cyst"] == pytest.approx(second.confidence, rel=0.01)
    assert diagnosis.patient[TUMOR_FREE] == pytest.approx(1 - first.confidence)
    assert diagnosis.groups == {
        "malignant": diagnosis.patient["hcc"],
        "benign": diagnosis.patient["cyst"],
    }


def test_closed_form_many_doubtful_lesions_do_not_add_up():
    _, found = liver_case()
    lesion = found.lesions[0].model_copy(update={"confidence": 1.0})
    many = dataclasses.replace(found, lesions=(lesion,) * 10)
    judged = LesionDiagnosis(
        lesion_id=1, probabilities={"hcc": 0.1, "fnh": 0.9}, label="fnh", abstained=False
    )
    assert patient_probabilities(many, (judged,) * 10)["hcc"] == pytest.approx(0.1)


def test_closed_form_no_lesion_is_tumor_free(classifier):
    case, none = liver_case(n_lesions=0)
    diagnosis = diagnose(case, none, classifier)
    assert diagnosis.lesions == ()
    assert diagnosis.patient == {TUMOR_FREE: 1.0}
    assert diagnosis.groups == {}


def test_closed_form_without_a_classifier_everything_is_uncertain():
    case, found = liver_case()
    diagnosis = diagnose(case, found, None)
    assert {d.label for d in diagnosis.lesions} == {"uncertain"}
    assert all(d.abstained and d.reason and not d.probabilities for d in diagnosis.lesions)
    assert set(diagnosis.patient) == {TUMOR_FREE, "uncertain"}
    # Never "malignant 0 %" of a lesion that may be anything.
    assert diagnosis.groups == {}


def test_closed_form_one_lesion_left_open_leaves_the_groups_open(classifier):
    case, found = liver_case()
    sure, doubtful = found.lesions
    strange = doubtful.model_copy(update={"hu": dict.fromkeys(PHASES, -400.0)})
    diagnosis = diagnose(case, dataclasses.replace(found, lesions=(sure, strange)), classifier)
    assert [d.label for d in diagnosis.lesions] == ["hcc", "uncertain"]
    assert "hcc" in diagnosis.patient
    assert diagnosis.groups == {}
