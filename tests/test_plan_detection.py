"""Detection as PLAN counts it: worked by hand, and against a loop over its dense matrix."""

from __future__ import annotations

import numpy as np
import pytest

from hepar.evaluate.lesion import DetectionCounts, LesionOverlaps
from hepar.evaluate.plan_detection import plan_detection


def table(predicted: dict, reference: dict, shared: dict, voxel_mm3=200.0) -> LesionOverlaps:
    """With 200 mm^3 a voxel, so that every lesion counts unless said otherwise."""
    return LesionOverlaps(predicted, reference, shared, voxel_mm3)


def test_closed_form_a_dice_of_a_fifth_hits():
    assert plan_detection(table({1: 5}, {1: 5}, {(1, 1): 1})) == DetectionCounts(1, 1, 1, 1)
    assert plan_detection(table({1: 5}, {1: 6}, {(1, 1): 1})) == DetectionCounts(1, 1, 0, 0)


@pytest.mark.parametrize(
    ("predicted", "reference", "expected"),
    [
        (113, 113, DetectionCounts(1, 1, 1, 1)),
        (112, 113, DetectionCounts(1, 0, 0, 0)),  # too small a prediction is dropped
        (113, 112, DetectionCounts(0, 0, 0, 0)),  # too small a lesion is neither found nor missed
        (113, 25, DetectionCounts(0, 0, 0, 0)),
        (113, 24, DetectionCounts(0, 1, 0, 0)),  # a tiny one is not there at all
    ],
)
def test_closed_form_sizes(predicted, reference, expected):
    sizes = table({1: predicted}, {1: reference}, {(1, 1): min(predicted, reference)}, 1.0)
    assert plan_detection(sizes) == expected


def test_closed_form_one_prediction_may_find_several_lesions():
    merged = table({1: 20}, {1: 8, 2: 8}, {(1, 1): 8, (1, 2): 8})
    assert plan_detection(merged) == DetectionCounts(2, 1, 2, 1)


def test_closed_form_a_lesion_found_before_does_not_count_again():
    split = table({1: 4, 2: 5, 3: 1}, {1: 10}, {(1, 1): 4, (2, 1): 5})
    assert plan_detection(split) == DetectionCounts(1, 2, 1, 1)


def test_closed_form_an_ignored_lesion_counts_only_as_the_original_does():
    both = table({1: 20, 2: 5}, {1: 8, 2: 8, 3: 5}, {(1, 1): 8, (1, 2): 8, (2, 3): 5})
    ignore = frozenset({2, 3})
    assert plan_detection(both, ignore=ignore) == DetectionCounts(1, 1, 1, 1)
    original = plan_detection(both, ignore=ignore, count_ignored=True)
    assert original == DetectionCounts(1, 1, 2, 1), "2 found of 1"


def counted_by_loop(overlaps, ignore, count_ignored):
    """Its bookkeeping as a loop over the dense matrix of overlaps."""
    volume = overlaps.voxel_mm3
    ids_p = [p for p, n in overlaps.predicted.items() if n * volume >= 113]
    ids_r = [r for r, n in overlaps.reference.items() if n * volume >= 25]
    skipped = [overlaps.reference[r] * volume < 113 or r in ignore for r in ids_r]
    dice = np.array(
        [
            [
                2 * overlaps.shared.get((p, r), 0) / (overlaps.predicted[p] + overlaps.reference[r])
                for r in ids_r
            ]
            for p in ids_p
        ]
    ).reshape(len(ids_p), len(ids_r))
    taken = [False] * len(ids_r)
    true = false = found = 0
    for row in sorted(range(len(ids_p)), key=lambda k: (-dice[k].max(initial=0), ids_p[k])):
        hit = [k for k in range(len(ids_r)) if dice[row, k] >= 0.2]
        if not hit:
            false += 1
        elif not all(skipped[k] for k in hit):
            counts = False
            for k in hit:
                if not taken[k] and (count_ignored or not skipped[k]):
                    taken[k] = counts = True
                    found += 1
            true += counts
    return DetectionCounts(len(ids_r) - sum(skipped), true + false, found, true)


@pytest.mark.parametrize("count_ignored", [False, True])
def test_oracle_counts_equal_a_loop_over_the_matrix(count_ignored):
    seen = set()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        n_p, n_r = rng.integers(0, 7, size=2)
        shared = {
            (p, r): int(rng.integers(1, 80))
            for p in range(1, n_p + 1)
            for r in range(1, n_r + 1)
            if rng.random() < 0.4
        }
        overlaps = table(
            {
                p: int(rng.integers(1, 120)) + sum(n for (a, _), n in shared.items() if a == p)
                for p in range(1, n_p + 1)
            },
            {
                r: int(rng.integers(1, 120)) + sum(n for (_, b), n in shared.items() if b == r)
                for r in range(1, n_r + 1)
            },
            shared,
            1.0,
        )
        ignore = frozenset(r for r in overlaps.reference if rng.random() < 0.2)
        got = plan_detection(overlaps, ignore=ignore, count_ignored=count_ignored)
        assert got == counted_by_loop(overlaps, ignore, count_ignored)
        seen.add(got)
    assert len(seen) > 20
