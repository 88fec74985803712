"""Overlap, volume and tumor burden: against SimpleITK and MONAI, worked by hand, and in slabs."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st

from hepar.evaluate import structures
from hepar.evaluate.structures import count_structures, mask_of
from hepar.evaluate.voxel import (
    Overlap,
    burden_error,
    dice_global,
    overlap,
    relative_volume_difference,
    tumor_burden,
)
from hepar.geometry import Box
from masks import ball, blobs, pairs

PAIRS = pairs()


@pytest.mark.parametrize("name", PAIRS)
def test_oracle_simpleitk_overlap(name):
    a, b, _ = PAIRS[name]
    measure = SimpleITK.LabelOverlapMeasuresImageFilter()
    # The filter takes the reference first.
    measure.Execute(*(SimpleITK.GetImageFromArray(m.astype(np.uint8)) for m in (b, a)))
    case = overlap(a, b, 1.0)
    assert case.dice == pytest.approx(measure.GetDiceCoefficient(), rel=1e-6, abs=1e-12)
    assert case.voe == pytest.approx(1 - measure.GetJaccardCoefficient(), rel=1e-6, abs=1e-12)
    # Its volume similarity is 2 (|B| - |A|) / (|A| + |B|); RVD relates to |B| alone.
    similarity = measure.GetVolumeSimilarity()
    expected = -2 * similarity / (2 + similarity)
    assert case.rvd == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_oracle_monai_dice_and_iou():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from monai.metrics import compute_dice, compute_iou
    for a, b, _ in PAIRS.values():
        one_hot = [torch.from_numpy(m[None, None].astype(np.float32)) for m in (a, b)]
        case = overlap(a, b, 1.0)
        assert case.dice == pytest.approx(compute_dice(*one_hot).item(), rel=1e-6, abs=1e-12)
        iou = compute_iou(*one_hot).item()
        assert case.voe == pytest.approx(1 - iou, rel=1e-6, abs=1e-6)


def test_closed_form_two_boxes():
    a, b = np.zeros((4, 6, 6), bool), np.zeros((4, 6, 6), bool)
    a[:, :3] = True  # 72 voxels
    b[:, 2:] = True  # 96 voxels, 24 shared
    case = overlap(a, b, voxel_ml=0.5)
    assert (case.predicted, case.reference, case.both) == (72, 96, 24)
    assert case.dice == pytest.approx(48 / 168)
    assert case.voe == pytest.approx(1 - 24 / 144)
    assert case.rvd == pytest.approx(-0.25)
    assert (case.predicted_ml, case.reference_ml, case.false_ml) == (36.0, 48.0, 24.0)
    ignore = np.zeros_like(a)
    ignore[:, 2] = True
    assert overlap(a, b, 0.5, ignore=ignore).both == 0
    with pytest.raises(ValueError, match="shapes"):
        overlap(a[1:], b, 1.0)


@pytest.mark.parametrize(
    ("predicted", "reference", "dice", "voe", "rvd"),
    [(0, 0, None, None, None), (0, 5, 0.0, 1.0, -1.0), (5, 0, 0.0, 1.0, None)],
)
def test_closed_form_empty_masks(predicted, reference, dice, voe, rvd):
    case = Overlap(predicted, reference, 0, 1.0)
    assert (case.dice, case.voe, case.rvd) == (dice, voe, rvd)


def test_closed_form_the_server_exchanges_sign_and_denominator_of_rvd():
    assert relative_volume_difference(150, 100) == 0.5
    assert relative_volume_difference(150, 100, "lits") == pytest.approx(-1 / 3)
    assert relative_volume_difference(50, 100) == -0.5
    assert relative_volume_difference(50, 100, "lits") == 1.0
    assert relative_volume_difference(0, 100, "lits") is None
    assert relative_volume_difference(10, 0) is None


def test_closed_form_dice_global_is_not_the_mean():
    cases = [Overlap(10, 10, 10, 1.0), Overlap(0, 20, 0, 1.0), Overlap(0, 0, 0, 1.0)]
    assert dice_global(cases) == pytest.approx(0.5)
    assert dice_global(cases[2:]) is None


def test_closed_form_tumor_burden():
    assert tumor_burden(30.0, 1500.0) == pytest.approx(0.02)
    assert tumor_burden(0.0, 0.0) == 0.0
    error = burden_error([0.10, 0.0, 0.5], [0.05, 0.2, 0.4])
    assert error.rmse == pytest.approx(math.sqrt((0.05**2 + 0.2**2 + 0.1**2) / 3))
    assert error.max_error == pytest.approx(0.2)
    # Overestimates alone: the server's maximum is below zero.
    assert burden_error([0.3], [0.1]).lits_max_error == pytest.approx(-0.2)
    assert burden_error([], []).rmse is None


def case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    shape = (12, 17, 15)
    maps = []
    for k in range(2):
        liver = blobs(seed + k, shape)
        maps.append(liver.astype(np.uint8) + (liver & blobs(seed + 7 + k, shape)))
    return maps[0], maps[1]


@given(st.integers(0, 1000), st.integers(1, 3000))
def test_property_slabs_count_what_the_whole_counts(seed, slab_voxels):
    a, b = case(seed)
    before = structures._SLAB_VOXELS
    structures._SLAB_VOXELS = slab_voxels
    try:
        counted = count_structures(a, b, 0.5)
    finally:
        structures._SLAB_VOXELS = before
    for name, structure in counted.items():
        masks = mask_of(name, a), mask_of(name, b)
        assert structure.overlap == overlap(*masks, 0.5)
        assert structure.box == Box.around(masks[0] | masks[1])


def test_closed_form_the_liver_includes_its_tumors_and_ignored_voxels_count_nowhere():
    truth = ball((10, 20, 20), (5, 10, 10), 5).astype(np.uint8)
    truth += ball((10, 20, 20), (5, 10, 8), 2)
    counted = count_structures(truth, truth, 1.0, ignore=truth == 2)
    assert counted["liver"].overlap.reference == (truth >= 1).sum()
    assert counted["tumor"].overlap == Overlap(0, 0, 0, 1.0)
    empty = count_structures(truth * 0, truth * 0, 1.0)
    assert (empty["liver"].box, empty["tumor"].box) == (None, None)


@pytest.mark.parametrize("odd", [3, 255, -1])
def test_closed_form_unknown_labels_are_refused(odd):
    truth = np.ones((3, 3, 3), np.int16)
    with pytest.raises(ValueError, match="not 0, 1, 2"):
        count_structures(np.full_like(truth, odd), truth, 1.0)
    with pytest.raises(ValueError, match="shapes"):
        count_structures(truth[1:], truth, 1.0)
