"""LiverMax, and the volumes it is compared with."""

from __future__ import annotations

import numpy as np
import pytest

from hepar.evaluate.patient import group_scores
from hepar.study import LESION_TYPES
from hepar.systems.lidia.livermax import livermax, mask_size


def _map(seed: int = 0, shape=(4, 5, 6)) -> np.ndarray:
    """A probability map that does not sum to one."""
    return np.random.default_rng(seed).gamma(0.5, size=(10, *shape))


def _oracle(probability, liver, renormalized):
    """The formula, voxel by voxel: max over the liver of S_c."""
    scores = []
    for c in range(1, 9):
        best = 0.0
        for v in np.ndindex(liver.shape):
            if liver[v]:
                total = sum(probability[(k, *v)] for k in range(10)) if renormalized else 1.0
                best = max(best, probability[(c, *v)] / max(total, 1e-6))
        scores.append(min(1.0, best))
    return scores


@pytest.mark.parametrize("renormalized", [True, False])
def test_oracle_livermax_is_the_highest_probability_inside_the_liver(renormalized):
    probability = _map()
    liver = np.random.default_rng(1).random(probability.shape[1:]) < 0.3
    liver[2] = False
    found = livermax(probability, liver, renormalized=renormalized)
    assert list(found) == list(LESION_TYPES)
    np.testing.assert_allclose([*found.values()], _oracle(probability, liver, renormalized), 1e-6)


def test_closed_form_without_a_liver_the_whole_volume_is_looked_at():
    probability = _map(2)
    nowhere = np.zeros(probability.shape[1:], bool)
    assert livermax(probability, nowhere) == livermax(probability, ~nowhere)


def test_closed_form_outside_the_liver_nothing_counts():
    probability = np.zeros((10, 1, 1, 3))
    probability[:, 0, 0, 0] = np.eye(10)[1] * 0.9 + np.eye(10)[9] * 0.1
    probability[:, 0, 0, 1] = np.eye(10)[6] * 0.3 + np.eye(10)[9] * 0.7
    probability[0, 0, 0, 2] = 1.0
    liver = np.array([[[False, True, False]]])
    expected = dict.fromkeys(LESION_TYPES, 0.0) | {"cyst": 0.3}
    assert livermax(probability, liver) == pytest.approx(expected)


def test_property_half_precision_says_the_same_to_its_digits():
    probability = _map(3)
    probability /= probability.sum(axis=0)
    liver = np.ones(probability.shape[1:], bool)
    half = livermax(probability.astype(np.float16), liver)
    assert half == pytest.approx(livermax(probability, liver), abs=1e-3)


def test_closed_form_sizes_are_summed_by_type_and_groups_by_their_rule():
    sizes = mask_size(["hcc", "cyst", "hcc", "other"], [1.5, 2.0, 0.25, 9.0])
    expected = {"hcc": 1.75, "cyst": 2.0, "other": 9.0}
    assert sizes == dict.fromkeys(LESION_TYPES, 0.0) | expected
    assert group_scores(sizes | {"icc": 1.0}, "sum") == {"malignant": 2.75, "benign": 2.0}
    # `other` is in neither group, however likely.
    assert group_scores(sizes, "max") == {"malignant": 1.75, "benign": 2.0}
