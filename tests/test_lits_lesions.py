"""Detected lesions as the LiTS challenge measures them, on masks whose figures are plain."""

from __future__ import annotations

import numpy as np
import pytest

from hepar.evaluate.lesion import DetectionCounts
from hepar.evaluate.lits_lesions import server_lesions
from hepar.evaluate.score import score_case
from hepar.evaluate.surface import surface_distances

SPACING = (2.0, 1.0, 1.0)


def _maps(ours: list, true: list) -> tuple[np.ndarray, np.ndarray]:
    found = []
    for boxes in (ours, true):
        label = np.ones((8, 40, 40), np.uint8)
        for y, x, side in boxes:
            label[2:6, y : y + side, x : x + side] = 2
        found.append(label)
    return found[0], found[1]


def _lesions(ours: list, true: list):
    predicted, reference = _maps(ours, true)
    overlaps = score_case("c", predicted, reference, SPACING).lesions.lits
    return server_lesions(predicted, reference, SPACING, overlaps), predicted, reference


def test_closed_form_a_perfect_a_grown_and_a_missed_lesion():
    # 6 of 5 x 5 cover 25 of 36: an IoU of 0.69; 5 of 3 x 3 is 0.36 and no detection.
    ours = [(2, 2, 4), (12, 12, 6), (30, 30, 5)]
    true = [(2, 2, 4), (12, 12, 5), (31, 31, 3), (2, 30, 4)]
    found, *_ = _lesions(ours, true)
    assert found.counts == DetectionCounts(4, 3, 2, 2)
    perfect, grown = found.detected
    assert (perfect.dice, perfect.rvd, perfect.assd_mm, perfect.msd_mm) == (1.0, 0.0, 0.0, 0.0)
    assert grown.dice == pytest.approx(2 * 25 / (36 + 25))
    assert grown.rvd == pytest.approx(36 / 25 - 1)
    # The corner of the grown one lies a voxel away along both axes of a slice.
    assert grown.msd_mm == pytest.approx(np.sqrt(2))


def test_oracle_lesions_merged_by_one_prediction_are_measured_as_one():
    ours, true = [(10, 10, 12)], [(10, 10, 8), (10, 19, 3), (19, 10, 3)]
    predicted, reference = _maps(ours, true)
    reference[2:6, 10:22, 10:22] = np.where((np.indices((12, 12)) == 8).any(axis=0), 1, 2)
    overlaps = score_case("c", predicted, reference, SPACING).lesions.lits
    found = server_lesions(predicted, reference, SPACING, overlaps)
    a, b = predicted == 2, reference == 2
    assert found.counts == DetectionCounts(4, 1, 4, 1)
    (one,) = found.detected
    surface = surface_distances(a, b, SPACING)
    assert one.dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert (one.assd_mm, one.msd_mm) == (surface.assd_mm, surface.hd_mm)


def test_closed_form_without_lesions_nothing_is_measured():
    found, *_ = _lesions([], [])
    assert (found.counts, found.detected) == (DetectionCounts(0, 0, 0, 0), ())
    found, *_ = _lesions([(2, 2, 4)], [])
    assert (found.counts, found.detected) == (DetectionCounts(0, 1, 0, 0), ())
