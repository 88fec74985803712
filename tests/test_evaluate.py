"""Scores, against MedPy and surface-distance and worked by hand."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from medpy.metric import binary as medpy
from scipy import ndimage

from hepar.evaluate.lesion import components, match_lesions
from hepar.evaluate.score import score_case, summarize
from hepar.evaluate.surface import surface_distances
from hepar.evaluate.voxel import Overlap, dice_global, mean_over_cases, overlap


def ball(shape, center, radius, spacing=(1.0, 1.0, 1.0)) -> np.ndarray:
    grids = np.meshgrid(
        *[np.arange(n) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij"
    )
    return sum((g - c) ** 2 for g, c in zip(grids, center, strict=True)) <= radius**2


def blobs(seed: int, shape=(9, 17, 15)) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, 1.6)
    return smooth > 0.6 * smooth.std()


def test_closed_form_overlap_of_two_boxes():
    a, b = np.zeros((4, 6, 6), bool), np.zeros((4, 6, 6), bool)
    a[:, :3] = True  # 72 voxels
    b[:, 2:] = True  # 96 voxels, 24 shared
    case = overlap(a, b, voxel_ml=0.5)
    assert (case.predicted, case.reference, case.both) == (72, 96, 24)
    assert case.dice == pytest.approx(48 / 168)
    assert case.voe == pytest.approx(1 - 24 / 144)
    assert case.rvd == pytest.approx(-0.25)
    assert case.false_ml == 24.0
    ignore = np.zeros_like(a)
    ignore[:, 2] = True
    assert overlap(a, b, 0.5, ignore=ignore).both == 0


@pytest.mark.parametrize(
    ("predicted", "reference", "dice", "voe", "rvd", "missed"),
    [(0, 0, None, None, None, False), (0, 5, 0.0, 1.0, -1.0, True), (5, 0, 0.0, 1.0, None, True)],
)
def test_closed_form_empty_masks(predicted, reference, dice, voe, rvd, missed):
    case = Overlap(predicted, reference, 0, 1.0)
    assert (case.dice, case.voe, case.rvd, case.missed) == (dice, voe, rvd, missed)


def test_closed_form_means_say_what_they_stand_on():
    mean = mean_over_cases([0.0, 0.5, None, 1.0], [True, False, False, False])
    assert (mean.value, mean.n_defined, mean.n_missed, mean.n_undefined) == (0.5, 3, 1, 1)
    assert mean.std == pytest.approx(0.5)
    assert mean_over_cases([None]).value is None
    with pytest.raises(ValueError, match="not finite"):
        mean_over_cases([math.nan])
    assert dice_global([Overlap(10, 10, 10, 1), Overlap(0, 20, 0, 1)]) == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(4))
def test_oracle_surface_distances_equal_medpy(seed):
    a, b, spacing = blobs(seed), blobs(seed + 50), (2.5, 0.8, 1.1)
    got = surface_distances(a, b, spacing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forth = medpy.__surface_distances(a, b, spacing, 2)
        back = medpy.__surface_distances(b, a, spacing, 2)
    pooled = np.concatenate([forth, back])
    assert got.assd_mm == pytest.approx(pooled.mean(), rel=1e-5)
    assert got.rmsd_mm == pytest.approx(math.sqrt((pooled**2).mean()), rel=1e-5)
    assert got.hd_mm == pytest.approx(pooled.max(), rel=1e-5)
    assert got.hd95_mm == pytest.approx(
        max(np.percentile(forth, 95), np.percentile(back, 95)), rel=1e-5
    )


def test_closed_form_two_voxels_two_millimeters_apart():
    a, b = np.zeros((1, 1, 5), bool), np.zeros((1, 1, 5), bool)
    a[0, 0, 1], b[0, 0, 3] = True, True
    got = surface_distances(a, b, (3.0, 3.0, 1.0))
    assert got.assd_mm == got.rmsd_mm == got.hd_mm == 2.0
    empty = np.zeros_like(a)
    assert surface_distances(empty, empty, (1.0, 1.0, 1.0)) is None
    missed = surface_distances(a, empty, (3.0, 3.0, 1.0))
    assert missed.missed
    assert missed.hd_mm == pytest.approx(math.sqrt(9 + 9 + 25))


@given(st.integers(0, 10_000))
def test_property_surface_distance_is_symmetric_and_zero_for_equal_masks(seed):
    a, b = blobs(seed), blobs(seed + 1)
    there, back = (surface_distances(*pair, (2.0, 1.0, 1.0)) for pair in ((a, b), (b, a)))
    assert there.assd_mm == pytest.approx(back.assd_mm)
    assert surface_distances(a, a, (2.0, 1.0, 1.0)).hd_mm == 0.0


def brute_force_match(predicted, reference, min_iou):
    pairs = []
    for p in np.unique(predicted[predicted > 0]):
        for r in np.unique(reference[reference > 0]):
            both = ((predicted == p) & (reference == r)).sum()
            union = ((predicted == p) | (reference == r)).sum()
            if both / union >= min_iou:
                pairs.append((both / union, int(p), int(r)))
    used_p, used_r, found = set(), set(), []
    for iou, p, r in sorted(pairs, key=lambda t: (-t[0], t[1], t[2])):
        if p not in used_p and r not in used_r:
            used_p.add(p)
            used_r.add(r)
            found.append((p, r, iou))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_oracle_matching_equals_a_slow_loop(seed):
    a = components(blobs(seed, (10, 20, 20)))
    b = components(np.roll(blobs(seed, (10, 20, 20)), 2, axis=2))
    got = match_lesions(a, b, 1.0)
    expected = brute_force_match(a, b, 0.1)
    assert [(p, r) for p, r, _ in got.pairs] == [(p, r) for p, r, _ in expected]
    assert got.recall == pytest.approx(len(expected) / b.max())


def test_closed_form_lesion_counts():
    shape = (1, 30, 30)
    truth, found = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    truth[0, 2:6, 2:6], truth[0, 20:24, 20:24], truth[0, 2:4, 20:22] = 1, 2, 3
    found[0, 2:6, 2:5], found[0, 10:12, 10:12], found[0, 2:4, 20:22] = 1, 2, 3
    match = match_lesions(found, truth, 0.5, ignore=frozenset({3}))
    assert [(p, r) for p, r, _ in match.pairs] == [(1, 1)]
    assert match.pairs[0][2] == pytest.approx(12 / 16)
    assert (match.missed, match.false) == ((2,), (2,))
    assert match.recall == match.precision == 0.5
    assert match.reference_ml == {1: 8.0, 2: 8.0}
    assert match_lesions(found * 0, truth * 0, 1.0).recall is None


def test_closed_form_components_join_diagonals_and_drop_the_small():
    mask = np.zeros((3, 5, 5), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 4, 4] = True
    assert components(mask).max() == 2
    assert components(mask, min_voxels=2).max() == 1


def test_closed_form_summary_counts_misses_and_tumor_free_patients():
    shape, spacing = (12, 24, 24), (2.0, 1.0, 1.0)
    liver = ball(shape, (12, 12, 12), 10, spacing)
    tumor = ball(shape, (12, 12, 8), 3, spacing)
    truth = liver.astype(np.uint8) + tumor
    perfect = score_case("a", truth, truth, spacing)
    missed = score_case("b", liver.astype(np.uint8), truth, spacing)
    free = score_case("c", truth, liver.astype(np.uint8), spacing)
    summary = summarize([perfect, missed, free])
    dice = summary["tumor"]["dice_per_case"]
    assert (dice["mean"], dice["n"], dice["n_missed"]) == (pytest.approx(1 / 3), 3, 2)
    assert summary["lesions"] | {"recall": 0.5} == {
        "reference": 2,
        "found": 1,
        "recall": 0.5,
        "false": 1,
        "false_per_patient": pytest.approx(1 / 3),
        "tumor_free_patients": 1,
        "false_in_tumor_free": 1,
    }
    assert perfect.row()["liver_reference_ml"] == pytest.approx(liver.sum() * 0.002)


def test_closed_form_ignored_voxels_are_neither_hit_nor_false():
    shape = (6, 12, 12)
    truth = np.ones(shape, np.uint8)
    truth[2:4, 2:5, 2:5] = 2
    cyst = np.zeros(shape, bool)
    cyst[2:4, 8:10, 8:10] = True
    found = truth.copy()
    found[cyst] = 2
    case = score_case("a", found, truth, (1.0, 1.0, 1.0), ignore=cyst)
    assert case.overlap["tumor"].dice == 1.0
    assert (len(case.lesions.pairs), case.lesions.false, case.lesions.missed) == (1, (), ())
