"""The phantom's difficulty: every estimator on hand-made arrays, and three patients end to end."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from scipy.stats import multivariate_normal

from hepar.evaluate.criterion import Criterion, mean_criterion
from hepar.evaluate.patient import patient_auc
from hepar.evaluate.phantom_check import PhantomCheck, check, criteria, type_scores
from hepar.evaluate.phantom_measure import (
    CENTERS_HU,
    PHASES,
    LesionMeasure,
    PatientMeasure,
    measure,
    measure_lesion,
    nearest_phase,
    organ_voxels,
)
from hepar.evaluate.phantom_voxels import (
    LinearDiscriminant,
    LiverVoxels,
    Moments,
    around,
    best_dice,
    dice_curve,
    held_out_dice,
    noise_sd,
)
from hepar.evaluate.statistics import bootstrap
from hepar.phantom.tissue import Tissue
from hepar.study import LESION_TYPES
from hepar.systems.baselines.hu_threshold import smooth_inside

COARSE_MM = (7.5, 5.0, 5.0)


def dice(marked: np.ndarray, truth: np.ndarray) -> float:
    return 2 * int((marked & truth).sum()) / int(marked.sum() + truth.sum())


def some_patient(seed: int, kinds: tuple[str, ...], means: dict[str, np.ndarray]) -> PatientMeasure:
    rng = np.random.default_rng(seed)
    lesions = tuple(
        LesionMeasure(kind, 900.0, means[kind] + rng.normal(0, 1, 4), rng.normal(0, 15, 4))
        for kind in kinds
    )
    return PatientMeasure(
        seed, np.full(4, 10.0), CENTERS_HU[:, 0], lesions, None, None, CENTERS_HU.copy()
    )


# The best threshold.


@given(st.integers(0, 10_000), st.integers(2, 60), st.booleans())
def test_oracle_best_dice_equals_every_threshold_tried(seed, n, whole):
    rng = np.random.default_rng(seed)
    tumor = rng.random(n) < 0.3
    tumor[rng.integers(n)] = True
    values = rng.normal(size=n) + 0.8 * tumor * rng.choice([-1, 1])
    values = np.rint(3 * values).astype(np.int16) if whole else values.astype(np.float32)
    tried = [dice(values <= cut, tumor) for cut in values]
    tried += [dice(values >= cut, tumor) for cut in values]
    assert best_dice(values, tumor) == pytest.approx(max(tried), abs=1e-12)


def test_closed_form_best_dice_is_dark_or_bright_but_never_both():
    tumor = np.array([1, 1, 0, 0, 0, 0, 0, 0], bool)
    assert best_dice(np.array([1, 2, 5, 6, 7, 8, 9, 9]), tumor) == 1.0
    assert best_dice(np.array([9, 8, 5, 4, 3, 2, 1, 1]), tumor) == 1.0
    # One tumor voxel at each end: one found and one missed, 2 / (1 + 2).
    assert best_dice(np.array([1, 9, 5, 6, 7, 5, 5, 5]), tumor) == pytest.approx(2 / 3)
    # All values equal: everything is marked, 4 / (8 + 2).
    assert best_dice(np.full(8, 3), tumor) == pytest.approx(0.4)


@given(st.integers(0, 10_000))
def test_oracle_dice_curve_equals_a_loop(seed):
    rng = np.random.default_rng(seed)
    score = np.rint(rng.normal(size=40) * 4) / 2
    tumor = rng.random(40) < 0.4
    tumor[0] = True
    cuts = np.array([-10.0, -1.0, -0.5, 0.0, 0.25, 1.0, 10.0])
    slow = [dice(score >= cut, tumor) for cut in cuts]
    assert dice_curve(score, tumor, cuts) == pytest.approx(slow)


# Noise and contrast.


@pytest.mark.parametrize("sd", [6.0, 14.0])
def test_closed_form_noise_sd_ignores_slow_texture_and_vessels(sd):
    rng = np.random.default_rng(3)
    shape, spacing = (24, 48, 48), (2.5, 1.5, 1.5)
    noise = rng.normal(0, sd, shape)
    slow = 30 * np.sin(np.arange(48) / 12)[None, None, :]
    vessel = np.zeros(shape, bool)
    vessel[:, 20:23, 20:23] = True
    hu = np.rint(110 + noise + slow + 60 * vessel).astype(np.int16)
    inside = np.ones(shape, bool)
    smooth = smooth_inside(hu, inside, spacing, 2.4)
    assert noise_sd(hu, smooth, inside & ~vessel) == pytest.approx(sd, rel=0.04)
    with pytest.raises(ValueError, match="no parenchyma"):
        noise_sd(hu, smooth, np.zeros(shape, bool))


def test_closed_form_contrast_is_to_the_parenchyma_within_ten_millimeters():
    shape, spacing = (20, 40, 40), (2.5, 1.5, 1.5)
    z, y, x = np.ogrid[:20, :40, :40]
    lesion = (abs(z - 10) <= 1) & (abs(y - 20) <= 2) & (abs(x - 20) <= 2)
    mm = ((z - 10) * 2.5) ** 2 + ((y - 20) * 1.5) ** 2 + ((x - 20) * 1.5) ** 2
    near = ndimage.distance_transform_edt(~lesion, sampling=spacing) <= 10
    hu = np.where(lesion, 70, np.where(mm < 16**2, 100, 140)).astype(np.int16)
    parenchyma = ~lesion & (x != 21)
    assert (around(lesion, parenchyma, spacing) == (near & parenchyma)).all()
    got = measure_lesion("icc", lesion, np.stack([hu, hu + 5]), parenchyma, spacing)
    assert got.mean_hu.tolist() == [70, 75]
    assert got.contrast_hu.tolist() == [-30, -30]
    assert got.volume_mm3 == pytest.approx(3 * 5 * 5 * 2.5 * 1.5 * 1.5)
    # Nothing near: all of the parenchyma stands in.
    far = np.zeros(shape, bool)
    far[:2] = True
    assert (around(lesion, far, spacing) == far).all()


def test_closed_form_shares_of_hidden_lesions():
    """Noise 10 HU; contrasts chosen so that 2 of 4 are hidden in PV and 1 shows in one phase."""
    contrasts = ([0, 25, 3, -4], [12, -30, 18, 11], [1, 9, -9.9, 0], [0, -10, 10, 2])
    lesions = [LesionMeasure("hcc", 900.0, np.zeros(4), np.array(c, float)) for c in contrasts]
    people = [
        PatientMeasure(
            1, np.full(4, 10.0), CENTERS_HU[:, 0], tuple(lesions[:3]), None, None, CENTERS_HU
        ),
        PatientMeasure(
            2, np.full(4, 10.0), CENTERS_HU[:, 0], tuple(lesions[3:]), None, None, CENTERS_HU
        ),
        PatientMeasure(3, np.full(4, 10.0), CENTERS_HU[:, 0], (), None, None, CENTERS_HU),
    ]
    found = {c.name: c for c in criteria(people)}
    hidden = found["lesions below the noise SD in PV"]
    assert (hidden.value, hidden.n, hidden.met) == (0.5, 4, True)
    assert found["lesions visible in exactly one phase"].value == 0.25
    assert found["lesions visible in no phase"].value == 0.25


# Linear discriminants.


def slow_log_posterior(rows: np.ndarray, label: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The formula, class by class and row by row in float64."""
    kinds = sorted(set(label.tolist()))
    within = np.zeros((rows.shape[1], rows.shape[1]))
    means = {k: rows[label == k].mean(axis=0) for k in kinds}
    for row, k in zip(rows, label.tolist(), strict=True):
        within += np.outer(row - means[k], row - means[k])
    within /= len(rows) - len(kinds)
    out = np.empty((len(at), len(kinds)))
    for i, row in enumerate(at):
        for j, k in enumerate(kinds):
            density = multivariate_normal(means[k], within).pdf(row)
            out[i, j] = math.log((label == k).mean() * density)
    return out - np.log(np.exp(out).sum(axis=1, keepdims=True))


def test_oracle_discriminant_equals_the_gaussians_it_stands_for():
    rng = np.random.default_rng(5)
    label = rng.integers(0, 3, 90)
    rows = rng.normal(size=(90, 4)) @ rng.normal(size=(4, 4)) + 40 * label[:, None] / 30 + 60
    model = LinearDiscriminant.fit(Moments.of(rows, label, 3))
    slow = slow_log_posterior(rows, label, rows[:20])
    assert np.log(model.posterior(rows[:20])) == pytest.approx(slow, abs=2e-3)
    two = label < 2
    pair = LinearDiscriminant.fit(Moments.of(rows[two], label[two], 2))
    slow = slow_log_posterior(rows[two], label[two], rows[:20])
    assert pair.log_odds(rows[:20]) == pytest.approx(slow[:, 1] - slow[:, 0], abs=2e-3)


def test_closed_form_discriminant_of_two_classes_on_a_line():
    """Means 0 and 4, variance 2, equal shares: log odds 2 (x - 2)."""
    rows = np.array([[-1.0], [1.0], [3.0], [5.0]])
    model = LinearDiscriminant.fit(Moments.of(rows, np.array([0, 0, 1, 1]), 2))
    at = np.array([[2.0], [3.0], [0.0]])
    assert model.log_odds(at) == pytest.approx([0.0, 2.0, -4.0], abs=1e-4)


def test_closed_form_a_class_never_seen_has_no_chance():
    rows = np.random.default_rng(0).normal(size=(30, 4))
    label = np.repeat([0, 2], 15)
    chances = LinearDiscriminant.fit(Moments.of(rows, label, 4)).posterior(rows)
    assert (chances[:, [1, 3]] == 0).all()
    assert chances.sum(axis=1) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="cannot tell"):
        LinearDiscriminant.fit(Moments.of(rows[:1], label[:1], 4))


@given(st.integers(0, 10_000))
def test_property_moments_add_up(seed):
    rng = np.random.default_rng(seed)
    rows, label = rng.integers(-900, 900, (50, 4)), rng.integers(0, 3, 50)
    whole = Moments.of(rows, label, 3)
    split = Moments.of(rows[:20], label[:20], 3) + Moments.of(rows[20:], label[20:], 3)
    for name in ("count", "total", "square"):
        assert getattr(split, name) == pytest.approx(getattr(whole, name))


def test_closed_form_voxels_apart_in_two_phases_together_are_found_whole():
    """Tumors hide in each phase and stand out in the difference of two."""
    cases = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        tumor = np.arange(2000) < 100
        shared = rng.normal(0, 50, 2000)
        hu = np.stack([shared, shared + 20 * tumor, 0 * shared, 0 * shared], axis=1)
        noisy = np.rint(8 * (hu + rng.normal(0, 0.5, hu.shape))).astype(np.int16)
        cases.append(LiverVoxels(noisy, tumor, 0.125))
        assert best_dice(noisy[:, 1], tumor) < 0.4
    assert min(held_out_dice(cases)) > 0.99
    assert held_out_dice(cases[:1]) == []


def test_closed_form_lesion_types_far_apart_have_auc_one():
    means = {
        kind: 60.0 * np.eye(8, 4, -k // 2).sum(axis=0) + 90 * k
        for k, kind in enumerate(LESION_TYPES)
    }
    people = [
        some_patient(i, (LESION_TYPES[i % 8], LESION_TYPES[(3 * i + 1) % 8]), means)
        for i in range(40)
    ]
    people += [some_patient(99, (), means)]
    reference, scores = type_scores(people)
    assert patient_auc(reference, scores).auc_8.value == 1.0
    assert reference[0].sum() == 1800.0
    assert (scores[-1] == 0).all()
    assert type_scores(people[-1:])[1].tolist() == [[0.0] * 8]


# Phases.


def test_closed_form_centers_are_their_own_phase_with_or_without_an_organ():
    assert nearest_phase(CENTERS_HU) == PHASES
    for k in range(CENTERS_HU.shape[1]):
        cut = CENTERS_HU.copy()
        cut[:, k] = np.nan
        assert nearest_phase(cut) == PHASES
    people = [some_patient(i, (), {}) for i in range(3)]
    found = {c.name: c for c in criteria(people)}
    named = found["phases named by the nearest organ centers"]
    # Too good is out of bounds as well: no scan was badly timed.
    assert (named.value, named.n, named.interval, named.met) == (1.0, 12, (1.0, 1.0), False)
    assert found["best threshold on smoothed PV, DPC"].value is None


def test_closed_form_organs_are_measured_away_from_their_border():
    tissue = np.zeros((9, 9, 9), np.uint8)
    tissue[1:8, 1:8, 1:8] = Tissue.SPLEEN
    tissue[0, 0] = Tissue.AORTA
    instances = np.zeros_like(tissue)
    assert organ_voxels(tissue, instances, Tissue.SPLEEN).sum() == 5**3
    assert organ_voxels(tissue, instances, Tissue.AORTA).sum() == 9


# The whole.


def test_closed_form_bounds_and_table():
    def of(value: float | None, low: float | None = 0.4, high: float | None = 0.6) -> Criterion:
        return Criterion("x", value, low, high, (0.1, 0.9), 5, "patients", "how")

    assert [of(v).met for v in (0.39, 0.4, 0.6, 0.61, None)] == [False, True, True, False, False]
    assert (of(0.7, high=None).met, of(0.1, low=None).met) == (True, True)
    assert of(0.1, None, None).met is None
    result = PhantomCheck(5, 1, (2.5, 1.5, 1.5), 3.0, (of(0.5), of(0.1, None, None)))
    assert result.met
    assert "| x (how) | 0.500 | 0.100 to 0.900 | 0.40 to 0.60 | yes | 5 patients |" in (
        result.markdown()
    )
    assert "| x (how) | 0.100 | 0.100 to 0.900 |  |  | 5 patients |" in result.markdown()
    document = json.loads(json.dumps(result.document(), allow_nan=False))
    assert document["met"] is True
    assert document["criteria"][0]["interval"] == [0.1, 0.9]


def test_closed_form_bootstrap_interval_is_that_of_a_mean():
    values = np.random.default_rng(1).normal(5, 2, 200)
    found = mean_criterion("x", values.tolist(), low=4.0)
    half = 1.96 * values.std() / math.sqrt(200)
    assert found.value == pytest.approx(values.mean())
    assert found.interval == pytest.approx(
        (found.value - half, found.value + half), abs=0.15 * half
    )
    assert (found.n, found.met) == (200, True)
    assert bootstrap(0, lambda index: 1.0) == (None, None)
    assert bootstrap(3, lambda index: None) == (None, None)


def test_closed_form_a_coarse_patient_is_measured_in_every_phase():
    one = measure(800_002, COARSE_MM)
    assert one.noise_sd_hu.shape == one.parenchyma_hu.shape == (4,)
    assert (one.noise_sd_hu > 1).all()
    assert (one.noise_sd_hu < 40).all()
    assert one.lesions
    assert one.best_dice.shape == (4, 2)
    assert ((one.best_dice > 0) & (one.best_dice <= 1)).all()
    smooth, plain = one.voxels
    assert (smooth.tumor == plain.tumor).all()
    voxel_mm3 = math.prod(COARSE_MM)
    assert sum(s.volume_mm3 for s in one.lesions) == pytest.approx(plain.tumor.sum() * voxel_mm3)
    shifted = smooth.relative_to(one.parenchyma_hu)
    assert np.median(shifted.rows()[~shifted.tumor], axis=0) == pytest.approx(0, abs=8)
    assert np.isfinite(one.organs_hu).all()
    assert one.organs_hu[0] == pytest.approx(CENTERS_HU[0], abs=45)


@pytest.mark.full
def test_regression_three_coarse_patients_are_measured_by_two_processes():
    told: list[str] = []
    result = check(3, spacing_mm=COARSE_MM, progress=told.append, processes=2)
    assert len(told) == 3
    document = json.loads(json.dumps(result.document(), allow_nan=False))
    assert sum(c["met"] is not None for c in document["criteria"]) == 6
    assert all(c["value"] is None or math.isfinite(c["value"]) for c in document["criteria"])
    assert result.markdown().count("\n| ") == len(document["criteria"]) + 1
    with pytest.raises(ValueError, match="0 patients"):
        check(0)
